"""Several numbers: parameters of a simulation, an embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..registry import register
from .real import Real


@register("condition", "vector")
@dataclass(frozen=True)
class Vector(Real):
    """`shape` (d,) numbers a sample, each normalised by itself: values float32 (B, d)."""

    kind: ClassVar[str] = "vector"
    axes: ClassVar[tuple[int, ...]] = (1,)

    def network(self) -> dict[str, Any]:
        return {"kind": "vector", "size": self.shape[0]}
