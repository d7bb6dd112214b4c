"""From the user's data to normalised tensors and back: sources, the data spec, the hold-out split."""

from ..normaliser import Normaliser
from .opening import open  # noqa: A004  (data.open is the public name)
from .pairs import paired, with_sources
from .source import Source, split
from .spec import DataSpec
from .summary import inspect

__all__ = ["DataSpec", "Normaliser", "Source", "inspect", "open", "paired", "split", "with_sources"]
