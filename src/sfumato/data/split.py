"""sample i is held out  <=>  hash(id_i) / 2^64 < fraction.

The hash is BLAKE2b of the id alone, so a sample never changes sides when data is added, removed or reordered.
"""

from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor

from ..errors import SfumatoError


def hash_unit(text: str) -> float:
    """A number in [0, 1) that depends only on the text (BLAKE2b, 8 bytes)."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big") / 2.0**64


def split(ids: Sequence[str], fraction: float = 0.05) -> tuple[Tensor, Tensor]:
    """Indices (train, holdout), int64 and ascending; equal ids (the members of one group) fall on the same side.

    Pass `source.groups` (or call `source.split`) so that variants of one thing are never on both sides.
    With 10 or more samples in at least two groups the hold-out has at least one; the training side is never empty.
    `fraction` is in [0, 1); 0 holds nothing out.
    """
    if not 0 <= fraction < 1:
        raise SfumatoError(f"the hold-out fraction must be at least 0 and less than 1, but it is {fraction}")
    if not len(ids):
        raise SfumatoError("there is nothing to split: the source has no samples")
    units = {key: hash_unit(key) for key in set(ids)}
    held = {key for key, unit in units.items() if unit < fraction}
    if fraction > 0 and not held and len(ids) >= 10 and len(units) > 1:
        held = {min(units, key=lambda key: units[key])}
    if len(held) == len(units):
        held.discard(max(units, key=lambda key: units[key]))
    mask = torch.tensor([key in held for key in ids])
    return torch.nonzero(~mask).flatten(), torch.nonzero(mask).flatten()
