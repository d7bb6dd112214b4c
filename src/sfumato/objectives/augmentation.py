"""A weighted loss as an expectation of evidence bounds of noised data, by integration by parts.

    1/2 int w(lam) E|eps - eps_hat|^2 dlam = w(lo) (E_{p_w}[L(Lam)] - L(lo)),   L' = 1/2 E|eps - eps_hat|^2
    p_w(lam) = -w'(lam) / w(lo) on (lo, hi), and a point of mass w(hi) / w(lo) at hi

over logsnr lam from lo to hi. L(lam) = KL(q(z_lam .. z_lo | x) | p(z_lam .. z_lo)) is the negative evidence bound of
the data noised to level lam, up to the entropy of q(z_lam | x), which does not depend on the model. If w never
increases, p_w is a probability distribution, and the loss is the bound of data augmented with Gaussian noise of levels
drawn from it.
Source: Kingma and Gao 2023 (2303.00848), Theorem 1 and Eq. 12.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import final

import numpy as np
import torch
from torch import Tensor

from sfumato.objectives.weights import Weight
from sfumato.roots import bisection

_NODES = 12  # interpolation nodes per panel, on which w is approximated by a polynomial
_PANELS, _MOST = 64, 2048  # initial panels, and most panels after halving those with too large an error
_EXACT = 1e-12  # interpolation error allowed, relative to the largest w of a panel
_LEGENDRE = np.polynomial.legendre


@final
@dataclasses.dataclass(frozen=True)
class Augmentation:
    """The distribution p_w of a weight on [lo, hi] of logsnr."""

    weight: Weight
    lo: float
    hi: float

    @cached_property
    def scale(self) -> float:
        """w(lo), the factor in front of the expectation."""
        return float(self._at(self.lo))

    @cached_property
    def atom(self) -> float:
        """The point mass at hi, the least noise: w(hi) / w(lo)."""
        return float(self._at(self.hi)) / self.scale

    def _at(self, logsnr: float) -> Tensor:
        return self.weight(torch.tensor([logsnr], dtype=torch.float64))[0]

    def survival(self, logsnr: Tensor) -> Tensor:
        """P(Lam >= logsnr) = w(logsnr) / w(lo)."""
        return self.weight(logsnr) / self.scale

    def quantile(self, u: Tensor) -> Tensor:
        """The u-quantile of the level, like u, to draw the noise; hi if u falls into the atom.

        For weights that never increase, by bisection.
        """
        ends = torch.full_like(u, self.lo), torch.full_like(u, self.hi)
        inner = bisection(lambda level: 1 - self.survival(level) <= u, *ends, rounds=60)
        return torch.where(u >= 1 - self.atom, self.hi, inner)

    def density(self, logsnr: Tensor) -> Tensor:
        """-w'(logsnr) / w(lo) inside the range, 0 outside, without the atom; negative where w increases."""
        edges, slopes = (v.to(logsnr.device) for v in self._panels)
        panel = torch.searchsorted(edges, logsnr.contiguous(), right=True).sub(1).clamp(0, len(slopes) - 1)
        width = edges[panel + 1] - edges[panel]
        slope = (_basis(2 * (logsnr - edges[panel]) / width - 1) * slopes[panel]).sum(-1) * 2 / width
        return torch.where((logsnr >= self.lo) & (logsnr <= self.hi), -slope / self.scale, 0.0)

    def expect(self, f: Callable[[Tensor], Tensor]) -> float:
        """E_{p_w}[f(Lam)], including the atom, for f of levels (N,) -> (N,), by Gauss quadrature on each panel.

        Accurate for f that are smooth on panels of 1/64 of the range; kinks of w are resolved.
        """
        nodes, shares = (torch.from_numpy(v) for v in _LEGENDRE.leggauss(_NODES))
        edges = self._panels[0]
        lam = _places(edges, nodes).reshape(-1)
        mass = self.density(lam) * (edges.diff()[:, None] / 2 * shares).reshape(-1)
        return float((mass * f(lam)).sum()) + self.atom * float(f(torch.tensor([self.hi], dtype=torch.float64))[0])

    @cached_property
    def _panels(self) -> tuple[Tensor, Tensor]:
        """The edges (P + 1,), and the Legendre coefficients (P, nodes) of dw/dxi on each panel, xi in [-1, 1].

        w is interpolated at Chebyshev-Lobatto points, which include the ends, so that the slopes integrate exactly to
        the difference of w; panels with an interpolation error are halved.
        """
        nodes = -np.cos(np.pi * np.arange(_NODES) / (_NODES - 1))
        read = torch.from_numpy(np.linalg.inv(_LEGENDRE.legvander(nodes, _NODES - 1))).T
        between = torch.from_numpy((nodes[1:] + nodes[:-1]) / 2)
        edges = torch.linspace(self.lo, self.hi, _PANELS + 1, dtype=torch.float64)
        while True:
            values = self._values(_places(edges, torch.from_numpy(nodes)))
            gap = (values @ read @ _basis(between).T - self._values(_places(edges, between))).abs().amax(1)
            split = (gap > _EXACT * values.abs().amax(1)) & (edges.diff() > 1e-9)
            if not bool(split.any()) or len(edges) > _MOST:
                break
            edges = torch.cat((edges, ((edges[1:] + edges[:-1]) / 2)[split])).sort().values
        slope = np.zeros((_NODES, _NODES))
        slope[:-1] = _LEGENDRE.legder(np.eye(_NODES))
        return edges, values @ read @ torch.from_numpy(slope).T

    def _values(self, logsnr: Tensor) -> Tensor:
        return self.weight(logsnr.reshape(-1)).detach().reshape(logsnr.shape)


def _basis(inner: Tensor) -> Tensor:
    """Legendre polynomials at points of [-1, 1], (N, nodes)."""
    return torch.from_numpy(_LEGENDRE.legvander(inner.detach().cpu().numpy(), _NODES - 1)).to(inner)


def _places(edges: Tensor, nodes: Tensor) -> Tensor:
    """The nodes of [-1, 1] mapped to every panel, (panels, nodes)."""
    return edges[:-1, None] + (nodes + 1) * edges.diff()[:, None] / 2
