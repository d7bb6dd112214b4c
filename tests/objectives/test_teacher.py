"""Targets by a teacher and by a reference batch: same minimiser, no floor, less variance, a bias that falls."""

import dataclasses
import math

import pytest
import torch

from sfumato import noise, target
from sfumato.belief import Estimate
from sfumato.errors import SfumatoError
from sfumato.exact import Empirical, GaussianMixture
from sfumato.model import Denoiser
from sfumato.nets import MLP
from sfumato.objectives import denoising_loss, times, weights
from sfumato.objectives.losses import Denoising
from sfumato.objectives.teacher import Corrupted, StableTarget, Teacher, away
from sfumato.process import Gaussian
from sfumato.schedules import VE, Cosine, Flow, LinearBeta
from sfumato.training import TrainConfig, fit

F64 = torch.float64
MIXTURE = GaussianMixture([0.3, 0.7], [[-1.0, 0.5], [0.8, 0.0]], [[[0.2, 0.1], [0.1, 0.3]], [[0.4, 0.0], [0.0, 0.05]]])


class Student:
    """D(z) = E[x|z] + theta g(z): its optimum is theta = 0."""

    def __init__(self, process, name="v", law=MIXTURE):
        self.process, self.law = dataclasses.replace(process, target=name), law
        self.theta = torch.zeros((), dtype=F64, requires_grad=True)

    def __call__(self, z, t):
        x = self.law.denoiser(self.process)(z, t).x + self.theta * torch.tanh(z)
        return Estimate(z, t, self.process.schedule, x=x)


def gradients(student, x, theta=0.0, **settings):
    """d loss_i / d theta_i of each sample, at one theta."""
    student.theta = torch.full((len(x), 1), theta, dtype=F64, requires_grad=True)
    denoising_loss(student, x, **settings).sum().backward()
    return student.theta.grad[:, 0]


@pytest.mark.parametrize("name", target.NAMES)
def test_an_exact_teacher_leaves_no_floor_and_no_variance(name):
    """At the optimum loss and every sample's gradient vanish; without a teacher neither does."""
    process = Gaussian(LinearBeta())
    student, x = Student(process, name), MIXTURE.sample(60, seed=1)
    settings = {"weight": weights.sigmoid(), "times": times.logit_normal(), "seed": 2}
    teacher = Teacher(MIXTURE.denoiser(process))
    with_teacher, without = (gradients(student, x, **settings, clean=clean) for clean in (teacher, None))
    assert float(with_teacher.abs().max()) < 1e-8 * float(without.abs().max())
    loss = denoising_loss(student, x, **settings, clean=teacher)
    assert float(loss.detach().max()) < 1e-12 < 1e-2 < float(denoising_loss(student, x, **settings).detach().mean())
    assert float(without.std()) > 0.05


@pytest.mark.parametrize("weight", [None, weights.elbo()], ids=["plain", "elbo"])
def test_away_from_the_optimum_it_is_the_distance_of_the_two_beliefs(weight):
    """1/2 c |x_teacher - x_student|^2 in the units of the denoising loss, whatever x was."""
    process, t = Gaussian(Flow()), torch.linspace(0.1, 0.9, 40, dtype=F64)
    student, x = Student(process, "velocity"), MIXTURE.sample(40, seed=1)
    student.theta = torch.tensor(0.3, dtype=F64)
    eps = noise.normal(3, range(40), (2,), dtype=F64)
    z = process.corrupt(x, t, eps)
    alpha, sigma = process.schedule(t)
    scale = (
        1 / sigma**2
        if weight is None
        else (alpha / sigma) ** 2 / times.uniform().density(process.schedule.logsnr(t), process.schedule)
    )
    wanted = 0.5 * scale * 0.09 * torch.tanh(z).square().sum(1)
    found = denoising_loss(student, x, t, weight, eps=eps, clean=Teacher(MIXTURE.denoiser(process)))
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=0)


def test_the_mean_gradient_is_that_of_the_denoising_loss():
    """|x - D|^2 = |E[x|z] - D|^2 + tr Cov: the same expected gradient at any D, with less variance."""
    process, n = Gaussian(Cosine()), 4000
    student, x = Student(process), MIXTURE.sample(n, seed=5)
    settings = {"weight": weights.sigmoid(), "times": times.logit_normal(), "seed": 6}
    with_teacher, without = (
        gradients(student, x, 0.05, **settings, clean=clean) for clean in (Teacher(MIXTURE.denoiser(process)), None)
    )
    error = float((with_teacher - without).std()) / n**0.5
    assert float(with_teacher.mean()) == pytest.approx(float(without.mean()), abs=3.5 * error)
    assert float(with_teacher.mean()) > 5 * error and float(with_teacher.var()) < 0.4 * float(without.var())


def test_a_teacher_under_another_schedule_is_rescheduled():
    x, ve = MIXTURE.sample(20, seed=7), Gaussian(VE(0.002, 80.0))
    student = Student(Gaussian(Flow()))
    loss = denoising_loss(student, x, times=times.logit_normal(), clean=Teacher(MIXTURE.denoiser(ve)))
    assert float(loss.detach().max()) < 1e-12


# -- a reference batch -----------------------------------------------------------------------------------------------


def corrupted(process, x, t, seed=0, first=0, **cond):
    index = torch.arange(first, first + len(x))
    eps = noise.normal(seed, index, tuple(x.shape[1:]), noise.TRAIN_NOISE, dtype=x.dtype)
    t = torch.as_tensor(t, dtype=F64).expand(len(x))
    return Corrupted(process, x, eps, process.corrupt(x, t, eps), t, seed, index, cond)


@pytest.mark.parametrize("curve", [Flow(), VE()], ids=lambda c: type(c).__name__)
def test_the_whole_data_set_as_reference_gives_its_exact_posterior_mean(curve):
    """sum_i r_i x_i over all the data is the optimal denoiser of the data set, at every level."""
    data = MIXTURE.sample(150, seed=1)
    process = Gaussian(curve)
    for t in (0.02, 0.2, 0.5, 0.8, 0.99):
        at = corrupted(process, data[:40], t, seed=2)
        x, eps = StableTarget(data, size=150)(at)
        truth = Empirical(data).denoiser(process)(at.z, t)
        torch.testing.assert_close(x, truth.x, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(eps, truth.eps, rtol=1e-8, atol=1e-8)


def test_its_variance_is_lower_at_middle_levels_and_never_higher():
    """E |target - E[x|z]|^2 against the mmse of the single sample: equal at little noise, a fraction at much."""
    process, pool, x = Gaussian(Cosine()), MIXTURE.sample(20_000, seed=3), MIXTURE.sample(1280, seed=4)
    stable, ratios = StableTarget(pool, size=256), []
    for t in (0.001, 0.3, 0.5, 0.7):
        at = corrupted(process, x, t, seed=5)
        mean = MIXTURE.denoiser(process)(at.z, t).x
        ratios.append(float((stable(at)[0] - mean).square().sum() / (x - mean).square().sum()))
    assert ratios[0] == pytest.approx(1, abs=0.25)
    assert max(ratios[1:]) < 0.1 and max(ratios) < 1


def test_it_is_unbiased_at_any_size_and_would_not_be_without_the_sample_itself():
    """At a fixed z, E[target | z] over x ~ p(x|z) and references is E[x|z]; of other samples alone it is off.

    Unit Gaussian data: p(x|z) = N(alpha z, sigma^2) on a variance-preserving path.
    """
    curve, t, z, runs = Cosine(), 0.35, 2.0, 1500
    alpha, sigma = (float(c) for c in curve(t))
    k = torch.full((1,), alpha / sigma, dtype=F64)
    draws = noise.normal(1, range(runs), (17,), dtype=F64)[..., None]

    def target_of(own, others):
        return own - away(own, (z - alpha * own) / sigma, k, others)

    alone = []
    for n in (4, 16):
        with_it = torch.stack([target_of(alpha * z + sigma * row[:1], row[1 : n + 1]) for row in draws])
        error = float(with_it.std()) / runs**0.5
        assert float(with_it.mean()) == pytest.approx(alpha * z, abs=3.5 * error)
        without = torch.stack([target_of(row[1:2], row[2 : n + 1]) for row in draws])
        alone.append(alpha * z - float(without.mean()))
        assert alone[-1] > 4 * float(without.std()) / runs**0.5
    assert alone[1] < 0.5 * alone[0]  # towards the mean of the data, less and less


def test_targets_do_not_depend_on_how_batches_are_cut():
    process, pool = Gaussian(Flow()), MIXTURE.sample(500, seed=3)
    x, t = MIXTURE.sample(200, seed=4), torch.linspace(0.1, 0.9, 200, dtype=F64)
    stable = StableTarget(pool, size=50)
    whole = stable(corrupted(process, x, t))[0]
    for start, stop in ((0, 70), (70, 75), (75, 200)):
        part = stable(corrupted(process, x[start:stop], t[start:stop], first=start))[0]
        torch.testing.assert_close(part, whole[start:stop], rtol=1e-12, atol=1e-12)
    other = stable(corrupted(process, x, t, seed=1))[0]
    assert not torch.allclose(other, whole)


def test_a_label_keeps_to_its_class():
    """With labels the target is the posterior mean within the class; hidden labels see all."""
    data, labels = MIXTURE.labelled(300, seed=6)
    process = Gaussian(Flow())
    given = torch.where(torch.arange(300) % 3 == 0, -1, labels)
    at = corrupted(process, data, 0.6, label=given)
    x, _ = StableTarget(data, size=300, labels=labels, block=300)(at)
    truth = Empirical(data, labels).denoiser(process)(at.z, 0.6, label=given)
    torch.testing.assert_close(x, truth.x, rtol=1e-9, atol=1e-9)


def test_the_loss_takes_it_and_single_precision_holds_near_the_data():
    process, pool = Gaussian(Flow()), MIXTURE.sample(400, seed=3).float()
    student, x = Student(process), pool[:64]
    loss = denoising_loss(student, x, 1e-6, clean=StableTarget(pool, size=100))
    plain = denoising_loss(student, x, 1e-6)
    assert bool(loss.isfinite().all())
    torch.testing.assert_close(loss, plain, rtol=1e-3, atol=1e-6)  # nothing is shared where there is no noise
    assert math.isfinite(float(denoising_loss(student, x, 1.0, clean=StableTarget(pool, size=100)).mean()))


def test_the_loop_trains_with_it():
    """A linear network on Gaussian data, towards a teacher: the loss falls to nothing, which noise does not allow."""
    process, law = Gaussian(Flow()), GaussianMixture([1.0], [[0.0, 0.0]], [[2.0, 0.5]])
    ends = []
    for clean in (Teacher(law.denoiser(process)), None):
        torch.manual_seed(0)
        model = Denoiser(MLP(2, width=32, depth=2), process, "velocity")
        goal = Denoising(times.logit_normal(), None, 0, clean)
        config = TrainConfig(steps=120, batch=64, precision="float32")
        *_, last = fit(model, law.sample(2000, seed=9).float(), config, loss=goal)
        ends.append(last.loss)
    assert ends[0] < 0.1 * ends[1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"size": 0}, "1 to 9"), ({"size": 10}, "1 to 9"), ({"size": 3, "block": 0}, "at least 1"),
     ({"size": 3, "labels": torch.zeros(4)}, "one label per sample")],
)  # fmt: skip
def test_mistakes_are_told(settings, words):
    with pytest.raises(SfumatoError, match=words):
        StableTarget(torch.zeros(9, 2), **settings)
