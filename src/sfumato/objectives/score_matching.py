"""Score matching: losses of a function z -> s(z) that are all minimised by s = grad log p.

    explicit    1/2 |s - grad log p|^2
    implicit    1/2 |s|^2 + tr ds/dz                                  = explicit - 1/2 |grad log p|^2
    sliced      1/2 (v^T s)^2 + v^T (ds/dz) v,   E v v^T = I           = implicit
    reduced     1/2 |s|^2 + v^T (ds/dz) v                             = implicit, with less variance
    denoising   1/2 |s(z) + eps / sigma|^2,   z = alpha x + sigma eps  = explicit + 1/2 (D / sigma^2 - |grad log p|^2)

The equalities hold for means over z ~ p, over the probes v and over eps. The implicit, sliced and reduced forms need
p s -> 0 at the boundary of the data: for data that fill a box up to its walls they have a boundary error, which the
denoising form does not.

`score` is any function z -> s, or a model together with a time t, for s = model(z, t, **cond).score.
There is one loss per sample, (B,), in at least float32, with gradients if gradients are enabled. ds/dz is computed by
autograd, so s of a sample must not depend on the other samples of its batch.
Sources: Hyvarinen 2005 (JMLR 6), Theorem 1; Song et al. 2019 (1905.07088), Eq. 7 and 8; Vincent 2011, Eq. 11; Song and
Ermon 2019 (1907.05600), Eq. 5 and 6.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sfumato import noise
from sfumato.belief import broadcast
from sfumato.errors import SfumatoError, suggest
from sfumato.model import Denoiser, Model
from sfumato.objectives import weights
from sfumato.objectives.denoising import denoising_loss
from sfumato.objectives.times import TimeDensity
from sfumato.schedule import Schedule, Time
from sfumato.state import numbers_like

Score = Callable[[Tensor], Tensor]
Index = Tensor | Sequence[int] | None

PROBES = ("rademacher", "gaussian", "sphere")


def score_of(score: Score | Model, t: Time | None = None, **cond: Any) -> Score:
    """z -> grad log p_t(z) of a model at time t (a number or (B,)); a plain function z -> s is returned as it is."""
    if isinstance(score, Model):
        if t is None:
            raise SfumatoError("Score matching of a model needs the time of its noise level: pass t.")
        model = score
        return lambda z: model(z, t, **cond).score
    if t is not None or cond:
        raise SfumatoError("Only a model has a level t and conditions: leave them out with a function z -> score.")
    return score


def explicit(score: Score | Model, z: Tensor, known: Tensor | Score, t: Time | None = None, **cond: Any) -> Tensor:
    """1/2 |s(z) - grad log p(z)|^2, (B,), against the known score: a tensor like z or a function of z."""
    exact = known if isinstance(known, Tensor) else known(z)
    return 0.5 * _square(_like(score_of(score, t, **cond)(z), z) - _like(exact, z))


def implicit(score: Score | Model, z: Tensor, t: Time | None = None, **cond: Any) -> Tensor:
    """1/2 |s|^2 + tr ds/dz, (B,), with the exact trace, by D backward passes (Hyvarinen 2005).

    z (B, ...): samples of p. Raises SfumatoError if s is not differentiable in z by autograd.
    """
    s, trace = _products(score_of(score, t, **cond), z, _units(z))
    return 0.5 * _square(s) + trace


def sliced(
    score: Score | Model,
    z: Tensor,
    t: Time | None = None,
    probes: int | Tensor = 1,
    law: str = "rademacher",
    reduced: bool = True,
    seed: int = 0,
    index: Index = None,
    **cond: Any,
) -> Tensor:
    """v^T (ds/dz) v + 1/2 |s|^2 (reduced) or + 1/2 (v^T s)^2, (B,), the mean over the probes (1905.07088).

    probes: the number per sample, drawn from `law` by (seed, index), or the probes (M, B, ...) themselves, E v v^T = I.
    law: "rademacher" signs, for which the trace has variance 2 sum_{i != j} H_ij^2, H the symmetric part of ds/dz;
    "gaussian", 2 |H|_F^2; "sphere" of radius sqrt(D), 2 D / (D + 2) (|H|_F^2 - (tr H)^2 / D). index: 0..B-1 if None.
    """
    v = probes if isinstance(probes, Tensor) else draw_probes(z, probes, law, seed, index)
    if v.shape[1:] != z.shape or not len(v):
        raise SfumatoError(f"Probes must have shape (M, *{tuple(z.shape)}) with M at least 1, got {tuple(v.shape)}.")
    s, traces = _products(score_of(score, t, **cond), z, v.to(z))
    square = _square(s) if reduced else torch.stack([_dot(each.to(s), s).square() for each in v]).mean(0)
    return 0.5 * square + traces / len(v)


def denoising(
    score: Score | Model,
    x: Tensor,
    sigma: float | Tensor | None = None,
    t: Time | None = None,
    seed: int = 0,
    index: Index = None,
    eps: Tensor | None = None,
    **cond: Any,
) -> Tensor:
    """1/2 |s(z) + eps / sigma|^2, (B,), at one noise level (Vincent 2011).

    x: clean samples (B, ...). The level: for a function z -> s, `sigma` (a number or (B,)) of z = x + sigma eps; for a
    model the time t, z = alpha x + sigma eps. eps is the same as in `denoising_loss` for the same seed and index, and
    for a denoiser with target "score" the two losses are equal. For many levels see `ncsn`.
    """
    function, (alpha, scale) = score_of(score, t, **cond), _level(score, sigma, t)
    index = torch.arange(len(x)) if index is None else torch.as_tensor(index)
    eps = numbers_like(noise.Noise(seed, index, noise.TRAIN_NOISE) if eps is None else eps, x)
    z = broadcast(alpha, x) * x + broadcast(scale, x) * eps
    return 0.5 * _square(_like(function(z), z) + eps / broadcast(scale, x))


def _level(score: Score | Model, sigma: float | Tensor | None, t: Time | None) -> tuple[Tensor, Tensor]:
    """The (alpha, sigma) for `denoising`."""
    if isinstance(score, Model) != (sigma is None):
        raise SfumatoError("Denoising score matching takes its level as sigma for a function z -> s, as t for a model.")
    if isinstance(score, Model):
        assert t is not None  # checked by score_of
        alpha, scale = score.process.schedule(t)
    else:
        alpha, scale = torch.ones((), dtype=torch.float64), torch.as_tensor(sigma, dtype=torch.float64)
    if not bool((scale > 0).all()):
        raise SfumatoError("Denoising score matching needs noise: sigma must lie above 0.")
    return alpha, scale


# -- many levels ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Levels(TimeDensity):
    """L increasing noise levels sigma/alpha with equal probability: p(logsnr) = 1 / L, a mass, not a density.

    As `times` of the denoising loss it trains at these levels only, under any schedule that contains them.
    """

    sigmas: tuple[float, ...]

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.sigmas, self.sigmas[1:], strict=False))
        if not self.sigmas or not rising or not 0 < self.sigmas[0] or not self.sigmas[-1] < math.inf:
            raise SfumatoError(f"Noise levels must be positive, finite and increasing, got {self.sigmas}.")

    @classmethod
    def geometric(cls, sigma_min: float, sigma_max: float, count: int) -> Levels:
        """sigma_i = sigma_min (sigma_max / sigma_min)^((i - 1) / (L - 1)), i = 1..L (1907.05600, Sect. 4)."""
        if count < 2 or not 0 < sigma_min < sigma_max:
            raise SfumatoError(
                f"Geometric levels need 0 < sigma_min < sigma_max and a count of at least 2, got {sigma_min:g}, "
                f"{sigma_max:g} and {count}."
            )
        steps = torch.linspace(math.log(sigma_min), math.log(sigma_max), count, dtype=torch.float64)
        return cls(tuple(steps.exp().tolist()))

    def logsnr(self, u: Tensor, schedule: Schedule) -> Tensor:
        """The logsnr of level floor(u L), least noise at u = 0. SfumatoError for levels outside the schedule."""
        ratio = torch.tensor(self.sigmas, dtype=torch.float64, device=u.device)
        levels = -2 * ratio.log()
        lo, hi = schedule.logsnr_range
        if float(levels.min()) < lo - _ROUNDING or float(levels.max()) > hi + _ROUNDING:
            raise SfumatoError(
                f"The levels {self.sigmas[0]:g} to {self.sigmas[-1]:g} exceed the range of {type(schedule).__name__}, "
                f"sigma/alpha from {math.exp(-hi / 2):g} to {math.exp(-lo / 2):g}: use a schedule that contains them."
            )
        return levels[(u * len(ratio)).long().clamp(0, len(ratio) - 1)]

    def density(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        """1 / L."""
        return torch.full_like(logsnr, 1 / len(self.sigmas))


_ROUNDING = 1e-6  # rounding error allowed in logsnr at the ends of a schedule


def ncsn(denoiser: Denoiser, x: Tensor, levels: Levels, seed: int = 0, index: Index = None, **cond: Any) -> Tensor:
    """An unbiased estimate of sum_i sigma_i^2 DSM(sigma_i), (B,): NCSN's loss (1907.05600, Eq. 6, times L).

    sigma_i^2 DSM(sigma_i) = 1/2 |eps - eps_hat|^2, so this is the denoising loss with w(logsnr) = 1, the ELBO weight,
    at one random level per sample. sigma means sigma/alpha, the noise of a state divided by alpha. x: clean, normalised
    samples (B, ...).
    """
    return denoising_loss(denoiser, x, weight=weights.elbo(), times=levels, seed=seed, index=index, **cond)


# -- derivatives ------------------------------------------------------------------------------------------------------


def draw_probes(z: Tensor, count: int, law: str = "rademacher", seed: int = 0, index: Index = None) -> Tensor:
    """(count, *z.shape) with E v v^T = I for each sample; row i of a probe is a function of (seed, index_i) alone."""
    if law not in PROBES:
        raise SfumatoError(f"Unknown distribution {law!r} of probes: {suggest(law, PROBES)}")
    if count < 1:
        raise SfumatoError(f"Sliced score matching needs at least 1 probe, got {count}.")
    index = torch.arange(len(z)) if index is None else torch.as_tensor(index)
    draw = noise.rademacher if law == "rademacher" else noise.normal
    shape = tuple(z.shape[1:])
    v = torch.stack([draw(seed, index, shape, noise.PROBE, k, z.device, z.dtype) for k in range(count)])
    if law != "sphere":
        return v
    flat = v.flatten(2)
    return (flat * (math.sqrt(flat.shape[2]) / flat.norm(dim=2, keepdim=True))).reshape(v.shape)


def _units(z: Tensor) -> Iterator[Tensor]:
    """Each unit vector of a sample, for all samples at once."""
    for i in range(z[0].numel()):
        unit = torch.zeros_like(z)
        unit.flatten(1)[:, i] = 1
        yield unit


def _products(score: Score, z: Tensor, directions: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """s(z), and the sum over the directions v of v^T (ds/dz) v, (B,), in at least float32."""
    training = torch.is_grad_enabled()
    # the gradient of a trace needs second derivatives, which the fused attention kernels lack
    with torch.inference_mode(False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        z = z if training and z.requires_grad else z.detach().clone().requires_grad_()
        s = score(z)
        wide = _like(s, z)
        total = torch.zeros(len(z), dtype=wide.dtype, device=z.device)
        for v in directions:
            total = total + _dot(_backward(s, z, v, training).to(wide), v.to(wide))
    return (wide, total) if training else (wide.detach(), total.detach())


def _backward(s: Tensor, z: Tensor, v: Tensor, create_graph: bool) -> Tensor:
    """(ds/dz)^T v."""
    product = None
    if s.requires_grad:
        (product,) = torch.autograd.grad(s, z, v.to(s), create_graph=create_graph, retain_graph=True, allow_unused=True)
    if product is None:
        raise SfumatoError(
            "Implicit and sliced score matching need ds/dz, but the score is not connected to z in the autograd graph: "
            "compute it from z by torch operations without detaching."
        )
    return product


def _like(s: Tensor, z: Tensor) -> Tensor:
    """The score in at least float32; SfumatoError unless it has the shape of z."""
    if s.shape != z.shape:
        raise SfumatoError(f"A score must have the shape of z, {tuple(z.shape)}, got {tuple(s.shape)}.")
    return s.to(torch.promote_types(s.dtype, torch.float32))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def _square(a: Tensor) -> Tensor:
    return _dot(a, a)
