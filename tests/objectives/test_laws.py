"""Losses of laws: zero where both laws are one, the gradients of known divergences, players that learn."""

import math
from typing import Any

import pytest
import torch

import sfumato as sf
from map_cases import LAW, ExactMap, batch
from sfumato.conditions import Conditions, Given
from sfumato.distillation import loss_named
from sfumato.flow_map import FlowMap
from sfumato.objectives.flow_maps import Path
from sfumato.objectives.laws import (
    DistributionMatching,
    LawLoss,
    MomentMatching,
    ScoreIdentity,
    carried,
    conditions,
    energy,
)
from sfumato.process.angles import angle, time, unit
from sfumato.registry import names
from sfumato.training import State, TrainConfig, fit

KINDS = (DistributionMatching, MomentMatching, ScoreIdentity)


class Fake:
    """The exact denoiser of a law, in the place of the player."""

    def __init__(self, law: sf.exact.GaussianMixture, process: sf.Gaussian) -> None:
        self.process, self.model = process, law.denoiser(process)

    def __call__(self, z: torch.Tensor, t: torch.Tensor, until: torch.Tensor, **cond: Any) -> sf.Estimate:
        assert until.shape == (len(z),)
        return self.model(z, t, **cond)


class Leaf(ExactMap):
    """The exact map, whose answers take gradients."""

    def mean(self, z: torch.Tensor, t: torch.Tensor, s: torch.Tensor, **cond: Any) -> torch.Tensor:
        self.found = super().mean(z, t, s, **cond).requires_grad_()
        return self.found


@pytest.mark.parametrize("kind", KINDS)
def test_the_exact_map_has_no_gradient(kind: type[LawLoss]) -> None:
    """From noise and from between, under the schedule of the teacher and under another."""
    for schedule in ("cosine", "flow"):
        process = sf.Gaussian(schedule)
        loss, exact = kind(LAW.denoiser(sf.Gaussian("flow")), calls=(1, 2)), Leaf(LAW, process)
        loss.fake = Fake(LAW, sf.Gaussian("flow"))
        found = loss.losses(exact, batch(LAW, 24))
        (grad,) = torch.autograd.grad(found.sum(), exact.found)
        assert float(grad.abs().max()) < 1e-6, schedule
        assert float(found.detach().abs().max()) < 1e-6, schedule
        loss.fake = Fake(sf.exact.GaussianMixture([1.0], [[0.5, 0.0]], [[[1.0, 0.0], [0.0, 1.0]]]), process)
        found = loss.losses(exact, batch(LAW, 24))
        (grad,) = torch.autograd.grad(found.sum(), exact.found)
        assert float(grad.abs().max()) > 1e-3, "and one wherever the laws differ"


def gaussian_gradient(loss: LawLoss, a: float, level: float) -> tuple[float, float]:
    """(dE loss / da, its standard error) for samples x = a e of N(0, a^2), a teacher of N(0, 1), at one level."""
    process, count = sf.Gaussian("flow"), 40_000
    source = torch.Generator().manual_seed(0)
    e, n = (torch.randn(count, 1, dtype=torch.float64, generator=source) for _ in range(2))
    scale = torch.full((count,), a, dtype=torch.float64, requires_grad=True)
    each = torch.ones(count, dtype=torch.float64)
    theta = angle(process, 1.0) * each
    path = Path(e, e, e, each, theta, 0 * each, each, Conditions({}), torch.arange(count))
    loss.fake = Fake(sf.exact.GaussianMixture([1.0], [[0.0]], [[[a * a]]]), process)
    x = scale[:, None] * e
    m = level * each
    model: Any = ExactMap(LAW, process)
    found = loss.difference(model, path, x, process.corrupt(x, m, n), m)
    (grad,) = torch.autograd.grad(found.sum(), scale)
    return float(grad.mean()), float(grad.std()) / math.sqrt(count)


def test_distribution_matching_is_the_gradient_of_the_divergence() -> None:
    """dKL(N(0, V_a) || N(0, V_1))/da = alpha^2 a (1 / V_1 - 1 / V_a), V_a = alpha^2 a^2 + sigma^2; its weight is
    sigma^2 / alpha^2."""
    teacher = sf.exact.GaussianMixture([1.0], [[0.0]], [[[1.0]]]).denoiser(sf.Gaussian("flow"))
    for a, level in ((1.5, 0.3), (0.6, 0.5), (0.6, 0.8)):
        alpha, sigma = 1 - level, level
        known = sigma**2 * a * (1 / (alpha**2 + sigma**2) - 1 / (alpha**2 * a**2 + sigma**2))
        found, error = gaussian_gradient(DistributionMatching(teacher), a, level)
        assert error < 0.1 * abs(known) and abs(found - known) < 4.5 * error, (a, level)


def test_students_that_renew_no_noise_are_compared_where_their_calls_end() -> None:
    """X(z_t, t, s): the exact map has no gradient; for N(0, a^2) at s the gradient is that of KL at m > s, with
    dKL/da = r^2 a (1 / V_p - 1 / V_q), r = alpha_m / alpha_s, and the weight sigma_m^2 / alpha_m^2."""
    process = sf.Gaussian("flow")
    for kind in (DistributionMatching, ScoreIdentity):
        loss, exact = kind(LAW.denoiser(process), calls=(3,), gamma=0), Leaf(LAW, process)
        loss.fake = Fake(LAW, process)
        some = batch(LAW, 24)
        assert {round(float(end), 3) for end in loss.paths(exact, some)[0].end} == {0.0, 0.524, 1.047}
        (grad,) = torch.autograd.grad(loss.losses(exact, some).sum(), exact.found)
        assert float(grad.abs().max()) < 1e-6
    teacher = sf.exact.GaussianMixture([1.0], [[0.0]], [[[1.0]]]).denoiser(process)
    loss, count, source = DistributionMatching(teacher, gamma=0), 40_000, torch.Generator().manual_seed(0)
    e, n = (torch.randn(count, 1, dtype=torch.float64, generator=source) for _ in range(2))
    each, end = torch.ones(count, dtype=torch.float64), 0.4
    s = time(process, torch.tensor(end, dtype=torch.float64))
    path = Path(e, e, e, each, angle(process, 1.0) * each, end * each, each, Conditions({}), torch.arange(count))
    for a, level in ((1.5, 0.5), (0.4, 0.8)):
        (r, b), (alpha, sigma) = process.jump(s, level), (1 - level, level)
        law, theirs = float(r**2 * a * a + b**2), alpha**2 + sigma**2
        loss.fake = Fake(sf.exact.GaussianMixture([1.0], [[0.0]], [[[(law - sigma**2) / alpha**2]]]), process)
        scale = torch.full((count,), a, dtype=torch.float64, requires_grad=True)
        z, clean = carried(process, path, scale[:, None] * e, level * each, n)
        (grad,) = torch.autograd.grad(
            loss.difference(ExactMap(LAW, process), path, clean, z, level * each).sum(), scale
        )
        known = sigma**2 / alpha**2 * float(r**2) * a * (1 / theirs - 1 / law)
        error = float(grad.std()) / math.sqrt(count)
        assert error < 0.1 * abs(known) and abs(float(grad.mean()) - known) < 4.5 * error, (a, level)
        off = loss.imitated(ExactMap(LAW, process), path, z.detach(), level * each).x - clean.detach()  # it learns this
        for moment in (off, off * z.detach()):
            assert abs(float(moment.mean())) < 4.5 * float(moment.std()) / math.sqrt(count)
    for wrong in ({"gamma": 0.5}, {"gamma": 0, "calls": (1, 2)}):
        with pytest.raises(sf.SfumatoError, match="gamma"):
            DistributionMatching(teacher, **wrong)
    with pytest.raises(sf.SfumatoError, match="renew all noise"):
        MomentMatching(teacher, gamma=0)


class Elsewhere(ExactMap):
    """Samples of the law at other noise, or of another law: the exact ones of -z, moved by `off`."""

    off = 0.0

    def mean(self, z: torch.Tensor, t: torch.Tensor, s: torch.Tensor, **cond: Any) -> torch.Tensor:
        end = self.law.flow_between(-z, self.process.schedule(t), self.process.schedule(s)) + self.off
        d = (angle(self.process, t) - torch.where(s == 0, 0.0, angle(self.process, s)))[:, None]
        return (unit(self.process, end, s) - unit(self.process, z, t)) / d


def test_held_out_samples_are_compared_as_a_law() -> None:
    """A map that leaves the teacher's paths and keeps its law is as near as the exact one, and one that leaves the law
    is not: by the energy distance of two sets, which for 1-D points is twice the square between their distributions."""
    process = sf.Gaussian("flow")
    some, loss = batch(LAW, 64), DistributionMatching(LAW.denoiser(process))
    assert loss.watched is not None and "energy" in loss.watched
    exact, other = float(loss.held(ExactMap(LAW, process), some).mean()), Elsewhere(LAW, process)  # type: ignore[arg-type]
    left = float(loss.held(other, some).mean())  # type: ignore[arg-type]
    other.off = 1.0
    gone = float(loss.held(other, some).mean())  # type: ignore[arg-type]
    assert 0 <= exact < 0.1 and 0 <= left < 0.1 and gone > 0.3, (exact, left, gone)
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [3.0]])
    assert math.isclose(float(energy(x, y).mean()), 2 * (0.5**2 * 2))  # the distributions differ by 1/2 from 1 to 3
    assert float(energy(x, x).abs().max()) == 0


def test_classes_that_are_exchanged_are_seen() -> None:
    """A student that draws each class in the place of the other has the teacher's samples, and not its law of samples
    and classes; in classes, in numbers and in tokens."""
    process = sf.Gaussian("flow")
    law = sf.exact.GaussianMixture([0.5, 0.5], [[-2.0], [2.0]], [[[0.1]], [[0.1]]], labels=[0, 1])

    class OfClasses(ExactMap):
        exchanged = False

        def mean(self, z: torch.Tensor, t: torch.Tensor, s: torch.Tensor, **cond: Any) -> torch.Tensor:
            own = cond["label"] != int(self.exchanged)
            each = [sf.exact.GaussianMixture([1.0], [[at]], [[[0.1]]]) for at in (-2.0, 2.0)]
            off, on = (ExactMap(one, process).mean(z, t, s) for one in each)
            return torch.where(own[:, None], on, off)

    some, student = batch(law, 64), OfClasses(law, process)
    some.cond = Conditions({"label": torch.arange(64) % 2})
    loss = DistributionMatching(law.denoiser(process))
    right = float(loss.held(student, some).mean())  # type: ignore[arg-type]
    student.exchanged = True
    wrong = float(loss.held(student, some).mean())  # type: ignore[arg-type]
    assert right < 0.1 and wrong > 0.5, (right, wrong)
    x, label = torch.tensor([[-2.0], [2.0]]).repeat(16, 1), torch.arange(32) % 2
    tokens = Given(label[:, None, None].float().expand(32, 3, 2) * 1.0, torch.ones(32, 3, dtype=torch.bool))
    for cond in ({"label": label}, {"n": (2.0 * label - 1)[:, None]}, {"n": tokens, "m": (label * 2.0)[:, None]}):
        told = conditions(Conditions(cond), 1.0)
        assert float(energy(x, x.flip(0)).abs().max()) < 1e-9 < 0.1 < float(energy(x, x.flip(0), told).mean())
        assert float(energy(x, x, told).abs().max()) < 1e-9
    assert conditions(Conditions({}), 1.0) is None


def test_rows_of_conditions_are_as_far_apart_as_samples() -> None:
    source, numbers = torch.Generator().manual_seed(0), 64
    x = torch.randn(500, numbers, generator=source)
    told = conditions(Conditions({"n": torch.randn(500, 7, generator=source)}), 1.0)
    assert told is not None
    apart = [torch.nn.functional.pdist(each.double()).square().mean() for each in (x, math.sqrt(numbers) * told)]
    assert abs(float(apart[0] / apart[1]) - 1) < 0.1
    classes = conditions(Conditions({"label": torch.arange(3)}), 1.0)
    assert classes is not None and torch.allclose(
        torch.nn.functional.pdist(classes), torch.tensor(math.sqrt(2)).double()
    )


def test_the_score_identity_leads_to_the_teachers_law() -> None:
    teacher = sf.exact.GaussianMixture([1.0], [[0.0]], [[[1.0]]]).denoiser(sf.Gaussian("flow"))
    for alpha in (1.0, 1.2):
        for a, sign in ((1.5, 1), (0.6, -1)):
            found, error = gaussian_gradient(ScoreIdentity(teacher, alpha), a, 0.5)
            assert sign * found > 4.5 * error, (alpha, a)


def test_the_player_learns_the_law_of_the_samples() -> None:
    """Its loss has gradients in the player alone, and none on average where it is the samples' exact denoiser."""
    process = sf.Gaussian("flow", target="F")
    torch.manual_seed(0)
    model = FlowMap.student(sf.Denoiser(sf.nets.MLP(2, 16, 1), process))
    for kind in KINDS:
        loss = kind(LAW.denoiser(process))
        loss.suits(model)
        players = list(loss.players())
        found = loss.player_losses(model, batch(LAW, 16))
        grads = torch.autograd.grad(found.sum(), [*players, *model.inner.net.parameters()], allow_unused=True)
        assert all(grad is None for grad in grads[len(players) :])
        assert any(grad is not None and bool(grad.any()) for grad in grads[: len(players)])
        parts = [loss.player_losses(model, some(batch(LAW, 16), part)) for part in (slice(0, 5), slice(5, 16))]
        assert torch.allclose(torch.cat(parts), found, atol=1e-5), "whatever the split of the batch"
    # the exact map's samples have the law of the data: the exact denoiser's error is the least, and uncorrelated with z
    loss = DistributionMatching(LAW.denoiser(process))
    exact: Any = ExactMap(LAW, process)
    loss.fake = Fake(LAW, process)
    least = loss.player_losses(exact, batch(LAW, 2000))
    loss.fake = Fake(sf.exact.GaussianMixture([1.0], [[0.0, 0.0]], [[[1.2, 0.0], [0.0, 1.0]]]), process)
    gap = loss.player_losses(exact, batch(LAW, 2000)) - least
    assert float(gap.mean()) > 4.5 * float(gap.std()) / math.sqrt(2000)


def test_the_player_starts_at_the_teacher_and_learns_from_the_samples_of_the_step() -> None:
    """Whatever student it plays against: at first it answers as the teacher, and where both hear the same, D_x = D."""
    process = sf.Gaussian("flow", target="F")
    torch.manual_seed(0)
    nets = [sf.nets.MLP(2, 16, 1) for _ in range(2)]
    for net in nets:
        torch.nn.init.normal_(list(net.parameters())[-2], std=0.1)
    teacher, student = sf.Denoiser(nets[0], process), FlowMap.student(sf.Denoiser(nets[1], process))
    loss, each = DistributionMatching(sf.guide(teacher, 1.0), turns=1), batch(LAW, 12)
    loss.suits(student)
    z, t = LAW.sample(5, 1).float(), torch.full((5,), 0.6)
    assert torch.equal(loss.fake(z, t, until=t).x, teacher(z, t).x)
    anew = loss.player_losses(student, each)
    found = loss.losses(student, each)
    assert float(found.detach().abs().max()) < 1e-12
    calls: list[int] = []
    handle = student.net.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(loss.player_losses(student, each), anew) and not calls, "no second call of the student"
    loss.losses(student, each)
    loss.observe(each, found)
    handle.remove()
    assert torch.equal(loss.player_losses(student, each), anew)


def some(whole: Any, rows: slice) -> Any:
    parts = {"x": whole.x[rows], "cond": whole.cond.rows(rows), "index": whole.index[rows], "u": whole.u[rows]}
    return type(whole)(**parts)


def test_names_and_mistakes() -> None:
    assert {"distribution-matching", "score-identity", "moment-matching"} <= set(names("loss"))
    model = FlowMap.student(sf.Denoiser(sf.nets.MLP(2, 8, 1), sf.Gaussian("flow")))
    with pytest.raises(sf.SfumatoError, match="teacher"):
        DistributionMatching().suits(model)
    with pytest.raises(sf.SfumatoError, match="alpha"):
        ScoreIdentity(alpha=3.0)
    assert "score-identity(alpha=1.2, teacher=None" in loss_named("score-identity(alpha=1.2)", "None", (1,))


@pytest.mark.slow
@pytest.mark.parametrize("kind, calls", [(DistributionMatching, 1), (MomentMatching, 2), (ScoreIdentity, 1)])
def test_students_by_law_sample_the_mixture(kind: type[LawLoss], calls: int) -> None:
    """From a network of zeros, whose samples are normal, in 160 steps at most three quarters of the way are left."""
    torch.manual_seed(0)
    process = sf.Gaussian("flow", target="F")
    student = FlowMap.student(sf.Denoiser(sf.nets.MLP(2, 64, 2), process), (calls,), 1.0)
    before = off(sf.sample(student, 4000, seed=3))
    config = TrainConfig(steps=160, batch=128, lr=1e-3, optimizer="adamw", precision="float32", snapshots=0)
    state = State(student, config, kind(LAW.denoiser(process), turns=4, calls=(calls,)))
    for _ in fit(student, LAW.sample(4096, 0).float(), config, state=state):
        pass
    assert off(sf.sample(state.best, 4000, seed=3)) < 0.75 * before


def off(x: torch.Tensor) -> float:
    """The sliced 2-Wasserstein distance of samples in the plane to as many of the law."""
    direction = torch.arange(32, dtype=torch.float64) * math.pi / 32
    lines = torch.stack((direction.cos(), direction.sin()))
    a, b = ((v.double() @ lines).sort(0)[0] for v in (x, LAW.sample(len(x), 9)))
    return float((a - b).square().mean().sqrt())
