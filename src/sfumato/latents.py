"""Latents: encode data to noise by the probability-flow ODE, decode, interpolate, edit; embeddings of an unCLIP pair.

    encode  z_1 = Phi_{0 -> 1}(x)          decode  x = Phi_{1 -> 0}(z_1)          edit  decode(encode(x) + shift)

The map is one-to-one: encode and decode with the same steps invert each other up to the solver's error (order 4). A
latent is a state at t = 1, z_1 ~ N(0, sigma(1)^2), not whitened: `sample(model, z=latent)` accepts it unchanged, and
latent / sigma(1) is standard normal. Of a spectral process it is a state of coefficients, in units of its prior.
Sources: Song et al. 2020 (2010.02502), Sec. 4.3 and 5.3; Song et al. 2021 (2011.13456), App. D.4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sfumato.conditions import resolve, without_gaps
from sfumato.data.lengths import beyond, ends
from sfumato.errors import SfumatoError
from sfumato.machine import default_cpu
from sfumato.model import Model, compute_dtype
from sfumato.probability_flow import field_of
from sfumato.process import Spectral
from sfumato.process.gaussian import require_numbers
from sfumato.sampling import refuse_arguments, sample
from sfumato.state import samples
from sfumato.unclip import UnCLIP

DEFAULT_STEPS = 64
_FLOW, _SEEDS = "The flow between data and latents", "use the noise of a seed and an index instead of a latent"


@default_cpu()
def encode(
    model: Model,
    x: Any,
    steps: int = DEFAULT_STEPS,
    sigma_min: float | None = None,
    batch: int = 256,
    normalised: bool = False,
    **cond: Any,
) -> Tensor:
    """z_1 = Phi_{0 -> 1}(x): the latent (B, *shape) of x (B, *shape) in user units, in the model's dtype.

    Costs 4 steps calls of the model. sigma_min: the noise level where the flow starts, as in `log_prob`; x is treated
    as a state at that level. normalised=True takes x in the model's units. label=... as in `sample`: encoding under one
    label and decoding under another edits the sample. Of sequences of several lengths, a list, latents are NaN beyond
    the ends, as the flow is that of the steps that are there. SfumatoError if x does not match the model's spec.
    """
    process, ragged = _require_flow(model), _lengths(model) is not None
    spec = None if normalised else getattr(model, "spec", None)
    if spec is not None:
        x = spec.together(x)
        spec.check(x, whole=not ragged)
    x = samples(x if spec is None else spec.normalise(x), "encode", ragged)
    if ragged and not torch.equal(x.isnan(), beyond(ends(x), x.shape[1:]).bool()):
        raise SfumatoError("encode needs every step of a sequence up to its end, and some are missing: fill them.")
    return _flow(model, process.data(x.double()), steps, sigma_min, batch, cond, back=False)


@default_cpu()
def decode(
    model: Model,
    latent: Tensor,
    steps: int = DEFAULT_STEPS,
    sigma_min: float | None = None,
    batch: int = 256,
    normalised: bool = False,
    **cond: Any,
) -> Any:
    """x = Phi_{1 -> 0}(z_1): samples (B, *shape) in user units and dtype, the inverse of `encode` for equal arguments.

    As in `sample`, integer data are rounded and clipped to their declared bounds, and sequences of several lengths are
    a list; normalised=True keeps the model's units.
    """
    process, law = _require_flow(model), _lengths(model)
    spec = None if normalised else getattr(model, "spec", None)
    x = process.table(_flow(model, latent, steps, sigma_min, batch, cond, back=True))
    if spec is None or law is None:
        return x if spec is None else spec.denormalise(x)
    return law.cut(spec.denormalise(x.nan_to_num(0.0)), ends(latent))


def _lengths(model: Any) -> Any:
    """The law of the lengths of a model's sequences; None for samples of one shape."""
    return getattr(getattr(model, "spec", None), "lengths", None)


def _require_flow(model: Model) -> Any:
    """The process of a model whose states are real numbers; SfumatoError for others."""
    if not isinstance(getattr(model, "process", None), Spectral):
        require_numbers(model, _FLOW, _SEEDS)
    return model.process


def _flow(
    model: Model, state: Tensor, steps: int, sigma_min: float | None, batch: int, cond: dict[str, Any], back: bool
) -> Tensor:
    function = decode if back else encode
    refuse_arguments(function, model, cond)
    ragged = _lengths(model) is not None
    state = samples(state, function.__name__, ragged)
    conditions, device = resolve(model, cond, len(state)), getattr(model, "device", state.device)
    gaps, out = state.cpu().isnan(), []
    if ragged:  # the network sees none of what lies beyond an end
        state, conditions = without_gaps(state, conditions)
    for part in torch.arange(len(state)).split(batch):
        field = field_of(model, conditions.rows(part).to(device), steps, sigma_min)
        clean, noise = field.track.norm[0] / field.track.alpha[0], field.track.norm[-1]
        start, stop = (noise, clean) if back else (clean, noise)
        *_, (_, w) = field.walk(state[part].to(device, torch.float64) / start, back)
        out.append((stop * w).to(compute_dtype(model)).cpu())
    found = torch.cat(out)
    return found.masked_fill(gaps, math.nan) if ragged else found


def slerp(a: Tensor, b: Tensor, share: float | Tensor) -> Tensor:
    """(sin((1 - p) w) a + sin(p w) b) / sin w, w the angle between a and b, for each sample: spherical interpolation.

    a, b (B, ...); share p a number or (B,). |z| is constant if |a| = |b|, so that latents on the path are typical.
    Linear if a and b point in the same direction.
    Source: Shoemake 1985; Song et al. 2020 (2010.02502), Eq. 67.
    """
    if a.shape != b.shape or a.ndim < 2:
        raise SfumatoError(
            f"Latents to interpolate must share one shape (B, ...), got {tuple(a.shape)} and {tuple(b.shape)}."
        )
    p = torch.as_tensor(share, dtype=torch.float64, device=a.device).expand(len(a))
    u, v = a.flatten(1).double(), b.flatten(1).double()
    if not torch.equal(u.isnan(), v.isnan()):
        raise SfumatoError("Latents of sequences to interpolate must be of one length.")
    u, v = u.nan_to_num(0.0), v.nan_to_num(0.0)
    cosine = (u * v).sum(1) / (u.norm(dim=1) * v.norm(dim=1)).clamp_min(1e-300)
    angle = torch.acos(cosine.clamp(-1, 1))
    if bool((math.pi - angle < 1e-6).any()):
        raise SfumatoError("Two latents point in opposite directions: the shortest path on the sphere is not unique.")
    parallel = angle < 1e-6
    sine = torch.where(parallel, 1.0, torch.sin(angle))
    first = torch.where(parallel, 1 - p, torch.sin((1 - p) * angle) / sine)
    second = torch.where(parallel, p, torch.sin(p * angle) / sine)
    found = (first[:, None] * u + second[:, None] * v).reshape(a.shape).to(a.dtype)
    return found.masked_fill(a.isnan(), math.nan)


@default_cpu()
def interpolate(model: Any, a: Any, b: Any, shares: float | Sequence[float], **how: Any) -> Any:
    """decode(slerp(encode(a), encode(b), p)) for each p of `shares`: (len(shares), B, *shape) in user units, of
    sequences of several lengths a list for each p; a and b are then as long.

    `how` is passed to `encode` and `decode`: steps, label, ... Of an `UnCLIP` pair the way is that of the embeddings,
    each decoded from the same noise, and `how` is passed to `sample`. Source of that: 2204.06125, Sec. 3.2.
    """
    shares = [shares] if isinstance(shares, int | float) else shares
    if isinstance(model, UnCLIP):
        start, end = (model.embed(x) for x in (a, b))
        how |= {"index": range(len(start))}
        return torch.stack([_pictures(model, slerp(start, end, p), **how) for p in shares])
    start, end = (encode(model, x, **how) for x in (a, b))
    # of equal variance, as a sphere is meant
    unit = model.process.prior(torch.ones_like(start)) if isinstance(model.process, Spectral) else 1.0
    found = [decode(model, slerp(start / unit, end / unit, p) * unit, **how) for p in shares]
    return found if _lengths(model) is not None else torch.stack(found)


@default_cpu()
def variations(model: Any, x: Any, n: int = 16, **how: Any) -> Tensor:
    """n pictures x' ~ p(x' | embedding of x), in user units: what the embedding of x (*shape) leaves open.

    how: other arguments of `sample`: steps, seed, ... Raises SfumatoError for a model without embeddings. Source:
    Ramesh et al. 2022 (2204.06125), Sec. 3.1.
    """
    if not isinstance(model, UnCLIP):
        raise SfumatoError(
            "Variations under one embedding are those of an unCLIP pair (train with unclip): sf.inverse.vary makes "
            "variations by any other model, from noise."
        )
    return _pictures(model, model.embed(torch.as_tensor(x)[None]), n=n, **how)


def _pictures(pair: Any, embedding: Tensor, **how: Any) -> Tensor:
    """Samples of an unCLIP pair under these embeddings."""
    found: Tensor = sample(pair, embedding=embedding, **how)
    return found


@default_cpu()
def attribute(model: Model, having: Any, lacking: Any, **how: Any) -> Tensor:
    """mean encode(having) - mean encode(lacking), (1, *shape): the direction to add to latents for an attribute.

    having, lacking: samples (B, *shape) in user units with and without the attribute. Source: Kingma and Dhariwal 2018
    (1807.03039), Sec. 6.2, in the latents of the ODE (2011.13456, App. D.4).
    """
    both = [encode(model, x, **how) for x in (having, lacking)]
    if any(bool(each.isnan().any()) for each in both):
        raise SfumatoError("An attribute is a direction for all steps: give sequences of the full length.")
    return both[0].mean(0, keepdim=True) - both[1].mean(0, keepdim=True)
