"""The law that guided sampling gives, beside the tilted law that it is taken for.

    p_c = N(m_c, v_c), p_u = N(m_u, v_u), scale g, in each direction by itself:

    tilted   p_c^g p_u^(1-g):  1 / v = g / v_c - (g - 1) / v_u,   m = v (g m_c / v_c - (g - 1) m_u / v_u)
    ODE      v = v_c^g / v_u^(g-1)
             m = m_c + (g - 1)(m_c - m_u) / 2 v_c^(g/2) v_u^((1-g)/2) int_0^inf (v_u + s)^((g-3)/2) (v_c + s)^(-g/2) ds
    SDE      v = v_c^(2g) v_u^(2-2g) ((v_u / v_c)^(2g-1) - 1) / ((2g - 1)(v_u - v_c))
             m = m_c + (g - 1)(m_c - m_u) v_c^g v_u^(1-g) int_0^inf (v_u + s)^(g-2) (v_c + s)^(-g) ds

ODE is the probability flow, SDE the reverse SDE with eta = 1, DDPM; both with many steps and under any schedule. They
follow from the linear equations dz = (f z + g^2 ..) dt with s = sigma^2 / alpha^2 as time. With v_c = v_u all are
equal.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sfumato.errors import SfumatoError, whole
from sfumato.exact import GaussianMixture
from sfumato.guidance import guide
from sfumato.machine import default_cpu
from sfumato.model import usable
from sfumato.process.gaussian import require_numbers
from sfumato.sampling import refuse_arguments, sample

_POINTS = 256  # of the quadrature
_LEAST = 1e-8  # share of the largest variance below which a direction has none
LAWS = {"ode": "multistep", "sde": "sde-dpm++2m"}  # law -> the solver that measures it


class Normal(NamedTuple):
    """Means and variances (D,) of independent directions, float64; NaN where there is no such law."""

    mean: Tensor
    variance: Tensor


def gaussian_laws(conditional: Normal, base: Normal, scale: float) -> dict[str, Normal]:
    """The laws "tilted", "ode" and "sde" of the head of this file, for variances above 0."""
    (m_c, v_c), (m_u, v_u) = (
        (torch.as_tensor(part, dtype=torch.float64) for part in law) for law in (conditional, base)
    )
    g, shift = float(scale), (float(scale) - 1) * (m_c - m_u)
    precision = g / v_c - (g - 1) / v_u
    precision = torch.where(precision > 0, precision, torch.nan)
    tilted = Normal((g * m_c / v_c - (g - 1) * m_u / v_u) / precision, 1 / precision)
    along = (v_c / v_u).pow(g / 2) * v_u.sqrt() * _integral(v_c, v_u, -g / 2, (g - 3) / 2)
    ode = Normal(m_c + shift / 2 * along, v_c * (v_c / v_u).pow(g - 1))
    drawn = (v_c / v_u).pow(g) * v_u * _integral(v_c, v_u, -g, g - 2)
    x, w = _nodes()
    growth = (1 + (v_u / v_c - 1)[..., None] * x).pow(2 * g - 2) @ w  # ((v_u/v_c)^(2g-1) - 1) / ((2g-1)(v_u/v_c - 1))
    sde = Normal(m_c + shift * drawn, v_c * (v_c / v_u).pow(2 * g - 2) * growth)
    return {"tilted": tilted, "ode": ode, "sde": sde}


def _nodes() -> tuple[Tensor, Tensor]:
    """Gauss and Legendre's points and weights on (0, 1)."""
    x, w = np.polynomial.legendre.leggauss(_POINTS)
    return torch.from_numpy(x + 1) / 2, torch.from_numpy(w) / 2


def _integral(v_c: Tensor, v_u: Tensor, of_c: float, of_u: float) -> Tensor:
    """int_0^inf (v_c + s)^of_c (v_u + s)^of_u ds with s = a (1 / y^2 - 1), a = sqrt(v_c v_u): smooth in y on (0, 1)."""
    y, w = _nodes()
    a = (v_c * v_u).sqrt()[..., None]
    c, u = (1 + y**2 * (v[..., None] / a - 1) for v in (v_c, v_u))
    # (v + s) = a (1 + y^2 (v / a - 1)) / y^2 and ds = 2 a y^-3 dy
    integrand = c.pow(of_c) * u.pow(of_u) * y.pow(-2 * (of_c + of_u) - 3)
    return (2 * a.pow(of_c + of_u + 1) * integrand) @ w


@dataclasses.dataclass(frozen=True)
class GuidanceLaws:
    """What guidance by `scale` samples along `directions` (k, D), the principal axes of the base law, widest first.

    laws: "base", "conditional", "tilted", "ode", "sde" -> `Normal` (k,), and of `measured` samples "ode measured" and
    "sde measured". note: how the moments are known, and what that means.
    """

    scale: float
    directions: Tensor
    laws: dict[str, Normal]
    note: str

    def to_dict(self) -> dict[str, Any]:
        """The laws as plain JSON; null where there is none."""
        rows = {name: {"mean": _listed(law.mean), "variance": _listed(law.variance)} for name, law in self.laws.items()}
        return {"scale": self.scale, "laws": rows, "note": self.note}

    def __str__(self) -> str:
        k = len(self.directions)
        rows = [f"guidance {self.scale:g}: mean and variance along the {k} widest directions of the base law"]
        rows.append(" " * 14 + "".join(f"{f'direction {i + 1}':>22}" for i in range(k)))
        for name, (mean, variance) in self.laws.items():
            cells = (f"{m:+.4g} / {v:.4g}" if v == v else "none" for m, v in zip(mean, variance, strict=True))
            rows.append(f"{name:<14}" + "".join(f"{cell:>22}" for cell in cells))
        return "\n".join([*rows, self.note])


def _listed(values: Tensor) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]


@default_cpu()
def explain_guidance(
    model: Any, scale: float, n: int = 512, steps: int = 20, directions: int = 4, measured: bool = False, seed: int = 0,
    **cond: Any,
) -> GuidanceLaws:  # fmt: skip
    """The law that ODE and DDPM sampling of `sf.guide(model, scale)` give, beside the tilted law p_c^g p_u^(1-g).

    The formulas are those of Gaussians (`guidance_laws`), along the principal axes of the base law, in the model's
    normalised units. Moments: of an exact mixture, in closed form; else of `n` samples of the model without and with
    the conditions **cond, drawn in `steps` steps. Where a law is no Gaussian, or the two covariances have other axes,
    the formulas hold for the Gaussians with these moments, which the note says. measured=True: also guided samples, as
    many, by the ODE and by the SDE, whatever the laws are.
    """
    require_numbers(usable(model, "explain_guidance"), "explain_guidance", "look at its samples")
    refuse_arguments(explain_guidance, model, cond)
    if not cond:
        raise SfumatoError("explain_guidance needs the conditions that are guided to, such as label=0.")
    n, k = whole("n", n, 8), whole("directions", directions)

    def samples(of: Any, solver: str | None = None, **told: Any) -> Tensor:
        return sample(of, n, steps, solver, seed, normalised=True, **told).double().flatten(1)

    law = getattr(model, "truth", None)
    law = law if isinstance(law, GaussianMixture) and set(cond) == {"label"} else None
    if law is not None:
        (m_u, c_u), (m_c, c_c) = _moments(law, None), _moments(law, int(torch.as_tensor(cond["label"]).flatten()[0]))
    else:
        (m_u, c_u), (m_c, c_c) = (_moments_of(samples(model, **told)) for told in ({}, cond))
    spectrum, axes = torch.linalg.eigh(c_u)
    axes = axes[:, spectrum > _LEAST * spectrum[-1]].flip(1)[:, :k].T
    base, conditional = (
        Normal(axes @ m, ((axes @ c) * axes).sum(1).clamp_min(_LEAST * float(spectrum[-1])))
        for m, c in ((m_u, c_u), (m_c, c_c))
    )
    laws = {"base": base, "conditional": conditional, **gaussian_laws(conditional, base, scale)}
    for name, solver in LAWS.items() if measured else ():
        m, c = _moments_of(samples(guide(model, scale), solver, **cond))
        laws[f"{name} measured"] = Normal(axes @ m, ((axes @ c) * axes).sum(1))
    return GuidanceLaws(float(scale), axes, laws, _note(law, n))


def _note(law: Any, n: int) -> str:
    if law is None:
        return (
            f"Moments of {n} samples each, in normalised units: the formulas hold for Gaussians with these moments, "
            "and the model's laws are none. sf.tilt samples the tilted law itself."
        )
    return (
        "Moments in closed form: the formulas hold for Gaussians with these moments; a mixture is none. sf.tilt "
        "samples the tilted law itself."
    )


def _moments(law: GaussianMixture, label: int | None) -> tuple[Tensor, Tensor]:
    """(mean (D,), covariance (D, D)) of a mixture, or of one class of it."""
    chosen = law.weights * (1.0 if label is None else (law.labels == label).double())
    w = chosen / chosen.sum()
    mean = w @ law.means
    apart = law.means - mean
    return mean, torch.einsum("k,kde->de", w, law.covs) + torch.einsum("k,kd,ke->de", w, apart, apart)


def _moments_of(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean(0), torch.atleast_2d(x.T.cov())
