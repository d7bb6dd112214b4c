"""From a person's data to normalised tensors and back: sources, the data spec, the hold-out split."""

from .normaliser import Normaliser
from .source import Source, open  # noqa: A004  (data.open is the public name)
from .spec import DataSpec
from .split import split
from .summary import inspect

__all__ = ["DataSpec", "Normaliser", "Source", "inspect", "open", "split"]
