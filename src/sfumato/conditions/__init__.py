"""Conditions of samples: the kinds that data declare, and the encoded values that models receive."""

from .condition import KINDS, Condition, fit, from_config, missing
from .given import PREVIOUS, Conditions, Given, absent, joined, network_inputs, require_encoded
from .label import NULL, Label, MultiLabel, find_class
from .real import Field, Scalar, Vector
from .resolve import RESERVED, declared, of_data, resolve, unfolded

__all__ = [
    "KINDS", "NULL", "PREVIOUS", "RESERVED", "Condition", "Conditions", "Field", "Given", "Label", "MultiLabel",
    "Scalar", "Vector", "absent", "declared", "find_class", "fit", "from_config", "joined", "missing",
    "network_inputs", "of_data", "require_encoded", "resolve", "unfolded",
]  # fmt: skip
