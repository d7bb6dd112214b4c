"""Counts whose units die and are born: binomials, Bayes' rule, Poisson laws in closed form, a trained network (G10)."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

import sfumato as sf
from sfumato import schedules
from sfumato.belief import Logits
from sfumato.exact import Table
from sfumato.process import Counts, Masked, Symbols

F64 = torch.float64
FLOW, COSINE = schedules.Flow(), schedules.Cosine()
PAIRS = Table(torch.rand(4, 4, generator=torch.Generator().manual_seed(5), dtype=F64) ** 3)


def poisson(rate: float, states: int) -> torch.Tensor:
    return torch.from_numpy(stats.poisson.pmf(np.arange(states), rate))


def test_the_kernel_is_the_binomial_law_and_composes() -> None:
    process = Counts(COSINE, 9)
    x = np.arange(9)
    for s, t in [(0.0, 0.3), (0.2, 0.5), (0.4, 0.999), (0.5, 1.0)]:
        a = float(process.keep(t) / process.keep(s))
        wanted = torch.from_numpy(stats.binom.pmf(x[None], x[:, None], a))
        torch.testing.assert_close(process.matrix(s, t), wanted, rtol=0, atol=5e-15)
        composed = process.matrix(0.0, s) @ process.matrix(s, t)
        torch.testing.assert_close(composed, process.matrix(0.0, t), rtol=0, atol=5e-15)


def test_the_bridge_is_bayes_rule() -> None:
    """z + Binomial(x - z, rho) = q(z_t | z_s) q(z_s | x) / q(z_t | x), for every x and z, and for their mixtures."""
    process, s, t = Counts(COSINE, 6), 0.2, 0.6
    rho = float((process.keep(s) - process.keep(t)) / (1 - process.keep(t)))
    x, z = torch.tensor([(x, z) for x in range(6) for z in range(x + 1)]).T
    born = np.arange(6)[None] - z[:, None].numpy()
    wanted = torch.from_numpy(stats.binom.pmf(born, (x - z)[:, None].numpy(), rho))
    found = process.posterior(z[:, None], x[:, None], s, t)[:, 0]
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-15)
    first, second, whole = process.matrix(0.0, s), process.matrix(s, t), process.matrix(0.0, t)
    bayes = first[x] * second[:, z].T / whole[x, z][:, None]
    torch.testing.assert_close(found, bayes, rtol=0, atol=2e-15)
    h = torch.randn(6, 2, 6, generator=torch.Generator().manual_seed(0), dtype=F64)
    both, times = torch.stack((torch.arange(6), torch.arange(6).flip(0)), 1), torch.linspace(0.3, 0.9, 6, dtype=F64)
    belief = process.read(h, both, times)
    general = Symbols._between(process, belief.prob, both, s, times)
    torch.testing.assert_close(process.bridge(belief, s), general, rtol=0, atol=5e-15)


def test_a_poisson_law_misses_a_poisson_number_and_one_step_is_exact() -> None:
    """x - z | z ~ Poisson(lam (1 - alpha)) whatever z is."""
    rate, states = 3.0, 48
    process, law = Counts(FLOW, states), Table(poisson(rate, states))
    z, counts = torch.arange(8)[:, None], torch.arange(states)
    for t in (0.2, 0.7, 1.0):
        left = rate * (1 - float(process.keep(t)))
        belief = law.denoiser(process)(z, t)
        missing = ((counts - z[:, :, None]) * belief.prob).sum(-1)
        torch.testing.assert_close(missing, torch.full_like(missing, left), rtol=0, atol=1e-12)
        for b in range(8):
            torch.testing.assert_close(belief.prob[b, 0, b:], poisson(left, states - b), rtol=0, atol=1e-12)
    start = law.denoiser(process)(torch.zeros(1, 1, dtype=torch.int64), 1.0)
    torch.testing.assert_close(process.bridge(start, 0.0)[0, 0], law.probs, rtol=0, atol=1e-15)


def test_the_bound_of_a_mixture_of_poisson_laws_is_its_entropy() -> None:
    """int E rate dlevel = -log p(x) for every x, by the trapezoidal rule."""
    states = 24
    law = Table(0.4 * poisson(1.0, states) + 0.6 * poisson(7.0, states))
    process, model = Counts(FLOW, states), law.denoiser(Counts(FLOW, states))
    node = torch.linspace(-34, 34, 300, dtype=F64)
    z, x = torch.arange(states).repeat(states)[:, None], torch.arange(states).repeat_interleave(states)[:, None]
    total = torch.zeros(states, dtype=F64)
    for level in node.tolist():
        t = float(process.clock.time(torch.tensor(level, dtype=F64)))
        belief = model(law.states, t).rows(z[:, 0])
        rate = process.rate(belief, x)[:, 0].reshape(states, states)
        total += float(node[1] - node[0]) * (process.matrix(0.0, t) * rate).sum(1)
    torch.testing.assert_close(total, -law.log_prob(law.states), rtol=0, atol=1e-8)


def test_the_rate_is_the_path_kl_of_any_chain() -> None:
    process, t = Counts(COSINE, 7), 0.4
    x, z = torch.tensor([(x, z) for x in range(7) for z in range(x + 1)]).T[..., None]
    h = torch.randn(len(x), 1, 7, generator=torch.Generator().manual_seed(1), dtype=F64)
    belief = process.read(h, z, t)
    torch.testing.assert_close(process.rate(belief, x), Symbols.rate(process, belief, x), rtol=1e-12, atol=1e-13)


def test_of_one_count_for_each_symbol_it_is_masking() -> None:
    """Counts (1[x = k])_k of a symbol x: the loss is the cross-entropy of masks, and what is revealed is the same."""
    p = torch.tensor([0.5, 0.2, 0.3], dtype=F64)
    probs = torch.zeros(2, 2, 2, dtype=F64)
    probs[1, 0, 0], probs[0, 1, 0], probs[0, 0, 1] = p
    counts, masked = Counts(COSINE, 2), Masked(COSINE, 3)
    hot = torch.eye(3, dtype=torch.int64)
    hidden = torch.full((3, 1), 3)
    for t in (0.1, 0.5, 0.9):
        seen, dead = (Table(probs).denoiser(counts)(z, t) for z in (hot, torch.zeros_like(hot)))
        assert float(counts.rate(seen, hot).abs().max()) == 0
        mask = Table(p).denoiser(masked)(hidden, t)
        torch.testing.assert_close(
            counts.rate(dead, hot).sum(1), masked.rate(mask, torch.arange(3)[:, None])[:, 0], rtol=0, atol=1e-15
        )
        revealed = masked.bridge(mask, t / 2)[0, 0, :3]
        torch.testing.assert_close(counts.bridge(dead, t / 2)[0, :, 1], revealed, rtol=0, atol=1e-15)


def law_of_samples(process: Counts, steps: int) -> torch.Tensor:
    """The exact law of samples of PAIRS by so many steps, as products of transition matrices."""
    model, states = PAIRS.denoiser(process), PAIRS.states
    law = torch.zeros(len(states), dtype=F64)
    law[0] = 1.0
    for i in range(steps, 0, -1):
        reached = law > 0
        step = process.bridge(model(states[reached], i / steps), (i - 1) / steps)
        law = law[reached] @ (step[:, 0, :, None] * step[:, 1, None, :]).flatten(1)
    return law


def test_samples_approach_the_law_with_the_steps() -> None:
    """Independent births lose only the dependence of a step, which falls like 1 / steps."""
    away = [float((law_of_samples(Counts(FLOW, 4), n) - PAIRS.probs).abs().sum()) / 2 for n in (1, 4, 16, 64)]
    marginal = PAIRS.marginals(PAIRS.probs[None])[0]
    alone = (marginal[0][:, None] * marginal[1]).flatten()
    assert away[0] == pytest.approx(float((alone - PAIRS.probs).abs().sum()) / 2, abs=1e-14)
    assert away[0] > 0.3 and 2.8 < away[1] / away[2] < away[2] / away[3] < 4


def test_many_samples_agree_with_the_law() -> None:
    n, process = 200_000, Counts(FLOW, 16)
    x = sf.sample(Table(poisson(2.5, 16)[:, None] * poisson(0.8, 16)).denoiser(process), n, steps=2, seed=4, batch=n)
    for i, rate in enumerate((2.5, 0.8)):
        wanted = poisson(rate, 16) / poisson(rate, 16).sum()
        often = int((n * wanted >= 10).sum())
        found = torch.bincount(x[:, i], minlength=16)
        found = torch.cat((found[:often], found[often:].sum()[None]))
        wanted = torch.cat((wanted[:often], wanted[often:].sum()[None]))
        assert stats.chisquare(found.numpy(), (n * wanted / wanted.sum()).numpy()).pvalue > 0.01
    assert abs(float(torch.corrcoef(x.T.double())[0, 1])) < 4 / math.sqrt(n)


def test_large_counts_are_safe_in_single_precision() -> None:
    """A belief that is sure of 255 about a count of which nothing is left."""
    process, z = Counts(FLOW, 256), torch.tensor([[0, 200]])
    y = torch.full((1, 2, 256), -80.0)
    y[..., 255] = 2000.0
    belief = process.read(y, z, 0.5)
    assert float(belief.prob[..., 255].min()) == 1.0
    step, wanted = process.bridge(belief, 0.25), process.bridge(process.read(y.double(), z, 0.5), 0.25)
    torch.testing.assert_close(step.double(), wanted, rtol=0, atol=1e-6)
    mean = (step * torch.arange(256)).sum(-1)
    torch.testing.assert_close(mean[0], torch.tensor([127.5, 227.5]), rtol=1e-4, atol=0)
    assert bool(process.rate(belief, torch.tensor([[3, 255]])).isfinite().all())


def test_a_network_hears_a_thermometer() -> None:
    z = torch.tensor([[0, 2]])
    heard = Counts(FLOW, 3).inputs(z, 0.5)[0]
    assert heard.tolist() == [[1, 1, -1, 1, -1, 1]]  # channel k of all counts: z >= k
    assert Counts(FLOW, 2).inputs(torch.tensor([[0, 1]]), 0.5)[0].tolist() == [[-1, 1]]
    sure = Counts(FLOW, 3).read(torch.zeros(1, 2, 3), z, 0.0)
    assert isinstance(sure, Logits) and torch.equal(sure.prob.argmax(-1), z)


def test_a_network_learns_a_law_of_two_counts(tmp_path) -> None:
    """Counts of two kinds of cells: few and many, or many and few."""
    many, few = poisson(6.0, 14), poisson(1.0, 14)
    law = Table(0.5 * many[:, None] * few + 0.5 * few[:, None] * many)
    run = sf.train(
        law.sample(4000).numpy(), tmp_path / "run", process="counts(states=14)", net="MLP(width=32, depth=1)",
        steps=400, batch=128, precision="float32",
    )  # fmt: skip
    x = sf.sample(run.denoiser, 8000, steps=30, batch=8000)
    found = torch.bincount(law.place(x), minlength=len(law.probs)).double() / len(x)
    independent = law.marginals(law.probs[None])[0]
    away = float((found - law.probs).abs().sum()) / 2
    shuffled = float(((independent[0][:, None] * independent[1]).flatten() - law.probs).abs().sum()) / 2
    assert away < 0.12 < 0.35 < shuffled
    again = sf.load(tmp_path / "run")
    assert again.process == Counts(run.denoiser.process.schedule, 14)
    bound = sf.log_prob(again, law.sample(400, seed=1), steps=16)
    assert float(bound.value.mean()) == pytest.approx(-law.entropy, abs=0.15)
