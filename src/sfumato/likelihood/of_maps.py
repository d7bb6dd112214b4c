"""log p(x) of the samples of a flow map, by the change of variables of its own calls.

    log p(x) = log N(z; 0, sigma_1^2) - log|det dX/dz|,   X(z) = x,   X = X_{k-1} o .. o X_0 for k calls

Of coefficients (`Spectral`) x and z are c = Q x - m and its latent, with a sigma_1 each, that of the prior: Q is
orthonormal, so that the density of c is that of x, and all of them are noise at t = 1, also those of a subspace.
z is found by Newton's method from the latent of the ODE of the denoiser inside. It is the density of what the map
samples, whatever it has learned; the law of the ODE is another (method "ode"). A map that is not one-to-one has other
latents for some x, and then a higher density than this. Sources: Boffi et al. 2024 (2406.07507); Dinh et al. 2017
(1605.08803).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sfumato.conditions import Conditions
from sfumato.errors import SfumatoError
from sfumato.likelihood.measured import Measured
from sfumato.likelihood.spectral import log_prior
from sfumato.model import compute_dtype
from sfumato.probability_flow import field_of
from sfumato.solver_selection import make_plan

LARGEST = 64  # numbers in a sample of which the whole Jacobian is taken
_FIRST = 32  # steps of the ODE to the first guess of a latent
_ROUNDS = 30  # Newton steps at most
_NEAR = 1e-4  # root mean square error of X(z), in deviations of the data, or of each coefficient


def change_of_variables(model: Any, x: Tensor, index: Tensor, cond: Conditions, steps: int, **unused: Any) -> Measured:
    """`log_prob` of normalised x (B, *shape), float64, for a map of `steps` calls, in normalised units.

    Raises SfumatoError for a map that renews noise between calls, for samples of more than LARGEST numbers, and where
    no latent of a sample is found.
    """
    calls = steps
    _check(model, x, calls)
    plan = make_plan(model, calls, "map")
    ends = [*plan.times[:calls], plan.stop]
    dtype = compute_dtype(model)
    unit = torch.as_tensor(model.process.sigma_data, dtype=torch.float64).to(x.device).expand(1, *x.shape[1:])

    def sampled(z: Tensor) -> Tensor:
        state = z.to(dtype).reshape(x.shape)
        for t, s in itertools.pairwise(ends):
            state = model(state, t, until=s, **cond).to(s)
        return (state.double() / unit).flatten(1)

    field = field_of(model, cond, _FIRST, None)
    track = field.track
    *_, (_, w) = field.walk(track.alpha[0] / track.norm[0] * x)
    z, slope, off = solved(sampled, (x / unit).flatten(1), (track.norm[-1] * w).flatten(1))
    lost = int((off > _NEAR).sum())
    if lost:
        raise SfumatoError(
            f"No latent was found that the map leads to {lost} of {len(x)} samples: it may never sample them, or the "
            "search stopped short. Use method='ode', the law of its ODE."
        )
    prior = log_prior(model.process, z.reshape(x.shape))[:, 0] - unit.log().sum()
    value = (prior - torch.linalg.slogdet(slope).logabsdet).cpu()
    words = f"change of variables of {calls} call{'s' if calls > 1 else ''} of the map"
    return Measured(value, 0 * value, 0 * value, None, None, None, words, x[0].numel(), 0, calls)


def _check(model: Any, x: Tensor, calls: int) -> None:
    if not getattr(model, "two_times", False) or not hasattr(model, "default_steps"):
        raise SfumatoError("method='map' is the likelihood of a flow map, and this model is none: use method='ode'.")
    if x[0].numel() > LARGEST:
        raise SfumatoError(
            f"The change of variables takes the Jacobian of the map, which is done up to {LARGEST} numbers, and a "
            f"sample has {x[0].numel():,}: use method='ode', the law of its ODE."
        )
    if model.gamma and calls > 1:
        raise SfumatoError(
            "This map renews noise between its calls, so that its samples have no change of variables: pass steps=1, "
            "or use method='ode'."
        )


def solved(f: Callable[[Tensor], Tensor], x: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(z, df/dz, the root mean square of f(z) - x) for f(z) = x, (B, D), (B, D, D) and (B,), from a first guess z.

    Newton's method; a step that takes a row no nearer is tried again at half its length.
    """
    length = torch.ones(len(z), 1, dtype=z.dtype)
    y, slope = jacobian(f, z)
    for _ in range(_ROUNDS):
        off = (y - x).square().mean(1)
        if float(off.max().sqrt()) < _NEAR / 100:
            break
        new = z - length * torch.linalg.lstsq(slope, (y - x)[..., None]).solution[..., 0]
        found, turned = jacobian(f, new)
        nearer = ((found - x).square().mean(1) < off)[:, None]
        z, y, slope = (
            torch.where(nearer, new, z), torch.where(nearer, found, y), torch.where(nearer[..., None], turned, slope)
        )  # fmt: skip
        length = torch.where(nearer, (2 * length).clamp_max(1.0), length / 2)
    return z, slope, (y - x).square().mean(1).sqrt()


def jacobian(f: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    """(f(z), df/dz), (B, D) and (B, D, D), of rows that do not depend on each other."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        y = f(z)
        rows = [torch.autograd.grad(y[:, i].sum(), z, retain_graph=True)[0] for i in range(y.shape[1])]
    return y.detach(), torch.stack(rows, 1)
