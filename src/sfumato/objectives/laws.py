"""Losses of the laws of samples: a map's samples and a teacher's data are noised, and their denoisers compared.

    x = X(z_t, t, 0),   z_m = x under noise of the level m,   d = D_x(z_m) - D(z_m)

D is the teacher's E[x | z] and D_x that of the map's samples, which a second player learns: a denoiser that starts as
the teacher and is trained on its samples. d = 0 at all levels if and only if both laws are one. No paths are compared,
so that a sample may end elsewhere than the teacher's ODE leads it. The same holds for ends between noise and data,
X(z_t, t, s), which the process itself takes to the levels m above s.

    distribution matching   the gradient of x is d, which is that of KL(law of z_m || teacher's p_m) in x
    score identity          the gradient of x and z_m is that of d.(x - E[x | z_m]) + (1 - alpha) |d|^2
    moment matching         the gradient of x is d, with z_m drawn from q(z_m | z_t, x) in the place of fresh noise

Sources: Yin et al. 2023 (2311.18828) and 2024 (2405.14867); Zhou et al. 2024 (2404.04057), Eq. 23; Salimans et al.
2024 (2406.04103), Alg. 2.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from sfumato import noise, trees
from sfumato.belief import Estimate, broadcast
from sfumato.compose import Rescheduled, Wrapped
from sfumato.conditions import Conditions
from sfumato.errors import SfumatoError, whole
from sfumato.flow_map import UNTIL, FlowMap, heard, renews
from sfumato.model import Denoiser
from sfumato.noise import Noise
from sfumato.objectives.flow_maps import MapLoss, Path, square, walk
from sfumato.objectives.taught import Teacher
from sfumato.process.angles import angle, moved, time
from sfumato.registry import register
from sfumato.state import numbers_like

_LEAST, _MOST = 0.02, 0.98  # levels of the noise, in shares of the largest angle
_FAKE = 1 << 20  # the streams of the player's draws, apart from those of the loss


class LawLoss(MapLoss):
    """A loss of the law of the map's samples, from the first time of each call of the numbers of calls in `calls`.

    gamma: the noise that its student renews between calls (`FlowMap.gamma`), 1 or 0. With 1 only its ends x =
    X(z_t, t, 0) are trained; with 0 those of its calls, X(z_t, t, s), of one number of calls, of which a start tells
    the end. fake: the denoiser of the student's samples, whose network hears, where a map's hears the end of a path,
    its start. turns: its steps for each of the student's, since it has to follow the samples; both need small steps.
    Held-out losses are the shares of samples in `energy`, from the teacher's on other noise, as these samples may leave
    its paths; each stands beside its conditions, so that the laws within classes are compared.
    """

    settings: ClassVar[dict[str, Any]] = {"optimizer": "adamw", "lr": 1e-3}
    between = True  # whether ends may lie between noise and data
    theirs = noise.PROBE

    def __init__(
        self,
        teacher: Teacher | None = None,
        turns: int = 5,
        calls: tuple[int, ...] = (1,),
        seed: int = 0,
        gamma: float = 1.0,
    ) -> None:
        super().__init__(teacher, diagonal=0.0, ends="data" if gamma else "all", calls=calls, seed=seed)
        if gamma not in (0, 1) or not (gamma or self.between):
            how = "renew all noise between calls, gamma=1" + (", or none, gamma=0" if self.between else "")
            raise SfumatoError(f"Students of this loss {how}: gamma={gamma!r:.20} is neither.")
        if not gamma and len(self.calls) > 1:
            raise SfumatoError(
                f"A student by its law that renews no noise is for one number of calls, not for {self.calls}: name "
                "one (--steps), or take gamma=1."
            )
        self.turns = whole("turns", turns, least=1)
        self.free, self.walked, self.gamma = 0.0, (1,) if gamma else self.calls, float(gamma)
        self.watched = None if teacher is None else "the energy distance of held-out samples to the teacher's"
        self.fake: Any = None
        self._made: dict[tuple[int, ...], Tensor] = {}  # the student's samples of a step

    def begun(self, model: Any) -> FlowMap:
        if not renews(model.process):
            raise SfumatoError(
                f"The laws of samples are compared under the noise of a Gaussian process, and this one is "
                f"{type(model.process).__name__}: take a loss of paths, such as trajectory-consistency."
            )
        return super().begun(model)

    def suits(self, model: Any) -> None:
        super().suits(model)
        if self.teacher is None:
            raise SfumatoError("The law of a student's samples is compared with a teacher's: pass teacher=.")
        if self.fake is None:
            self.fake = copy.deepcopy(self._beginning(model)).requires_grad_(True)

    def _beginning(self, model: FlowMap) -> Any:
        """The denoiser that the player starts as: the teacher's, or the student's where that hears more."""
        first, own = self.teacher, model.inner
        while isinstance(first, Wrapped):
            first = first.inner
        if not isinstance(first, Denoiser) or not isinstance(own, Denoiser):
            return own
        found: Any = FlowMap.student(first).inner
        return found if trees.tree(found.net) == trees.tree(own.net) else own

    def players(self) -> Iterable[nn.Parameter]:
        return self.fake.parameters()

    def error(self, model: FlowMap, path: Path) -> Tensor:
        x = self.samples(model, path)
        self._made[_numbers(path)] = x.detach()
        z, m, clean = self.noised(model, path, x, 0)
        return self.difference(model, path, clean, z, m)

    def player_losses(self, model: FlowMap, batch: Any) -> Tensor:
        """|F_fake(z_m) - F(z_m; x)|^2 / D of the student's samples, (B,)."""
        path, _ = self.paths(model, batch)
        made = None if self.turn else self._made.pop(_numbers(path), None)  # those of this step, at no second call
        with torch.no_grad():
            x = self.samples(model, path) if made is None else made
            z, m, clean = self.noised(model, path, x, _FAKE + 2 * self.turn)
            target = Estimate(z, m, model.process.schedule, x=clean, sigma_data=model.process.sigma_data).F
        return square(self.imitated(model, path, z, m).F - target)

    def observe(self, batch: Any, losses: Tensor) -> None:
        self._made.clear()

    @torch.no_grad()
    def held(self, model: FlowMap, batch: Any) -> Tensor:
        theirs = self.solution(model, batch, self.start(model, batch, self.theirs))
        z = self.start(model, batch, noise.TRAIN_NOISE)
        told = conditions(batch.cond, model.process.sigma_data)
        off = [energy(walk(model, z, calls, **batch.cond), theirs, told) for calls in self.walked]
        return torch.stack(off).mean(0) / model.process.sigma_data

    def samples(self, model: FlowMap, path: Path) -> Tensor:
        """x = X(z_t, t, s), like z."""
        s = time(model.process, path.end)
        return moved(model.process, path.z, path.t, s, model.mean(path.z, path.t, s, **path.cond))

    def noised(self, model: FlowMap, path: Path, x: Tensor, stream: int) -> tuple[Tensor, Tensor, Tensor]:
        """(z_m, m, what stands for the clean signal in z_m): samples under fresh noise of levels above s, uniform in
        theta."""
        n, part = self.draws(path, x, stream)
        m = time(model.process, path.end + part * (angle(model.process, 1.0) - path.end))
        z, clean = carried(model.process, path, x, m, n)
        return z, m, clean

    def draws(self, path: Path, x: Tensor, stream: int) -> tuple[Tensor, Tensor]:
        """(normal numbers like x, numbers from _LEAST to _MOST, (B,)), which depend on the samples' numbers alone."""
        assert path.number is not None
        u = noise.uniform(self.seed, path.number, (), noise.PROBE, stream, dtype=torch.float64)
        n = numbers_like(Noise(self.seed, path.number, noise.PROBE).at(stream + 1), x)
        return n, _LEAST + (_MOST - _LEAST) * u

    def imitated(self, model: FlowMap, path: Path, z: Tensor, m: Tensor) -> Estimate:
        """The belief about z_m of the denoiser of the student's samples."""
        fake, schedule = self.fake, model.process.schedule
        fake = fake if fake.process.schedule == schedule else Rescheduled(fake, schedule)
        start = heard(path.theta, len(z), z.device)
        belief: Estimate = fake(z, m, **{UNTIL: start}, **path.cond)
        return belief

    def difference(self, model: FlowMap, path: Path, x: Tensor, z: Tensor, m: Tensor) -> Tensor:
        """|d|^2 / (2 D), (B,), whose gradient reaches x alone and is d / D there."""
        with torch.no_grad():
            known = self.guide(model, z)(z, m, **path.cond).x
            d = self.imitated(model, path, z, m).x - known
        return square(x - (x - d).detach()) / 2


def _numbers(path: Path) -> tuple[int, ...]:
    assert path.number is not None
    return tuple(path.number.tolist())


def energy(x: Tensor, y: Tensor, told: Tensor | None = None) -> Tensor:
    """2 mean_j |x_i - y_j| - mean_j |x_i - x_j| - mean_j |y_i - y_j|, each a root mean square of numbers, (B,).

    Their mean is the energy distance of the two sets (Szekely and Rizzo 2013): at least 0, and on average 2 / B of
    E|x - x'| for sets of one law. told: rows (B, k) that stand beside the numbers of both, each as a root mean square
    of numbers; the laws of numbers and rows together are then compared.
    """
    a, b = x.flatten(1).double(), y.flatten(1).double()
    scale = math.sqrt(a.shape[1])
    if told is not None:
        a, b = (torch.cat((each, scale * told), 1) for each in (a, b))
    near = [torch.cdist(p, q).mean(1) for p, q in ((a, b), (a, a), (b, b))]
    return (2 * near[0] - near[1] - near[2]) / scale


def conditions(cond: Conditions, unit: float) -> Tensor | None:
    """Conditions as rows (B, k), float64, for `energy`: two of them are as far apart as two samples of a deviation of
    `unit`, a root mean square of sqrt(2) units, of numbers on average; None without any."""
    parts = []
    for name in cond:
        given = cond.given(name)
        values = given.values.double()
        if given.is_label:
            values = (given.values[:, None] == given.values.unique()).double()
        elif given.present.ndim == 2:  # tokens, of which as many count as there are
            values = values.sum(1) / given.present.sum(1).clamp_min(1)[:, None]
        parts.append(values.flatten(1) / (1 if given.is_label else math.sqrt(values[0].numel())))
    return unit * torch.cat(parts, 1) if parts else None


def carried(process: Any, path: Path, x: Tensor, m: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """(z_m ~ q(z_m | z_s = x) by the noise n, the clean signal of the same score): z_m = a x + b n has the score -n / b
    given x, which a clean signal (z_m - sigma_m^2 n / b) / alpha_m would give; it is x itself at s = 0."""
    (a, b), (alpha, sigma) = process.jump(time(process, path.end), m), process.schedule(m)
    data = path.end <= 0
    a, b = torch.where(data, alpha, a), torch.where(data, sigma, b)
    z = broadcast(a, x) * x + broadcast(b, x) * n
    clean = (z - broadcast(sigma**2 / b, x) * n) / broadcast(alpha, x)
    return z, torch.where(broadcast(data, x).bool(), x, clean)


@register("loss", "distribution-matching")
@final
class DistributionMatching(LawLoss):
    """|d|^2 / (2 D) at fresh noise, with the gradient d in x: grad KL(q_m || p_m) up to a weight of the level.

    E[(s_q - s_p)(z_m) alpha dx] is the gradient of the divergence, and s_q - s_p = alpha d / sigma^2. The weight is 1
    in theta, where the paper divides by the sample's own |x - D|, whose scale changes with the data.
    Sources: 2311.18828, Eq. 7; 2405.14867, Sect. 4 (without the regression, with a player that follows each step).
    """


@register("loss", "moment-matching")
@final
class MomentMatching(LawLoss):
    """|d|^2 / (2 D) at z_m ~ q(z_m | z_t, x), m below t, with the gradient d in x: E[x | z_m] of both laws agree.

    From pure noise q(z_m | z_t, x) has no z_t in it, and this is distribution matching: it differs for several calls.
    Source: 2406.04103, Eq. 5 and Alg. 2, without the pull of the player towards the teacher.
    """

    between = False

    def noised(self, model: FlowMap, path: Path, x: Tensor, stream: int) -> tuple[Tensor, Tensor, Tensor]:
        n, part = self.draws(path, x, stream)
        m = time(model.process, part * path.theta)
        step = Estimate(path.z, path.t, model.process.schedule, x=x, sigma_data=model.process.sigma_data)
        return step.to(m, 1.0, n), m, x


@register("loss", "score-identity")
@final
class ScoreIdentity(LawLoss):
    """[d.(x - E[x | z_m]) + (1 - alpha) |d|^2] / D, with gradients through x and z_m in both denoisers.

    Since E d.(x - E[x | z_m]) = 0, the mean is (1 - alpha) E|d|^2, a Fisher divergence; but the gradient, in which the
    player is held, lacks what its change would add; alpha of 1 to 1.2 makes up for that.
    Source: 2404.04057, Eq. 23.
    """

    def __init__(
        self,
        teacher: Teacher | None = None,
        alpha: float = 1.0,
        turns: int = 5,
        calls: tuple[int, ...] = (1,),
        seed: int = 0,
        gamma: float = 1.0,
    ) -> None:
        super().__init__(teacher, turns, calls, seed, gamma)
        self.alpha = float(alpha)
        if not 0 <= self.alpha <= 2:
            raise SfumatoError(f"alpha of the score identity is from 0 to 2, not {alpha!r:.60}.")

    def difference(self, model: FlowMap, path: Path, x: Tensor, z: Tensor, m: Tensor) -> Tensor:
        known = self.guide(model, z)(z, m, **path.cond).x
        fake = self.imitated(model, path, z, m).x
        d = fake - known
        return (d * (x - fake) + (1 - self.alpha) * d.square()).flatten(1).mean(1)
