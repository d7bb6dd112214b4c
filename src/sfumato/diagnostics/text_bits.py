"""Bits per character of held-out text under a model, beside what needs no model.

model      -log2 p(windows) / characters, a bound for masks, exact for an autoregressive model
order 0    the cross entropy of each symbol alone, with the training frequencies    (n_k + 1) / (N + K)
xz         the size of the held-out text alone, compressed by `xz -9`
"""

from __future__ import annotations

import dataclasses
import lzma
import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sfumato import noise
from sfumato.autoregressive import Autoregressive
from sfumato.data import Source
from sfumato.errors import SfumatoError
from sfumato.intervals import Interval, mean
from sfumato.likelihood import log_prob

LEVELS, REPLICATES = 4, 2  # of the bound: the mean over windows is what is wanted, not each window
CALLS = LEVELS * REPLICATES
_BATCH = 32
WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
_MOST = 1 << 22  # symbols that are compressed


@dataclasses.dataclass(frozen=True)
class TextBits:
    """Bits per character: of the model, with its interval over the windows; of order 0 and xz on all held-out text."""

    model: Interval
    windows: int
    characters: int
    order0: float
    xz: float

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "model": self.model.to_dict()}


def text_bits(model: Any, source: Source, train: Tensor, held: Tensor, windows: int, seed: int = 0) -> TextBits:
    """Measure `windows` of the held-out windows of text, chosen by the seed; train, held: rows of the source."""
    text = source.text
    if text is None:
        raise SfumatoError(f"{source.name} is no text.")
    known, unseen = (_symbols(source.x[rows], text.size) for rows in (train, held))
    characters = len(text.decode(unseen.tolist()))
    if not characters:
        raise SfumatoError("The texts that are held out are empty.")
    each = characters / max(1, len(unseen))  # characters a symbol
    rows = held[noise.permutation(seed, 0, len(held))[:windows]].sort().values
    x = source.x[rows]
    length = len(_symbols(x, text.size)) / len(x)
    bits = -_nats(model, x, seed).double() / (math.log(2) * length * each)
    number = torch.arange(len(bits))
    return TextBits(
        mean(bits, number, torch.zeros_like(number)), len(bits), characters,
        order0(known, unseen, text.size) / each, compressed(text.decode(unseen[:_MOST].tolist())),
    )  # fmt: skip


def _symbols(x: Tensor, size: int) -> Tensor:
    """The symbols of rows, without what fills whole texts up."""
    return x[x < size]


def _nats(model: Any, x: Tensor, seed: int) -> Tensor:
    """log p of each window, or a bound of it, (B,)."""
    if isinstance(model, Autoregressive):
        with torch.no_grad():
            return torch.cat([model.log_prob(part).cpu() for part in x.split(_BATCH)])
    return log_prob(model, x, steps=LEVELS, probes=REPLICATES, seed=seed).value


def order0(known: Tensor, unseen: Tensor, size: int) -> float:
    """The mean of -log2 (n_k + 1) / (N + K) over the unseen symbols."""
    counts = known.long().bincount(minlength=size).double() + 1
    return float(-(counts / counts.sum()).log2()[unseen.long()].mean())


def compressed(text: str) -> float:
    """The bits per character of `xz -9`."""
    return 8 * len(lzma.compress(text.encode(), preset=9)) / max(1, len(text))


def known_words(texts: Iterable[str], reference: str) -> float:
    """The share of the words of texts that occur in a reference, capitals aside; 0 without words."""
    known = set(WORD.findall(reference.lower()))
    words = [word for text in texts for word in WORD.findall(text.lower())]
    return sum(word in known for word in words) / max(1, len(words))
