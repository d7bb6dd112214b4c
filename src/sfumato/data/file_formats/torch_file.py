"""Tensors that torch.save wrote: one, a pair of samples and labels, a dict of them, or a list of samples. No object is
ever unpickled."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import SfumatoError, an
from ...registry import register
from .. import limits
from ..file_format import Arrays, Contents


@register("format", "torch")
class TorchFile(Arrays):
    what, extra = "file of tensors", ""
    endings = (".pt", ".pth")

    @contextmanager
    def open(self, path: Path) -> Iterator[Contents]:
        if not zipfile.is_zipfile(path):
            raise SfumatoError(f"{path} is no file of torch 1.6 or newer: load it there, and save it with a newer one")
        found = unpickled(path)
        if isinstance(found, tuple | list) and len(found) == 2:
            found = {"x": found[0], "y": found[1]}
        if isinstance(found, tuple | list) and all(isinstance(each, Tensor) for each in found):
            found = _samples(found, path)
        named = {"x": found} if isinstance(found, Tensor) else found
        if not isinstance(named, dict) or not any(isinstance(each, Tensor) for each in named.values()):
            raise SfumatoError(f"{path} holds {an(type(found).__name__)}: save a tensor, or a dict of tensors")
        tensors = {str(name): each for name, each in named.items() if isinstance(each, Tensor)}
        yield Contents(tensors, tensors.__getitem__, lambda _: {})


def _samples(tensors: Sequence[Tensor], path: Path) -> Any:
    """Tensors of one shape as one, others by their numbers."""
    limits.require_file(path, sum(each.nbytes for each in tensors))
    one = len({(each.shape, each.dtype) for each in tensors}) == 1
    return torch.stack(list(tensors)) if one else {str(i): each for i, each in enumerate(tensors)}


def unpickled(path: Path) -> Any:
    """What torch.save wrote, if it is made of tensors and plain values."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
        if any(part.filename.endswith("/constants.pkl") for part in parts):
            raise SfumatoError(f"{path} is TorchScript, which is code and is never run: save the tensors alone")
        limits.require_file(path, sum(part.file_size for part in parts))
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of pickles, which are not imported here, or of a damaged file
        if type(error).__name__ != "UnpicklingError":
            raise
        raise SfumatoError(
            f"{path} holds objects of Python, which are never loaded: save a tensor, or a dict of tensors"
        ) from None
