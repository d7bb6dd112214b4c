"""`runs`: run folders side by side."""

from __future__ import annotations

from typing import Any

from sfumato.cli.run import Voice
from sfumato.counting import clock
from sfumato.training import overview


def runs(options: Any, voice: Voice) -> None:
    found = [overview.of(path) for path in overview.find(options.folders or ["runs"])]
    reason, apart = overview.comparable(found), overview.differences(found)
    found = overview.order(found)
    facts = {"runs": [run.to_dict() for run in found], "differences": apart, "comparable": reason is None}
    voice.emit(facts | ({} if reason is None else {"reason": reason}))
    voice.say(*table(found))
    if len(found) > 1:
        names = list(overview.differences(found).items())
        voice.say("", "What tells them apart:" if names else "Their settings are the same.")
        voice.say(*(f"  {name}: {', '.join(map(str, values))}" for name, values in names))
        if reason is not None:
            voice.say("", f"Their validation losses are not one figure, since {reason}.")


def table(found: list[overview.Overview]) -> list[str]:
    """A line a run."""
    width = max(len(str(run.path)) for run in found)
    lines = [f"{'run':<{width}}  {'step':>9}  {'samples':>11}  {'time':>8}  {'loss':>8}  {'valid':>8}  state"]
    for run in found:
        loss, valid = (f"{value:.4f}" if value is not None else "-" for value in (run.loss, run.validation))
        state = "finished" if run.done else "not finished"
        skipped = f", {run.incidents} steps skipped" if run.incidents else ""
        lines.append(
            f"{run.path!s:<{width}}  {run.step:>9,}  {run.samples:>11,}  {clock(run.seconds):>8}  {loss:>8}  "
            f"{valid:>8}  {state}{skipped}"
        )
    return lines
