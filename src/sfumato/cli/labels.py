"""Labels from a file: one a sample, in a .npy array or as lines of text."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sfumato.errors import SfumatoError
from sfumato.files import reason


def read_labels(path: str | None) -> np.ndarray | list[str] | None:
    """The labels in a .npy file or, one a line, in a text file; None for no path."""
    if path is None:
        return None
    file = Path(path).expanduser()
    try:
        if file.suffix.lower() == ".npy":
            return np.asarray(np.load(file, allow_pickle=False))
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SfumatoError(f"{path} cannot be read: {reason(error)}") from None
    except (ValueError, EOFError) as error:
        raise SfumatoError(f"{path} holds no labels: {str(error).splitlines()[0]}") from None
    return [line.strip() for line in lines if line.strip()]
