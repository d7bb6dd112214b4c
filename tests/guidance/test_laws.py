"""What guidance really samples of Gaussians: the closed forms against the solvers themselves, without any draw."""

import json
import math

import pytest
import torch

import sfumato as sf
from sfumato.belief import Estimate
from sfumato.exact import GaussianMixture
from sfumato.guidance import APG, Autoguided, FrequencyDecoupled, Zigzag, guide
from sfumato.guidance_laws import Normal, gaussian_laws
from sfumato.process import Gaussian
from sfumato.schedules import VE, LogLinear

F64 = torch.float64
CASES = [  # v_c, v_u, scale, mean and variance of the ODE, of the SDE, of the tilt; m_c = 1, m_u = 0
    (0.3, 1.0, 3.0, (1.600, 0.0270), (1.390, 0.0855), (1.250, 0.1250)),
    (0.5, 1.0, 5.0, (None, 0.03125), (None, 0.1109), (None, 1 / 6)),
    (0.8, 0.6, 1.5, (None, 0.924), (None, 0.933), (None, 0.960)),
]


def laws(v_c, v_u, g, m_c=1.0, m_u=0.0):
    one = [torch.tensor([value], dtype=F64) for value in (m_c, v_c, m_u, v_u)]
    return {name: (float(m), float(v)) for name, (m, v) in gaussian_laws(Normal(*one[:2]), Normal(*one[2:]), g).items()}


@pytest.mark.parametrize(("v_c", "v_u", "g", "ode", "sde", "tilted"), CASES)
def test_the_formulas_give_the_figures_of_the_literature_of_this_project(v_c, v_u, g, ode, sde, tilted):
    found = laws(v_c, v_u, g)
    for name, (mean, variance) in (("ode", ode), ("sde", sde), ("tilted", tilted)):
        assert found[name][1] == pytest.approx(variance, rel=2e-3)
        assert mean is None or found[name][0] == pytest.approx(mean, rel=1e-3)
    assert found["ode"][1] == pytest.approx(v_c**g / v_u ** (g - 1), rel=1e-12)
    assert found["tilted"][1] == pytest.approx(1 / (g / v_c - (g - 1) / v_u), rel=1e-12)


class Pair:
    """N(m_c, v_c) with a label, N(m_u, v_u) without: exact and linear in z."""

    def __init__(self, process, conditional, base, dim=1):
        self.process, self.shape = process, (dim,)
        self.laws = [GaussianMixture([1.0], [[m] * dim], v) for m, v in (conditional, base)]

    def __call__(self, z, t, label=None):
        c, u = (law.moments(z, process=self.process, t=t).x for law in self.laws)
        told = torch.zeros(len(z), dtype=torch.bool) if label is None else label >= 0
        return Estimate(z, t, self.process.schedule, x=torch.where(told[:, None], c, u))


def law_of_a_walk(model, steps, eta):
    """(mean, variance) that many steps give: each is affine in z, and two states tell how."""
    curve = model.process.schedule
    nodes = torch.linspace(0, 1, steps + 1, dtype=F64)
    times = curve.time(
        curve.logsnr(torch.tensor(1.0, dtype=F64)) * (1 - nodes) + curve.logsnr(torch.tensor(0.0)) * nodes
    )
    mean, variance = 0.0, float(curve.sigma(1.0)) ** 2
    two, label = torch.tensor([[0.0], [1.0]], dtype=F64), torch.zeros(2, dtype=torch.int64)
    for t, s in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        moved, std = model(two, t, label=label).step(s, eta)
        slope, start = float(moved[1] - moved[0]), float(moved[0])
        mean, variance = slope * mean + start, slope**2 * variance + float(std) ** 2
    alpha = float(curve.alpha(times[-1]))
    return mean / alpha, variance / alpha**2


@pytest.mark.parametrize("curve", [LogLinear(-12, 12), VE(math.exp(-6), math.exp(6))], ids=["vp", "ve"])
@pytest.mark.parametrize(("v_c", "v_u", "g"), [(0.3, 1.0, 3.0), (0.8, 0.6, 1.5), (0.5, 0.5, 4.0), (0.4, 1.2, 0.5)])
def test_guided_samples_have_the_law_of_the_formula_and_not_the_tilted_one(curve, v_c, v_u, g):
    """The ODE and DDPM with 400 steps, under two schedules; with equal variances guidance is exact."""
    model = guide(Pair(Gaussian(curve), (1.0, v_c), (0.0, v_u)), g)
    wanted = laws(v_c, v_u, g)
    for name, eta in (("ode", 0.0), ("sde", 1.0)):
        mean, variance = law_of_a_walk(model, 400, eta)
        assert mean == pytest.approx(wanted[name][0], rel=0.02, abs=0.01)
        assert variance == pytest.approx(wanted[name][1], rel=0.04)
        exact = wanted[name] == pytest.approx(wanted["tilted"], rel=1e-6)
        assert exact == (v_c == v_u)


def test_autoguidance_has_the_law_with_the_weak_model_for_the_base():
    process = Gaussian(LogLinear(-12, 12))
    strong, weak = (GaussianMixture([1.0], [[m]], v).denoiser(process) for m, v in ((1.0, 0.5), (0.5, 0.9)))
    wanted = laws(0.5, 0.9, 2.0, 1.0, 0.5)
    mean, variance = law_of_a_walk(Autoguided(strong, weak, 2.0), 400, 0.0)
    assert (mean, variance) == pytest.approx(wanted["ode"], rel=0.02)


def law_of_zigzag(model, steps, low):
    """(mean, variance) of zigzag walks, which are affine in the first state as the beliefs are in each."""
    plan = Zigzag(low).plan(model.process, steps)
    two, label = torch.tensor([[0.0], [1.0]], dtype=F64), torch.zeros(2, dtype=torch.int64)
    last = list(plan.run(model, two, label=label))[-1].z
    slope, start = float(last[1] - last[0]), float(last[0])
    sigma = float(model.process.schedule.sigma(1.0))
    return start, (slope * sigma) ** 2


@pytest.mark.parametrize(("g", "low"), [(2.0, 1.0), (1.5, 0.0)])
def test_zigzag_is_guidance_by_twice_the_scale_less_the_one_of_the_way_back(g, low):
    """In the limit of many steps; the error of few is of order 1, so that twice the steps halve it."""
    model = guide(Pair(Gaussian(LogLinear(-12, 12)), (1.0, 0.3), (0.0, 1.0)), g)
    mean, variance = laws(0.3, 1.0, 2 * g - low)["ode"]
    errors = [abs(law_of_zigzag(model, steps, low)[1] / variance - 1) for steps in (50, 100)]
    assert errors[0] < 0.6 and 0.4 < errors[1] / errors[0] < 0.6
    assert law_of_zigzag(model, 100, low)[0] == pytest.approx(mean, rel=0.1)
    assert abs(variance / laws(0.3, 1.0, g)["ode"][1] - 1) > 0.6  # which it would miss by far


def test_zigzag_asks_for_one_plain_scale():
    pair = Pair(Gaussian(LogLinear(-12, 12)), (1.0, 0.3), (0.0, 1.0))
    for model in (pair, APG(pair, 2.0), guide(pair, {"label": 2.0})):
        with pytest.raises(sf.SfumatoError, match="sample sf.guide"):
            sf.sample(model, 2, 2, Zigzag(), label=0)
    for low in ("a", None, float("nan")):
        with pytest.raises(sf.SfumatoError, match="low of Zigzag is a finite number"):
            Zigzag(low)
    assert Zigzag().plan(pair.process, 4).spent == 3 * 3 + 1  # calls


def test_without_a_tilted_law_there_is_none():
    found = laws(1.0, 0.5, 3.0)
    assert math.isnan(found["tilted"][1]) and found["ode"][1] == pytest.approx(4.0)
    assert laws(0.5, 0.5, 3.0, 1.0, 0.2)["sde"] == pytest.approx((1.0 + 2 * 0.8, 0.5), rel=1e-9)


def test_a_mixture_is_explained_by_its_moments_and_measured():
    """Of one class in two dimensions; drawn samples lie near the formulas, though the base is no Gaussian."""
    truth = GaussianMixture([0.5, 0.5], [[-0.3, 0.0], [0.3, 0.0]], [[0.5, 0.2], [0.5, 0.2]])
    model = truth.denoiser(Gaussian(LogLinear(-10, 10)))
    found = sf.explain_guidance(model, 3.0, n=2000, steps=60, measured=True, label=1)
    assert found.laws["base"].variance.tolist() == pytest.approx([0.59, 0.2])
    assert found.directions.abs().tolist() == [pytest.approx([1.0, 0.0]), pytest.approx([0.0, 1.0])]
    for name in ("ode", "sde"):
        formula, drawn = found.laws[name], found.laws[f"{name} measured"]
        assert drawn.variance.tolist() == pytest.approx(formula.variance.tolist(), rel=0.15)
    assert "tilted" in str(found) and "direction 2" in str(found) and "a mixture is none" in str(found)
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert told["scale"] == 3.0 and set(told["laws"]) == set(found.laws)


def test_any_other_model_is_explained_by_moments_of_its_samples():
    pair = Pair(Gaussian(LogLinear(-12, 12)), (1.0, 0.3), (0.0, 1.0))
    found = sf.explain_guidance(pair, 3.0, n=2000, label=0)
    sign = float(found.directions[0, 0])
    assert float(found.laws["ode"].variance) == pytest.approx(0.027, rel=0.25)
    assert sign * float(found.laws["tilted"].mean) == pytest.approx(1.25, rel=0.15)
    assert "2000 samples" in found.note
    with pytest.raises(sf.SfumatoError, match="label=0"):
        sf.explain_guidance(pair, 3.0)


def test_decoupled_guidance_has_the_law_of_each_frequencys_own_scale():
    """v_c(f)^g(f) / v_u(f)^(g(f) - 1) of fields whose covariances the cosine transform diagonalises."""
    n, low, cutoff = 6, 0.2, 0.15
    q = torch.tensor([[math.cos(math.pi * k * (i + 0.5) / n) for i in range(n)] for k in range(n)], dtype=F64)
    q = q / q.norm(dim=1, keepdim=True)
    k = torch.arange(n, dtype=F64)
    v_c, v_u = 0.6 / (1 + k), 1.5 / (1 + 0.5 * k)
    pair = Pair(Gaussian(VE()), *[(0.0, (q.mT @ v.diag() @ q)[None]) for v in (v_c, v_u)], dim=n)
    z = float(VE().sigma(1.0)) * torch.eye(n, dtype=F64)
    plan = sf.solvers.Heun(grid=sf.solvers.grids.LogSNR()).plan(pair.process, 300)
    guided = FrequencyDecoupled(pair, 3.0, low=low, cutoff=cutoff)
    move = q @ sf.sample(guided, solver=plan, z=z, label=torch.zeros(n, dtype=torch.int64)).double().mT @ q.mT
    g = 1 + 2 * (1 - (1 - low) * torch.exp(-((k / (2 * n) / cutoff) ** 2)))
    assert float(g[-1] - g[0]) > 1
    torch.testing.assert_close(move @ move.mT, (v_c**g / v_u ** (g - 1)).diag(), rtol=5e-3, atol=1e-5)
