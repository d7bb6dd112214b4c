"""What the eight views look at: held-out samples at ever more noise, walks back to the data, and their sensitivity.

z_1 = alpha_1 x + sigma_1 eps,   z_{k+1} = a_k z_k + c_k n   (forward chains, cleanest level first)
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from sfumato import noise
from sfumato.belief import broadcast
from sfumato.conditions import Conditions
from sfumato.diagnostics.draws import Trivial
from sfumato.diagnostics.samples import NormalisedLaw
from sfumato.machine import in_parts
from sfumato.metrics.channels import radial_power
from sfumato.nets.watching import watched
from sfumato.noise import Noise
from sfumato.noised import evaluating
from sfumato.objectives import flow_maps
from sfumato.objectives.times import limits
from sfumato.process.angles import angle, moved
from sfumato.state import numbers_like

COUNT, REACH = 15, 7.0  # levels, and how far they reach in logsnr from where signal and noise are equally strong
STEPS = 2  # of the reverse SDE from level to level
_HEUN = 2  # of the ODE in each of those, and from level to level: two calls each
_BANDS = 8  # most bands by which power is compared
_LEAST_SIDE = 4
_COLUMNS = ("error", "spread", "eps", "missed", "noise", "grown", "power")


@dataclasses.dataclass(frozen=True)
class Scene:
    """A model, normalised samples x (N, *shape), their conditions, and levels: t and logsnr (K,), cleanest first."""

    model: Any
    guess: Trivial
    x: Tensor
    cond: Conditions
    logsnr: Tensor
    t: Tensor
    seed: int
    batch: int

    @classmethod
    def of(cls, model: Any, guess: Trivial, x: Tensor, cond: Conditions, seed: int, batch: int) -> Scene:
        schedule, centre = model.process.schedule, -math.log(guess.variance)
        low, high = limits(schedule)
        logsnr = torch.linspace(min(high, centre + REACH), max(low, centre - REACH), COUNT, dtype=torch.float64)
        return cls(model, guess, x, cond, logsnr, schedule.time(logsnr), seed, batch)

    @property
    def size(self) -> int:
        return self.x[0].numel()

    @property
    def centre(self) -> Tensor | float:
        """The mean of the data."""
        m = self.guess.mean
        return m.to(self.x) if isinstance(m, Tensor) else m

    def few(self, count: int) -> Scene:
        """The same with the first samples alone."""
        part = slice(0, max(2, count))
        return dataclasses.replace(self, x=self.x[part], cond=self.cond.rows(torch.arange(len(self.x[part]))))

    def parts(self, work: Callable[[Tensor], dict[str, Tensor]]) -> dict[str, Tensor]:
        """work(numbers of some samples) -> columns (B, ...), joined to float64 (N, ...), in evaluation mode."""
        with evaluating(self.model):
            found = in_parts(work, torch.arange(len(self.x)), self.batch)
        return {name: torch.cat([part[name].double().cpu() for part in found]) for name in found[0]}

    def rms(self, off: Tensor) -> Tensor:
        """The mean square of a number of each sample, (B,)."""
        return off.double().flatten(1).square().mean(1)

    def level(self, k: int, rows: int) -> Tensor:
        return self.t[k].expand(rows)

    def strength(self, k: int) -> tuple[float, float, float]:
        """(alpha, sigma, S) of a level, S the standard deviation of a number of z."""
        alpha, sigma = (float(each) for each in self.model.process.schedule(self.t[k]))
        return alpha, sigma, math.sqrt(alpha**2 * self.guess.variance + sigma**2)


@torch.no_grad()
def forward(scene: Scene, law: NormalisedLaw | None = None) -> dict[str, Tensor]:
    """Columns (N, K) of forward chains, all a number: error |x - x_hat|^2, spread |x_hat - m|^2, eps |eps_hat|^2,
    missed |eps - eps_hat|^2, noise |eps|^2, grown |x_hat_k - x_hat_{k+1}|^2 (0 at the noisiest); power (N, K, R) of
    x_hat - m by band, and whole (N, R) of x - m; of a law also excess |x_hat - E[x|z]|^2."""
    axes = principal_axes(scene)
    names = [*_COLUMNS, *(["excess"] if law is not None else [])]

    def work(part: Tensor) -> dict[str, Tensor]:
        x, cond = scene.x[part], scene.cond.rows(part)
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        before = None
        for k, z in enumerate(_noised(scene, x, part)):
            belief = scene.model(z, scene.level(k, len(x)), **cond)
            alpha, sigma, _ = scene.strength(k)
            moved = belief.x - scene.centre
            found["error"].append(scene.rms(x - belief.x))
            found["spread"].append(scene.rms(moved))
            found["eps"].append(scene.rms(belief.eps))
            eps = (z - alpha * x) / sigma
            found["missed"].append(scene.rms(eps - belief.eps))
            found["noise"].append(scene.rms(eps))
            found["power"].append(power(moved, axes))
            if law is not None:
                found["excess"].append(scene.rms(belief.x - _expected(law, z, alpha, sigma)))
            if before is not None:
                found["grown"].append(scene.rms(before - belief.x))
            before = belief.x
        found["grown"].append(torch.zeros_like(found["error"][0]))
        return {name: torch.stack(each, 1) for name, each in found.items()} | {"whole": power(x - scene.centre, axes)}

    return scene.parts(work)


def _expected(law: NormalisedLaw, z: Tensor, alpha: float, sigma: float) -> Tensor:
    """E[x|z] of the law, in the model's units."""
    found = law.truth.moments(law.scale * z.double() + alpha * law.shift, alpha=alpha, sigma=law.scale * sigma)
    return ((found.x - law.shift) / law.scale).to(z)


def _noised(scene: Scene, x: Tensor, part: Tensor) -> Iterator[Tensor]:
    process, source = scene.model.process, Noise(scene.seed, part, noise.PROBE)

    def drawn(step: int) -> Any:
        return numbers_like(source.at(100 + step), x)

    z = process.corrupt(x, scene.t[0], drawn(0))
    yield z
    for k in range(1, COUNT):
        kernel = process.jump(scene.t[k - 1], scene.t[k])
        z = broadcast(kernel.alpha, z) * z + broadcast(kernel.sigma, z) * drawn(k)
        yield z


def principal_axes(scene: Scene) -> Tensor | None:
    """The principal axes of vectors (d, d), of the largest variance first; None of pictures, which have frequencies."""
    if scene.x.ndim > 2 and min(scene.x.shape[2:]) >= _LEAST_SIDE:
        return None
    flat = (scene.x - scene.centre).flatten(1).double()
    return torch.linalg.eigh(flat.T @ flat / len(flat)).eigenvectors.flip(1)


def power(x: Tensor, axes: Tensor | None) -> Tensor:
    """The power of each sample by frequency, coarse first, or along principal axes: (B, R), R at most 8 groups."""
    if axes is None:
        found = radial_power(x.double()).mean(1)
    else:
        found = (x.flatten(1).double() @ axes.to(x.device)).square()
    groups = torch.arange(found.shape[1]) * min(_BANDS, found.shape[1]) // found.shape[1]
    sums = found.new_zeros(len(found), int(groups.max()) + 1).index_add_(1, groups.to(found.device), found)
    return sums / groups.bincount().to(sums)


@torch.no_grad()
def walks(scene: Scene) -> dict[str, Tensor]:
    """From noise to data by the reverse SDE and by the ODE, both by Heun's steps, as columns.

    sde, ode (N, K): the spread |z - alpha m|^2 / S^2 a number by level. "sde end", "ode end" (N,): that of the last
    x_hat over the variance of the data; apart (N,): half the square by which they differ. path (N, K): the first number
    of w = z / S along the ODE. way, chord (N,): the mean square of its speed in the angle times the angle squared, and
    that of the straight line between its ends.
    """

    def work(part: Tensor) -> dict[str, Tensor]:
        cond = scene.cond.rows(part)
        start = Noise(scene.seed, part, noise.PROBE, 200).normal(
            tuple(scene.x.shape[1:]), scene.x.device, scene.x.dtype
        )
        sde, end = _walk(scene, start, lambda z, k: _stochastic(scene, z, k, part, cond), cond)
        ode, last = _walk(scene, start, lambda z, k: _heun(scene, z, k, cond), cond)
        w = [z / scene.strength(k)[2] for k, z in enumerate(ode)]
        angles = angle(scene.model.process, scene.t).diff().tolist()
        speeds = [scene.rms(a - b) / angle for a, b, angle in zip(w, w[1:], angles, strict=False)]
        return {
            "sde": torch.stack([_spread(scene, z, k) for k, z in enumerate(sde)], 1),
            "ode": torch.stack([_spread(scene, z, k) for k, z in enumerate(ode)], 1),
            "sde end": scene.rms(end - scene.centre) / scene.guess.variance,
            "ode end": scene.rms(last - scene.centre) / scene.guess.variance,
            "apart": scene.rms(end - last) / 2 / scene.guess.variance,
            "path": torch.stack([each.flatten(1)[:, 0] for each in w], 1),
            "way": torch.stack(speeds).sum(0) * sum(angles),
            "chord": scene.rms(w[0] - w[-1]),
        }  # fmt: skip

    return scene.parts(work)


def _walk(
    scene: Scene, start: Tensor, step: Callable[[Tensor, int], Tensor], cond: Conditions
) -> tuple[list[Tensor], Tensor]:
    """The states at all levels, cleanest first, and x_hat of the cleanest; step(z, k) moves from level k to k - 1."""
    alpha, _, scale = scene.strength(COUNT - 1)
    states = [alpha * scene.centre + scale * start]
    for k in range(COUNT - 1, 0, -1):
        states.append(step(states[-1], k))
    return states[::-1], scene.model(states[-1], scene.level(0, len(start)), **cond).x


def _stochastic(scene: Scene, z: Tensor, k: int, part: Tensor, cond: Conditions) -> Tensor:
    """The reverse SDE from level k to k - 1: each step of length h in logsnr adds noise over h and follows the ODE back
    over 2 h, since the SDE is the ODE and noise that the score takes away. Second order, unlike ancestral steps."""
    process, low, h = scene.model.process, scene.logsnr[k], (scene.logsnr[k - 1] - scene.logsnr[k]) / STEPS
    for i in range(STEPS):
        t, above, below = (process.schedule.time(low + (i + j) * h).expand(len(z)) for j in (0, -1, 1))
        kernel, n = process.jump(t, above), Noise(scene.seed, part, noise.PROBE, 300 + STEPS * k + i)
        z = broadcast(kernel.alpha, z) * z + broadcast(kernel.sigma, z) * numbers_like(n, z)
        z = _ode(scene, z, above, below, cond)
    return z


def _heun(scene: Scene, z: Tensor, k: int, cond: Conditions) -> Tensor:
    return _ode(scene, z, scene.level(k, len(z)), scene.level(k - 1, len(z)), cond)


def _ode(scene: Scene, z: Tensor, t: Tensor, s: Tensor, cond: Conditions) -> Tensor:
    return moved(scene.model.process, z, t, s, flow_maps.step(scene.model, z, t, s, _HEUN, **cond))


def _spread(scene: Scene, z: Tensor, k: int) -> Tensor:
    alpha, _, scale = scene.strength(k)
    return scene.rms(z - alpha * scene.centre) / scale**2


def gains(scene: Scene, levels: list[int]) -> Tensor:
    """S^2 |J^T v|^2 / d, J = dx_0/dz_t of the ODE from these levels to the data, v random signs: (N, levels)."""

    def work(part: Tensor) -> dict[str, Tensor]:
        cond, x = scene.cond.rows(part), scene.x[part]
        v = noise.rademacher(scene.seed, part, tuple(x.shape[1:]), noise.PROBE, 500, x.device, x.dtype)
        with torch.no_grad():
            states = list(_noised(scene, x, part))
        found = []
        for level in levels:
            with torch.enable_grad():
                start = z = states[level].clone().requires_grad_()
                for k in range(level, 0, -1):
                    z = _heun(scene, z, k, cond)
                end = scene.model(z, scene.level(0, len(x)), **cond).x
                (grad,) = torch.autograd.grad(end, start, v)
            found.append(scene.rms(grad) * scene.strength(level)[2] ** 2)
        return {"": torch.stack(found, 1)}

    return scene.parts(work)[""]


@torch.no_grad()
def similarity(scene: Scene) -> tuple[float, float] | None:
    """Means over the layers of a network of the similarity of their outputs, between neighbouring levels and between
    the cleanest and the noisiest; None of models without a network, or of fewer than 4 samples.

    CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)), K and L the products of samples in two layers, without bias
    (Kornblith et al. 2019, 1905.00414; Song et al. 2012).
    """
    net, count = getattr(scene.model, "net", None), len(scene.x)
    if net is None or count < 4:
        return None
    levels: list[dict[str, Tensor]] = []

    def look(name: str, out: Any) -> None:
        if isinstance(out, Tensor) and out.is_floating_point() and out.ndim > 1 and len(out) == count:
            rows = out.flatten(1).double().cpu()
            levels[-1][name] = _products(rows - rows.mean(0))

    with evaluating(scene.model), watched(net, look):
        for k, z in enumerate(_noised(scene, scene.x, torch.arange(count))):
            levels.append({})
            scene.model(z, scene.level(k, count), **scene.cond)
    pairs = [*itertools.pairwise(levels), (levels[0], levels[-1])]
    found = [[alike for name in a.keys() & b.keys() if (alike := _cka(a[name], b[name])) is not None] for a, b in pairs]
    if not all(found):
        return None
    means = [sum(each) / len(each) for each in found]
    return sum(means[:-1]) / (len(means) - 1), means[-1]


def _products(rows: Tensor) -> Tensor:
    """The products of different samples (N, N), 0 on the diagonal, so that a sample is not like itself by chance."""
    return (rows @ rows.T).fill_diagonal_(0.0)


def _cka(a: Tensor, b: Tensor) -> float | None:
    """The similarity of two layers from their products; None where one of them says nothing of the samples."""
    cross, own, other = _hsic(a, b), _hsic(a, a), _hsic(b, b)
    return cross / math.sqrt(own * other) if min(own, other) > 0 else None


def _hsic(a: Tensor, b: Tensor) -> float:
    n = len(a)
    both = (a * b).sum() + a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (a.sum(0) * b.sum(0)).sum()
    return float(both / (n * (n - 3)))
