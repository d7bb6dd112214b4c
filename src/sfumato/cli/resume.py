"""`resume`: an interrupted run goes on, also one of `align`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sfumato import reinforce
from sfumato.cli import align, distill, train
from sfumato.cli.process import outliving_output
from sfumato.cli.run import Voice
from sfumato.training import resume as resume_run


@outliving_output()
def resume(options: Any, voice: Voice) -> None:
    given = {name: getattr(options, name) for name in ("minutes", "steps", "parallel")}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    changes |= {"changed": True} if options.changed else {}
    aligned = (Path(options.folder) / reinforce.AIM).exists()
    with train.working(voice) as begin:
        shown: dict[str, Any] = {"console": train.console(voice), "on_start": begin}
        if aligned:
            found = reinforce.resume(options.folder, **shown, **changes)
        else:
            run = resume_run(options.folder, **shown, **changes)
    if aligned:
        align.finish(found, voice)
    else:
        voice.say(*distill.climbed(distill.ladder_of(run.path)))
        train.finish(run, voice)
