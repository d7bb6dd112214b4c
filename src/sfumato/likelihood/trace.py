"""tr dy/dz of a model's flow y(z): exactly, in closed form, or by random probes that are fixed for each sample.

    exact                 sum_i e_i^T J e_i, one product with J for each dimension
    closed                for an exact model: tr dE[x|z]/dz = alpha / sigma^2 tr Cov(x|z)
    rademacher, gaussian  v^T J v: signs have variance 2 sum_{i != j} H_ij^2, normal numbers 2 |H|_F^2,
                          H = (J + J^T) / 2
    deflated              tr Q^T M Q + g^T M g, g = v - Q Q^T v, M = dE[x|z]/dz: the trace is exact on the directions Q
                          where M is large, and only the rest uses the probes v; its isotropic part, of known trace,
                          is a control variate with a weight estimated from the other probes

Every node uses the same v, so that the spread over the k probes of a sample gives the standard error of its whole
log-density. Q follows the flow: it is M Q of the last node, orthonormalised (subspace iteration), and independent of
v, so the estimate is unbiased.
Sources: Hutchinson 1989; Grathwohl et al. 2018 (1810.01367), Eq. 7, probes fixed in time; Meyer et al. 2020
(2010.09649), Hutch++.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from sfumato import noise
from sfumato.errors import SfumatoError
from sfumato.exact import ExactDenoiser
from sfumato.probability_flow import Field, exact_law

NAMES = ("exact", "rademacher", "gaussian", "deflated")
_SKETCH = 1 << 16  # the first stream of the initial directions Q, above those of the probes


class TraceEstimator(Protocol):
    """trace(field, w, j) -> (y like w, estimates of tr dy/dz (B, k)) at point j, each column independent of the others.

    learn: whether the estimator may adapt to this point, for the next one.
    """

    def __call__(self, field: Field, w: Tensor, j: int, learn: bool = False) -> tuple[Tensor, Tensor]: ...


class Closed:
    """The closed-form trace of an exact model, from its posterior covariance."""

    def __init__(self, model: ExactDenoiser) -> None:
        self.model = model

    def __call__(self, field: Field, w: Tensor, j: int, learn: bool = False) -> tuple[Tensor, Tensor]:
        track, z = field.track, field.state(w, j)
        label, truth = field.cond.get("label"), self.model.truth
        total = truth.total_variance(z, process=self.model.process, t=track.time[j], label=label)
        slope = track.alpha[j] / track.sigma[j] ** 2 * total
        trace = (w[0].numel() - track.norm[j] / track.scale * slope) / track.sigma[j]
        return field.y(w, j), trace[:, None]


class Exact:
    """The exact trace of any model, by a product with each unit vector."""

    def __call__(self, field: Field, w: Tensor, j: int, learn: bool = False) -> tuple[Tensor, Tensor]:
        dim = w[0].numel()
        y, products = field.linear(w, j, dim)
        total = torch.zeros(len(w), dtype=torch.float64, device=w.device)
        for some in torch.arange(dim, device=w.device).split(products.copies):
            v = torch.nn.functional.one_hot(some, dim).to(torch.float64)[:, None].expand(-1, len(w), -1)
            total += products(v).gather(2, some[:, None, None].expand(-1, len(w), 1)).sum((0, 2))
        return y, total[:, None]


class Hutchinson:
    """v^T J v for k probes v (k, B, D), each fixed for its sample."""

    def __init__(self, probes: Tensor) -> None:
        self.probes = probes

    def __call__(self, field: Field, w: Tensor, j: int, learn: bool = False) -> tuple[Tensor, Tensor]:
        y, products = field.linear(w, j, len(self.probes))
        return y, (products(self.probes) * self.probes).sum(2).T


class Deflated:
    """tr Q^T M Q + g^T M g, with as many directions Q as probes: twice the products of `Hutchinson`."""

    def __init__(self, probes: Tensor, sketch: Tensor) -> None:
        """probes (k, B, D), and the initial directions (m, B, D), m at most D."""
        self.probes, self.basis = probes, _orthonormal(sketch)

    def __call__(self, field: Field, w: Tensor, j: int, learn: bool = False) -> tuple[Tensor, Tensor]:
        track, q = field.track, self.basis
        y, products = field.linear(w, j, len(q) + len(self.probes))
        g = self.probes - torch.einsum("mbd,mbe,kbe->kbd", q, q, self.probes)
        v = torch.cat((q, g))
        mv = track.scale / track.norm[j] * (v - track.sigma[j] * products(v))
        along, rest = (mv * v).sum(2).split((len(q), len(self.probes)))
        # the mean eigenvalue of the rest, estimated from the sample's other probes, as a control variate of known trace
        level, square = rest.sum(0) - rest, g.square().sum(2)
        level = level / (square.sum(0) - square).clamp_min(1e-300)
        slope = along.sum(0) + rest - level * (square - (w[0].numel() - len(q)))
        if learn:
            self.basis = _orthonormal(mv[: len(q)])
        return y, ((w[0].numel() - track.norm[j] / track.scale * slope) / track.sigma[j]).T


def _orthonormal(v: Tensor) -> Tensor:
    """Orthonormal vectors (m, B, D) that span the same space as v for each sample."""
    return torch.linalg.qr(v.permute(1, 2, 0)).Q.permute(2, 0, 1).contiguous()


def choose(
    model: object, name: str, probes: int, seed: int, index: Tensor, dim: int, device: torch.device
) -> TraceEstimator:
    """The estimator `name` for these sample numbers; "exact" uses the closed form for an exact model."""
    if name not in NAMES:
        raise SfumatoError(f"Unknown trace {name!r}: use one of {', '.join(NAMES)} or auto.")
    if name == "exact":
        law = exact_law(model)
        return Exact() if law is None else Closed(law)
    if probes < 2:
        raise SfumatoError(f"A standard error needs at least 2 probes, got {probes}.")
    if name == "gaussian":
        return Hutchinson(_normal(seed, index, dim, probes, 0, device))
    each = [noise.rademacher(seed, index, (dim,), noise.PROBE, k, device, torch.float64) for k in range(probes)]
    signs = torch.stack(each)
    if name == "rademacher":
        return Hutchinson(signs)
    return Deflated(signs, _normal(seed, index, dim, min(probes, dim), _SKETCH, device))


def _normal(seed: int, index: Tensor, dim: int, count: int, first: int, device: torch.device) -> Tensor:
    steps = range(first, first + count)
    each = [noise.normal(seed, index, (dim,), noise.PROBE, k, device, torch.float64) for k in steps]
    return torch.stack(each)
