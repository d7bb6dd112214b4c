"""Recordings (channels, time) in WAV, FLAC, OGG and AIFF files, by soundfile: numbers of -1 to 1, at their rate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...registry import register
from ..file_format import Scan, Stack, Stored


@register("format", "audio")
class Audio(Stack):
    what, extra = "recording", "audio"
    needs = ("soundfile",)
    endings = (".wav", ".flac", ".ogg", ".aiff", ".aif")
    one = continuous = windows = True

    def scan(self, path: Path, key: str | None) -> Scan:
        import soundfile

        about = soundfile.info(str(path))
        stored: Stored = {"rate": about.samplerate, "subtype": about.subtype}
        return Scan(1, (about.channels, about.frames), np.dtype(np.float32), stored)

    def load(self, path: Path, key: str | None) -> np.ndarray:
        import soundfile

        values: np.ndarray = soundfile.read(str(path), dtype="float32", always_2d=True)[0]
        return values.T[None]

    def unfit(self, shape: tuple[int, ...], stored: Mapping[str, Any]) -> str:
        known = "rate" in stored and len(shape) == 2
        return "" if known else "the model was not trained on recordings, so that no rate is known"

    def write(self, path: Path, x: np.ndarray, beside: Mapping[str, np.ndarray], stored: Stored, manifest: str) -> None:
        import soundfile

        form = {".aif": "AIFF"}.get(stored["ending"], stored["ending"][1:].upper())
        kept = stored.get("subtype", "")
        subtype = kept if soundfile.check_format(form, kept) else None
        how = {"samplerate": stored["rate"], "channels": x.shape[1], "format": form, "subtype": subtype}
        with path.open("wb") as file, soundfile.SoundFile(file, "w", **how) as out:
            out.comment = manifest
            out.write(x[0].T)
