"""Each way of guidance against its formula, by exact models; what its docstring says of spaces is held to."""

import dataclasses
import math

import pytest
import torch

import sfumato as sf
from sfumato.conditions import Given
from sfumato.data import DataSpec
from sfumato.errors import SfumatoError
from sfumato.exact import GaussianMixture
from sfumato.guidance import (
    APG,
    Autoguided,
    CFGPlusPlus,
    CFGZero,
    ClassifierGuided,
    FrequencyDecoupled,
    PerpNeg,
    Rescaled,
    Thresholded,
    guide,
)
from sfumato.objectives.losses import Denoising
from sfumato.objectives.teacher import GuidedTeacher
from sfumato.process import Gaussian, Masked
from sfumato.schedules import EDM, VE, Cosine, Flow, LinearBeta
from sfumato.solvers import DDIM, Heun, grids

F64 = torch.float64
TRUTH = GaussianMixture([0.3, 0.3, 0.4], [[-1.0, 0.5], [0.8, 0.0], [0.3, 1.2]], [0.2, 0.1, 0.3])
LABEL = torch.tensor([0, 1, 2, 0, 1, 2])


def close(a, b, tol=1e-10):
    torch.testing.assert_close(a, b, rtol=tol, atol=tol)


def drawn(curve=None, low=0.15, high=0.9):
    """(exact model, z, t) of six rows at six levels."""
    model = TRUTH.denoiser(Gaussian(curve or Cosine()))
    z = 1.5 * torch.randn(6, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    return model, z, torch.linspace(low, high, 6, dtype=F64)


def consistent(belief, tol=1e-10):
    """z = alpha x + sigma eps."""
    close(belief.alpha[:, None] * belief.x + belief.sigma[:, None] * belief.eps, belief.z, tol)


WAYS = {
    "rescaled": lambda m, g: Rescaled(m, g),
    "zero": lambda m, g: CFGZero(m, g),
    "apg": lambda m, g: APG(m, g, radius=0.5),
    "apg, momentum": lambda m, g: APG(m, g, radius=0.5, momentum=-0.5),
    "decoupled": lambda m, g: FrequencyDecoupled(m, g),
    "perp-neg": lambda m, g: PerpNeg(m, g, negative={"label": 2}),
}


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("curve", [Cosine(), Flow(), EDM()], ids=lambda c: type(c).__name__)
def test_scale_one_is_the_conditional_model_and_beliefs_stay_consistent(name, curve):
    model, z, t = drawn(curve)
    close(WAYS[name](model, 1.0)(z, t, label=LABEL).x, model(z, t, label=LABEL).x)
    near = WAYS[name](model, 1 + 1e-9)(z, t, label=LABEL)
    close(near.x, model(z, t, label=LABEL).x, 1e-6)
    strong = WAYS[name](model, 3.0)(z, t, label=LABEL)
    consistent(strong, 1e-9)
    assert float((strong.x - guide(model, 3.0)(z, t, label=LABEL).x).abs().max()) > 1e-3
    outside = WAYS[name](model, 3.0)
    outside.interval = (50.0, 60.0)
    close(outside(z, t, label=LABEL).x, model(z, t, label=LABEL).x)


@pytest.mark.parametrize("name", WAYS)
def test_every_way_samples_from_pure_noise(name):
    for curve in (Cosine(), Flow(), VE()):
        model = TRUTH.denoiser(Gaussian(curve))
        found = sf.sample(WAYS[name](model, 2.0), 16, steps=8, label=1)
        assert bool(found.isfinite().all()) and float(found.abs().median()) < 2


def test_a_schedule_of_the_scale_is_linear_between_its_knots():
    model, z, t = drawn()
    knots = ((-3.0, 1.0), (0.0, 4.0), (5.0, 2.0))
    level = model.process.schedule.logsnr(t)
    wanted = [1 + max(0.0, min(3.0, a + 3)) if a < 0 else 4 - 0.4 * min(5.0, a) for a in level.tolist()]
    found = guide(model, knots)(z, t, label=LABEL)
    for i, g in enumerate(wanted):
        close(found.x[i], guide(model, g)(z, t, label=LABEL).x[i])
    assert level.min() < -3 < 0 < level.max()  # beyond a knot, and between two
    for wrong in (((0.0, 1.0),), ((1.0, 1.0), (0.0, 2.0)), ((0.0, math.nan), (1.0, 2.0)), ((-math.inf, 1), (0, 2))):
        with pytest.raises(SfumatoError, match="knots"):
            guide(model, wrong)


def test_a_negative_condition_takes_the_place_of_none():
    model, z, t = drawn()
    away, to = model(z, t, label=torch.full((6,), 2)), model(z, t, label=LABEL)
    found = guide(model, 2.5, negative={"label": 2})(z, t, label=LABEL)
    close(found.eps, away.eps + 2.5 * (to.eps - away.eps))
    with pytest.raises(SfumatoError, match="one scale"):
        guide(model, {"label": 2.0}, negative={"label": 2})
    plain = guide(model, 2.5)
    assert plain.settings() == (2.5, None) and "negative" in guide(model, 2.5, negative={"label": 2}).settings()[0]


def test_rescaled_guidance_has_the_contrast_of_the_conditional_model_in_its_row():
    model, z, t = drawn()
    conditional, plain = model(z, t, label=LABEL), guide(model, 3.0)(z, t, label=LABEL)
    for row in ("v", "eps", "x"):
        found = Rescaled(model, 3.0, share=1.0, row=row)(z, t, label=LABEL)
        close(found.target(row).std(1), conditional.target(row).std(1), 1e-9)
        close(Rescaled(model, 3.0, share=0.0, row=row)(z, t, label=LABEL).x, plain.x, 1e-9)
    in_v, in_eps = (Rescaled(model, 3.0, row=row)(z, t, label=LABEL).x for row in ("v", "eps"))
    assert float((in_v - in_eps).abs().max()) > 0.01  # the space is part of the method
    with pytest.raises(SfumatoError, match="two numbers"):
        one = GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], 0.1).denoiser(Gaussian(Cosine()))
        Rescaled(one, 2.0)(torch.zeros(1, 1, dtype=F64), 0.5, label=torch.tensor([0]))
    with pytest.raises(SfumatoError, match="row"):
        Rescaled(model, 2.0, row="nothing")


def test_cfg_zero_leads_away_from_the_best_multiple_of_the_base():
    """The multiple leaves a rest that is orthogonal to the base; in another row it is another method."""
    model, z, t = drawn(Flow())
    u, c = (b.velocity for b in (model(z, t), model(z, t, label=LABEL)))
    s = (u * c).sum(1, keepdim=True) / u.square().sum(1, keepdim=True)
    found = CFGZero(model, 3.0)(z, t, label=LABEL)
    close(found.velocity, (1 - 3.0) * s * u + 3.0 * c, 1e-9)
    assert float(((c - s * u) * u).sum(1).abs().max()) < 1e-12
    assert float((CFGZero(model, 3.0, row="eps")(z, t, label=LABEL).x - found.x).abs().max()) > 0.01


def test_apg_keeps_what_is_orthogonal_and_depends_on_the_origin():
    model, z, t = drawn()
    c, u = model(z, t, label=LABEL).x, model(z, t).x
    close(APG(model, 3.0, parallel=1.0)(z, t, label=LABEL).x, guide(model, 3.0)(z, t, label=LABEL).x, 1e-9)
    assert float((((APG(model, 3.0)(z, t, label=LABEL).x - c) * c).sum(1)).abs().max()) < 1e-9
    short = APG(model, 3.0, parallel=1.0, radius=0.1)(z, t, label=LABEL).x - c
    close(short.norm(dim=1), 2 * (c - u).norm(dim=1).clamp_max(0.1), 1e-9)
    shift = torch.tensor([2.0, -1.0], dtype=F64)
    moved = GaussianMixture(TRUTH.weights, TRUTH.means + shift, TRUTH.covs).denoiser(model.process)
    z_moved = z + model.process.schedule.alpha(t)[:, None] * shift
    plain = [guide(m, 3.0)(at, t, label=LABEL).x for m, at in ((model, z), (moved, z_moved))]
    close(plain[1] - shift, plain[0], 1e-9)  # plain guidance has no origin
    apart = [APG(m, 3.0)(at, t, label=LABEL).x for m, at in ((model, z), (moved, z_moved))]
    assert float((apart[1] - shift - apart[0]).abs().max()) > 0.01


def test_cfg_zero_waits_in_the_zeroed_share_of_the_time():
    """A flow of a Gaussian meets pure noise at t = 1 - zeroed: x = m + sqrt(v / (alpha^2 v + sigma^2)) (z - alpha m)
    there. Elsewhere, and at scale 1, nothing changes."""
    truth = GaussianMixture([1.0], [[1.0, -0.5]], 0.25)
    model, zeroed = truth.denoiser(Gaussian(Flow())), 0.3
    z = torch.randn(6, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    plan = DDIM(grid=grids.Uniform()).plan(model.process, 400)
    zero = torch.zeros(6, dtype=torch.int64)
    found = sf.sample(CFGZero(model, 2.0, zeroed=zeroed), solver=plan, z=z, label=zero)
    scale = math.sqrt(0.25 / (zeroed**2 * 0.25 + (1 - zeroed) ** 2))
    close(found.double(), truth.means + scale * (z - zeroed * truth.means), 5e-3)
    model, z, t = drawn(Flow())
    still = CFGZero(model, 3.0, zeroed=zeroed)
    late, early = t > 1 - zeroed, t <= 1 - zeroed
    assert float(still(z, t, label=LABEL).velocity[late].abs().max()) < 1e-12 and bool(late.any())
    close(still(z, t, label=LABEL).x[early], CFGZero(model, 3.0)(z, t, label=LABEL).x[early])
    close(CFGZero(model, 1.0, zeroed=zeroed)(z, t, label=LABEL).x, model(z, t, label=LABEL).x)
    with pytest.raises(SfumatoError, match="share of the time"):
        CFGZero(model, 2.0, zeroed=1.0)


def test_apg_carries_the_momentum_of_the_calls_that_guided():
    """By hand along DDIM with D = d + momentum D'; calls outside the interval neither use nor change D'."""
    model, _, _ = drawn()
    plan = DDIM().plan(model.process, 12)
    level = model.process.schedule.logsnr(torch.tensor(plan.times, dtype=F64))
    interval = (float(level[2]) - 1e-6, float(level[8]) + 1e-6)
    guided = APG(model, 3.0, interval, parallel=0.4, radius=0.3, momentum=-0.6)
    z = torch.randn(6, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    state, carried = z, torch.zeros_like(z)
    for t, here, (alpha, sigma) in zip(plan.times, level.tolist(), plan.path[1:], strict=True):
        base, conditional = model(state, t), model(state, t, label=LABEL)
        x = conditional.x
        if interval[0] <= here <= interval[1]:
            carried = x - base.x - 0.6 * carried
            d = carried * (0.3 / carried.norm(dim=1, keepdim=True)).clamp_max(1)
            along = (d * x).sum(1, keepdim=True) / x.square().sum(1, keepdim=True) * x
            x = x + 2.0 * (d - 0.6 * along)
        state = alpha * x + sigma * conditional.moved(x).eps
    found = sf.sample(guided, solver=plan, z=z, label=LABEL, index=range(6))
    close(found, state, 1e-9)
    without = APG(model, 3.0, interval, parallel=0.4, radius=0.3)
    assert float((sf.sample(without, solver=plan, z=z, label=LABEL) - found).abs().max()) > 0.01
    for k in (1, 4):  # a sample's memory is its own
        close(sf.sample(guided, solver=plan, z=z[k : k + 1], label=LABEL[k : k + 1], index=[k]), found[k : k + 1], 1e-9)
    close(guided(z, 0.5, label=LABEL).x, without(z, 0.5, label=LABEL).x)  # a single question has no memory
    latents = sf.nets.RIN((1, 4, 4), latents=2, width=16, inner=16, depth=1)
    with pytest.raises(SfumatoError, match="carries latents"):
        APG(sf.Denoiser(latents, Gaussian(Cosine())), 2.0, momentum=-0.5)
    with pytest.raises(SfumatoError, match="momentum"):
        APG(model, 2.0, momentum=1.0)


def test_decoupled_guidance_has_a_scale_for_each_frequency():
    """Of the cosine transform of the difference; low = 1 is plain guidance, and a large cutoff a smaller scale."""
    model, z, t = drawn()
    plain = guide(model, 3.0)(z, t, label=LABEL)
    for odd in ({"low": "a"}, {"cutoff": None}, {"low": float("inf")}):
        with pytest.raises(SfumatoError, match="of FrequencyDecoupled is a finite number, not"):
            FrequencyDecoupled(model, 3.0, **odd)
    close(FrequencyDecoupled(model, 3.0, low=1.0)(z, t, label=LABEL).eps, plain.eps, 1e-9)
    everywhere = FrequencyDecoupled(model, 3.0, low=0.25, cutoff=1e6)(z, t, label=LABEL)
    close(everywhere.x, guide(model, 1.5)(z, t, label=LABEL).x, 1e-9)
    for wrong in ({"cutoff": 0.0}, {"low": math.nan}):
        with pytest.raises(SfumatoError, match="FrequencyDecoupled"):
            FrequencyDecoupled(model, 2.0, **wrong)


def test_perp_neg_leads_away_from_what_is_not_asked_for_alone():
    model, z, t = drawn()
    u, c = model(z, t).x, model(z, t, label=LABEL).x
    n = model(z, t, label=torch.full((6,), 2)).x
    d, other = c - u, n - u
    perp = other - (other * d).sum(1, keepdim=True) / d.square().sum(1, keepdim=True) * d
    found = PerpNeg(model, 3.0, negative={"label": 2}, weight=0.7)(z, t, label=LABEL)
    close(found.x, c + 2.0 * (d - 0.7 * perp), 1e-9)
    same = LABEL == 2  # the negative is what is asked for: nothing to lead away from
    close(found.x[same], guide(model, 3.0)(z, t, label=LABEL).x[same], 1e-9)
    with pytest.raises(SfumatoError, match="negative"):
        PerpNeg(model, 3.0)


def test_cfg_plus_plus_is_guidance_with_a_scale_of_the_plan():
    """DDIM with it is z' = alpha' x_guided + sigma' eps_base; on 10 to 200 steps over 18 in logsnr the scale is 1.01 to
    13.6."""
    model = TRUTH.denoiser(Gaussian(Cosine()))
    plan = DDIM().plan(model.process, 12)
    z = torch.randn(6, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    state = z
    for t, (alpha, sigma) in zip(plan.times, plan.path[1:], strict=True):
        base, conditional = model(state, t), model(state, t, label=LABEL)
        state = alpha * (base.x + 0.6 * (conditional.x - base.x)) + sigma * base.eps
    close(sf.sample(CFGPlusPlus(model, 0.6, plan), solver=plan, z=z, label=LABEL), state, 1e-9)
    ends = [float(Cosine().time(level)) for level in (-9.0, 9.0)]
    for steps, wanted in ((10, 1.01), (20, 1.66), (50, 3.64), (200, 13.6)):
        plan = DDIM(grid=grids.LogSNR()).plan(model.process, steps, *ends)
        assert float(CFGPlusPlus(model, 0.6, plan)._per_call[0]) == pytest.approx(wanted, rel=5e-3)
    with pytest.raises(SfumatoError, match="calls of its plan"):
        CFGPlusPlus(model, 0.6, plan)(z, 0.123, label=LABEL)
    with pytest.raises(SfumatoError, match="one call per step"):
        CFGPlusPlus(model, 0.6, Heun().plan(model.process, 5))


def test_autoguidance_is_guidance_away_from_the_weak_model():
    model, z, t = drawn()
    weak = GaussianMixture(TRUTH.weights, TRUTH.means, [0.6, 0.5, 0.9]).denoiser(model.process)
    found = Autoguided(model, weak, 2.0)(z, t)
    close(found.eps, weak(z, t).eps + 2.0 * (model(z, t).eps - weak(z, t).eps))
    close(Autoguided(model, model, 5.0)(z, t).x, model(z, t).x, 1e-9)
    with pytest.raises(SfumatoError, match="schedule"):
        Autoguided(model, TRUTH.denoiser(Gaussian(Flow())))


def test_two_exact_experts_are_one_model():
    """E2: a hard and a soft hand-over between equal models change nothing; different ones act on their own sides."""
    model, z, t = drawn()
    for width in (0.0, 3.0):
        both = sf.Experts(model, TRUTH.denoiser(model.process), 0.5, width)
        close(both(z, t, label=LABEL).x, model(z, t, label=LABEL).x)
        close(sf.sample(both, 32, steps=9, label=1), sf.sample(model, 32, steps=9, label=1), 1e-9)
    wide = GaussianMixture(TRUTH.weights, TRUTH.means, 1.0).denoiser(model.process)
    level = model.process.schedule.logsnr(t)
    split, soft = (sf.Experts(model, wide, 0.5, width)(z, t).x for width in (0.0, 4.0))
    weight = ((level - 0.5) / 4 + 0.5).clamp(0, 1)[:, None]
    close(split, torch.where(level[:, None] < 0.5, model(z, t).x, wide(z, t).x))
    close(soft, (1 - weight) * model(z, t).x + weight * wide(z, t).x)
    assert bool((level < 0.5).any()) and bool((level > 0.5).any())
    with pytest.raises(SfumatoError, match="schedule"):
        sf.Experts(model, TRUTH.denoiser(Gaussian(Flow())), 0.0)


# -- thresholding -----------------------------------------------------------------------------------------------------


class Bounded:
    """An exact law of four numbers in [0, 1], with the spec of its data: z = (x - mean) / std."""

    def __init__(self, scatter=1.0):
        x = torch.rand(400, 4, generator=torch.Generator().manual_seed(3))
        spec = DataSpec.fit(sf.data.open(x))
        self.spec = dataclasses.replace(spec, bounds=(0.0, 1.0))
        rows = self.spec.normalise(x[:40]).double()
        self.model = GaussianMixture(torch.ones(40), scatter * rows, 1e-4).denoiser(Gaussian(Cosine()))
        self.process, self.shape = self.model.process, (4,)

    def __call__(self, z, t, **cond):
        return self.model(z, t)

    def user(self, x):
        return self.spec.normaliser.denormalise(x)


def test_thresholding_is_in_the_declared_bounds_and_in_the_users_units():
    model = Bounded(scatter=1.4)  # beyond the bounds
    z = 1.5 * torch.randn(64, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0.05, 0.9, 64, dtype=F64)
    plain = model(z, t)
    far = (model.user(plain.x) - 0.5).abs() / 0.5
    for quantile in (None, 0.7, 1.0):
        found = Thresholded(model, quantile)(z, t)
        consistent(found, 1e-9)
        x = model.user(found.x)
        assert float(x.min()) >= -1e-9 and float(x.max()) <= 1 + 1e-9 and float(far.max()) > 1.2
        s = torch.ones(64, dtype=F64) if quantile is None else torch.quantile(far, quantile, dim=1).clamp_min(1)
        wanted = 0.5 + 0.5 * (((model.user(plain.x) - 0.5) / 0.5).clamp(-s[:, None], s[:, None]) / s[:, None])
        close(x, wanted, 1e-6)
        inside = far.amax(1) <= 1
        assert bool(inside.any()) and torch.equal(found.x[inside], plain.x[inside])
        assert torch.equal(found.eps[inside], plain.eps[inside])
    assert bool(sf.sample(Thresholded(model), 8, steps=5).isfinite().all())


def test_thresholding_is_refused_without_bounds():
    with pytest.raises(SfumatoError, match="bounds"):
        Thresholded(TRUTH.denoiser(Gaussian(Cosine())))
    with pytest.raises(SfumatoError, match="quantile"):
        Thresholded(Bounded(), 0.0)
    symbols = sf.exact.Table(torch.ones(3, 3, dtype=F64)).denoiser(Masked(Flow(), 3))
    with pytest.raises(SfumatoError, match="real numbers|Gaussian"):
        Thresholded(symbols)


# -- classifiers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curve", [Cosine(), Flow(), VE()], ids=lambda c: type(c).__name__)
def test_an_exact_classifier_guides_as_classifier_free_guidance_does(curve):
    """I1: scale 1 is p(z | class), from pure noise to nearly none; scale 2.5 is guidance by 2.5."""
    process = Gaussian(curve)
    model = TRUTH.denoiser(process)

    def classifier(z, t, label):
        return TRUTH.classify(z, process=process, t=t).gather(1, label[:, None])[:, 0]

    z = float(curve.sigma(1.0)) * torch.randn(6, 2, dtype=F64, generator=torch.Generator().manual_seed(2))
    for t, tol in ((1.0, 0.01), (0.8, 1e-8), (0.4, 1e-8), (0.1, 1e-7)):
        for scale in (1.0, 2.5):
            found = ClassifierGuided(model, classifier, scale)(z, t, label=LABEL)
            close(found.x, guide(model, scale)(z, t, label=LABEL).x, tol)
            told = ClassifierGuided(model, classifier, scale, conditional=True)(z, t, label=LABEL)
            close(told.x, guide(model, 1 + scale)(z, t, label=LABEL).x, 2 * tol)
    with torch.inference_mode():
        again = ClassifierGuided(model, classifier)(z.clone(), 0.4, label=LABEL)
    close(again.x, model(z, 0.4, label=LABEL).x, 1e-8)


def test_a_classifier_is_trained_by_the_same_loop(tmp_path):
    """It comes near the exact classifier at all levels, guides from its file, and serves another schedule."""
    law = GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], 0.15)
    x, label = law.labelled(2000, seed=1)
    run = sf.train(
        {"x": x.float(), "label": label}, tmp_path / "run", loss="classification", net="classifier(size=tiny)",
        steps=300, batch=256, sample_every=0, precision="float32", lr=3e-3,
    )  # fmt: skip
    classifier = sf.load(tmp_path / "run")
    normaliser = classifier.spec.normaliser
    mean, std = (torch.tensor(v, dtype=F64) for v in (normaliser.mean, normaliser.std))
    scaled = GaussianMixture(law.weights, (law.means - mean) / std, law.covs / std[:, None] / std)
    errors = []
    for level in (-4.0, -1.0, 2.0):
        t = float(Cosine().time(level))
        z, found = scaled.labelled(400, seed=5, process=classifier.space, t=t)
        exact = scaled.classify(z, process=classifier.space, t=t).exp()
        errors.append(float((classifier.log_probs(z.float(), t).exp() - exact).abs().mean()))
        given = classifier(z.float(), t, label=found)
        close(given, classifier.log_probs(z.float(), t).gather(1, found[:, None])[:, 0], 1e-6)
    assert max(errors) < 0.05, errors
    model = scaled.denoiser(Gaussian(LinearBeta()))
    guided = ClassifierGuided(model, classifier, 1.0)
    at = scaled.sample(200, seed=6, process=model.process, t=0.5)
    ones = torch.ones(200, dtype=torch.int64)
    apart = (guided(at, 0.5, label=ones).x - model(at, 0.5, label=ones).x).square().mean()
    assert float(apart) < 0.1 * float((model(at, 0.5).x - model(at, 0.5, label=ones).x).square().mean())
    assert float(classifier(at.float(), 0.5, label=-ones).abs().max()) == 0
    again = sf.resume(run.path, data={"x": x.float(), "label": label}, steps=310)
    assert type(again.denoiser) is type(classifier)


# -- distillation -----------------------------------------------------------------------------------------------------


class Student:
    """What a perfectly distilled network answers: one call, told the scale."""

    def __init__(self, model, error=0.0):
        self.model, self.error, self.process, self.shape = model, error, model.process, model.shape

    def __call__(self, z, t, /, label, scale):
        u, c = self.model(z, t), self.model(z, t, label=label)
        return u.lerp(c, torch.where(scale.present, scale.values, 1.0).to(F64) + self.error)


def test_a_student_of_guidance_has_loss_zero_where_it_answers_as_guidance_does():
    model, x = TRUTH.denoiser(Gaussian(Cosine())), TRUTH.sample(60, seed=1)
    scale = Given.of(torch.linspace(1, 8, 60, dtype=F64).index_fill(0, torch.tensor([3]), math.nan))
    cond = {"label": torch.arange(60) % 3, "scale": scale}
    right, wrong = (
        sf.denoising_loss(Student(model, error), x, clean=GuidedTeacher(model), cond=cond) for error in (0.0, 0.3)
    )
    assert float(right.max()) < 1e-12 < 1e-4 < float(wrong.mean())
    under = GuidedTeacher(TRUTH.denoiser(Gaussian(Flow())))
    assert float(sf.denoising_loss(Student(model), x, clean=under, cond=cond).max()) < 1e-9
    with pytest.raises(SfumatoError, match="'scale'"):
        sf.denoising_loss(model, x, clean=GuidedTeacher(model), label=cond["label"])


@pytest.mark.slow
def test_a_network_learns_guidance_at_all_scales(tmp_path):
    """I2 distilled: at five scales it lies nearer to guidance than to its neighbours' by far, for half of the calls."""
    law = GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], 0.3)
    x, label = law.labelled(3000, seed=2)
    scales = torch.exp(math.log(8) * torch.rand(3000, generator=torch.Generator().manual_seed(0)))
    data = sf.data.open({"x": x.float(), "label": label, "scale": scales.numpy()})
    spec = DataSpec.fit(data)
    mean, std = (torch.tensor(v, dtype=F64) for v in (spec.normaliser.mean, spec.normaliser.std))
    exact = GaussianMixture(law.weights, (law.means - mean) / std, law.covs / std[:, None] / std)
    teacher = exact.denoiser(Gaussian(Cosine()))
    clean = GuidedTeacher(teacher, known=spec.conditions["scale"])
    loss = Denoising(sf.times.logit_normal(), None, 0, clean)
    run = sf.train(data, tmp_path / "run", net="tiny", schedule="cosine", loss=loss, steps=600, batch=256, lr=3e-3,
                   sample_every=0, precision="float32", drop=0.0)  # fmt: skip
    z = exact.sample(300, seed=3, process=teacher.process, t=0.5)
    ones = torch.ones(300, dtype=torch.int64)
    size = float(teacher(z, 0.5, label=ones).x.std())
    for g in (1.0, 1.5, 2.5, 4.0, 6.0):
        cond = sf.conditions.resolve(run.denoiser, {"label": 1, "scale": g}, 300)
        answer = run.denoiser(z.float(), 0.5, **cond).x
        error = float((answer - guide(teacher, g)(z, 0.5, label=ones).x).square().mean().sqrt())
        assert error < 0.12 * size, (g, error, size)
