"""Sampling: sample i of a seed is one sample, whatever the batch; start and stop; user units; conditions."""

import math
import weakref

import pytest
import torch

import sfumato as sf
from sfumato import data
from sfumato.errors import SfumatoError
from sfumato.exact import GaussianMixture
from sfumato.process import Gaussian
from sfumato.sampling import sample, trajectory
from sfumato.schedules import VE, Cosine, Flow, LinearBeta
from sfumato.solver_selection import make_plan
from sfumato.solvers import DDIM, DDPM, Brownian, DPMSolverPP, Heun, Multistep

F64 = torch.float64
SOLVERS = {"ddim": DDIM(), "ddpm": DDPM(), "heun": Heun(), "multistep": Multistep(3)}


def law():
    return GaussianMixture([0.4, 0.6], [[-1.0, 0.5], [0.8, 0.0]], [0.2, 0.1])


@pytest.fixture
def model():
    return law().denoiser(Gaussian(Cosine()))


@pytest.mark.parametrize("name", SOLVERS)
def test_a_sample_is_a_function_of_seed_and_number(model, name):
    """Not of the batch, the order, the others drawn with it (R: seeds)."""
    solver = SOLVERS[name]
    whole = sample(model, 23, 6, solver, seed=3)
    for batch in (1, 4, 22):
        torch.testing.assert_close(sample(model, 23, 6, solver, seed=3, batch=batch), whole, rtol=0, atol=1e-9)
    for index in ([7], [22, 0, 5], torch.tensor([9, 9]), torch.arange(23) % 3 == 1):
        torch.testing.assert_close(
            sample(model, steps=6, solver=solver, seed=3, index=index), whole[index], rtol=0, atol=1e-9
        )
    torch.testing.assert_close(sample(model, 5, 6, solver, seed=3), whole[:5], rtol=0, atol=1e-9)
    assert not bool((sample(model, 23, 6, solver, seed=4) == whole).any())


def test_labels_belong_to_their_samples(model):
    labels = [0, 1, 1, 0, 1, -1, 0]
    whole = sample(model, 7, 8, seed=1, label=labels)
    parts = sample(model, 7, 8, seed=1, label=labels, batch=2)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-9)
    for i, label in enumerate(labels):
        alone = sample(model, 1, 8, seed=1, index=[i], label=label)
        torch.testing.assert_close(alone[0], whole[i], rtol=0, atol=1e-9)
    torch.testing.assert_close(sample(model, 7, 8, seed=1, label=None), sample(model, 7, 8, seed=1), rtol=0, atol=0)


class Digits:
    """An exact model of two classes whose names are numbers, and not their indices."""

    def __init__(self):
        self.inner = law().denoiser(Gaussian(Cosine()))
        self.process, self.shape = self.inner.process, self.inner.shape
        self.spec = data.DataSpec.fit(data.open(torch.randn(60, 2), labels=[7, 1] * 30))

    def __call__(self, z, t, label=None):
        return self.inner(z, t, label)


def test_a_label_is_read_once():
    """By name where a user spells it, by index in a tensor; both on the way to the same samples."""
    digits = Digits()
    assert digits.spec.classes == ("1", "7")
    first = sample(digits, 5, 6, normalised=True, label=torch.tensor([0, 0, 1, 1, -1]))
    for label in (["1", "1", "7", "7", -1], [1, 1, 7, 7, -1]):
        torch.testing.assert_close(sample(digits, 5, 6, normalised=True, label=label), first, rtol=0, atol=0)
    for wrong in (torch.tensor([0, 0, 1, 1, 2]), torch.tensor(-2)):
        with pytest.raises(SfumatoError, match="indices from -1"):
            sample(digits, 5, label=wrong)
    with pytest.raises(SfumatoError, match="no class '0'"):
        sample(digits, 5, label=0)


def test_guidance_in_an_interval_of_logsnr(model):
    """Without any of it in the interval the samples are the conditional ones; with all of it, the guided ones."""
    options = {"n": 9, "steps": 12, "seed": 5, "label": 1}
    plain, guided = sample(model, **options), sample(sf.guide(model, 3.0), **options)
    assert float((plain - guided).abs().max()) > 0.1
    close = {"rtol": 0, "atol": 0}
    torch.testing.assert_close(sample(sf.guide(model, 3.0, (50.0, 60.0)), **options), plain, **close)
    everywhere = sf.guide(model, 3.0, (-math.inf, math.inf))
    torch.testing.assert_close(sample(everywhere, **options), guided, **close)
    part = sample(sf.guide(model, 3.0, (-1.0, 2.0)), **options)
    assert not bool((part == plain).all() or (part == guided).all())


@pytest.mark.parametrize("curve", [LinearBeta(), VE(), Flow()], ids=lambda c: type(c).__name__)
def test_stopping_and_going_on_is_one_walk(curve):
    """To t = 0.4 and from there to the data: the law is that of one walk, at the solver's accuracy."""
    model = law().denoiser(Gaussian(curve))
    middle = sample(model, 12, 120, seed=2, t_stop=0.4)
    end = sample(model, steps=120, z=middle, t_start=0.4)
    exact = law().flow(middle, 0.4, 0.0, model.process)
    torch.testing.assert_close(end.double(), exact.double(), rtol=0, atol=5e-3)
    states = list(trajectory(model, 12, 10, seed=2, t_stop=0.4))
    assert states[0].t == 1.0 and states[-1].t == 0.4 and states[-1].belief is None
    assert all(s.belief is not None and s.belief.z is not None for s in states[:-1])


def test_the_states_on_the_way_are_not_kept():
    class Watched:
        def __init__(self, inner):
            self.inner, self.process, self.shape = inner, inner.process, inner.shape
            self.alive, self.most = weakref.WeakSet(), 0

        def __call__(self, z, t):
            belief = self.inner(z, t)
            self.alive.add(belief)
            self.most = max(self.most, len(self.alive))
            return belief

    watched = Watched(law().denoiser(Gaussian(Cosine())))
    sample(watched, 4, 30)
    assert 1 <= watched.most <= 3


def test_mistakes(model):
    with pytest.raises(SfumatoError, match="needs a start state"):
        sample(model, 3, t_start=0.5)
    with pytest.raises(SfumatoError, match="at least 1"):
        sample(model, 0)
    with pytest.raises(SfumatoError, match="at least 1"):
        sample(model, 4, batch=0)
    with pytest.raises(SfumatoError, match="3 values for 4 samples"):
        sample(model, 4, label=[0, 1, 0])
    with pytest.raises(SfumatoError, match="cannot run with 7"):
        sample(model, 4, 7, solver=DDIM().plan(Cosine(), 6))
    with pytest.raises(SfumatoError, match="another schedule"):
        sample(model, 4, solver=DDIM().plan(Flow(), 6))
    with pytest.raises(SfumatoError, match="start states"):
        list(trajectory(model, z=torch.zeros(3, 2), index=[0, 1]))
    assert make_plan(model, None, None).steps == 20


def test_a_solver_goes_by_its_name(model):
    for name, solver in (("heun", Heun()), ("dpm++2m", DPMSolverPP(2)), ("ddim(eta=0.5)", DDIM(eta=0.5))):
        assert torch.equal(sample(model, 5, 4, name), sample(model, 5, 4, solver)), name
        *_, last = trajectory(model, 5, 4, name)
        assert torch.equal(last.z, sample(model, 5, 4, solver)), name
    for wrong in ("huen", "dpm++2"):
        with pytest.raises(SfumatoError, match=r"no solver .*(heun|dpm\+\+2s)"):
            sample(model, solver=wrong)


def test_paths_of_noise_and_gradients_are_asked_of_solver_and_model(model):
    """By object and by name alike; a wrapper around a differentiable model keeps its gradients."""
    options, shown = {"n": 4, "steps": 5, "seed": 2}, lambda walk: torch.stack([state.z for state in walk])
    paths = Brownian(DDPM())
    assert torch.equal(sample(model, solver=paths, **options), sample(model, solver="brownian(ddpm)", **options))
    a, b = (shown(trajectory(model, solver=solver, **options)) for solver in (paths, "brownian(ddpm)"))
    assert torch.equal(a, b)
    assert not torch.equal(sample(model, solver=paths, **options), sample(model, solver=DDPM(), **options))
    z, guided = torch.zeros(2, 2, dtype=F64, requires_grad=True), sf.guide(model, 3.0, (-2.0, 2.0))
    for wrapped in (sf.differentiable(guided), sf.guide(sf.differentiable(model), 3.0)):
        assert sample(wrapped, z=z, steps=3, label=1).requires_grad


class InUserUnits:
    """An exact model of normalised data N(0, 1) with the contract of the data."""

    def __init__(self, spec, shape):
        self.inner = GaussianMixture([1.0], [[0.0] * shape[0]], 1.0).denoiser(Gaussian(Cosine()))
        self.process, self.shape, self.spec = self.inner.process, shape, spec

    def __call__(self, z, t):
        return self.inner(z, t)


@pytest.mark.parametrize("solver", SOLVERS)
def test_data_far_from_zero_keeps_its_mean_and_spread(solver):
    """N(300, 50) through the normaliser: nothing is clipped, mean and std within 2 %."""
    x = 300 + 50 * torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    spec = data.DataSpec.fit(data.open(x))
    steps = 300 if solver == "ddpm" else 40  # order 1 with noise: its spread is 6 % small at 40 steps
    drawn = sample(InUserUnits(spec, (2,)), 4000, steps, SOLVERS[solver], seed=0, batch=4000)
    assert drawn.dtype == x.dtype and drawn.shape == x.shape
    assert float(drawn.mean()) == pytest.approx(300, rel=0.02)
    assert float(drawn.std()) == pytest.approx(50, rel=0.02)
    assert float(drawn.max()) > 300 + 3 * 50 and float(drawn.min()) < 300 - 3 * 50  # the tails are there
    normalised = sample(InUserUnits(spec, (2,)), 4000, steps, SOLVERS[solver], seed=0, batch=4000, normalised=True)
    assert float(normalised.std()) == pytest.approx(1, rel=0.02)


def test_user_dtype_and_bounds():
    x = (128 + 30 * torch.randn(2000, 3, generator=torch.Generator().manual_seed(1))).clamp(0, 255).to(torch.uint8)
    spec = data.DataSpec.fit(data.open(x))
    drawn = sample(InUserUnits(spec, (3,)), 500, 20, seed=0)
    assert drawn.dtype == torch.uint8
    assert float(drawn.double().mean()) == pytest.approx(128, rel=0.03)
