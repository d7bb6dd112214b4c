"""The files below a folder, and what was passed over: hidden files, links that lead nowhere, folders of runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from ..errors import counted
from ..files import reason
from .images import hidden
from .names import listed

RUN_SIGNS = ("config.yaml", "checkpoints")  # a folder with both is a run of this library
RUN_PICTURES = ("samples", "averages", "checkpoints")  # folders that a run writes


class Files(NamedTuple):
    """Sorted paths, (path, reason) of what was passed over, and notes."""

    paths: list[Path]
    skipped: list[tuple[str, str]]
    notes: list[str]


def walk(root: Path) -> Files:
    """All plain files below a folder. Links are followed, but no folder is entered twice."""
    found = Files([], [], [])
    hid: list[str] = []
    seen: dict[tuple[int, int], str] = {}
    tops = [root]
    while tops:
        top = tops.pop(0)
        odd = lambda error: found.skipped.append((_below(root, Path(error.filename)), reason(error)))  # noqa: E731
        for place, folders, names in os.walk(top, onerror=odd):
            here = Path(place)
            if (again := _again(root, here, seen)) is not None:
                found.skipped.append((_below(root, here) + "/", again))
                folders.clear()
                continue
            tops += _enter(root, here, folders, found, hid)
            for name in names:
                _file(root, here / name, found, hid)
    if hid:
        hidden_ones = counted(len(hid), "hidden file or folder was", "hidden files and folders were")
        found.notes.append(f"{hidden_ones} not read ({listed(sorted(hid))}).")
    return Files(sorted(found.paths), sorted(found.skipped), found.notes)


def _again(root: Path, here: Path, seen: dict[tuple[int, int], str]) -> str | None:
    """Why a folder is not entered: it was before, or contains the root; None for a new one, which is noted."""
    facts = here.stat()
    key = (facts.st_dev, facts.st_ino)
    if key in seen:
        return f"a link to {seen[key]}, which is read already"
    if here.is_symlink() and here != root and root.resolve().is_relative_to(here.resolve()):
        return f"a link to {here.resolve()}, which holds this folder"
    seen[key] = "this folder" if here == root else _below(root, here)
    return None


def _enter(root: Path, here: Path, folders: list[str], found: Files, hid: list[str]) -> list[Path]:
    """Keep of `folders` those to enter at once; returns the links among them, which are entered last."""
    links: list[Path] = []
    keep: list[str] = []
    run = all((here / sign).exists() for sign in RUN_SIGNS)
    for name in sorted(folders):
        path = here / name
        if hidden(path.relative_to(root)):
            hid.append(_below(root, path))
        elif run and name in RUN_PICTURES:
            found.skipped.append((_below(root, path) + "/", "the pictures and weights of a run of sfumato"))
        elif all((path / sign).exists() for sign in RUN_SIGNS):
            found.skipped.append((_below(root, path) + "/", "a run folder of sfumato"))
            found.notes.append(f"{_below(root, path)} is a run of sfumato: what it drew is left out.")
        elif path.is_symlink():
            links.append(path)
        else:
            keep.append(name)
    if run:
        found.notes.append(f"{here} is a run of sfumato: what it drew is left out.")
    folders[:] = keep
    return links


def _file(root: Path, path: Path, found: Files, hid: list[str]) -> None:
    if hidden(path.relative_to(root)):
        hid.append(_below(root, path))
    elif path.is_file():
        found.paths.append(path)
    else:
        found.skipped.append((_below(root, path), "a link to nothing" if path.is_symlink() else "no plain file"))


def _below(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
