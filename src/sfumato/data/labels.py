"""Class labels: any array of integers or strings, or a file of them -> (indices, names)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..conditions import find_class as find_class
from ..conditions.label import whole_or_text
from ..errors import SfumatoError
from ..files import reason
from .column import Column


def read_labels(path: str) -> np.ndarray | list[str]:
    """The labels in a .npy file or, one a line, in a text file; empty lines are skipped."""
    file = Path(path).expanduser()
    try:
        if file.suffix.lower() == ".npy":
            return np.asarray(np.load(file, allow_pickle=False))
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SfumatoError(f"the labels {path} cannot be read: {reason(error)}") from None
    except (ValueError, EOFError) as error:
        raise SfumatoError(f"{path} holds no labels: {str(error).splitlines()[0]}") from None
    return [line.strip() for line in lines if line.strip()]


def encode_labels(labels: Any, count: int, names: Sequence[str] | None = None) -> tuple[Tensor, list[str]]:
    """One label a sample -> (int64 (count,) indices into the classes, class names).

    The classes are the sorted distinct labels; integers sort as numbers. With `names`, integer labels 0..K-1 are
    indices into them. Raises SfumatoError for another length, more than one axis, fractions or missing values.
    """
    array = _as_array(labels)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise SfumatoError(f"labels must be one label a sample, shape ({count},), but they have shape {array.shape}")
    if len(array) != count:
        raise SfumatoError(f"there are {len(array):,} labels for {count:,} samples: give exactly one label a sample")
    array = whole_or_text(array)
    distinct, indices = np.unique(array, return_inverse=True)
    if names is None:
        return torch.from_numpy(indices.astype(np.int64)), [str(value) for value in distinct]
    if array.dtype.kind not in "iu" or distinct[0] < 0 or distinct[-1] >= len(names):
        raise SfumatoError(f"labels must be integers from 0 to {len(names) - 1} for {len(names)} named classes")
    return torch.from_numpy(array.astype(np.int64)), list(names)


def label_column(found: Column, names: Sequence[str] | None = None) -> Column:
    """A column (N,) as one of classes: indices into its sorted distinct values, or into `names`.

    Raises SfumatoError as `encode_labels` does; values that are missing are no class.
    """
    if found.names is not None:
        return found
    given = found.given
    if found.form == "lists":
        raise SfumatoError(f"labels must be one a sample, and there are lists such as {list(given[0])}")
    indices, classes = encode_labels(given.astype(str) if given.dtype == object else given, len(given), names)
    values = np.full(len(found), -1, np.int64)
    values[found.present] = indices.numpy()
    return Column(values, found.present, tuple(classes))


def _as_array(labels: Any) -> np.ndarray:
    if isinstance(labels, Tensor):
        return labels.detach().cpu().numpy()
    try:
        return np.asarray(labels)
    except ValueError as error:
        raise SfumatoError(f"labels must be a flat list or array, one label a sample ({error})") from None
