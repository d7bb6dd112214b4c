"""Flow maps of blurred and of paired processes: exact maps are fixed points of every loss, and students sample."""

import dataclasses
import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import sfumato as sf
from map_cases import ExactMap
from sfumato.conditions import Conditions
from sfumato.diagnostics.path_answers import ask_of_paths
from sfumato.flow_map import FlowMap
from sfumato.objectives import flow_maps
from sfumato.objectives.flow_maps import Lagrangian, MapLoss, MeanFlow, Semigroup
from sfumato.objectives.laws import DistributionMatching
from sfumato.process import Basis, Blur, Bridge, Coloured, Heat, Interpolant, RectifiedFlow, Spectral, Subspace, angles
from sfumato.schedules import Cosine, Flow

SHAPE = (1, 6, 6)
SPECTRAL = {
    "blur": Blur("cosine", SHAPE, width=3.0),
    "coloured": Coloured("flow", SHAPE),
    "subspace": Subspace("cosine", SHAPE),
}
PAIRS: dict[str, Any] = {
    "rectified flow": RectifiedFlow(Flow()),
    "rectified flow, cosine": RectifiedFlow(Cosine()),
    "bridge": Bridge(Flow(), noise=0.7),
    "interpolant": Interpolant(Flow(), noise=0.7),
    "interpolant, cosine": Interpolant(Cosine(), noise=0.7),
}
PAIR = sf.exact.Pair(
    [0.4, 0.6],
    [[1.0, 0.2, -1.0, 0.5], [-0.8, -0.6, 0.9, 0.1]],
    [
        [[0.3, 0.1, 0.2, 0.0], [0.1, 0.4, 0.0, 0.1], [0.2, 0.0, 0.5, 0.0], [0.0, 0.1, 0.0, 0.3]],
        [[0.2, 0.0, 0.1, 0.0], [0.0, 0.3, 0.0, 0.2], [0.1, 0.0, 0.4, 0.1], [0.0, 0.2, 0.1, 0.5]],
    ],
)


def fields(count: int) -> sf.exact.GaussianMixture:
    """A mixture of fields of falling power, as the law of their coefficients."""
    power = 1 / (Basis(SHAPE).eigenvalues + 0.3).flatten()
    power = power / power.mean()
    draws = torch.Generator().manual_seed(0)
    means = torch.randn(count, 36, generator=draws, dtype=torch.float64) * power.sqrt()
    return sf.exact.GaussianMixture(
        [1 / count] * count, means, [(share * power).tolist() for share in (0.3, 0.15)[:count]], shape=SHAPE
    )


def known(process: Spectral) -> Spectral:
    """The process with a power of its coefficients that is not quite the law's, so that F is not 0."""
    power = 1.3 / (Basis(SHAPE).eigenvalues + 0.4).flatten()
    return dataclasses.replace(process, power=tuple(power.tolist()))


def coefficients(law: Any, process: Any, count: int) -> SimpleNamespace:
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    x = process.table(law.sample(count, 0))
    return SimpleNamespace(x=x, cond=Conditions({}), index=torch.arange(count), u=u)


class FineMap:
    """The mean of F over a path, by many steps of a denoiser."""

    form = "mean"

    def __init__(self, teacher: Any, steps: int = 48) -> None:
        self.teacher, self.process, self.steps = teacher, teacher.process, steps

    def mean(self, z: torch.Tensor, t: torch.Tensor, s: torch.Tensor, **cond: Any) -> torch.Tensor:
        return flow_maps.step(self.teacher, z, t, s, self.steps, **cond)


@pytest.mark.parametrize("name", SPECTRAL)
def test_the_exact_map_of_coefficients_is_a_fixed_point(name: str) -> None:
    """Of one normal law, whose flow is known for each coefficient; curves of subspaces have kinks. The derivative of a
    mean flow at t = 1 is taken a little before it, where coefficients turn faster."""
    law, process = fields(1), known(SPECTRAL[name])
    teacher, exact, some = law.denoiser(process), ExactMap(law, process), coefficients(law, process, 24)
    kinks = 10 if name == "subspace" else 1
    losses: dict[str, tuple[MapLoss, float]] = {
        "semigroup": (Semigroup(teacher), 1e-10),
        "shortcut": (Semigroup(cut=0.5, diagonal=0.0), 1e-12),
        "trajectory consistency": (Semigroup(teacher, "teacher", cut=0.1, steps=8), 1e-6 * kinks),
        "direct": (Semigroup(teacher, "teacher", cut=1.0, steps=64), 1e-5 * kinks),
        "Lagrangian": (Lagrangian(teacher), 1e-5 * kinks),
        "mean flow": (MeanFlow(teacher), 1e-6 * kinks),
        "improved mean flow": (MeanFlow(teacher, improved=True), 1e-6 * kinks),
    }
    for what, (loss, tolerance) in losses.items():
        found = loss.losses(exact, some)
        inside = loss.paths(exact, some)[0].t < 1 if isinstance(loss, MeanFlow) else torch.ones(24, dtype=torch.bool)
        assert float(found[inside].max()) < tolerance and float(found.max()) < 0.01, what
        if loss.teacher is not None:  # a map that agrees with itself need not be the teacher's
            assert float(loss.losses(_off(exact), some).mean()) > 2 * tolerance, what


def _off(exact: Any) -> Any:
    """The map with an F that is a tenth too large."""
    wrong = SimpleNamespace(process=exact.process, form="mean")
    wrong.mean = lambda z, t, s, **cond: 1.1 * exact.mean(z, t, s, **cond)
    return wrong


@pytest.mark.parametrize("name", SPECTRAL)
def test_the_map_of_a_mixture_of_fields_is_a_fixed_point(name: str) -> None:
    law, process = fields(2), known(SPECTRAL[name])
    teacher, some = law.denoiser(process), coefficients(law, process, 8)
    for loss, tolerance in ((Semigroup(teacher), 1e-4), (Lagrangian(teacher), 1e-3)):
        assert float(loss.losses(FineMap(teacher), some).max()) < tolerance, type(loss)


def of_pairs(count: int) -> SimpleNamespace:
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    x, source = PAIR.sample(count, 3)
    return SimpleNamespace(x=x, cond=Conditions.of({"input": source}), index=torch.arange(count), u=u)


@pytest.mark.parametrize("name", ["rectified flow", "bridge", "interpolant, cosine"])
def test_the_map_of_pairs_is_a_fixed_point(name: str) -> None:
    teacher, some = PAIR.model(PAIRS[name]), of_pairs(10)
    losses: dict[str, tuple[MapLoss, float]] = {
        "semigroup": (Semigroup(teacher), 1e-4),
        "trajectory consistency": (Semigroup(teacher, "teacher", cut=0.1, steps=4), 1e-5),
        "Lagrangian": (Lagrangian(teacher), 1e-4),
        "mean flow": (MeanFlow(teacher), 1e-4),
    }
    for what, (loss, tolerance) in losses.items():
        found = loss.losses(FineMap(teacher), some)
        assert float(found.max()) < tolerance, what
        assert float(loss.losses(_off(FineMap(teacher)), some).max()) > 1e-3, what


@pytest.mark.parametrize("name", [each for each in PAIRS if each != "bridge"])
def test_the_slope_of_a_pair_itself_has_that_of_the_model_as_its_mean(name: str) -> None:
    """Both are regressed on features of z."""
    process, count = PAIRS[name], 40_000
    x, source = PAIR.sample(count, 5)
    each = torch.full((count,), 0.4, dtype=torch.float64)
    cond = Conditions.of({"input": source})
    own = angles.angle(process, each)
    process_of = process.given(cond)
    draws = torch.randn(count, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    eps = source if isinstance(process, RectifiedFlow) else draws
    z = process_of.corrupt(x, each, eps)
    path = flow_maps.Path(z, x, eps, each, own, 0 * own, each, cond)
    off = flow_maps.own_slope(process, path) - angles.slope(PAIR.model(process)(z, each))
    assert float(off.std()) > 0.1
    for feature in (torch.ones(count), z[:, 0], z[:, 1], torch.sin(2 * z[:, 0])):
        product = off * feature[:, None]
        assert float((product.mean(0).abs() * math.sqrt(count) / product.std(0)).max()) < 4.5


@pytest.mark.parametrize("name", ["rectified flow, cosine", "bridge", "interpolant", "interpolant, cosine"])
def test_a_map_of_pairs_samples_as_its_teacher(name: str) -> None:
    """A `FlowMap` of the exact answers leads in one call and in three where many steps of the ODE lead."""
    teacher, (_, source) = PAIR.model(PAIRS[name]), PAIR.sample(12, 7)
    process = teacher.process
    fine = FineMap(teacher, 128)

    class Answers:
        """What the network of a map in the form of DDIM says."""

        shape = (2,)

        def __init__(self) -> None:
            self.process = process

        def __call__(self, z: Any, t: Any, until: Any, **cond: Any) -> Any:
            s = angles.time(process, until.double() / 2)
            t = torch.as_tensor(t, dtype=torch.float64).expand(len(z))
            end = angles.moved(process, z, t, s, fine.mean(z, t, s, **cond))
            if isinstance(process, Interpolant):
                return _between(process, z, t, s, end)
            d = (angles.turn(process, t) - angles.turn(process, s))[:, None]
            y = (angles.unit(process, end, s) - d.cos() * angles.unit(process, z, t)) / d.sin()
            return sf.Estimate(z, t, process.schedule, y=y, named="F")

    inner: Any = Answers()
    exact = FlowMap(inner, form="ddim")
    solver = "ancestral(eta=0)" if isinstance(process, Interpolant) else "heun"
    want = sf.sample(teacher, 12, 400, solver, input=source)
    for calls in (1, 3):
        found = sf.sample(exact, 12, calls, "map", input=source)
        assert float((found - want).square().mean().sqrt()) < 0.02, calls


def _between(process: Interpolant, z: Any, t: Any, s: Any, end: Any) -> Any:
    """A belief with zeta = 0 whose step to s is `end`."""
    (a, b, _), (c, d, _) = process.path(t), process.path(s)
    det = (a * d - b * c)[:, None]
    x, source = (d[:, None] * z - b[:, None] * end) / det, (a[:, None] * end - c[:, None] * z) / det
    return sf.belief.Between(x, source, 0 * z, z, t, process)


class Fields:
    """What the network of a map of fields says in the form of DDIM: the F whose step is the exact flow of each."""

    shape = SHAPE

    def __init__(self, law: Any, process: Spectral) -> None:
        self.exact, self.process = ExactMap(law, process), process

    def __call__(self, z: Any, t: Any, until: Any, **cond: Any) -> Any:
        process = self.process
        t, s = torch.as_tensor(t, dtype=torch.float64).expand(len(z)), angles.time(process, until.double() / 2)
        d = angles.turn(process, t) - angles.turn(process, s)
        w, mean = angles.unit(process, z, t), self.exact.mean(z, t, s)
        y = torch.where(d == 0, mean, (d * mean + (1 - d.cos()) * w) / torch.where(d == 0, 1.0, d.sin()))
        return sf.Estimate(z, t, process.schedule, y=y, sigma_data=process.sigma_data, named="F")


@pytest.mark.parametrize("name", SPECTRAL)
def test_a_map_of_coefficients_samples_as_the_flow(name: str) -> None:
    """In one call and in three."""
    law, process = fields(1), known(SPECTRAL[name])
    inner: Any = Fields(law, process)
    exact = FlowMap(inner, form="ddim")
    z = process.prior(torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    want = process.table(law.flow_between(z, process.schedule(1.0), process.schedule(0.0)))
    for calls in (1, 3):
        found = sf.sample(exact, 6, calls, z=z, normalised=True)
        assert torch.allclose(found, want, atol=1e-4), calls


def test_a_student_is_sampled_in_the_steps_that_it_was_trained_in() -> None:
    """Equal ones of the angle of its own process, whose data may vary by more or less than 1."""
    for process in (sf.Gaussian("edm", sigma_data=0.5), known(SPECTRAL["blur"]), PAIRS["interpolant, cosine"]):
        nodes = torch.tensor(sf.solvers.Map().plan(process, 4).times, dtype=torch.float64)
        theta = angles.angle(process, nodes)
        assert torch.allclose(theta, float(theta[0]) * torch.tensor([1.0, 0.75, 0.5, 0.25]).double(), atol=1e-6)


def test_what_has_no_map_is_refused() -> None:
    net = sf.nets.MLP(2, 8, 1)
    with pytest.raises(sf.SfumatoError, match="reverse chain alone"):
        FlowMap(sf.Denoiser(net, Bridge(Flow(), hears_source=False, target="x")))
    with pytest.raises(sf.SfumatoError, match="no noise that a flow map could renew"):
        FlowMap(sf.Denoiser(net, RectifiedFlow(Flow())), gamma=1.0)
    with pytest.raises(sf.SfumatoError, match="noise of Heat stays to the end"):
        FlowMap(sf.Denoiser(sf.nets.UNet(SHAPE, (8,), 1, (), 8), Heat("cosine", SHAPE, width=4.0)))
    blurred = FlowMap(sf.Denoiser(sf.nets.UNet(SHAPE, (8,), 1, (), 8), known(SPECTRAL["blur"])))
    with pytest.raises(sf.SfumatoError, match="under the noise of a Gaussian process"):
        DistributionMatching(blurred.inner).begun(blurred.inner)


def test_the_doctor_asks_maps_of_coefficients_and_of_pairs() -> None:
    """A network that says nothing is the exact map of the Gaussian with the process's own power: its samples spread as
    the data of that power do, and it does not hear where a path ends."""

    class Silent(torch.nn.Module):
        shape, outputs = SHAPE, 1

        def forward(self, x: torch.Tensor, level: torch.Tensor, until: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(x)

    process = known(SPECTRAL["blur"])
    power = torch.tensor(process.power, dtype=torch.float64).reshape(1, *SHAPE)
    draws = torch.randn(4000, *SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = ask_of_paths(FlowMap(sf.Denoiser(Silent(), process)), process.table(power.sqrt() * draws), Conditions({}))
    assert found.spread == pytest.approx(1, abs=0.1) and found.response == 0 and found.unsteady == 0
    x, source = PAIR.sample(300, 1)
    pairs = FlowMap.student(sf.Denoiser(sf.nets.MLP(2, 8, 1), PAIRS["rectified flow"]), form="ddim")
    for parameter in pairs.net.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(parameter.numel()))
    assert ask_of_paths(pairs, x.float(), Conditions.of({"input": source.float()})).spread > 0


def _pairs(process: str) -> dict[str, Any]:
    x, source = PAIR.x.sample(1000, 1).float(), PAIR.source.sample(1000, 2).float()
    return {"x": (x + 0.5 * source if process == "bridge" else x).numpy(), "input": source.numpy()}


@pytest.mark.parametrize(
    "process", ["interpolant", *(pytest.param(each, marks=pytest.mark.slow) for each in ("rectified-flow", "bridge"))]
)
def test_a_student_of_pairs_is_nearer_than_its_teacher_in_few_calls(tmp_path: Any, process: str) -> None:
    """From the teacher's file and its pairs, as ends do not say which noise or source they came from."""
    data = _pairs(process)
    how = {"net": "tiny", "batch": 128, "seed": 0, "console": None}
    sf.train(data, tmp_path / "teacher", steps=200, process=process, **how)
    with pytest.raises(sf.SfumatoError, match="'input', whose values only data have"):
        sf.distill(tmp_path / "teacher", tmp_path / "none", steps=2)
    sf.distill(tmp_path / "teacher", tmp_path / "student", data=data, steps=100, calls=(1, 2), batch=128, console=None)
    rungs = json.loads((tmp_path / "student" / "ladder.json").read_text())["rungs"]
    rms = {(each["calls"], each["how"]): each["rms"] for each in rungs}
    solver = "ancestral(eta=0)" if process == "interpolant" else "multistep"
    for calls in (1, 2):
        assert rms[calls, "student"] < (1.0 if process == "bridge" else 0.5) * rms[calls, solver], calls
    student = sf.load(tmp_path / "student")
    assert sf.sample(student, 3, input=torch.as_tensor(data["input"][:3])).shape == (3, 2)


@pytest.mark.slow
@pytest.mark.parametrize("process", ["blur", "coloured", "subspace"])
def test_a_student_of_blurred_pictures_is_nearer_than_its_teacher_in_one_call(tmp_path: Any, process: str) -> None:
    """From the teacher's file alone."""
    how = {"net": "tiny", "batch": 32, "seed": 0, "console": None}
    sf.train("digits", tmp_path / "teacher", steps=120, process=process, **how)
    sf.distill(tmp_path / "teacher", tmp_path / "student", steps=80, samples=512, calls=(1, 2), batch=32, console=None)
    rungs = json.loads((tmp_path / "student" / "ladder.json").read_text())["rungs"]
    rms = {(each["calls"], each["how"]): each["rms"] for each in rungs}
    assert rms[1, "student"] < 0.8 * rms[1, "multistep"]
    assert sf.sample(sf.load(tmp_path / "student"), 2, label="3").shape == (2, 1, 8, 8)
