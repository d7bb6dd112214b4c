"""`runs`: run folders side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sfumato.cli.run import Voice
from sfumato.diagnostics import summary
from sfumato.errors import counted
from sfumato.progress import clock
from sfumato.training.config import read


def runs(options: Any, voice: Voice) -> None:
    places = summary.runs(options.folders or ["runs"])
    found = [summary.overview(path, read(str(path / "config.yaml"))) for path in places]
    reason = summary.incomparable(found)
    found = summary.ranked(found)
    apart = summary.differences(found)
    facts = {"runs": found, "differences": apart, "comparable": reason is None}
    voice.emit(facts | ({} if reason is None else {"reason": reason}))
    voice.say(*table(found))
    if len(found) > 1:
        voice.say("", "Differences:" if apart else "Their settings are the same.")
        voice.say(*(line for name, values in apart.items() for line in _values(name, found, values)))
        if reason is not None:
            voice.say("", f"Their validation losses cannot be compared, since {reason}.")


def _values(setting: str, found: list[dict[str, Any]], values: list[Any]) -> list[str]:
    """A setting, and one line for each of its values with the runs that have it."""
    runs: dict[str, list[str]] = {}
    for run, value in zip(found, values, strict=True):
        runs.setdefault(str(value), []).append(run["path"])
    return [f"  {setting}", *(f"    {value}: {', '.join(paths)}" for value, paths in runs.items())]


def table(found: list[dict[str, Any]]) -> list[str]:
    """The runs as a table, one line each."""
    width = max(len(run["path"]) for run in found)
    lines = [f"{'run':<{width}}  {'step':>9}  {'samples':>11}  {'time':>8}  {'loss':>8}  {'valid':>8}  state"]
    for run in found:
        loss, valid = ("-" if run[name] is None else f"{run[name]:.4f}" for name in ("loss", "validation"))
        state = summary.state(Path(run["path"]), run["done"])
        skipped = f", {counted(run['incidents'], 'step')} skipped" if run["incidents"] else ""
        lines.append(
            f"{run['path']:<{width}}  {run['step']:>9,}  {run['samples']:>11,}  {clock(run['seconds']):>8}  {loss:>8}  "
            f"{valid:>8}  {state}{skipped}"
        )
    return lines
