"""Couplings within a batch: optimal, entropic, independent, and within classes alone where there are any."""

import itertools
import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment

import sfumato as sf
from sfumato.conditions import Conditions
from sfumato.exact import GaussianMixture, Pair
from sfumato.objectives.couplings import Coupled, Entropic, Exact, Independent, coupled
from sfumato.objectives.loss import Batch
from sfumato.objectives.times import UniformTime
from sfumato.process import RectifiedFlow
from sfumato.schedules import Flow

F64 = torch.float64


def drawn(n, dim=2, seed=0):
    return torch.randn(2, n, dim, generator=torch.Generator().manual_seed(seed), dtype=F64)


def quantiles(n, std=1.0):
    """n points of N(0, std^2), in order."""
    return std * torch.special.ndtri((torch.arange(n, dtype=F64) + 0.5) / n)[:, None]


def mean_cost(x, sources):
    return float((x - sources).square().sum(1).mean())


def test_the_exact_coupling_is_the_best_of_all_orders():
    x, sources = drawn(6)
    order = Exact()(x, sources, torch.zeros(6))
    best = min(mean_cost(x, sources[list(each)]) for each in itertools.permutations(range(6)))
    assert mean_cost(x, sources[order]) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("case", ["usual", "outlier", "equal", "far"])
def test_the_exact_coupling_costs_what_that_of_the_plain_costs_does(case):
    generator = torch.Generator().manual_seed(0)
    x, sources = torch.randn(2, 96, 3, generator=generator).double()
    x = {
        "usual": x,
        "outlier": x + 1e6 * (torch.arange(96) == 7)[:, None],
        "equal": x[:1].expand(96, 3),
        "far": x + 1e4,
    }[case]
    sources = sources[:1].expand(96, 3) if case == "equal" else sources
    cost = torch.cdist(x, sources).square()
    rows, columns = linear_sum_assignment(cost.numpy())
    order = Exact()(x, sources, torch.zeros(96))
    assert sorted(order.tolist()) == list(range(96))
    assert float(cost[rows, order].sum()) == pytest.approx(float(cost[rows, columns].sum()), rel=1e-9)


def test_the_entropic_plan_has_both_marginals_and_becomes_the_exact_one():
    x, sources = drawn(12)
    plan = Entropic(0.7).plan(x, sources).exp()
    torch.testing.assert_close(plan.sum(1), torch.full((12,), 1 / 12, dtype=F64), rtol=1e-3, atol=0)
    torch.testing.assert_close(plan.sum(0), torch.full((12,), 1 / 12, dtype=F64), rtol=1e-3, atol=0)
    order, u = Exact()(x, sources, torch.zeros(12)), torch.linspace(0.05, 0.95, 12)
    assert torch.equal(Entropic(0.05)(x, sources, u), order)


def test_the_entropic_plan_of_normal_laws_is_their_schroedinger_coupling():
    x, sources, s = quantiles(300, 1.5), quantiles(300, 0.8), 0.9
    plan = Entropic(s).plan(x, sources).exp()
    found = float((plan * (x * sources.T)).sum())
    law = Pair.optimal(GaussianMixture([1.0], [[0.0]], 1.5**2), GaussianMixture([1.0], [[0.0]], 0.8**2), noise=s)
    assert found == pytest.approx(float(law.joint.covs[0, 0, 1]), rel=0.02)  # the points lack the tails


def test_a_draw_of_the_plan_has_its_probabilities():
    x, sources = drawn(1)[0], drawn(5)[1]
    u = (torch.arange(1000, dtype=F64) + 0.5) / 1000
    rows = Entropic(1.0)(x.expand(1000, 2), sources, u)
    wanted = torch.exp(-(x - sources).square().sum(1) / 2)
    weights = Entropic(1.0).plan(x.expand(1000, 2), sources)[0].softmax(0)
    torch.testing.assert_close(rows.bincount(minlength=5) / 1000, weights.float(), rtol=0, atol=2e-3)
    assert not torch.allclose(weights, wanted / wanted.sum(), atol=0.02)  # each source is used equally often


def test_labels_keep_the_law_of_the_sources_of_a_class():
    """Two classes at -2 and 2: over both, optimal transport gives each the sources near it."""
    label = (torch.arange(400) % 2).long()
    x = drawn(400, 1)[0] * 0.1 + (4.0 * label[:, None] - 2)
    sources = quantiles(400)[torch.randperm(400, generator=torch.Generator().manual_seed(1))]
    noise = sf.Noise(0, torch.arange(400))
    blind = coupled(Exact(), "input", x, Conditions({"input": sources}), noise).given("input").values
    assert float(blind[label == 0].mean()) == pytest.approx(-math.sqrt(2 / math.pi), abs=0.02)
    seen = coupled(Exact(), "input", x, Conditions({"input": sources, "label": label}), noise).given("input").values
    assert torch.equal(seen[label == 0].sort(0).values, sources[label == 0].sort(0).values)
    assert mean_cost(x[label == 0], seen[label == 0]) < mean_cost(x[label == 0], sources[label == 0])


def test_an_independent_coupling_is_another_order_for_every_batch():
    x, sources = drawn(50)
    given = Conditions({"input": sources, "mass": torch.ones(50)})
    found = [
        coupled(Independent(), "input", x, given, sf.Noise(0, torch.arange(first, first + 50))).given("input").values
        for first in (0, 50)
    ]
    for each in found:
        assert torch.equal(each.sort(0).values, sources.sort(0).values)
    assert not torch.equal(found[0], found[1])


def test_a_coupling_that_looks_at_x_is_refused_beside_other_conditions():
    x, sources = drawn(4)
    with pytest.raises(sf.SfumatoError, match="depend on the condition 'mass'"):
        coupled(Exact(), "input", x, Conditions({"input": sources, "mass": torch.ones(4)}), sf.Noise(0, range(4)))
    with pytest.raises(sf.SfumatoError, match="above 0"):
        Entropic(0)


def test_the_loss_is_that_of_the_coupled_pairs():
    pair = Pair.independent(GaussianMixture([1.0], [[1.0, 0]], 0.5), GaussianMixture([1.0], [[0.0, 1]], 1.0))
    model, (x, sources) = pair.model(RectifiedFlow(Flow(), target="velocity")), pair.sample(8)
    batch = Batch(x, Conditions({"input": sources}), torch.arange(8), (torch.arange(8, dtype=F64) + 0.5) / 8)
    loss = Coupled(UniformTime(), None, 0, "exact")
    order = Exact()(x, sources, torch.zeros(8))
    t = Flow().time(UniformTime().logsnr(batch.u, Flow()))
    wanted = sf.denoising_loss(model, x, t, input=sources[order])
    torch.testing.assert_close(loss.losses(model, batch), wanted)
    assert not torch.equal(wanted, sf.denoising_loss(model, x, t, input=sources))
    with pytest.raises(sf.SfumatoError, match="process of pairs"):
        loss.suits(GaussianMixture([1.0], [[0.0]], 1.0).denoiser(sf.Gaussian(Flow())))
