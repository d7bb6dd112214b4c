"""Conditions: what a sample is known by. Kinds that data declare, and the one object that travels below the door."""

from .condition import Condition, missing
from .field import Field
from .given import Conditions, Given, absent, joined, network_inputs, require_encoded
from .kinds import KINDS, fit, from_config, guess
from .label import NULL, Label, find_class
from .multilabel import MultiLabel
from .resolve import RESERVED, declared, of_data, resolve, unfolded
from .scalar import Scalar
from .vector import Vector

__all__ = [
    "KINDS", "NULL", "RESERVED", "Condition", "Conditions", "Field", "Given", "Label", "MultiLabel", "Scalar", "Vector",
    "absent", "declared", "find_class", "fit", "from_config", "guess", "joined", "missing",
    "network_inputs", "of_data", "require_encoded", "resolve", "unfolded",
]  # fmt: skip
