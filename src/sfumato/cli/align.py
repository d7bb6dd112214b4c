"""`align`: train a model further by a reward or by preferences, and say what it gained and what it cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sfumato import serialization
from sfumato.cli.process import outliving_output
from sfumato.cli.run import Voice
from sfumato.cli.train import console, working
from sfumato.cli.write import free
from sfumato.reinforce import Aligned
from sfumato.reinforce import align as train_aligned


@outliving_output()
def align(options: Any, voice: Voice) -> None:
    given = Path(options.model)
    out = options.out or free(f"runs/{given.stem if given.is_file() else given.name}-aligned")
    with working(voice) as begin:
        found = train_aligned(
            options.model, options.reward, options.preferences, options.method, out, options.beta, options.weight,
            options.samples, options.judge, options.reward_seconds,
            minutes=options.minutes, lr=options.lr, seed=options.seed, device=options.device, console=console(voice),
            on_start=begin,
        )  # fmt: skip
    finish(found, voice, f"  sfumato sample {given} -n 64    the same seeds before")


def finish(found: Aligned, voice: Voice, *more: str) -> None:
    """Print what alignment gained and cost, where it is, and commands to run next."""
    run, report = found
    facts = serialization.read_contract(run.path)
    voice.emit(
        {"event": "done", "run": str(run.path), "model": facts["path"], "hash": facts["hash"], **report.to_dict()}
    )  # fmt: skip
    voice.say("", *str(report).splitlines(), "", f"Done: the run is in {run.path}", "", "Next:")
    voice.say(f"  sfumato sample {run.path} -n 64", *more)
