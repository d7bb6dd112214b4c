"""Conditions of samples: the kinds that data declare, and the encoded values that models receive."""

from .condition import KINDS, Condition, argument_of, fit, from_config, missing
from .given import (
    AUGMENTATION,
    CARRIED,
    EMBEDDING,
    KNOWN,
    LEFT,
    LOW,
    PREVIOUS,
    Conditions,
    Given,
    absent,
    joined,
    network_inputs,
    require_encoded,
    uncarried,
)
from .label import NULL, Label, MultiLabel, find_class
from .missing import MISSING, named, over_present, present, without_gaps
from .real import Field, Scalar, Vector
from .resolve import RESERVED, declared, of_data, resolve, unfolded
from .text import Text, retrieved

__all__ = [
    "AUGMENTATION", "CARRIED", "EMBEDDING", "KINDS", "KNOWN", "LEFT", "LOW", "MISSING", "NULL", "PREVIOUS", "RESERVED",
    "Condition", "Conditions", "Field", "Given", "Label", "MultiLabel", "Scalar", "Text", "Vector", "absent",
    "argument_of", "declared", "find_class", "fit", "from_config", "joined", "missing", "named", "network_inputs",
    "of_data", "over_present", "present", "require_encoded", "resolve", "retrieved", "uncarried", "unfolded",
    "without_gaps",
]  # fmt: skip
