"""What `sf.audit` found: a number for each identity and noise level, in words, as JSON, and as corrections."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, final

import torch
from torch import Tensor

from sfumato.belief import Estimate
from sfumato.compose import Wrapped
from sfumato.diagnostics.draws import Trivial, plain
from sfumato.diagnostics.identities import IDENTITIES, Believed
from sfumato.errors import SfumatoError
from sfumato.intervals import Interval
from sfumato.schedule import Time

ERRORS = 4.0  # standard errors beyond which a number is no chance


@dataclasses.dataclass(frozen=True)
class Finding:
    """value: of the identity by level, cleanest first, 0 if it holds. gain: the share by which correcting x_hat lowers
    the mean |x - x_hat|^2 of the half that did not fit the correction; coefficients (levels, K). Both None without."""

    value: list[Interval]
    gain: list[Interval] | None
    coefficients: Tensor | None


@dataclasses.dataclass(frozen=True)
class Audit:
    """findings: by name of the identity. logsnr: the middle of each bin, (K,), cleanest first; count: draws per bin;
    guess: the trivial predictor, whose mean and variance of the data are the units of the corrections."""

    logsnr: Tensor
    count: int
    findings: dict[str, Finding]
    guess: Trivial
    notes: tuple[str, ...] = ()

    def beyond(self, name: str) -> list[bool]:
        """At which levels an identity is violated: by more than four standard errors, and by more than rounding."""
        least = IDENTITIES[name].least
        return [abs(one.value) > max(ERRORS * one.stderr, least) for one in self.findings[name].value]

    @property
    def violated(self) -> list[str]:
        """The names of the identities that are violated at some level."""
        return [name for name in self.findings if any(self.beyond(name))]

    def corrected(self, model: Any, name: str = "gradient") -> Any:
        """The model with x_hat + g, g as fitted by "slope", "gradient" or "orthogonality" at the nearest level, where
        its gain on the other half is beyond its error; elsewhere the model itself."""
        found = self.findings.get(name)
        if found is None or found.coefficients is None or found.gain is None:
            raise SfumatoError(f"There is no correction {name!r} in this audit: ask for audits=['gradient'].")
        kept = torch.tensor([one.value > 2 * one.stderr for one in found.gain])
        return Corrected(model, name, self.logsnr, found.coefficients * kept[:, None], self.guess)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        audits = {}
        for name, found in self.findings.items():
            audits[name] = {
                "means": IDENTITIES[name].means, "action": IDENTITIES[name].action, "beyond": self.beyond(name),
                "value": [one.to_dict() for one in found.value],
                "gain": None if found.gain is None else [one.to_dict() for one in found.gain],
            }  # fmt: skip
        facts = {"logsnr": plain(self.logsnr), "draws": self.count, "audits": audits}
        return facts | {"violated": self.violated, "notes": list(self.notes)}

    def __str__(self) -> str:
        columns = {"logsnr": [f"{float(level):.3g}" for level in self.logsnr]}
        for name, found in self.findings.items():
            marks = ("*" if beyond else " " for beyond in self.beyond(name))
            columns[name] = [_with_error(one) + mark for one, mark in zip(found.value, marks, strict=True)]
        widths = [max(map(len, [head, *cells])) for head, cells in columns.items()]
        rows = [list(columns), *zip(*columns.values(), strict=True)]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        head = f"{self.count} draws per level. 0 is exact; in brackets the standard error; * more than four of them."
        return "\n".join([head, "", *lines, "", *self._words(), *self.notes])

    def _words(self) -> list[str]:
        lines = [] if self.violated else ["Nothing is violated beyond its error."]
        for name in self.violated:
            one, found = IDENTITIES[name], self.findings[name]
            lines += [f"{name}: {one.means}.", f"  To do: {one.action}."]
            if found.gain is not None:
                best = max(range(len(found.gain)), key=lambda k: found.gain[k].value)  # type: ignore[index]
                lines.append(
                    f"  Corrected, the error of the other half is lower by {_percent(found.gain[best])} at logsnr "
                    f"{float(self.logsnr[best]):.3g}."
                )
        return lines


def _with_error(one: Interval) -> str:
    return f"{one.value:.2g} ({one.stderr:.1g})" if math.isfinite(one.stderr) else f"{one.value:.2g}"


def _percent(one: Interval) -> str:
    return f"{100 * one.value:.2g} % ({100 * one.stderr:.1g})"


@final
class Corrected(Wrapped):
    """model(z, t) with x_hat + sum_k c_k g_k(z), the coefficients those of the level nearest in logsnr."""

    def __init__(self, inner: Any, name: str, logsnr: Tensor, coefficients: Tensor, guess: Trivial) -> None:
        super().__init__(inner)
        fields = IDENTITIES[name].fields
        assert fields is not None
        self.fields, self.logsnr, self.coefficients, self.guess = fields, logsnr, coefficients, guess

    def __call__(self, z: Tensor, t: Time, /, **cond: Any) -> Estimate:
        belief = self.inner(z, t, **cond)
        g = self.fields(Believed(lambda: belief, belief.z, belief.t.expand(len(z)), self.guess))
        level = (belief.logsnr.expand(len(z))[:, None] - self.logsnr).abs().argmin(1)
        c = self.coefficients[level].to(g)
        x = belief.x + (c.reshape(*c.shape, *[1] * (g.ndim - 2)) * g).sum(1)
        return Estimate(z, t, self.process.schedule, x=x, sigma_data=belief.sigma_data)
