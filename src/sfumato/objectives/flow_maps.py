"""Losses of flow maps: one identity, cut in different places.

A path t -> s is cut at m. With l = (theta_t - theta_m) / (theta_t - theta_s) the mean of F over it is

    F(z, t, s) = l F(z, t, m) + (1 - l) F(z_m, m, s),   z_m = X(z, t, m)

and the loss is |F(z, t, s) - target|^2 / D with the right-hand side, without gradients, as the target. The methods of
the literature differ in where m lies, and in who walks the short leg t -> m and the long leg m -> s.
Limits of the cut are derivatives: m -> t the Eulerian equation, m -> s the Lagrangian one.
Sources: Boffi et al. 2025 (2505.18825) for the three identities; each loss names its own.
"""

from __future__ import annotations

import abc
import math
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from sfumato import noise
from sfumato.belief import Between, broadcast
from sfumato.compose import Rescheduled
from sfumato.conditions import Conditions
from sfumato.errors import SfumatoError, an, suggest
from sfumato.flow_map import FlowMap
from sfumato.model import Model, compute_dtype
from sfumato.objectives.angle_derivatives import WIDTH, derivative, turning, way_named
from sfumato.objectives.taught import TaughtLoss, Teacher
from sfumato.process import Interpolant, Paired, Spectral, added, angles, given
from sfumato.process.angles import angle, ended, moved, share, slope, time, turn, unit
from sfumato.registry import register
from sfumato.schedule import Time
from sfumato.state import numbers_like

CALLS = (1, 2, 4, 8)
_FINE = 16  # steps of Heun's method from noise to data, from which held-out samples are measured
NOISY = 1000  # numbers in a sample below which a weight by its own error would bias a noisy target
STILL = 1e-3  # turns of coefficients below which a path says nothing of their F


class Path(NamedTuple):
    """Noised samples of a batch and the ends of their paths.

    z (B, ...) at time t, made of x and eps; theta, end: the angles of t and s, and cut, a random number in (0, 1) for
    each path, float64 (B,); number: those of the samples, int64 (B,), where a loss draws more of its own.
    """

    z: Tensor
    x: Tensor
    eps: Tensor
    t: Tensor
    theta: Tensor
    end: Tensor
    cut: Tensor
    cond: Conditions
    number: Tensor | None = None

    def rows(self, rows: Tensor) -> Path:
        """Some of the samples."""
        z, x, eps, t, theta, end, cut = (part[rows] for part in self[:7])
        number = None if self.number is None else self.number[rows]
        return Path(z, x, eps, t, theta, end, cut, self.cond.rows(rows), number)


def rate(model: Model, z: Tensor, t: Time, **cond: Any) -> Tensor:
    """F = -dw/dtheta of a denoiser at (z, t), like z."""
    return slope(model(z, t, **cond))


def step(model: Model, z: Tensor, t: Tensor, s: Tensor, steps: int = 1, **cond: Any) -> Tensor:
    """The mean of F from t to s by `steps` steps of Heun's method in the angle with a denoiser, like z."""
    process, whole = model.process, torch.zeros_like(z)
    first, last = angle(process, t), angle(process, s)
    for k in range(steps):
        here = time(process, first + (last - first) * (k / steps)) if k else t
        there = time(process, first + (last - first) * ((k + 1) / steps)) if k + 1 < steps else s
        mean = rate(model, z, here, **cond)
        mean = (mean + rate(model, moved(process, z, here, there, mean), there, **cond)) / 2
        whole = whole + broadcast(share(process, t, s, (here, there), 1 / steps), z) * mean
        z = moved(process, z, here, there, mean)
    return whole


def walk(model: FlowMap, z: Tensor, calls: int, **cond: Any) -> Tensor:
    """The samples of a map from z at t = 1, in equal steps of theta, like z."""
    process, each = model.process, torch.ones(len(z), dtype=torch.float64)
    top, t = angle(process, each), each
    for k in range(1, calls + 1):
        s = time(process, top * (1 - k / calls))
        z, t = moved(process, z, t, s, model.mean(z, t, s, **cond)), s
    return z


def inside(model: Any, x: Tensor) -> Tensor:
    """Normalised samples x (B, ...) cut at the bounds that the data declare, as they are in the user's units."""
    spec = getattr(model, "spec", None)
    return x if spec is None or spec.bounds is None else spec.inside(x)


def samples(model: Any, z: Tensor) -> Tensor:
    """The normalised samples of clean states z, `inside` their bounds, (B, *shape)."""
    return inside(model, model.process.table(z))


class MapLoss(TaughtLoss, abc.ABC):
    """A loss of flow maps: draws paths, and compares the map's means with targets.

    teacher: a model of the same data and conditions, guided or not, under any schedule; None to learn from data alone.
    diagonal: the share of samples with s = t, whose target is the teacher's F or that of the sample itself. ends:
    "all", or "data" for paths that all end at s = 0. calls: the numbers of calls that the map is for; every second path
    is a step of one of them. Held-out losses are mean square distances to the teacher's samples on the same noise, in
    units of sigma_data^2.
    free: the share of paths that are not such steps; walked: the numbers of calls of held-out samples; theirs: the
    purpose of the noise of the teacher's; gamma: the noise that the student renews between calls. derives: whether the
    loss takes derivatives of the network in a time.
    """

    derives = False
    theirs = noise.TRAIN_NOISE

    def __init__(
        self,
        teacher: Teacher | None = None,
        diagonal: float = 0.25,
        ends: str = "all",
        calls: tuple[int, ...] = CALLS,
        seed: int = 0,
    ) -> None:
        super().__init__(teacher, calls, seed)
        self._fine: dict[Any, Tensor] = {}  # the teacher's samples of held-out noise
        if teacher is not None:
            self.watched = "the mean square distance of held-out samples to the teacher's"
        if ends not in ("all", "data"):
            raise SfumatoError(f"Unknown ends {ends!r} of the paths: {suggest(ends, ('all', 'data'))}")
        if not 0 <= diagonal < 1:
            raise SfumatoError(f"diagonal is a share of the samples, from 0 to below 1, not {diagonal!r:.60}.")
        self.diagonal, self.ends = diagonal, ends
        self.free, self.walked, self.gamma = 0.5, self.calls, 0.0

    def guide(self, model: FlowMap, z: Tensor) -> Any:
        """The teacher under the map's schedule, on the device of z."""
        teacher, process = self.beside(z), model.process
        same = teacher.process == process or teacher.process.schedule == process.schedule
        return teacher if same else Rescheduled(teacher, process.schedule)

    def begun(self, model: Any) -> FlowMap:
        if isinstance(model, FlowMap):  # a student that is trained further, perhaps for other calls
            inner: Any = model.inner
            same = (model.calls, model.gamma) == (self.calls, self.gamma)
            return model if same else FlowMap(inner, self.calls, self.gamma, model.form)
        pictures = getattr(getattr(model, "spec", None), "kind", None) == "image"
        # what a network of pictures fails to take away of the noise is seen as grain: it had better not be asked to;
        # and of pairs the step of DDIM is nearly straight
        form = "ddim" if pictures or isinstance(model.process, Paired) else "mean"
        student = FlowMap.student(model, self.calls, self.gamma, form)
        student.spec = model.spec
        return student

    def suits(self, model: Any) -> None:
        if not isinstance(model, FlowMap):
            raise SfumatoError(
                f"This loss trains a flow map, and the model is {an(type(model).__name__)}: pass "
                "init=sf.FlowMap.student(denoiser)."
            )
        if self.teacher is not None and type(self.teacher.process) is not type(model.process):
            raise SfumatoError(
                f"The teacher is a model of {type(self.teacher.process).__name__} and the student one of "
                f"{type(model.process).__name__}, whose paths are others: take a student of the teacher's."
            )
        theirs, ours = (_deviation(each.process) for each in (self.teacher or model, model))
        if theirs.shape != ours.shape or not bool((theirs == ours).all()):
            raise SfumatoError(
                f"The teacher's sigma_data is {float(theirs.mean()):g} and the student's {float(ours.mean()):g}: take "
                "a student of the teacher's."
            )
        if self.derives and (weights := compute_dtype(model)).itemsize < 4:
            raise SfumatoError(
                f"The network's weights are in {str(weights).removeprefix('torch.')}, which leaves nothing of a "
                "derivative: train weights in float32 (net.float()), with precision='bfloat16' for speed, or take a "
                "loss without derivatives, such as semigroup."
            )
        super().suits(model)

    def losses(self, model: Any, batch: Any) -> Tensor:
        path, on_diagonal = self.paths(model, batch)
        found = torch.zeros(len(path.t), device=path.z.device, dtype=torch.float32)
        for rows, target in ((on_diagonal, self._slope), (~on_diagonal, self.error)):
            index = torch.nonzero(rows)[:, 0]
            if len(index):
                found = found.index_copy(0, index.to(found.device), target(model, path.rows(index)).to(found))
        return found

    @torch.no_grad()
    def held(self, model: FlowMap, batch: Any) -> Tensor:
        if self.teacher is None:
            return self.losses(model, batch)
        fine = self.taught(model, batch)
        off = [square(ours - fine) for ours in self.drawn(model, batch).values()]
        return torch.stack(off).mean(0) / float(_deviation(model.process).square().mean())

    @torch.no_grad()
    def drawn(self, model: FlowMap, batch: Any) -> dict[int, Tensor]:
        """Held-out samples in each of the numbers of calls that are walked, normalised, like x."""
        z = self.start(model, batch, noise.TRAIN_NOISE)
        return {calls: samples(model, walk(model, z, calls, **batch.cond)) for calls in self.walked}

    @torch.no_grad()
    def taught(self, model: FlowMap, batch: Any) -> Tensor:
        """The teacher's samples beside these, normalised, like x."""
        return samples(model, self.solution(model, batch, self.start(model, batch, self.theirs)))

    def start(self, model: FlowMap, batch: Any, purpose: int) -> Tensor:
        """z at t = 1 of held-out samples, like x."""
        process = given(model.process, batch.cond)
        x = process.data(batch.x)
        eps = numbers_like(noise.Noise(self.seed, batch.index, purpose), x)
        return process.corrupt(x, torch.ones(len(x), dtype=torch.float64), eps)

    def solution(self, model: FlowMap, batch: Any, z: Tensor) -> Tensor:
        """The teacher's fine solution from this z, kept."""
        key = (tuple(batch.index.tolist()), float(batch.x.double().sum()))
        if key not in self._fine:
            self._fine[key] = self.solve(model, z, batch.cond)
        return self._fine[key]

    def solve(self, model: FlowMap, z: Tensor, cond: Conditions) -> Tensor:
        """The teacher's solution of the ODE from z at t = 1 to data."""
        each = torch.ones(len(z), dtype=torch.float64)
        mean = step(self.guide(model, z), z, each, 0 * each, _FINE, **cond)
        return moved(model.process, z, each, 0 * each, mean)

    @abc.abstractmethod
    def error(self, model: FlowMap, path: Path) -> Tensor:
        """The mean square error of the map over the elements of each sample, (B,)."""

    def _slope(self, model: FlowMap, path: Path) -> Tensor:
        """The error of the map's own F at s = t."""
        return square(model.mean(path.z, path.t, path.t, **path.cond) - self.slope(model, path), model.process)

    @torch.no_grad()
    def slope(self, model: FlowMap, path: Path) -> Tensor:
        """F at (z, t): the teacher's, or that of the sample itself, whose mean it is."""
        if self.teacher is not None:
            return rate(self.guide(model, path.z), path.z, path.t, **path.cond)
        return own_slope(model.process, path)

    def paths(self, model: FlowMap, batch: Any) -> tuple[Path, Tensor]:
        """(the paths of a batch, which of them have s = t)."""
        process, count = given(model.process, batch.cond), len(batch.x)
        u = noise.uniform(self.seed, batch.index, (5,), noise.TRAIN_TIME, dtype=torch.float64)
        first = angle(process, 1.0)
        theta, end = (first * part for part in _ends(batch.u, u, self.calls, self.free))
        end = torch.zeros_like(end) if self.ends == "data" else end
        t = time(process, theta)
        x = process.data(batch.x)
        eps = added(process, noise.Noise(self.seed, batch.index, noise.TRAIN_NOISE), x)
        z = process.corrupt(x, t, eps)
        flat = u[:, 3] < self.diagonal
        return Path(z, x, eps, t, theta.expand(count), end, u[:, 4], batch.cond, batch.index), flat


def _deviation(process: Any) -> Tensor:
    """The standard deviation of clean states, or of each of their coefficients; 1 of an interpolant."""
    return torch.as_tensor(getattr(process, "sigma_data", 1.0), dtype=torch.float64)


def _ends(u: Tensor, more: Tensor, several: tuple[int, ...], share: float) -> tuple[Tensor, Tensor]:
    """(theta_t, theta_s) in shares of the largest angle: a share of the paths is any, the others are steps of `several`
    numbers of equal calls."""
    calls = torch.tensor(several, dtype=torch.float64)[(more[:, 1] * len(several)).long()]
    k = torch.floor(u * calls)
    grid = (k + 1) / calls, k / calls
    free = u.clamp_min(1e-3), u.clamp_min(1e-3) * more[:, 2]
    on_grid = more[:, 0] < 1 - share
    return torch.where(on_grid, grid[0], free[0]), torch.where(on_grid, grid[1], free[1])


def own_slope(process: Any, path: Path) -> Tensor:
    """F of the sample itself, sin(theta) x / sigma_data - cos(theta) eps, whose mean given z is the model's F."""
    if isinstance(process, Interpolant):
        source = given(process, path.cond).pair_like(path.x)
        return angles.slope(Between(path.x, source, path.eps, path.z, path.t, process))
    theta = turn(process, path.t)
    a, b = theta.sin() / process.sigma_data, -theta.cos()
    return broadcast(a, path.x) * path.x + broadcast(b, path.x) * path.eps


def square(error: Tensor, process: Any = None) -> Tensor:
    """The mean square over the elements of each sample, (B,); of coefficients in the units of a sample."""
    return in_units(process, error).flatten(1).square().mean(1)


def in_units(process: Any, error: Tensor) -> Tensor:
    """Errors of F, where each coefficient has unit variance, weighed by the part of it in a sample, like `error`."""
    if not isinstance(process, Spectral):
        return error
    deviation = process.sigma_data.expand(1, *process.shape)
    return broadcast(deviation / deviation.square().mean().sqrt(), error) * error


LEGS = ("self", "teacher", "data")


@register("loss", "semigroup")
@register("loss", "shortcut", cut=0.5)
@register("loss", "trajectory-consistency", short="teacher", cut=0.1)
@register("loss", "consistency-distillation", short="teacher", cut=0.1, ends="data")
@register("loss", "consistency-training", short="data", cut=0.1, ends="data")
@register("loss", "direct-distillation", short="teacher", cut=1.0, steps=8)
@register("loss", "progressive-distillation", short="teacher", cut=1.0, steps=2)
@final
class Semigroup(MapLoss):
    """|F(z, t, s) - sg[l F_short + (1 - l) F(z_m, m, s)]|^2 / D, with F_short the mean of F from t to m.

    cut: l, the part of the path that is the short leg; None draws it uniformly. short: who walks it, "self" the map,
    "teacher" its Heun method in `steps` steps, "data" the sample's own x and eps. cut = 1 leaves no long leg.
    Sources: 2410.12557 (shortcut); 2310.02279 (trajectory consistency); 2303.01469 (consistency); 2202.00512
    (progressive distillation, here with Heun steps); 2101.02388 (direct distillation).
    """

    def __init__(
        self,
        teacher: Teacher | None = None,
        short: str = "self",
        cut: float | None = None,
        steps: int = 1,
        diagonal: float = 0.25,
        ends: str = "all",
        calls: tuple[int, ...] = CALLS,
        seed: int = 0,
    ) -> None:
        super().__init__(teacher, diagonal, ends, calls, seed)
        if short not in LEGS:
            raise SfumatoError(f"Unknown short leg {short!r}: {suggest(short, LEGS)}")
        if cut is not None and not 0 < cut <= 1:
            raise SfumatoError(f"cut is a part of the path, above 0 and at most 1, not {cut!r:.60}.")
        if cut == 1 and short != "teacher":
            raise SfumatoError("A short leg that is the whole path is walked by a teacher: short='teacher'.")
        self.short, self.cut, self.steps = short, cut, steps

    def suits(self, model: Any) -> None:
        super().suits(model)
        if self.short == "teacher" and self.teacher is None:
            raise SfumatoError("The short leg is walked by a teacher, and there is none: pass teacher=.")

    def error(self, model: FlowMap, path: Path) -> Tensor:
        s = time(model.process, path.end)
        return square(model.mean(path.z, path.t, s, **path.cond) - self.target(model, path, s), model.process)

    @torch.no_grad()
    def target(self, model: FlowMap, path: Path, s: Tensor) -> Tensor:
        """The two legs' mean of F, like z."""
        part = 0.05 + 0.9 * path.cut if self.cut is None else torch.full_like(path.theta, self.cut)
        m = s if self.cut == 1 else time(model.process, path.theta + part * (path.end - path.theta))
        short = self._short(model, path, m)
        if self.cut == 1:
            return short
        process = given(model.process, path.cond)
        data = self.short == "data"
        z = process.corrupt(path.x, m, path.eps) if data else moved(process, path.z, path.t, m, short)
        part = broadcast(share(process, path.t, s, (path.t, m), part), z)
        return part * short + (1 - part) * model.mean(z, m, s, **path.cond)

    def _short(self, model: FlowMap, path: Path, m: Tensor) -> Tensor:
        if self.short == "self":
            return model.mean(path.z, path.t, m, **path.cond)
        if self.short == "teacher":
            return step(self.guide(model, path.z), path.z, path.t, m, self.steps, **path.cond)
        process = given(model.process, path.cond)
        distance = broadcast(turn(process, path.t) - turn(process, m), path.z).clamp_min(STILL)
        change = unit(process, process.corrupt(path.x, m, path.eps), m) - unit(process, path.z, path.t)
        return change / distance


@register("loss", "lagrangian")
@final
class Lagrangian(MapLoss):
    """|F(z, t, s) - (theta_t - theta_s) dF/dtheta_s - F(X, s)|^2 / D: the map's end moves as the flow does there.

    F(X, s) is the teacher's, or without one the map's own at s = t, without gradients. by: how the derivative is taken
    (`derivative`). Sources: 2406.07507 (teacher); 2505.18825 (self).
    """

    derives = True

    def __init__(
        self,
        teacher: Teacher | None = None,
        by: str = "difference",
        diagonal: float = 0.25,
        ends: str = "all",
        calls: tuple[int, ...] = CALLS,
        seed: int = 0,
    ) -> None:
        super().__init__(teacher, diagonal, ends, calls, seed)
        self.by = way_named(by)

    def error(self, model: FlowMap, path: Path) -> Tensor:
        process = model.process
        end = path.end.clamp_min(2 * WIDTH)
        s = time(process, end)
        mean = model.mean(path.z, path.t, s, **path.cond)
        change = derivative(model, end, lambda there: model.mean(path.z, path.t, there, **path.cond), self.by)
        z = moved(process, path.z, path.t, s, mean)
        if self.teacher is not None:
            slope = rate(self.guide(model, z), z, s, **path.cond)
        else:
            with torch.no_grad():
                slope = model.mean(z, s, s, **path.cond)
        distance, turns = turn(process, path.t) - ended(process, s), turning(model, end, self.by)
        error = broadcast(turns, mean) * (mean - slope) - broadcast(distance, mean) * change
        return square(error, process)


@register("loss", "mean-flow")
@register("loss", "improved-mean-flow", improved=True)
@final
class MeanFlow(MapLoss):
    """|F(z, t, s) - sg[f - (theta_t - theta_s) dF/dtheta_t]|^2 / D, the derivative along dw/dtheta = -f.

    f is the teacher's F, or the sample's own, whose mean it is. improved: the derivative is taken along the map's own F
    at s = t, and the residual F + (theta_t - theta_s) sg[dF/dtheta_t] - f has gradients in F alone, which has less
    variance. by: how the derivative is taken (`derivative`). power: p of the weight 1 / (|e|^2 + 1e-3)^p of each
    sample's own error e; where targets are noisy it moves the minimum, by .47 of a deviation of the noise in two
    dimensions and .005 in 3,072 (p = 1), so that it is refused below NOISY numbers without a teacher.
    Sources: Geng et al. 2025 (2505.13447), Eq. 8 and 22, and 2512.02012, both here in theta instead of t.
    """

    derives = True

    def __init__(
        self,
        teacher: Teacher | None = None,
        improved: bool = False,
        by: str = "difference",
        power: float = 0.0,
        diagonal: float = 0.5,
        ends: str = "all",
        calls: tuple[int, ...] = CALLS,
        seed: int = 0,
    ) -> None:
        super().__init__(teacher, diagonal, ends, calls, seed)
        self.improved, self.by, self.power = improved, way_named(by), float(power)
        if not 0 <= self.power <= 1:
            raise SfumatoError(f"power is that of a weight, from 0, none, to 1, not {power!r:.60}.")

    def suits(self, model: Any) -> None:
        super().suits(model)
        shape = getattr(model, "shape", None)
        if self.power and self.teacher is None and shape is not None and math.prod(shape) < NOISY:
            raise SfumatoError(
                f"A weight by each sample's own error moves the minimum of noisy targets, and a sample has "
                f"{math.prod(shape)} numbers, fewer than {NOISY:,}: take power=0, or a teacher."
            )

    def error(self, model: FlowMap, path: Path) -> Tensor:
        s = time(model.process, path.end)
        slope = self.slope(model, path)
        with torch.no_grad():
            along = model.mean(path.z, path.t, path.t, **path.cond) if self.improved else slope
            change = self._change(model, path, s, along)
        process, inner = model.process, self._inner(model, path)
        distance, turns = turn(process, path.t) - ended(process, s), turning(model, inner, self.by)
        error = broadcast(turns, slope) * (model.mean(path.z, path.t, s, **path.cond) - slope)
        error = square(error + broadcast(distance, slope) * change, process)
        return error / (error.detach() * path.z[0].numel() + 1e-3) ** self.power if self.power else error

    def _change(self, model: FlowMap, path: Path, s: Tensor, along: Tensor) -> Tensor:
        """dF(z, t, s)/dtheta_t along the flow."""
        process = model.process

        def at(there: Tensor) -> Tensor:
            return model.mean(moved(process, path.z, path.t, there, along), there, s, **path.cond)

        return derivative(model, self._inner(model, path), at, self.by)

    def _inner(self, model: FlowMap, path: Path) -> Tensor:
        """The angles of the path's beginnings, far enough from both ends for a difference."""
        return path.theta.clamp(2 * WIDTH, float(angle(model.process, 1.0)) - 2 * WIDTH)
