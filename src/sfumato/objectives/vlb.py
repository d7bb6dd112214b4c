"""The discrete-time variational bound on T noise levels, term by term.

    -log p(x) <= L_T + sum_{k=1}^{T-1} L_k + L_0        nats
    L_T = KL(q(z_1 | x) || N(0, sigma(1)^2)),   L_k = KL(q(z_s | z_t, x) || p(z_s | z_t)),   L_0 = -log p(x | z_{t_1})

at the levels t_1 < .. < t_T = 1 of any schedule (`chain` for the steps, `decoder` for L_0). With an exact model the sum
converges to -log p(x) as the steps shrink in logsnr, like 1/T, up to the error of the last decoder
(`tests/objectives/test_vlb.py`). At levels i / T of a schedule with infinite logsnr at t = 0 the first steps do not
shrink (t doubles from 1/T to 2/T), which costs nats with the posterior variance at any T: use `times` that are even in
logsnr, or variance="beta".
Sources: Sohl-Dickstein et al. 2015 (1503.03585); Ho et al. 2020 (2006.11239), Eq. 5; Nichol and Dhariwal 2021
(2102.09672), Eq. 4-7.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sfumato import noise
from sfumato.conditions import Conditions, resolve
from sfumato.errors import SfumatoError, whole
from sfumato.latent_diffusion import require_data_space
from sfumato.machine import default_cpu
from sfumato.model import Model, compute_dtype
from sfumato.objectives.chain import check_variance, data_nats, step_nats
from sfumato.objectives.decoder import Cells, cells_of
from sfumato.objectives.prior import prior_kl
from sfumato.process.gaussian import require_numbers
from sfumato.state import samples

DECODERS = ("auto", "discretised", "density")
_BATCH = 1 << 18  # numbers in a batch


@dataclasses.dataclass(frozen=True)
class VLB:
    """The terms of the bound for B samples and T levels, float64, in nats and the user's units.

    prior: L_T, (B,). steps: L_k of the step from times[k] to times[k - 1], (B, T - 1), k = 1..T-1. data: L_0, (B,).
    times: t_1 .. t_T, (T,). dim: the dimension of a sample. discrete: whether L_0 is for integer data.
    """

    prior: Tensor
    steps: Tensor
    data: Tensor
    times: Tensor
    dim: int
    discrete: bool

    @property
    def total(self) -> Tensor:
        """The bound on -log p(x), (B,)."""
        return self.prior + self.steps.sum(1) + self.data

    @property
    def bits_per_dim(self) -> Tensor:
        """total / (D log 2), (B,); only for data declared discrete."""
        if not self.discrete:
            raise SfumatoError("Bits per dimension need integer data and the discretised decoder: use total, in nats.")
        return self.total / (self.dim * math.log(2))


@default_cpu()
def vlb(
    model: Model,
    x: Any,
    steps: int = 1000,
    times: Sequence[float] | Tensor | None = None,
    variance: str | None = None,
    decoder: str = "auto",
    seed: int = 0,
    index: Sequence[int] | Tensor | None = None,
    batch: int | None = None,
    **cond: Any,
) -> VLB:
    """Every term of the bound for x (B, *shape) in user units, with one noise draw per level, as a `VLB`.

    times: increasing levels t_1 .. t_T = 1; i / steps by default. variance: posterior, beta or learned (`chain`); by
    default learned if the model has it, else posterior. decoder: auto is discretised for integer data, else a density.
    The noise of a level is a function of (seed, number of the sample in `index`, level). label=... as in `sample`.
    Raises SfumatoError for levels that do not increase to 1, and for a discretised decoder of real-valued data.
    """
    variance = variance or ("learned" if getattr(model, "variance", "fixed") == "learned" else "posterior")
    require_numbers(model, "The bound of T Gaussian steps", "take nonequilibrium_bound or log_prob")
    require_data_space(model, "The bound of T steps", "take log_prob(.., method='elbo')")
    check_variance(variance)
    levels, spec = _levels(steps, times), getattr(model, "spec", None)
    cells = chosen_cells(spec, decoder)
    if spec is not None:
        spec.check(x)
    rows = samples(x, "vlb")
    numbers = torch.arange(len(rows)) if index is None else torch.as_tensor(index, dtype=torch.int64)
    rows = (rows if spec is None else spec.normalise(rows)).to(torch.float64)
    conditions, device = resolve(model, cond, len(rows)), getattr(model, "device", rows.device)
    batches = []
    for part in torch.arange(len(rows)).split(batch or max(1, _BATCH // rows[0].numel())):
        chosen = conditions.rows(part).to(device)
        batches.append(_terms(model, rows[part].to(device), levels, variance, cells, seed, numbers[part], chosen))
    nats = torch.cat(batches).cpu()
    shift = 0.0 if spec is None or cells is not None else spec.log_jacobian(rows.cpu())
    prior = prior_kl(model.process, rows).cpu()
    return VLB(prior, nats[:, 1:], nats[:, 0] - shift, levels, rows[0].numel(), cells is not None)


def _levels(steps: int, times: Sequence[float] | Tensor | None) -> Tensor:
    if times is None:
        steps = whole("steps of the bound", steps)
        return torch.arange(1, steps + 1, dtype=torch.float64) / steps
    levels = torch.as_tensor(times, dtype=torch.float64)
    rising = levels.ndim == 1 and len(levels) > 0 and bool((levels[1:] > levels[:-1]).all())
    if not rising or float(levels[0]) <= 0 or float(levels[-1]) != 1:
        raise SfumatoError("The levels of the bound must increase from above 0 to 1.")
    return levels


def chosen_cells(spec: Any, decoder: str) -> Cells | None:
    """The cells of the discretised decoder, or None for a density, for a data spec (or None) and one of `DECODERS`."""
    if decoder not in DECODERS:
        raise SfumatoError(f"Unknown decoder {decoder!r}: use one of {', '.join(DECODERS)}.")
    cells = None if decoder == "density" else cells_of(spec)
    if decoder == "discretised" and cells is None:
        raise SfumatoError("The discretised decoder needs data declared discrete (integer dtype): use density.")
    return cells


@torch.no_grad()
def _terms(
    model: Model,
    x: Tensor,
    levels: Tensor,
    variance: str,
    cells: Cells | None,
    seed: int,
    index: Tensor,
    cond: Conditions,
) -> Tensor:
    """L_0, L_1 .. L_{T-1}, (B, T)."""
    process, terms, dtype = model.process, [], compute_dtype(model)
    for k, t in enumerate(levels):
        eps = noise.normal(seed, index, tuple(x.shape[1:]), noise.BOUND, k, x.device, x.dtype)
        belief = model(process.corrupt(x, t, eps).to(dtype), float(t), **cond)
        if k == 0:
            before = levels[1] if len(levels) > 1 else None
            terms.append(data_nats(process, belief, x, eps, before, variance, cells))
        else:
            terms.append(step_nats(process, belief, x, eps, levels[k - 1], variance))
    return torch.stack(terms, 1)
