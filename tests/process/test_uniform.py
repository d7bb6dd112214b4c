"""The uniform process on K symbols against brute force: its kernels, its posterior by Bayes' rule, its draws (A3)."""

import itertools
import math

import pytest
import torch
from scipy import stats

from sfumato import SfumatoError, noise, schedules
from sfumato.process import Uniform

SCHEDULES = {"flow": schedules.Flow(), "cosine": schedules.Cosine(), "linear": schedules.LinearBeta()}
CASES = [(name, states) for name in SCHEDULES for states in (2, 3, 5)]


def matrix(process: Uniform, s: float, t: float) -> torch.Tensor:
    """q(z_t | z_s) as a K x K matrix, entry by entry from the words: kept, or else replaced by a uniform symbol."""
    alpha = [1.0 if v == 0 else float(process.schedule.alpha(v)) for v in (s, t)]
    a, k = alpha[1] / alpha[0], process.states
    return torch.tensor(
        [[a + (1 - a) / k if i == j else (1 - a) / k for j in range(k)] for i in range(k)], dtype=torch.float64
    )


@pytest.mark.parametrize(("name", "states"), CASES)
def test_the_posterior_is_bayes_rule(name: str, states: int) -> None:
    process = Uniform(SCHEDULES[name], states)
    for s, t in [(0.0, 0.3), (0.2, 0.5), (0.4, 0.999), (0.5, 1.0)]:
        first, second = matrix(process, 0.0, s), matrix(process, s, t)
        for x, z in itertools.product(range(states), repeat=2):
            joint = first[x] * second[:, z]  # q(z_s | x) q(z_t = z | z_s)
            found = process.posterior(torch.tensor([[z]]), torch.tensor([[x]]), s, t)[0, 0]
            assert torch.allclose(found, joint / joint.sum(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "states"), CASES)
def test_kernels_compose_and_end_uniform(name: str, states: int) -> None:
    process = Uniform(SCHEDULES[name], states)
    x = torch.arange(states)[:, None]
    marginal = process.marginal(x, 0.7)[:, 0]
    assert torch.allclose(marginal, matrix(process, 0.0, 0.4) @ matrix(process, 0.4, 0.7), rtol=0, atol=1e-14)
    assert torch.allclose(marginal.sum(0), torch.ones(states, dtype=torch.float64), rtol=0, atol=1e-14)  # doubly
    end = float(process.schedule.alpha(1.0))
    # K_T -> uniform: the distance is alpha_1, which is 0 for Flow and Cosine
    assert float((process.marginal(x, 1.0) - 1 / states).abs().max()) == pytest.approx(
        end * (1 - 1 / states), abs=1e-15
    )


def test_two_states_are_the_binomial_kernel_of_2015() -> None:
    """B(z; x (1 - beta) + beta / 2) with beta_i = 1 / (T - i + 1), which erases one T-th of the signal a step."""
    process, steps = Uniform(schedules.Flow()), 10
    signal = 1.0
    for i in range(1, steps + 1):
        beta = 1 / (steps - i + 1)
        jump = matrix(process, (i - 1) / steps, i / steps)
        assert torch.allclose(jump[:, 1], torch.tensor([beta / 2, 1 - beta / 2], dtype=torch.float64), atol=1e-14)
        signal *= 1 - beta
        assert float(process.keep(i / steps)) == pytest.approx(signal, abs=1e-14) == pytest.approx(1 - i / steps)


@pytest.mark.parametrize("states", [2, 4])
def test_the_bridge_is_the_mean_of_posteriors(states: int) -> None:
    process = Uniform(schedules.Cosine(), states)
    torch.manual_seed(0)
    z = torch.randint(states, (6, 5))
    t, s = torch.linspace(0.3, 1.0, 6, dtype=torch.float64), torch.linspace(0.0, 0.9, 6, dtype=torch.float64)
    belief = process.read(torch.randn(6, 5, states, dtype=torch.float64), z, t)
    wanted = sum(belief.prob[..., k : k + 1] * process.posterior(z, torch.full_like(z, k), s, t) for k in range(states))
    assert torch.allclose(process.bridge(belief, s), wanted, rtol=0, atol=1e-12)
    assert torch.allclose(wanted.sum(-1), torch.ones(6, 5, dtype=torch.float64), atol=1e-12)


def test_a_network_of_zeros_believes_in_independent_uniform_symbols() -> None:
    process, z = Uniform(schedules.Flow(), 3), torch.tensor([[0, 2]])
    belief = process.read(torch.zeros(1, 2, 3, dtype=torch.float64), z, 0.4)
    column = matrix(process, 0.0, 0.4)[:, z[0]].T  # Bayes' rule under a uniform prior
    assert torch.allclose(belief.prob[0], column / column.sum(1, keepdim=True), atol=1e-14)
    at_data = process.read(torch.randn(1, 2, 3), z, 0.0)
    assert torch.equal(at_data.prob.argmax(-1), z) and float(at_data.prob.max(-1).values.min()) == 1.0


@pytest.mark.parametrize("states", [2, 5])
def test_draws_have_the_laws_they_are_drawn_from(states: int) -> None:
    process, n = Uniform(schedules.Flow(), states), 20_000
    eps = noise.normal(3, torch.arange(n), (1,))
    x = torch.full((n, 1), states - 1)
    law = torch.softmax(torch.randn(states, generator=torch.Generator().manual_seed(1), dtype=torch.float64), 0)
    cases = {
        "prior": (process.prior(eps), torch.full((states,), 1 / states, dtype=torch.float64)),
        "corrupt": (process.corrupt(x, 0.6, eps), process.marginal(x[:1], 0.6)[0, 0]),
        "draw": (process.draw(law.expand(n, 1, states), eps), law),
    }
    for name, (drawn, wanted) in cases.items():
        counts = torch.bincount(drawn[:, 0], minlength=states)
        assert stats.chisquare(counts.numpy(), (n * wanted).numpy()).pvalue > 1e-3, name
    assert torch.equal(process.corrupt(x, 0.0, eps), x)


def test_impossible_processes_are_refused() -> None:
    with pytest.raises(SfumatoError, match="at least 2"):
        Uniform(schedules.Flow(), 1)
    with pytest.raises(SfumatoError, match="such as Flow or Cosine"):
        Uniform(schedules.VE())


def test_a_process_says_what_it_is() -> None:
    assert Uniform(schedules.Flow(), 7).config() == {
        "name": "Uniform", "args": {"schedule": {"name": "Flow", "args": {}}, "states": 7, "row": "other"},
    }  # fmt: skip
    assert math.isclose(float(Uniform(schedules.LogLinear()).keep(0.0)), 1.0)  # t = 0 is the data itself
