"""Model -> Model: guidance against closed forms, and the same weights under another schedule."""

import math

import pytest
import torch

from sfumato import nets, noise
from sfumato.belief import Estimate
from sfumato.compose import Rescheduled
from sfumato.conditions import Given
from sfumato.errors import SfumatoError
from sfumato.exact import GaussianMixture
from sfumato.guidance import Guided, guide
from sfumato.model import Denoiser
from sfumato.objectives import denoising_loss
from sfumato.objectives.times import UniformTime
from sfumato.objectives.weights import elbo
from sfumato.process import Gaussian
from sfumato.sampling import sample, trajectory
from sfumato.schedules import EDM, VE, Cosine, Flow, LinearBeta, LogLinear
from sfumato.solvers import DDIM, DDPM, Heun, Multistep, grids

F64 = torch.float64


def close(a, b, tol):
    torch.testing.assert_close(a, b, rtol=tol, atol=tol)


def mixture():
    return GaussianMixture([0.4, 0.6], [[-1.0, 0.5], [0.8, 0.0]], [0.2, 0.1])


class Pair:
    """Two Gaussians as one conditional model: label 0 is N(m_c, v_c), the null class N(m_u, v_u)."""

    def __init__(self, process, conditional, unconditional):
        self.process, self.shape, self.calls = process, (1,), 0
        self.laws = {c: GaussianMixture([1.0], [[m]], v) for c, (m, v) in ((0, conditional), (-1, unconditional))}

    def __call__(self, z, t, label):
        self.calls += 1
        x = torch.empty_like(z)
        for c, law in self.laws.items():
            rows = label == c
            at = t if t.ndim == 0 else t[rows]
            x[rows] = law.moments(z[rows], process=self.process, t=at).x
        return Estimate(z, t, self.process.schedule, x=x)


@pytest.mark.parametrize("curve", [LinearBeta(), Flow(), EDM()], ids=lambda c: type(c).__name__)
def test_scale_one_is_conditional_and_zero_unconditional(curve):
    model = mixture().denoiser(Gaussian(curve))
    z = 2 * torch.randn(6, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    t, label = torch.linspace(0.1, 1, 6, dtype=F64), torch.tensor([0, 1, 0, 1, 1, 0])
    conditional, null = model(z, t, label=label), model(z, t)
    for name in ("x", "eps", "v"):
        close(getattr(guide(model, 1.0)(z, t, label=label), name), getattr(conditional, name), 1e-12)
        close(getattr(guide(model, 0.0)(z, t, label=label), name), getattr(null, name), 1e-12)
        extrapolated = getattr(null, name) + 2.5 * (getattr(conditional, name) - getattr(null, name))
        close(getattr(guide(model, 2.5)(z, t, label=label), name), extrapolated, 1e-9)


def test_interval_is_stated_in_logsnr():
    """Inside the interval the scale acts, outside the conditional model alone, row by row (2404.07724)."""
    model = mixture().denoiser(Gaussian(Cosine()))
    guided = guide(model, 3.0, interval=(-2.0, 1.5))
    lam = torch.tensor([-5.0, -2.001, -1.999, 0.0, 1.499, 1.501, 4.0], dtype=F64)
    t = model.process.schedule.time(lam)
    z, label = (
        torch.randn(7, 2, dtype=F64, generator=torch.Generator().manual_seed(1)),
        torch.ones(7, dtype=torch.int64),
    )
    out, full, plain = guided(z, t, label=label).x, guide(model, 3.0)(z, t, label=label).x, model(z, t, label=label).x
    inside = torch.tensor([False, False, True, True, True, False, False])
    close(out[inside], full[inside], 1e-12)
    close(out[~inside], plain[~inside], 1e-12)
    assert float((full - plain).abs().min()) > 1e-6


@pytest.mark.parametrize("w", [0.5, 2.0])
@pytest.mark.parametrize("curve", [LinearBeta(), Flow()], ids=lambda c: type(c).__name__)
def test_gaussians_in_closed_form(w, curve):
    """Scale 1 + w: the score of N(m, 1/P), P = (1 + w)/V_c - w/V_u, which is not the noised p_c^(1+w) p_u^-w (I2)."""
    (m_c, v_c), (m_u, v_u) = (1.0, 0.4), (-0.3, 1.5)
    process = Gaussian(curve)
    guided = guide(Pair(process, (m_c, v_c), (m_u, v_u)), 1 + w)
    t = torch.linspace(0.1, 0.95, 9, dtype=F64)
    z = torch.linspace(-2, 2, 9, dtype=F64)[:, None]
    alpha, sigma = (c[:, None] for c in curve(t))
    big_c, big_u = alpha**2 * v_c + sigma**2, alpha**2 * v_u + sigma**2
    precision = (1 + w) / big_c - w / big_u
    mean = alpha * ((1 + w) * m_c / big_c - w * m_u / big_u) / precision
    score = guided(z, t, label=torch.zeros(9, dtype=torch.int64)).score
    close(score, -precision * (z - mean), 1e-9)
    # the sharpened law itself, noised: another precision at every t between the ends
    sharp = 1 / ((1 + w) / v_c - w / v_u)
    assert float((1 / (alpha**2 * sharp + sigma**2) / precision - 1).abs().max()) > 0.01


def test_one_call_of_twice_the_batch():
    pair = Pair(Gaussian(Cosine()), (1.0, 0.4), (-0.3, 1.5))
    z, label = torch.zeros(3, 1, dtype=F64), torch.zeros(3, dtype=torch.int64)
    for scale, calls in [(2.0, 1), (1.0, 1), (0.0, 1)]:
        pair.calls = 0
        guide(pair, scale)(z, 0.5, label=label)
        assert pair.calls == calls


def test_sampling_with_guidance():
    """Through the sampler: scale 1 gives the class, 0 the whole mixture, 3 less spread than the class."""
    model = mixture().denoiser(Gaussian(Cosine()))
    kinds = {g: sample(guide(model, g), 64, steps=12, seed=3, label=1) for g in (0.0, 1.0, 3.0)}
    close(kinds[1.0], sample(model, 64, steps=12, seed=3, label=1), 1e-6)
    close(kinds[0.0], sample(model, 64, steps=12, seed=3), 1e-6)
    close(kinds[3.0], sample(guide(model, 3.0), 64, steps=12, seed=3, label=1), 1e-6)
    assert float(kinds[3.0].var(0).sum()) < 0.9 * float(kinds[1.0].var(0).sum())


def test_mistakes():
    model = mixture().denoiser(Gaussian(Cosine()))
    with pytest.raises(SfumatoError, match="condition"):
        guide(model, 2.0)(torch.zeros(1, 2, dtype=F64), 0.5)
    for interval in ((1.0, -1.0), (2.0, 2.0), (math.nan, 1.0)):
        with pytest.raises(SfumatoError, match="interval"):
            Guided(model, 2.0, interval)
    for scale in (math.nan, math.inf):
        with pytest.raises(SfumatoError, match="scale"):
            guide(model, scale)


def test_a_wrapper_shows_what_is_inside():
    denoiser = random_denoiser(Cosine())
    guided = guide(denoiser, 2.0)
    assert guided.target == denoiser.target and guided.process is denoiser.process
    assert Rescheduled(guided, Flow()).sigma_data == denoiser.sigma_data
    with pytest.raises(AttributeError):
        _ = guided.nothing


# -- another schedule ----------------------------------------------------------------------------------------------


def random_denoiser(curve, target="v", shape=(2,), dtype=torch.float32):
    """A network with weights drawn at random everywhere, also where training starts from zero."""
    torch.manual_seed(0)
    net = nets.build(shape, size="tiny")
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.15)
    return Denoiser(net.to(dtype).eval(), Gaussian(curve), target=target)


@pytest.mark.parametrize("target", ["v", "eps", "x", "F"])
@pytest.mark.parametrize(
    "solver", [DDIM(grid=grids.LogSNR()), Multistep(2, grid=grids.LogSNR()), Heun(grid=grids.Rho())]
)
def test_same_weights_same_samples_under_vp_ve_and_flow(target, solver):
    """M3: from one start at logsnr -9 to logsnr 9, the clean signals agree to 1e-5 under all conventions."""
    denoiser = random_denoiser(LogLinear(-10.0, 10.0), target)
    noise = torch.randn(8, 2, generator=torch.Generator().manual_seed(2))
    ends = {}
    for curve in (LogLinear(-10.0, 10.0), VE(0.003, 400.0), Flow(), Cosine(), EDM(0.002, 200.0)):
        start, stop = (float(curve.time(lam)) for lam in (-9.0, 9.0))
        alpha, sigma = (float(c) for c in curve(start))
        model = Rescheduled(denoiser, curve)
        with torch.no_grad():
            *_, last = trajectory(model, 8, 14, solver, z=math.hypot(alpha, sigma) * noise, t_start=start, t_stop=stop)
        ends[curve] = last.z / float(curve.alpha(stop))
    first, *others = ends.values()
    size = float(first.abs().max())
    assert float(first.std()) > 0.05
    for other in others:
        assert float((other - first).abs().max()) < 1e-5 * size


def test_whole_runs_agree_from_prior_to_file():
    """VP and VE with the same ends of logsnr: sample() of one seed gives the same numbers, image or vector."""
    for shape in ((2,), (1, 8, 8)):
        denoiser = random_denoiser(LogLinear(-9.0, 9.0), shape=shape)
        ve = Rescheduled(denoiser, VE(math.exp(-4.5), math.exp(4.5)))
        for solver in (DDIM(), Multistep(3), DDPM()):
            vp = sample(denoiser, 4, 9, solver, seed=5, z=None if denoiser.shape else prior(denoiser, shape))
            other = sample(ve, 4, 9, solver, seed=5, z=None if denoiser.shape else prior(ve, shape))
            assert float((vp - other).abs().max()) < 1e-5 * max(1.0, float(vp.abs().max()))


def prior(model, shape):
    from sfumato import noise

    return model.process.prior(noise.normal(5, torch.arange(4), shape, noise.PRIOR))


def test_variance_exploding_state_is_the_preserving_one_over_alpha():
    """z_VE = z_VP / alpha along the whole path, exact model (C2)."""
    law, vp, ve = mixture(), LogLinear(-9.0, 9.0), VE(math.exp(-4.5), math.exp(4.5))
    a = law.denoiser(Gaussian(vp))
    z = law.sample(16, seed=0, process=a.process, t=1.0)
    paths = []
    for model, start in (
        (a, z),
        (law.denoiser(Gaussian(ve)), z / vp.alpha(1.0)),
        (Rescheduled(a, ve), z / vp.alpha(1.0)),
    ):
        states = list(trajectory(model, 16, 10, Multistep(2), z=start))
        paths.append(torch.stack([s.z / model.process.schedule.alpha(s.t) if s.t > 0 else s.z for s in states]))
    close(paths[1], paths[0], 1e-9)
    close(paths[2], paths[0], 1e-9)


def test_beyond_the_base_it_answers_at_its_nearest_end():
    """Flow starts at logsnr -inf and the base at -9: finite, and the base's own answer there."""
    denoiser = random_denoiser(LogLinear(-9.0, 9.0))
    model = Rescheduled(denoiser, Flow())
    z = torch.randn(4, 2, generator=torch.Generator().manual_seed(3))
    belief = model(z, 1.0)
    close(belief.x, denoiser(z, 1.0).x, 1e-6)
    assert bool(sample(model, 4, 5, z=z).isfinite().all())
    linear = Rescheduled(random_denoiser(LinearBeta()), Flow())
    assert bool(sample(linear, 4, 5, z=z).isfinite().all())


class Joint:
    """N(a mass + b label, 1) where each is known, and its marginal where not: E[x | z] of a number and a class."""

    A, B = 1.0, 2.0  # mass ~ N(0, 1), label +-1

    def __init__(self, process):
        self.process, self.shape, self.calls = process, (1,), 0

    def __call__(self, z, t, /, label=None, mass=None):
        self.calls += 1
        n = len(z)
        label = torch.full((n,), -1) if label is None else label
        mass = Given.of(torch.full((n,), torch.nan, dtype=z.dtype) if mass is None else mass)
        x = torch.empty_like(z)
        for i in range(n):
            at = {"process": self.process, "t": t if t.ndim == 0 else t[i : i + 1]}
            mean = self.A * float(mass.values[i]) if mass.present[i] else 0.0
            variance = 1.0 if mass.present[i] else 1.0 + self.A**2
            signs = [-1.0, 1.0] if label[i] < 0 else [2.0 * float(label[i]) - 1]
            law = GaussianMixture([1 / len(signs)] * len(signs), [[mean + self.B * s] for s in signs], variance)
            x[i] = law.moments(z[i : i + 1], **at).x[0]
        return Estimate(z, t, self.process.schedule, x=x)


def test_one_scale_a_condition():
    """eps_null + sum_i w_i (eps_i - eps_null), each told one condition alone; what is not named is told everywhere."""
    model = Joint(Gaussian(LinearBeta()))
    generator = torch.Generator().manual_seed(0)
    z, t = 2 * torch.randn(5, 1, dtype=F64, generator=generator), torch.linspace(0.2, 0.9, 5, dtype=F64)
    label, mass = torch.tensor([0, 1, 1, 0, -1]), torch.tensor([0.5, -1.0, torch.nan, 2.0, 0.3], dtype=F64)
    cond = {"label": label, "mass": mass}
    null, both = model(z, t).eps, model(z, t, **cond).eps
    alone = {"label": model(z, t, label=label).eps, "mass": model(z, t, mass=mass).eps}
    for scales in ({"label": 3.0, "mass": 1.5}, {"label": 0.0, "mass": 2.0}, {"mass": -1.0, "label": 1.0}):
        wanted = null + sum(w * (alone[name] - null) for name, w in scales.items())
        close(guide(model, scales)(z, t, **cond).eps, wanted, 1e-9)
    for name in cond:
        other = {rest: value for rest, value in cond.items() if rest != name}
        base = model(z, t, **other).eps
        close(guide(model, {name: 2.5})(z, t, **cond).eps, base + 2.5 * (both - base), 1e-9)
        close(guide(model, {name: 1.0})(z, t, **cond).eps, both, 1e-9)
        close(guide(model, {name: 0.0})(z, t, **cond).eps, base, 1e-9)
    close(guide(model, 2.0)(z, t, **cond).eps, null + 2 * (both - null), 1e-9)
    before = model.calls
    guide(model, {"label": 3.0, "mass": 1.5})(z, t, **cond)
    assert model.calls == before + 1
    inside = guide(model, {"label": 3.0, "mass": 1.5}, (-1.0, 1.0))
    logsnr = model.process.schedule.logsnr(t)
    for i in range(5):
        acting = -1 <= float(logsnr[i]) <= 1
        wanted = (null + 3 * (alone["label"] - null) + 1.5 * (alone["mass"] - null) if acting else both)[i]
        close(inside(z, t, **cond).eps[i], wanted, 1e-9)
    for scales, words in [
        ({"heat": 2.0}, "names 'heat'"),
        ({}, "one per condition"),
        ({"label": float("nan")}, "finite"),
    ]:
        with pytest.raises(SfumatoError, match=words):
            guide(model, scales)(z, t, **cond)


def test_the_loss_of_a_guided_model_is_that_of_what_it_believes():
    """Case H2, for one scale and for one a condition."""
    model = Joint(Gaussian(LinearBeta()))
    x, t = (
        torch.randn(6, 1, dtype=F64, generator=torch.Generator().manual_seed(2)),
        torch.linspace(0.2, 0.9, 6, dtype=F64),
    )
    label, mass = torch.tensor([0, 1, 1, 0, 1, 0]), torch.linspace(-1, 1, 6, dtype=F64)
    for scale in (3.0, {"label": 3.0, "mass": 0.5}):
        guided = guide(model, scale)
        drawn = noise.normal(0, range(6), (1,), noise.TRAIN_NOISE, dtype=F64)
        z = model.process.corrupt(x, t, drawn)
        eps = guided(z, t, label=label, mass=mass).eps
        wanted = (
            0.5
            * (eps - drawn).square().sum(1)
            / UniformTime().density(model.process.schedule.logsnr(t), model.process.schedule)
        )
        found = denoising_loss(guided, x, t, weight=elbo(), times=UniformTime(), label=label, mass=mass)
        close(found, wanted, 1e-6)
