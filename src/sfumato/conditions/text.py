"""Conditions that are texts: captions, read as words or embedded by a sentence encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch

from .. import schema
from ..errors import SfumatoError
from ..registry import register
from .condition import Condition, as_array, counted, many, missing
from .encoders import Encoder, encoder_of, fitted
from .given import Given

KEPT, LETTERS = 1 << 14, 1 << 22  # most trained captions that a file keeps, and most letters of all of them
_PART = 256  # texts compared at once
_CONFIG = schema.fields(
    {"kind": schema.text, "encoder": schema.mapping(schema.anything), "example": schema.text},
    {"trained": schema.listed(schema.text, 1, KEPT)},
    rest=None,
)


@register("condition", "text")
@dataclass(frozen=True)
class Text(Condition):
    """A text per sample, such as a caption, as its `encoder` hands it to the network (`nets.Captioned`).

    Words: values int64 (B, L), ids, -1 after the last. A sentence encoder: values float32 (B, 1 + L, d), the vector of
    the text and of its tokens, rows of 0 after the last. example: a text of the data, to show in suggested commands.
    trained: the texts of training, each once; none if there were more than 16,384, or 4 million letters.
    """

    encoder: Encoder
    example: str = ""
    trained: tuple[str, ...] = ()
    kind: ClassVar[str] = "text"

    @classmethod
    def fit(cls, column: Any, encoder: str = "words") -> Self:
        """From a column (N,) of texts. encoder: "words", "minilm", or the folder of a sentence encoder."""
        captions = [caption for caption in texts_of(column) if caption is not None]
        if not captions:
            raise SfumatoError("there is no text in it: every value is missing")
        return cls(fitted(encoder, captions), min(captions, key=lambda caption: (len(caption), caption)))

    def after(self, column: Any) -> Self:
        """The same after training on a column (N,) of texts, which it knows from then on, beside earlier ones."""
        found = tuple(dict.fromkeys([*self.trained, *(text for text in texts_of(column) if text is not None)]))
        return replace(self, trained=found if len(found) <= KEPT and sum(map(len, found)) <= LETTERS else ())

    def extended(self, other: Condition) -> Self:
        """With the texts of both."""
        super().extended(other)
        assert isinstance(other, Text)
        return self.after(other.trained) if self.trained and other.trained else replace(self, trained=())

    def untrained(self, value: Any) -> list[str]:
        """Texts that the encoder reads otherwise than every trained text, each once; none if it knows no text."""
        known = {self.encoder.read(text) for text in self.trained}
        every = dict.fromkeys(text for text in texts_of(value) if text is not None)
        return [text for text in every if known and self.encoder.read(text) not in known]

    def nearest(self, texts: Sequence[str], count: int = 1) -> list[list[tuple[str, float]]]:
        """The trained texts that are most alike each text, at most `count`, and their cosines (`Encoder.alike`).

        Raises SfumatoError if it knows no trained text.
        """
        if not self.trained:
            raise SfumatoError(
                "the file keeps no trained captions, as there were too many or it is of an earlier version: draw them "
                "without retrieval"
            )
        found = []
        for at in range(0, len(texts), _PART):
            cosines = self.encoder.alike(texts[at : at + _PART], self.trained)
            best = torch.sort(cosines, dim=1, descending=True, stable=True)
            pairs = zip(best.indices[:, :count].tolist(), best.values[:, :count].tolist(), strict=True)
            found += [[(self.trained[i], c) for i, c in zip(*row, strict=True) if c > 0] for row in pairs]
        return found

    def retrieved(self, value: Any) -> dict[str, str]:
        """Each untrained text, and the trained one that is nearest to it; without those that resemble none."""
        untrained = self.untrained(value)
        return {text: near[0][0] for text, near in zip(untrained, self.nearest(untrained), strict=True) if near}

    def encode(self, value: Any, n: int) -> Given:
        """Encode one text for all samples, or a list of one per sample."""
        captions = texts_of(value)
        values = self.encoder.encode(captions)
        return counted(
            Given(values, values.new_tensor([caption is not None for caption in captions]).bool()).masked(), n
        )

    def doubt(self, given: Given) -> str | None:
        """A warning about captions with unknown words."""
        return self.encoder.doubt(given.values[given.present].cpu())

    def decode(self, given: Given) -> list[str | None]:
        """The text of each row as the encoder read it: its known words, or the text that was embedded."""
        pairs = zip(self.encoder.decode(given.values.cpu()), given.present.tolist(), strict=True)
        return [text if here else None for text, here in pairs]

    def network(self) -> dict[str, Any]:
        return self.encoder.network()

    def config(self) -> dict[str, Any]:
        found = {"kind": self.kind, "encoder": self.encoder.config(), "example": self.example}
        return found | ({"trained": list(self.trained)} if self.trained else {})

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        _CONFIG(config, "")
        return cls(encoder_of(config["encoder"]), config["example"], tuple(config.get("trained", ())))

    def describe(self) -> str:
        return f"text: {self.encoder.describe()}"


def retrieved(model_or_spec: Any, captions: Any, name: str | None = None) -> Any:
    """Captions for a model, of which each untrained one is replaced by the trained one that is nearest to it.

        c -> argmax_i cos(e(c), e(c_i)),   a trained caption c_i -> c_i

    e: the vector of a frozen encoder; with words the counts of their trigrams. A model of few samples draws what it
    knows by heart better than a caption that it never saw: this is retrieval-augmented diffusion (Blattmann et al.
    2022, arXiv:2204.11824) of one neighbour, at sampling alone. What a caption says beyond its neighbour is lost.

    captions: a text, or a list of texts, which may be None. name: of the condition, where several are texts. A caption
    that no trained one resembles stays. Raises SfumatoError for a model without captions, and one whose file has none.
    """
    known = getattr(getattr(model_or_spec, "spec", model_or_spec), "conditions", None) or {}
    texts = [each for each in known if isinstance(known[each], Text)] if name is None else [name]
    if len(texts) != 1 or not isinstance(known.get(texts[0]), Text):
        raise SfumatoError(
            f"captions are looked up in one condition that is a text: give name=, {' or '.join(map(repr, texts))}"
            if len(texts) > 1
            else "there is no condition of texts here, in which captions could be looked up"
        )
    every = texts_of(captions)
    found = known[texts[0]].retrieved(every)
    new = [text if text is None else found.get(text, text) for text in every]
    return new if many(captions) else new[0]


def texts_of(value: Any) -> list[str | None]:
    """One text, or a list of texts, as a list; missing ones are None. Raises SfumatoError for anything else."""
    values = value if isinstance(value, list | tuple) else as_array(value).reshape(-1) if many(value) else [value]
    found: list[str | None] = []
    for each in values:
        if missing(each):
            found.append(None)
        elif isinstance(each, str | bytes | np.str_ | np.bytes_):
            text = each.decode("utf-8", "replace") if isinstance(each, bytes) else str(each)
            found.append(" ".join(text.split()))
        else:
            raise SfumatoError(f"{each!r:.60} is no text")
    return found
