"""A field beside the sample: a picture to recolour, a low resolution, a map of the ground."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..registry import register
from .real import Real


@register("condition", "field")
@dataclass(frozen=True)
class Field(Real):
    """`shape` (C, *spatial) numbers a sample, normalised by channel: values float32 (B, C, *spatial).

    Its resolution need not be the sample's: a network resizes it.
    """

    kind: ClassVar[str] = "field"
    axes: ClassVar[tuple[int, ...]] = (2, 3, 4)

    def network(self) -> dict[str, Any]:
        return {"kind": "field", "shape": list(self.shape)}
