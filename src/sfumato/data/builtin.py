"""The built-in data sets: `fashion`, `emoji`, `digits`, `shakespeare`. Sources and licences are in NOTICE."""

import gzip
import json
import lzma
import re
import struct
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..errors import SfumatoError
from .arrays import arrange
from .captions import NAME as CAPTION
from .column import Column, column
from .names import Asked
from .source import LABEL, Source
from .text_files import from_documents

ASSETS = Path(__file__).parent / "assets"
NAMES = ("fashion", "emoji", "digits", "shakespeare")
FASHION_CLASSES = [
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
]  # fmt: skip
TONES = {"1F3FB": "light", "1F3FC": "medium light", "1F3FD": "medium", "1F3FE": "medium dark", "1F3FF": "dark"}
SKIN = " skin "  # separates the base emoji from its skin tone in emoji names


def load(name: str, asked: Asked, kinds: Collection[str] = ()) -> Source:
    """A built-in set by name. kinds: the conditions of which a kind is set; only then emoji have their captions.

    Raises SfumatoError if its file is missing or damaged, or if it has not what is asked.
    """
    try:
        if name == "shakespeare":
            return _shakespeare(asked)
        asked.require_unused(f"the built-in set {name}")
        if name == "emoji":
            return _emoji(CAPTION in kinds)
        return {"fashion": _fashion, "digits": _digits}[name]()
    except SfumatoError:
        raise
    except (OSError, EOFError, ValueError, lzma.LZMAError) as error:
        raise SfumatoError(f"the built-in set {name!r} cannot be read ({error}): reinstall sfumato") from None


def _source(name: str, x: np.ndarray, labels: np.ndarray, classes: Sequence[str], note: str, **more: Any) -> Source:
    """x uint8 (N, H, W) or (N, H, W, 3), labels (N,): indices into the classes."""
    label = Column(labels.astype(np.int64), np.ones(len(x), bool), tuple(classes))
    images, kind, _ = arrange(torch.from_numpy(x), name)
    return Source(images, kind, name, {LABEL: label}, notes=[note], **more)


def _fashion() -> Source:
    x = _read_idx(ASSETS / "t10k-images-idx3-ubyte.gz")
    labels = _read_idx(ASSETS / "t10k-labels-idx1-ubyte.gz")
    note = "Fashion-MNIST's test split: 10,000 grey images of 28 x 28 in 10 classes (MIT, Zalando)."
    return _source("fashion", x, labels, FASHION_CLASSES, note)


def _read_idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes: two zeros, type 8, rank, big-endian sides, then the values."""
    data = gzip.decompress(path.read_bytes())
    if data[:3] != b"\0\0\x08":
        raise ValueError(f"{path.name} is not an IDX file of bytes")
    rank = data[3]
    sides = struct.unpack_from(f">{rank}I", data, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(sides).copy()


def _emoji(captions: bool) -> Source:
    meta = json.loads((ASSETS / "fluent32.json").read_text(encoding="utf-8"))
    with Image.open(ASSETS / "fluent32.webp") as image:
        sheet = np.asarray(image.convert("RGB"))
    side, columns, count = meta["tile"], meta["cols"], meta["n"]
    tiles = sheet.reshape(-1, side, columns, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)[:count]
    classes, labels = np.unique(meta["category"], return_inverse=True)
    note = (
        f"Fluent 3D emoji: {count:,} colour images of {side} x {side} in {len(classes)} categories (MIT, Microsoft); "
        "skin tones of one emoji are kept on one side of the hold-out split."
    )
    ids = [f"{i} {name}" for i, name in enumerate(meta["name"])]  # some names occur twice
    groups = [name.split(SKIN)[0] for name in meta["name"]]
    source = _source("emoji", np.ascontiguousarray(tiles), labels, classes.tolist(), note, ids=ids, groups=groups)
    if captions:
        source.conditions[CAPTION] = column([_caption(name) for name in meta["name"]])
    else:
        source.notes.append(f"Their names can be captions: --condition {CAPTION}:text.")
    return source


def _caption(name: str) -> str:
    """WAVING HAND skin 1F3FB -> waving hand, light skin; a couple has a tone each."""
    base, _, tones = name.partition(SKIN)
    said = [TONES[tone] for tone in tones.split("-") if tone]
    return ", ".join([base.lower(), *[f"{tone} skin" for tone in said]])


def _digits() -> Source:
    with np.load(ASSETS / "digits.npz", allow_pickle=False) as data:
        x, labels = data["images"], data["labels"]
    note = "Optical recognition of handwritten digits: 1,797 grey images of 8 x 8, values 0 to 16 (UCI, scikit-learn)."
    return _source("digits", x, labels, [str(digit) for digit in range(10)], note, bounds=(0.0, 16.0))


def _shakespeare(asked: Asked) -> Source:
    asked._replace(length=None, tokens=None).require_unused("the built-in set shakespeare")
    text = lzma.decompress((ASSETS / "shakespeare.txt.xz").read_bytes()).decode()
    works = re.split(r"(?m)^(?=[^\n]+\n\n?by William Shakespeare$)", text)
    source = from_documents([work for work in works if work], "shakespeare", "the built-in set shakespeare", asked)
    source.notes.insert(0, "The works of William Shakespeare, 42 texts (public domain).")
    return source
