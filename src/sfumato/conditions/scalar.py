"""A number: a temperature, a mass, a redshift."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from .real import Real


@dataclass(frozen=True)
class Scalar(Real):
    """One number a sample: values float32 (B,)."""

    kind: ClassVar[str] = "scalar"

    def network(self) -> dict[str, Any]:
        return {"kind": "scalar"}
