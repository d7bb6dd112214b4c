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
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from sfumato import flow_map, noise
from sfumato.belief import broadcast
from sfumato.conditions import Conditions
from sfumato.errors import SfumatoError, an, suggest
from sfumato.flow_map import FlowMap, angle, unit
from sfumato.model import Model
from sfumato.objectives.loss import Loss
from sfumato.registry import register
from sfumato.schedule import Time
from sfumato.state import numbers_like

STEPS = (1, 2, 4, 8)  # numbers of calls whose steps are drawn more often than others
_WIDTH = 2e-3  # of a central difference in theta: the optimum in float32


class Path(NamedTuple):
    """Noised samples of a batch and the ends of their paths.

    z (B, ...) at time t, made of x and eps; theta, end: the angles of t and s, and cut, a random number in (0, 1) for
    each path, float64 (B,).
    """

    z: Tensor
    x: Tensor
    eps: Tensor
    t: Tensor
    theta: Tensor
    end: Tensor
    cut: Tensor
    cond: Conditions

    def rows(self, index: Tensor) -> Path:
        """Some of the samples."""
        z, x, eps, t, theta, end, cut = (part[index] for part in self[:7])
        return Path(z, x, eps, t, theta, end, cut, self.cond.rows(index))


def rate(model: Model, z: Tensor, t: Time, **cond: Any) -> Tensor:
    """F = -dw/dtheta of a denoiser at (z, t), like z."""
    found: Tensor = model(z, t, **cond).F
    return found


def moved(process: Any, z: Tensor, t: Tensor, s: Tensor, mean: Tensor) -> Tensor:
    """X = S_s [z / S_t + (theta_t - theta_s) F] for the mean F of the path from t to s."""
    w = unit(process, z, t) + broadcast(angle(process, t) - angle(process, s), z) * mean
    alpha, sigma = process.schedule(s)
    return broadcast(torch.sqrt(sigma**2 + alpha**2 * process.sigma_data**2), z) * w


def step(model: Model, z: Tensor, t: Tensor, s: Tensor, steps: int = 1, **cond: Any) -> Tensor:
    """The mean of F from t to s by `steps` steps of Heun's method in theta with a denoiser, like z."""
    process, start = model.process, z
    first, last = angle(process, t), angle(process, s)
    for k in range(steps):
        here = flow_map.time(process, first + (last - first) * (k / steps)) if k else t
        there = flow_map.time(process, first + (last - first) * ((k + 1) / steps)) if k + 1 < steps else s
        slope = rate(model, z, here, **cond)
        slope = (slope + rate(model, moved(process, z, here, there, slope), there, **cond)) / 2
        z = moved(process, z, here, there, slope)
    distance = broadcast((first - last).clamp_min(1e-9), z)
    return (unit(process, z, s) - unit(process, start, t)) / distance


class MapLoss(Loss, abc.ABC):
    """A loss of flow maps: draws paths, and compares the map's means with targets.

    teacher: a denoiser, guided or not, of the same data and conditions; None to learn from data alone. diagonal: the
    share of samples with s = t, whose target is the teacher's F or that of the sample itself. ends: "all", or "data"
    for paths that all end at s = 0.
    """

    def __init__(self, teacher: Any = None, diagonal: float = 0.25, ends: str = "all", seed: int = 0) -> None:
        super().__init__()
        if ends not in ("all", "data"):
            raise SfumatoError(f"Unknown ends {ends!r} of the paths: {suggest(ends, ('all', 'data'))}")
        if not 0 <= diagonal < 1:
            raise SfumatoError(f"diagonal is a share of the samples, from 0 to below 1, not {diagonal!r:.60}.")
        self.diagonal, self.ends, self.seed = diagonal, ends, seed
        self._teacher = (teacher,)  # in a tuple, so that its weights are not the loss's state

    @property
    def teacher(self) -> Any:
        return self._teacher[0]

    def suits(self, model: Any) -> None:
        if not isinstance(model, FlowMap):
            raise SfumatoError(
                f"This loss trains a flow map, and the model is {an(type(model).__name__)}: pass "
                "model=sf.FlowMap.student(denoiser)."
            )
        process = getattr(self.teacher, "process", model.process)
        if process.schedule != model.process.schedule or process.sigma_data != model.process.sigma_data:
            raise SfumatoError("Teacher and student have different schedules: wrap the teacher, sf.Rescheduled.")

    def losses(self, model: Any, batch: Any) -> Tensor:
        path, on_diagonal = self.paths(model, batch)
        found = torch.zeros(len(path.t), device=path.z.device, dtype=torch.float32)
        for rows, target in ((on_diagonal, self._slope), (~on_diagonal, self.error)):
            index = torch.nonzero(rows)[:, 0]
            if len(index):
                found = found.index_copy(0, index.to(found.device), target(model, path.rows(index)).to(found))
        return found

    @abc.abstractmethod
    def error(self, model: FlowMap, path: Path) -> Tensor:
        """The mean square error of the map over the elements of each sample, (B,)."""

    def _slope(self, model: FlowMap, path: Path) -> Tensor:
        """The error of the map's own F at s = t."""
        return square(model.mean(path.z, path.t, path.t, **path.cond) - self.slope(model, path))

    @torch.no_grad()
    def slope(self, model: FlowMap, path: Path) -> Tensor:
        """F at (z, t): the teacher's, or that of the sample itself, whose mean it is."""
        if self.teacher is not None:
            return rate(self.teacher, path.z, path.t, **path.cond)
        return own_slope(model.process, path)

    def paths(self, model: FlowMap, batch: Any) -> tuple[Path, Tensor]:
        """(the paths of a batch, which of them have s = t)."""
        process, count = model.process, len(batch.x)
        u = noise.uniform(self.seed, batch.index, (5,), noise.TRAIN_TIME, dtype=torch.float64)
        first = angle(process, 1.0)
        theta, end = (first * part for part in _ends(batch.u, u))
        end = torch.zeros_like(end) if self.ends == "data" else end
        t = flow_map.time(process, theta)
        x = process.data(batch.x)
        eps = numbers_like(noise.Noise(self.seed, batch.index, noise.TRAIN_NOISE), x)
        z = process.corrupt(x, t, eps)
        flat = u[:, 3] < self.diagonal
        return Path(z, x, eps, t, theta.expand(count), end, u[:, 4], batch.cond), flat


def _ends(u: Tensor, more: Tensor) -> tuple[Tensor, Tensor]:
    """(theta_t, theta_s) in shares of the largest angle: half of the paths are steps of 1, 2, 4 or 8 equal calls, the
    others any."""
    calls = torch.tensor(STEPS, dtype=torch.float64)[(more[:, 1] * len(STEPS)).long()]
    k = torch.floor(u * calls)
    grid = (k + 1) / calls, k / calls
    free = u.clamp_min(1e-3), u.clamp_min(1e-3) * more[:, 2]
    on_grid = more[:, 0] < 0.5
    return torch.where(on_grid, grid[0], free[0]), torch.where(on_grid, grid[1], free[1])


def own_slope(process: Any, path: Path) -> Tensor:
    """F of the sample itself, sin(theta) x / sigma_data - cos(theta) eps, whose mean given z is the model's F."""
    a, b = path.theta.sin() / process.sigma_data, -path.theta.cos()
    return broadcast(a, path.x) * path.x + broadcast(b, path.x) * path.eps


def square(error: Tensor) -> Tensor:
    """The mean square over the elements of each sample, (B,)."""
    return error.flatten(1).square().mean(1)


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
        teacher: Any = None,
        short: str = "self",
        cut: float | None = None,
        steps: int = 1,
        diagonal: float = 0.25,
        ends: str = "all",
        seed: int = 0,
    ) -> None:
        super().__init__(teacher, diagonal, ends, seed)
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
        s = flow_map.time(model.process, path.end)
        return square(model.mean(path.z, path.t, s, **path.cond) - self.target(model, path, s))

    @torch.no_grad()
    def target(self, model: FlowMap, path: Path, s: Tensor) -> Tensor:
        """The two legs' mean of F, like z."""
        part = 0.05 + 0.9 * path.cut if self.cut is None else torch.full_like(path.theta, self.cut)
        m = s if self.cut == 1 else flow_map.time(model.process, path.theta + part * (path.end - path.theta))
        short = self._short(model, path, m)
        if self.cut == 1:
            return short
        z = model.process.corrupt(path.x, m, path.eps) if self.short == "data" else None
        z = moved(model.process, path.z, path.t, m, short) if z is None else z
        part = broadcast(part, z)
        return part * short + (1 - part) * model.mean(z, m, s, **path.cond)

    def _short(self, model: FlowMap, path: Path, m: Tensor) -> Tensor:
        if self.short == "self":
            return model.mean(path.z, path.t, m, **path.cond)
        if self.short == "teacher":
            return step(self.teacher, path.z, path.t, m, self.steps, **path.cond)
        process = model.process
        there = unit(process, process.corrupt(path.x, m, path.eps), m)
        distance = angle(process, path.t) - angle(process, m)
        return (there - unit(process, path.z, path.t)) / broadcast(distance.clamp_min(1e-9), path.z)


@register("loss", "lagrangian")
@final
class Lagrangian(MapLoss):
    """|F(z, t, s) - (theta_t - theta_s) dF/dtheta_s - F(X, s)|^2 / D: the map's end moves as the flow does there.

    F(X, s) is the teacher's, or without one the map's own at s = t, without gradients. The derivative is a central
    difference, whose width is the optimum in float32. Sources: 2406.07507 (teacher); 2505.18825 (self).
    """

    def __init__(self, teacher: Any = None, diagonal: float = 0.25, ends: str = "all", seed: int = 0) -> None:
        super().__init__(teacher, diagonal, ends, seed)

    def error(self, model: FlowMap, path: Path) -> Tensor:
        process = model.process
        end = path.end.clamp_min(2 * _WIDTH)
        low, s, high = (flow_map.time(process, end + h) for h in (-_WIDTH, 0.0, _WIDTH))
        mean = model.mean(path.z, path.t, s, **path.cond)
        change = model.mean(path.z, path.t, high, **path.cond) - model.mean(path.z, path.t, low, **path.cond)
        change = change / broadcast((angle(process, high) - angle(process, low)), change)
        z = moved(process, path.z, path.t, s, mean)
        if self.teacher is not None:
            slope = rate(self.teacher, z, s, **path.cond)
        else:
            with torch.no_grad():
                slope = model.mean(z, s, s, **path.cond)
        distance = broadcast(path.theta - angle(process, s), mean)
        return square(mean - distance * change - slope)


@register("loss", "mean-flow")
@register("loss", "improved-mean-flow", improved=True)
@final
class MeanFlow(MapLoss):
    """|F(z, t, s) - sg[f - (theta_t - theta_s) dF/dtheta_t]|^2 / D, the derivative along dw/dtheta = -f.

    f is the teacher's F, or the sample's own, whose mean it is. improved: the derivative is taken along the map's own F
    at s = t, and the residual F + (theta_t - theta_s) sg[dF/dtheta_t] - f has gradients in F alone, which has less
    variance. Sources: Geng et al. 2025 (2505.13447), Eq. 8, and 2512.02012, both here in theta instead of t.
    """

    def __init__(
        self, teacher: Any = None, improved: bool = False, diagonal: float = 0.5, ends: str = "all", seed: int = 0
    ) -> None:
        super().__init__(teacher, diagonal, ends, seed)
        self.improved = improved

    def error(self, model: FlowMap, path: Path) -> Tensor:
        s = flow_map.time(model.process, path.end)
        slope = self.slope(model, path)
        with torch.no_grad():
            along = model.mean(path.z, path.t, path.t, **path.cond) if self.improved else slope
            change = self._change(model, path, s, along)
        distance = broadcast(path.theta - path.end, slope)
        return square(model.mean(path.z, path.t, s, **path.cond) + distance * change - slope)

    def _change(self, model: FlowMap, path: Path, s: Tensor, along: Tensor) -> Tensor:
        """dF(z, t, s)/dtheta_t along the flow, by a central difference."""
        process = model.process
        top = float(angle(process, 1.0))
        centre = path.theta.clamp(2 * _WIDTH, top - 2 * _WIDTH)
        means = []
        for h in (_WIDTH, -_WIDTH):
            there = flow_map.time(process, centre + h)
            means.append(model.mean(moved(process, path.z, path.t, there, along), there, s, **path.cond))
        return (means[0] - means[1]) / (2 * _WIDTH)
