"""The sets that come with the package: `fashion`, `emoji`, `digits`. Sources and licences are in NOTICE."""

import gzip
import json
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import SfumatoError

ASSETS = Path(__file__).parent / "assets"
NAMES = ("fashion", "emoji", "digits")
FASHION_CLASSES = [
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
]  # fmt: skip
SKIN = " skin "  # separates the base emoji from its skin tones in the names of the sheet


@dataclass(frozen=True)
class BuiltIn:
    """x uint8 (N, H, W) or (N, H, W, 3), labels (N,), class names; ids and groups where positions will not do."""

    x: np.ndarray
    labels: np.ndarray
    classes: list[str]
    note: str
    ids: list[str] | None = None
    groups: list[str] | None = None
    bounds: tuple[float, float] | None = None


def load(name: str) -> BuiltIn:
    """A built-in set by name; a missing or damaged asset raises SfumatoError."""
    try:
        return {"fashion": _fashion, "emoji": _emoji, "digits": _digits}[name]()
    except (OSError, EOFError, ValueError) as error:
        raise SfumatoError(f"the built-in set {name!r} cannot be read ({error}): reinstall sfumato") from None


def _fashion() -> BuiltIn:
    x = _read_idx(ASSETS / "t10k-images-idx3-ubyte.gz")
    labels = _read_idx(ASSETS / "t10k-labels-idx1-ubyte.gz")
    note = "Fashion-MNIST's test split: 10,000 grey images of 28 x 28 in 10 classes (MIT, Zalando)."
    return BuiltIn(x, labels, FASHION_CLASSES, note)


def _read_idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes: two zeros, type 8, rank, big-endian sides, then the values."""
    data = gzip.decompress(path.read_bytes())
    if data[:3] != b"\0\0\x08":
        raise ValueError(f"{path.name} is not an IDX file of bytes")
    rank = data[3]
    sides = struct.unpack_from(f">{rank}I", data, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(sides).copy()


def _emoji() -> BuiltIn:
    meta = json.loads((ASSETS / "fluent32.json").read_text(encoding="utf-8"))
    with Image.open(ASSETS / "fluent32.webp") as image:
        sheet = np.asarray(image.convert("RGB"))
    side, columns, count = meta["tile"], meta["cols"], meta["n"]
    tiles = sheet.reshape(-1, side, columns, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)[:count]
    classes = sorted(set(meta["category"]))
    labels = np.array([classes.index(category) for category in meta["category"]])
    note = (
        f"Fluent 3D emoji: {count:,} colour images of {side} x {side} in {len(classes)} categories (MIT, Microsoft); "
        "skin tones of one emoji are kept on one side of the hold-out split."
    )
    groups = [name.split(SKIN)[0] for name in meta["name"]]
    return BuiltIn(np.ascontiguousarray(tiles), labels, classes, note, _distinct(meta["name"]), groups)


def _distinct(names: list[str]) -> list[str]:
    """The names, with a number after those that occur again."""
    seen: Counter[str] = Counter()
    result = []
    for name in names:
        seen[name] += 1
        result.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return result


def _digits() -> BuiltIn:
    with np.load(ASSETS / "digits.npz", allow_pickle=False) as data:
        x, labels = data["images"], data["labels"]
    note = "Optical recognition of handwritten digits: 1,797 grey images of 8 x 8, values 0 to 16 (UCI, scikit-learn)."
    return BuiltIn(x, labels, [str(digit) for digit in range(10)], note, bounds=(0.0, 16.0))
