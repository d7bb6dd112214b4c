"""The objective compiler of symbols: the weight of a loss by noise level, relative to the bound on -log p(x).

    loss = int w(level) E rate dlevel,   level = logit alpha, alpha the probability that a symbol is kept

`rate` is the path KL a unit of the level (`Symbols.rate`), whose integral is the bound: w = 1. For masks, of which the
share is m = 1 - alpha, it is int w / m E[sum over masks of -log p(x_i | z)] dm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from sfumato import registry
from sfumato.errors import SfumatoError
from sfumato.objectives.counts import CountedMasks
from sfumato.objectives.losses import Denoising, Nonequilibrium
from sfumato.objectives.symbols import RatioMatching, ScoreEntropy, Sundae
from sfumato.process import Hybrid, Masked, Symbols, Uniform

Levels = Callable[[Tensor], Tensor]
EDGES = (0.0, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0)  # of the keep probability
_SEEN = 8.0  # weights are compared at levels within +-8
_TAIL = (10.0, 14.0)  # levels at which the growth of the second moment is judged

BOUND: tuple[tuple[type, tuple[str, ...]], ...] = (
    (Masked, ("MDLM (2406.07524)", "MD4 (2406.04329)", "ARDM (2110.02037)", "exact counts (loss 'masked')")),
    (Uniform, ("UDLM (2412.10193)", "Duo (2506.10892)")),
    (Hybrid, ("GIDD (2503.04482)",)),
    (Symbols, ("tauLDR's ELBO (2205.14987)", "SEDD's score entropy of normalised ratios (2310.16834)")),
)


class Weighing(NamedTuple):
    """What a loss says of noise levels.

    weight: w(level), None if it is no weighting of the path KL. levels: the level at u in (0, 1). density: p(level) of
    draws that are independent and stay as they are, else None. note: what else stands in the loss.
    """

    weight: Levels | None
    levels: Levels
    density: Levels | None
    note: str = ""


def _name(loss: Any) -> str:
    """The name of a loss in settings; without one that of its class."""
    names = registry.names("loss")
    return next((name for name in names if registry.get("loss", name) is type(loss)), type(loss).__name__)


def weighing(process: Symbols, loss: Any) -> Weighing:
    """How a loss weighs the levels of a process. Raises SfumatoError for a loss that has none, or another process."""
    if not isinstance(loss, CountedMasks | Nonequilibrium | Denoising | ScoreEntropy | RatioMatching | Sundae):
        raise SfumatoError(f"The loss {_name(loss)} has no noise levels of symbols to explain.")
    loss.suits(_Bare(process))
    clock = process.clock
    if isinstance(loss, CountedMasks):
        note = f"Of each target a share of {loss.smoothing:g} is spread over all symbols." if loss.smoothing else ""
        return Weighing(
            lambda level: counted(loss, torch.sigmoid(-level)), lambda u: torch.logit(1 - loss.share(u)), None, note
        )
    if isinstance(loss, Nonequilibrium):
        note = (
            f"It is the bound of {loss.steps} step{'' if loss.steps == 1 else 's'}, which adds what symbols say of "
            "each other within a step."
        )
        if loss.share:
            note += f" The cross entropy of x is added with the weight {loss.share * loss.steps:g}."
        return Weighing(torch.ones_like, lambda u: clock.logsnr((u * loss.steps).ceil() / loss.steps), None, note)
    weight, note = _of_levels(loss)
    times = loss.times
    density = None if times.moves else lambda level: times.density(level, clock)
    return Weighing(weight, lambda u: times.logsnr(u, clock), density, note)


def _of_levels(loss: Any) -> tuple[Levels | None, str]:
    """(weight, note) of a loss whose levels are drawn from a density."""
    if isinstance(loss, Denoising):
        return loss.weight or torch.ones_like, ""
    if isinstance(loss, ScoreEntropy):
        wild = "Ratios that are those of no distribution cost more, which tells the network nothing."
        return torch.ones_like, "" if loss.normalised else wild
    if isinstance(loss, RatioMatching):
        return None, "It compares the laws of z_i given the other symbols: one minimum with the bound, and no bound."
    return None, "It is the cross entropy of x from z and from the model's own samples, and no bound."


def counted(loss: CountedMasks, m: Tensor) -> Tensor:
    """m^power p(m), the weight of counted masks at the share m of masks."""
    density = 1.0 if loss.counts == "uniform" else 2 / math.pi / ((1 - m) * (1 + m)).sqrt()
    return m**loss.power * density


_OF_MASKS = {
    "Mask-Predict (1904.09324), weight 'sigmoid' of the denoising loss": CountedMasks(power=1.0),
    "MaskGIT without smoothing (2202.04200)": CountedMasks(power=1.0, counts="cosine"),
}


class _Bare(NamedTuple):
    """A model without a network, of which a loss sees the process alone."""

    process: Symbols

    def predict(self) -> None: ...


@final
class SymbolObjective:
    """The weight of a loss of symbols by noise level, and what else has that weight.

    process: of the symbols. loss: one of `--loss`, made (`registry.make("loss", ..)`), such as `CountedMasks()`.
    """

    def __init__(self, process: Symbols, loss: Any) -> None:
        self.process, self.loss = process, loss
        self._weighing = weighing(process, loss)

    @property
    def note(self) -> str:
        """What else stands in the loss, or in the place of a weight."""
        return self._weighing.note

    def weight(self, level: Tensor) -> Tensor | None:
        """w(level), level = logit alpha, relative to the bound; None for a loss that is no weighting of it."""
        return None if self._weighing.weight is None else self._weighing.weight(level.double())

    def share(self, low: float, high: float) -> float:
        """The share of the draws that keep a symbol with a probability in [low, high), to 1e-4."""
        u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
        keep = torch.sigmoid(self._weighing.levels(u).detach())
        return float(((keep >= low) & ((keep < high) | (high == 1))).double().mean())

    def has(self, weight: Levels | None) -> bool:
        """Whether w is this weight up to a factor."""
        level = torch.linspace(-_SEEN, _SEEN, 65, dtype=torch.float64)
        own = self.weight(level)
        return own is not None and weight is not None and float((own / weight(level)).log().std()) < 1e-9

    @property
    def bound(self) -> bool:
        """Whether the loss is the bound on -log p(x), up to a factor."""
        return self.has(torch.ones_like) and not self.note

    @property
    def same(self) -> tuple[str, ...]:
        """The published losses of this weight and process."""
        if isinstance(self.loss, Nonequilibrium):
            multinomial = isinstance(self.process, Uniform) and not self.loss.share
            return ("D3PM (2107.03006)", *(("multinomial diffusion (2102.05379)",) if multinomial else ()))
        if isinstance(self.loss, ScoreEntropy) and not self.loss.normalised:
            return ("SEDD (2310.16834)",)
        if self.has(torch.ones_like):
            return tuple(name for kind, names in BOUND if isinstance(self.process, kind) for name in names)
        if not isinstance(self.process, Masked) or getattr(self.loss, "smoothing", False):
            return ()
        return tuple(name for name, known in _OF_MASKS.items() if self.has(weighing(self.process, known).weight))

    @property
    def infinite(self) -> bool:
        """Whether E (w rate / p)^2 of one sample grows without limit as levels near the data, where its integrand is
        like w^2 (1 - alpha) / p, or of masks as they near pure noise, where it is like w^2 alpha^2 / p."""
        density, weight = self._weighing.density, self._weighing.weight
        if density is None or weight is None:
            return False
        level = torch.tensor(_TAIL, dtype=torch.float64)
        ends = [(level, torch.sigmoid(-level))]
        if isinstance(self.process, Masked):
            ends.append((-level, torch.sigmoid(-level) ** 2))
        low, high = self.process.clock.logsnr_range
        for at, rate in ends:
            integrand = weight(at) ** 2 * rate / density(at).clamp_min(1e-300)
            if low <= float(at.min()) and float(at.max()) <= high and float(integrand[1] / integrand[0]) > 0.5:
                return True
        return False

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: names, the same losses, bound, note, and w and the share of draws by keep probability."""
        rows = []
        for low, high in zip(EDGES, EDGES[1:], strict=False):
            w = self.weight(torch.logit(torch.tensor([(low + high) / 2], dtype=torch.float64)))
            rows.append(
                {"kept": [low, high], "drawn": self.share(low, high), "weight": None if w is None else float(w)}
            )
        return {
            "process": type(self.process).__name__, "schedule": type(self.process.schedule).__name__,
            "loss": _name(self.loss), "row": self.process.row, "bound": self.bound, "same": list(self.same),
            "note": self.note, "infinite_variance": self.infinite, "levels": rows,
        }  # fmt: skip
