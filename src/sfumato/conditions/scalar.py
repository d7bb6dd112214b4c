"""A number: a temperature, a mass, a redshift."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..registry import register
from .real import Real


@register("condition", "scalar")
@dataclass(frozen=True)
class Scalar(Real):
    """One number a sample: values float32 (B,)."""

    kind: ClassVar[str] = "scalar"
    axes: ClassVar[tuple[int, ...]] = (0,)

    def network(self) -> dict[str, Any]:
        return {"kind": "scalar"}
