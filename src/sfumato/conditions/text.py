"""Conditions that are texts: captions, read as words or embedded by a sentence encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from .. import schema
from ..errors import SfumatoError
from ..registry import register
from .condition import Condition, as_array, counted, many, missing
from .encoders import Encoder, encoder_of, fitted
from .given import Given

_CONFIG = schema.fields(
    {"kind": schema.text, "encoder": schema.mapping(schema.anything), "example": schema.text}, rest=None
)


@register("condition", "text")
@dataclass(frozen=True)
class Text(Condition):
    """A text per sample, such as a caption, as its `encoder` hands it to the network (`nets.Captioned`).

    Words: values int64 (B, L), ids, -1 after the last. A sentence encoder: values float32 (B, 1 + L, d), the vector of
    the text and of its tokens, rows of 0 after the last. example: a text of the data, to show in suggested commands.
    """

    encoder: Encoder
    example: str = ""
    kind: ClassVar[str] = "text"

    @classmethod
    def fit(cls, column: Any, encoder: str = "words") -> Self:
        """From a column (N,) of texts. encoder: "words", "minilm", or the folder of a sentence encoder."""
        captions = [caption for caption in _captions(column) if caption is not None]
        if not captions:
            raise SfumatoError("there is no text in it: every value is missing")
        return cls(fitted(encoder, captions), min(captions, key=lambda caption: (len(caption), caption)))

    def encode(self, value: Any, n: int) -> Given:
        """Encode one text for all samples, or a list of one per sample."""
        captions = _captions(value)
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
        return {"kind": self.kind, "encoder": self.encoder.config(), "example": self.example}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        _CONFIG(config, "")
        return cls(encoder_of(config["encoder"]), config["example"])

    def describe(self) -> str:
        return f"text: {self.encoder.describe()}"


def _captions(value: Any) -> list[str | None]:
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
