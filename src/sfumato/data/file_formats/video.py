"""The frames of videos as pictures (3, H, W), by PyAV. Each file is read in the format of its ending, without links."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...errors import SfumatoError
from ...registry import register
from .. import limits
from ..file_format import Scan, Stack

_FORMATS = {".mp4": "mov", ".m4v": "mov", ".mov": "mov", ".mkv": "matroska", ".webm": "matroska", ".avi": "avi"}


@register("format", "video")
class Video(Stack):
    what, extra = "video", "video"
    endings = tuple(_FORMATS)
    continuous = True

    def scan(self, path: Path, key: str | None) -> Scan:
        with self._opened(path) as container:
            stream = _stream(container, path)
            return Scan(max(1, stream.frames), (3, stream.height, stream.width), np.dtype(np.uint8), {})

    def load(self, path: Path, key: str | None) -> np.ndarray:
        frames = []
        nbytes = 0
        with self._opened(path) as container:
            for frame in container.decode(_stream(container, path)):
                nbytes += 3 * frame.height * frame.width
                limits.require_file(path, nbytes)
                frames.append(frame.to_ndarray(format="rgb24"))
        return np.moveaxis(np.stack(frames), -1, 1)

    def _opened(self, path: Path) -> Any:
        import av

        return av.open(str(path), format=_FORMATS[self.ending(path)])


def _stream(container: Any, path: Path) -> Any:
    if not container.streams.video:
        raise SfumatoError(f"{path} has no video: it holds sound alone")
    return container.streams.video[0]
