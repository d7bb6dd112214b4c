"""The exact map is the fixed point of every loss of flow maps, and targets made of data alone have the right mean."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import sfumato as sf
from map_cases import LAW, ExactMap, batch, exact_map
from sfumato.conditions import Conditions
from sfumato.flow_map import FlowMap
from sfumato.nets.layout import channels_last
from sfumato.objectives import flow_maps
from sfumato.objectives.angle_derivatives import WAYS, derivative
from sfumato.objectives.flow_maps import Lagrangian, MapLoss, MeanFlow, Semigroup
from sfumato.process.angles import angle, moved, time
from sfumato.registry import names
from sfumato.training import TrainConfig, fit


def test_the_exact_map_is_a_fixed_point() -> None:
    for schedule in ("cosine", "edm"):
        process = sf.Gaussian(schedule)
        teacher, exact = LAW.denoiser(process), ExactMap(LAW, process)
        losses: dict[str, tuple[MapLoss, float]] = {
            "semigroup": (Semigroup(teacher), 1e-12),
            "shortcut": (Semigroup(cut=0.5, diagonal=0.0), 1e-12),
            "trajectory consistency": (Semigroup(teacher, "teacher", cut=0.1, steps=8), 1e-8),
            "consistency": (Semigroup(teacher, "teacher", cut=0.1, steps=8, ends="data"), 1e-8),
            "direct": (Semigroup(teacher, "teacher", cut=1.0, steps=64), 1e-6),
            "Lagrangian": (Lagrangian(teacher), 1e-7),
            "Lagrangian, self": (Lagrangian(diagonal=0.0), 1e-7),
            "mean flow": (MeanFlow(teacher), 1e-5),
            "improved mean flow": (MeanFlow(teacher, improved=True), 1e-5),
        }
        for name, (loss, tolerance) in losses.items():
            assert float(loss.losses(exact, batch(LAW, 24)).max()) < tolerance, (schedule, name)


def test_the_exact_map_is_a_fixed_point_in_either_form() -> None:
    """The network hears the end of a path in float32, of which derivatives see 1e-7 / (2 WIDTH)."""
    process = sf.Gaussian("cosine")
    teacher = LAW.denoiser(process)
    some = batch(LAW, 8)
    for form in ("mean", "ddim"):
        exact = exact_map(LAW, process, form)
        for loss, tolerance in (
            (Semigroup(teacher), 1e-8), (Lagrangian(teacher), 1e-5), (MeanFlow(teacher, improved=True), 1e-5)
        ):  # fmt: skip
            assert float(loss.losses(exact, some).max()) < tolerance, (form, type(loss))
        wrong = exact_map(LAW, process, "ddim" if form == "mean" else "mean")
        wrong.form = form
        assert float(Semigroup(teacher).losses(wrong, some).max()) > 1e-2, "and answers of the other form are none"
    began = Semigroup(calls=(3,)).begun(FlowMap.student(sf.Denoiser(sf.nets.MLP(2, 8, 1), process), form="ddim"))
    assert began.form == "ddim" and began.calls == (3,)


def test_a_step_of_ddim_of_the_student_equals_two_of_the_teacher() -> None:
    """The fixed point of progressive distillation, whose teacher takes Heun steps, halves of the student's in theta."""
    process = sf.Gaussian("cosine")
    teacher = LAW.denoiser(process)

    class TwoSteps(ExactMap):
        def mean(self, z: torch.Tensor, t: torch.Tensor, s: torch.Tensor, **cond: Any) -> torch.Tensor:
            return flow_maps.step(teacher, z, t, s, 2)

    loss = Semigroup(teacher, "teacher", cut=1.0, steps=2, diagonal=0.0)
    assert float(loss.losses(TwoSteps(LAW, process), batch(LAW, 24)).max()) < 1e-20
    assert float(loss.losses(ExactMap(LAW, process), batch(LAW, 24)).max()) > 1e-6
    student = exact_map(LAW, process, "ddim")
    student.inner.exact = TwoSteps(LAW, process)
    t, s = (torch.full((24,), each, dtype=torch.float64) for each in (0.8, 0.3))
    m = time(process, (angle(process, t) + angle(process, s)) / 2)
    z = process.corrupt(
        LAW.sample(24, 5), t, torch.randn(24, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    )
    half = moved(process, z, t, m, flow_maps.step(teacher, z, t, m))
    both = moved(process, half, m, s, flow_maps.step(teacher, half, m, s))
    assert torch.allclose(student(z, t, until=s).to(s), both, rtol=0, atol=1e-6)


def test_targets_of_data_have_the_exact_map_as_their_mean() -> None:
    """For 1-D Gaussian data the least-squares slope and offset of the target on z are those of the exact map."""
    law = sf.exact.GaussianMixture([1.0], [[0.4]], [[[0.3]]])
    process = sf.Gaussian("cosine")
    exact, count = ExactMap(law, process), 40_000
    t, theta = torch.tensor(0.6, dtype=torch.float64), angle(process, 0.6)
    x, eps = (
        law.sample(count, 3),
        torch.randn(count, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),
    )
    z = process.corrupt(x, t, eps)
    each = torch.ones(count, dtype=torch.float64)
    path = flow_maps.Path(z, x, eps, t * each, theta * each, 0.3 * theta * each, 0.5 * each, Conditions({}))
    s = time(process, path.end)
    want = exact.mean(z, path.t, s)
    for name, loss in (("slope", Lagrangian()), ("mean flow", MeanFlow()), ("improved", MeanFlow(improved=True))):
        if isinstance(loss, MeanFlow):
            slope = flow_maps.own_slope(process, path)
            along = exact.mean(z, path.t, path.t) if loss.improved else slope
            target = slope - (path.theta - path.end)[:, None] * loss._change(exact, path, s, along)  # type: ignore[arg-type]
            wanted = want
        else:
            target, wanted = loss.slope(exact, path), exact.mean(z, path.t, path.t)  # type: ignore[arg-type]
        off = (target - wanted)[:, 0]
        assert off.std() > 0.1, name  # noisy targets
        for moment in (off, off * z[:, 0]):
            assert abs(float(moment.mean())) < 4.5 * float(moment.std()) / math.sqrt(count), name


def test_consistency_training_tends_to_distillation() -> None:
    """The mean target of data approaches the teacher's as the cut moves to t."""
    law = sf.exact.GaussianMixture([1.0], [[0.0]], [[[0.2]]])
    process = sf.Gaussian("flow")
    exact, teacher, count = ExactMap(law, process), law.denoiser(process), 200_000
    each, draws = torch.ones(count, dtype=torch.float64), torch.Generator().manual_seed(0)
    x, eps = law.sample(count, 1), torch.randn(count, 1, dtype=torch.float64, generator=draws)
    theta = angle(process, 0.5)
    z = process.corrupt(x, 0.5, eps)
    path = flow_maps.Path(z, x, eps, 0.5 * each, theta * each, 0.0 * each, 0.5 * each, Conditions({}))
    gaps = []
    for cut in (0.4, 0.1, 0.025):
        found = []
        for short in ("data", "teacher"):
            loss = Semigroup(teacher, short, cut=cut, steps=4, ends="data")
            target = loss.target(exact, path, torch.zeros_like(path.t))  # type: ignore[arg-type]
            found.append(float((target * z).mean() / (z * z).mean()))  # the slope of the regression on z
        gaps.append(abs(found[0] - found[1]))
    assert gaps[0] > 0.02 and gaps[0] > 4 * gaps[1] > 16 * gaps[2], gaps


NETS: dict[str, tuple[tuple[int, ...], Any]] = {
    "MLP": ((3,), lambda given: sf.nets.MLP(3, 32, 2, conditions=given)),
    "DiT": ((1, 8, 8), lambda given: sf.nets.DiT((1, 8, 8), width=32, depth=1, heads=2, conditions=given)),
    "UNet": ((1, 8, 8), lambda given: sf.nets.UNet((1, 8, 8), (32, 32), 1, (1,), 16, conditions=given)),
}


@pytest.mark.parametrize("name", NETS)
def test_derivatives_in_float32_are_those_of_float64(name: str) -> None:
    """Of a map that trains in bfloat16, against a difference of width 1e-5 in float64: differences to 1e-3, products of
    forward differentiation to 1e-4, through group norms of channels-last memory and attention."""
    shape, make = NETS[name]
    torch.manual_seed(0)
    net = make({"until": {"kind": "scalar"}}).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    channels_last(net)
    model = FlowMap(sf.Denoiser(net, sf.Gaussian("flow", target="F")))
    model.inner.compute_dtype = torch.bfloat16
    z, t, theta = (
        torch.randn(4, *shape),
        torch.full((4,), 0.8, dtype=torch.float64),
        torch.linspace(0.2, 0.9, 4).double(),
    )
    with torch.no_grad():
        found = {way: derivative(model, theta, lambda s: model.mean(z, t, s), way) for way in WAYS}
        assert model.inner.compute_dtype == torch.bfloat16
        model.inner.compute_dtype = None
        net.double()
        low, high = (model.inner(z.double(), t, until=2 * (theta + h)).F for h in (-1e-5, 1e-5))
        want = (high - low) / 2e-5
    for way, tolerance in (("difference", 1e-3), ("jvp", 1e-4)):
        assert float((found[way] - want).norm() / want.norm()) < tolerance, way


def test_losses_by_forward_differentiation_are_those_by_differences() -> None:
    """For a network with attention and group norms inside, values to a part in a hundred and gradients everywhere."""
    for loss in (Lagrangian(by="jvp"), MeanFlow(improved=True, by="jvp"), MeanFlow(by="jvp")):
        found, some = {}, images(6)
        for way in WAYS:
            torch.manual_seed(0)
            net = NETS["UNet"][1]({"until": {"kind": "scalar"}})
            for parameter in net.parameters():
                torch.nn.init.normal_(parameter, std=0.1)
            channels_last(net)
            model, loss.by = FlowMap(sf.Denoiser(net, sf.Gaussian("flow"))), way
            found[way] = loss.losses(model, some)
            found[way].mean().backward()
            assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())
        assert torch.allclose(found["jvp"], found["difference"], rtol=0.01), type(loss)
    with pytest.raises(sf.SfumatoError, match="did you mean 'jvp'"):
        Lagrangian(by="jpv")


def images(count: int) -> SimpleNamespace:
    x = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return SimpleNamespace(x=x, cond=Conditions({}), index=torch.arange(count), u=u)


def test_the_second_time_is_heard_as_an_angle() -> None:
    """A network hears 2 theta of the path's end under every schedule: its rate is 2, where that of a logsnr is without
    bound."""

    class Ear(torch.nn.Module):
        shape = (2,)

        def forward(self, x: torch.Tensor, level: torch.Tensor, until: torch.Tensor) -> torch.Tensor:
            return until[:, None].expand_as(x)

    theta = torch.tensor([0.01, 0.3, 1.2], dtype=torch.float64)
    for schedule in ("flow", "cosine"):
        model = FlowMap(sf.Denoiser(Ear(), sf.Gaussian(schedule, target="F")))
        z, t = torch.zeros(3, 2), torch.ones(3, dtype=torch.float64)
        s = time(model.process, theta)
        assert torch.allclose(model.mean(z, t, s)[:, 0].double(), 2 * theta, atol=1e-6)
        rate = derivative(model, theta, lambda s, m=model, z=z, t=t: m.mean(z, t, s), "jvp")
        assert torch.allclose(rate, torch.tensor(2.0), atol=1e-4), schedule


def test_weights_by_a_samples_own_error_are_refused_where_they_would_bias() -> None:
    """The minimum under noise of deviation 1 moves in two dimensions, and hardly in a thousand; a teacher has none."""
    for dim, least, most in ((2, 0.2, 0.6), (1024, 0.0, 0.03)):
        noise = torch.where(torch.rand(20_000, 1, generator=torch.Generator().manual_seed(0)) < 0.2, 2.0, -0.5)
        noise = noise.expand(-1, dim) if dim == 2 else skewed(2000, dim)
        shift = torch.zeros((), requires_grad=True)
        for _ in range(60):  # Newton's method of reweighted least squares
            weight = 1 / ((noise - shift.detach()).square().sum(1) + 1e-3)
            shift = (weight * noise.mean(1)).sum() / weight.sum()
        assert least <= abs(float(shift) - float(noise.mean())) <= most, dim
    model = FlowMap.student(sf.Denoiser(sf.nets.MLP(2, 8, 1), sf.Gaussian("flow")))
    with pytest.raises(sf.SfumatoError, match="2 numbers, fewer than 1,000"):
        MeanFlow(power=0.75).suits(model)
    MeanFlow(LAW.denoiser(sf.Gaussian("flow")), power=0.75).suits(model)
    with pytest.raises(sf.SfumatoError, match="power"):
        MeanFlow(power=2.0)


def skewed(count: int, dim: int) -> torch.Tensor:
    """Independent two-point noise of mean 0 and deviation 1, (count, dim)."""
    return torch.where(torch.rand(count, dim, generator=torch.Generator().manual_seed(1)) < 0.2, 2.0, -0.5)


def test_a_student_learns_in_any_split_of_its_batches() -> None:
    teacher = LAW.denoiser(sf.Gaussian("flow"))
    torch.manual_seed(0)
    net = sf.nets.MLP(2, 16, 1, conditions={"until": {"kind": "scalar"}})
    model = FlowMap(sf.Denoiser(net, sf.Gaussian("flow")))
    whole = batch(LAW, 12)
    for loss in (Semigroup(teacher), Lagrangian(), MeanFlow(improved=True)):
        together = loss.losses(model, whole)
        parts = []
        for rows in (slice(0, 5), slice(5, 12)):
            part = SimpleNamespace(
                x=whole.x[rows], cond=whole.cond.rows(rows), index=whole.index[rows], u=whole.u[rows]
            )
            parts.append(loss.losses(model, part))
        assert torch.allclose(together, torch.cat(parts), atol=1e-5)
        together.mean().backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters() if p.requires_grad)


def test_the_schedule_and_the_row_of_a_teacher_do_not_matter() -> None:
    """Losses and held-out distances are the same under teachers that are one law; "edm" and "linear" end before pure
    noise, where the teacher is called at its last level."""
    torch.manual_seed(0)
    net = sf.nets.MLP(2, 16, 1, conditions={"until": {"kind": "scalar"}}).double()
    model = FlowMap(sf.Denoiser(net, sf.Gaussian("flow")))
    some = batch(LAW, 12)
    first = Semigroup(LAW.denoiser(sf.Gaussian("flow", target="v")), "teacher", cut=0.2)
    losses, held = first.losses(model, some), first.held(model, some)
    for schedule, target, tolerance in (("cosine", "F", 1e-9), ("edm", "eps", 1e-3), ("linear", "x", 1e-3)):
        loss = Semigroup(LAW.denoiser(sf.Gaussian(schedule, target=target)), "teacher", cut=0.2)
        loss.suits(model)
        assert torch.allclose(loss.losses(model, some), losses, rtol=0, atol=max(tolerance, 1e-6)), schedule
        assert torch.allclose(loss.held(model, some), held, rtol=0, atol=tolerance), schedule
        assert loss.watched is not None


class DataAtOne(torch.nn.Module):
    """A flow-matching model whose time runs from noise at 0 to data at 1, u(x, t') = dx/dt', as the network of a
    denoiser: t' is read from the noise level, and dz/dt = -u."""

    def __init__(self, velocity: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.velocity = velocity

    def forward(self, scaled: torch.Tensor, noise_level: torch.Tensor) -> torch.Tensor:
        time = torch.sigmoid(-4 * noise_level.double())[:, None]  # the level is log(sigma / alpha) / 4
        size = (time**2 + (1 - time) ** 2).sqrt().to(scaled)
        return -self.velocity(scaled * size, time)


def test_a_teacher_whose_time_runs_the_other_way_gives_the_same_student() -> None:
    """Twenty steps from one seed lead to the same weights as under the plain teacher."""
    process = sf.Gaussian("flow", target="velocity")
    torch.manual_seed(0)
    net = sf.nets.MLP(2, 16, 1)
    torch.nn.init.normal_(list(net.parameters())[-2], std=0.3)

    def velocity(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        size = (time**2 + (1 - time) ** 2).sqrt().to(x)
        return -net(x / size, (torch.log((1 - time) / time) / 4)[:, 0].to(x))

    found = []
    for own in (net, DataAtOne(velocity)):
        teacher = sf.Denoiser(own, process)
        student = FlowMap.student(sf.Denoiser(net, process))
        config = TrainConfig(steps=20, batch=32, precision="float32", snapshots=0)
        loss = Semigroup(teacher, "teacher", cut=0.2)
        for _ in fit(student, LAW.sample(256, 0).float(), config, loss=loss):
            pass
        found.append({name: value.clone() for name, value in student.net.state_dict().items()})
    first = FlowMap.student(sf.Denoiser(net, process)).net.state_dict()
    assert any(not torch.equal(found[0][name], first[name]) for name in first), "it has learned"
    for name, value in found[0].items():
        assert torch.allclose(found[1][name], value, rtol=0, atol=1e-5), name


def test_names_and_mistakes() -> None:
    known = {"semigroup", "lagrangian", "mean-flow", "consistency-training", "progressive-distillation"}
    assert known <= set(names("loss"))
    with pytest.raises(sf.SfumatoError, match="flow map"):
        Semigroup().suits(sf.Denoiser(sf.nets.MLP(2, 8, 1), sf.Gaussian("flow")))
    model = FlowMap.student(sf.Denoiser(sf.nets.MLP(2, 8, 1), sf.Gaussian("flow")))
    with pytest.raises(sf.SfumatoError, match="teacher"):
        Semigroup(short="teacher").suits(model)
    with pytest.raises(sf.SfumatoError, match="sigma_data"):
        Semigroup(LAW.denoiser(sf.Gaussian("cosine", sigma_data=0.5))).suits(model)
    half = FlowMap.student(sf.Denoiser(sf.nets.MLP(2, 8, 1).bfloat16(), sf.Gaussian("flow")))
    Semigroup().suits(half)
    for loss in (Lagrangian(), MeanFlow(improved=True)):
        with pytest.raises(sf.SfumatoError, match="weights are in bfloat16"):
            loss.suits(half)
    for wrong in ({"short": "nobody"}, {"cut": 0.0}, {"cut": 1.0}, {"ends": "noise"}, {"diagonal": 1.0}):
        with pytest.raises(sf.SfumatoError):
            Semigroup(**wrong)
