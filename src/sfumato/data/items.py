"""Encoded pictures by number, wherever they are: files of a folder, members of archives, cells of tables."""

from __future__ import annotations

import abc
import io
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any, BinaryIO, final

from ..errors import SfumatoError
from ..files import reason
from . import cache

IMAGE_SUFFIXES = frozenset(
    ".png .jpg .jpeg .jpe .jfif .webp .bmp .dib .gif .tif .tiff .pgm .ppm .pnm .pbm .tga .jp2 .avif .ico".split()
)


def hidden(relative: PurePath) -> bool:
    """Whether a name is one that systems leave beside a person's own."""
    return any(part.startswith((".", "__MACOSX")) for part in relative.parts) or relative.name == "Thumbs.db"


class Items(abc.ABC):
    """names: one a picture. where: what holds them, in words. blocks: the sizes of runs of neighbours that are read at
    once, where a single one is not cheaply read. Any thread may read."""

    names: list[str]
    where: str
    blocks: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.names)

    @abc.abstractmethod
    def read(self, number: int) -> bytes:
        """All bytes of one."""

    def open(self, number: int) -> BinaryIO:
        """One as a file, of which a part may be enough."""
        return io.BytesIO(self.read(number))

    @property
    @abc.abstractmethod
    def nbytes(self) -> int:
        """Of all, as they are encoded."""

    @abc.abstractmethod
    def key(self) -> Any:
        """What tells these contents from others, as JSON."""


@final
class Files(Items):
    """Files below a folder."""

    def __init__(self, root: Path, paths: Sequence[Path]) -> None:
        self.root, self.paths, self.where = root, list(paths), str(root)
        self.names = [path.relative_to(root).as_posix() for path in paths]
        self._stamps: list[list[Any]] | None = None

    def read(self, number: int) -> bytes:
        try:
            return self.paths[number].read_bytes()
        except OSError as error:
            raise SfumatoError(f"{self.paths[number]} cannot be read any more: {reason(error)}") from None

    def open(self, number: int) -> BinaryIO:
        return self.paths[number].open("rb")

    @property
    def stamps(self) -> list[list[Any]]:
        if self._stamps is None:
            self._stamps = [cache.stamp(path) for path in self.paths]
        return self._stamps

    @property
    def nbytes(self) -> int:
        return sum(stamp[0] for stamp in self.stamps)

    def key(self) -> Any:
        return [str(self.root.resolve()), self.names, self.stamps]
