"""Class labels: any array of integers or strings, or a file of them -> a `Column` of indices into class names."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..conditions import NULL
from ..conditions.condition import as_array
from ..conditions.label import coded
from ..errors import SfumatoError, counted, place
from ..files import first_line, reason, require_plain
from .column import Column
from .numpy_files import load


def read_labels(path: str) -> np.ndarray | list[str]:
    """The labels in a .npy file, or in a text file with one per line; empty lines are skipped."""
    file = place(path, "The file of labels")
    try:
        if file.suffix.lower() == ".npy":
            return load(file)
        require_plain(file)
        lines = file.read_text("utf-8").split("\n")  # `splitlines` ends lines at U+2028, too
    except OSError as error:
        raise SfumatoError(f"the labels {path} cannot be read: {reason(error)}") from None
    except UnicodeDecodeError as error:
        raise SfumatoError(f"{path} holds no labels: {first_line(error)}") from None
    return [line.strip() for line in lines if line.strip()]


def encode_labels(labels: Any, count: int) -> Column:
    """One label per sample, none missing, as a column of indices into the sorted distinct labels.

    Raises SfumatoError for another length, more than one axis, fractions or missing values.
    """
    array = as_array(labels)
    if array.ndim and len(array) != count:
        many = f"are {len(array):,} labels" if len(array) != 1 else "is 1 label"
        raise SfumatoError(f"there {many} for {counted(count, 'sample')}: give exactly one per sample")
    indices, classes = coded(array)
    if (indices == NULL).any():
        missing = int(np.argmin(indices))
        raise SfumatoError(f"label {missing} is {array.reshape(-1)[missing]}: every sample needs a label")
    return Column(indices, np.ones(count, bool), tuple(classes))


def label_column(found: Column, names: Sequence[str] | None = None) -> Column:
    """A column (N,) as class indices into its sorted distinct values, or into `names`.

    Raises SfumatoError as `encode_labels` does, but accepts missing values, which belong to no class.
    """
    if found.names is not None:
        return found
    given = found.given
    if found.form == "lists":
        raise SfumatoError(f"labels must be one per sample, but there are lists such as {list(given[0])}")
    indices, classes = coded(given.astype(str) if given.dtype == object else given)
    if names is not None:
        if given.dtype.kind not in "iu" or (len(given) and not 0 <= given.min() <= given.max() < len(names)):
            raise SfumatoError(f"labels must be integers from 0 to {len(names) - 1} for {len(names)} named classes")
        indices, classes = given, list(names)
    values = np.full(len(found), NULL, np.int64)
    values[found.present] = indices
    return Column(values, values != NULL, tuple(classes))  # text of NUL alone is empty too
