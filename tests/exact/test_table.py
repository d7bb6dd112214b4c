"""A law of a few symbols against sums written out over all its states (A3)."""

import itertools
import math

import pytest
import torch
from scipy import stats

from sfumato import SfumatoError, schedules
from sfumato.exact import Table
from sfumato.process import Uniform


def table(symbols: int, dim: int, seed: int = 0) -> Table:
    generator = torch.Generator().manual_seed(seed)
    return Table(torch.rand([symbols] * dim, generator=generator, dtype=torch.float64) ** 3)


def brute(law: Table, process: Uniform, z: tuple[int, ...], t: float) -> tuple[float, list[list[float]]]:
    """p_t(z) and p(x_i = k | z), with loops over states and symbols and no tensor product."""
    alpha, k = float(process.keep(t)), law.symbols
    total, parts = 0.0, [[0.0] * k for _ in z]
    for place, x in enumerate(itertools.product(range(k), repeat=law.dim)):
        joint = float(law.probs[place])
        for a, b in zip(x, z, strict=True):
            joint *= (alpha if a == b else 0.0) + (1 - alpha) / k
        total += joint
        for i, a in enumerate(x):
            parts[i][a] += joint
    return total, [[v / total for v in row] for row in parts]


@pytest.mark.parametrize(("symbols", "dim"), [(2, 4), (3, 3)])
@pytest.mark.parametrize("t", [0.05, 0.5, 1.0])
def test_posterior_by_brute_force(symbols: int, dim: int, t: float) -> None:
    law, process = table(symbols, dim), Uniform(schedules.Cosine(), symbols)
    belief = law.denoiser(process)(law.states, t)
    for place, z in enumerate(itertools.product(range(symbols), repeat=dim)):
        evidence, wanted = brute(law, process, z, t)
        assert float(law.noised(process, t)[place]) == pytest.approx(evidence, abs=1e-14)
        assert torch.allclose(belief.prob[place], torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_reverse_law_is_that_of_the_chain() -> None:
    """p(z_s | z_t) = sum_x p(x | z_t) prod_i q(z_s,i | z_t,i, x_i), the right side by the process' posterior."""
    law, process, s, t = table(2, 3), Uniform(schedules.Flow()), 0.3, 0.6
    reverse, posterior = law.reverse(process, s, t), law.posterior(process, t)
    for i, z in enumerate(law.states):
        wanted = torch.zeros(len(law.probs), dtype=torch.float64)
        for j, x in enumerate(law.states):
            each = process.posterior(z[None], x[None], s, t)[0]  # (d, K)
            product = each[0]
            for row in each[1:]:
                product = (product[:, None] * row).flatten()
            wanted += posterior[i, j] * product
        assert torch.allclose(reverse[i], wanted, rtol=0, atol=1e-13)


def test_dependence_is_zero_for_independent_symbols_and_falls_like_the_step() -> None:
    process = Uniform(schedules.Flow())
    one, two = torch.tensor([0.3, 0.7], dtype=torch.float64), torch.tensor([0.9, 0.1], dtype=torch.float64)
    assert abs(Table(one[:, None] * two).dependence(process, 0.2, 0.7)) < 1e-14
    law = table(2, 4)
    losses = [sum(law.dependence(process, i / n, (i + 1) / n) for i in range(n)) for n in (64, 128, 256)]
    assert losses[0] > losses[1] > losses[2] > 0
    assert losses[1] / losses[2] == pytest.approx(2, rel=0.05)


def test_samples_have_the_law() -> None:
    law, n = table(3, 2), 20_000
    counts = torch.bincount(law.place(law.sample(n, seed=4)), minlength=9)
    assert stats.chisquare(counts.numpy(), (n * law.probs).numpy()).pvalue > 1e-3
    assert torch.equal(law.sample(7, seed=4, first=3), law.sample(10, seed=4)[3:])


def test_places_entropy_and_mistakes() -> None:
    law = Table(torch.tensor([[0.5, 0.0], [0.25, 0.25]]))
    assert law.place(law.states).tolist() == [0, 1, 2, 3]
    assert law.entropy == pytest.approx(1.5 * math.log(2), abs=1e-15)
    assert law.log_prob(torch.tensor([[1, 0], [0, 1]])).tolist() == [math.log(0.25), -math.inf]
    for wrong, words in [([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]], "same length"), ([[1.0, -1.0], [0.0, 1.0]], "negative")]:
        with pytest.raises(SfumatoError, match=words):
            Table(torch.tensor(wrong))
    with pytest.raises(SfumatoError, match="2 symbols, but the table has 3"):
        table(3, 2).noised(Uniform(schedules.Flow()), 0.5)
