"""`align`: train a model further by a reward or by preferences, and say what it gained and what it cost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sfumato import serialization
from sfumato.cli.process import outliving_output
from sfumato.cli.run import Voice
from sfumato.cli.train import console, working
from sfumato.cli.write import free
from sfumato.errors import SfumatoError
from sfumato.registry import from_file
from sfumato.reinforce import align as train_aligned


@outliving_output()
def align(options: Any, voice: Voice) -> None:
    reward, judge = (None if words is None else function(words) for words in (options.reward, options.judge))
    given = Path(options.model)
    out = options.out or free(f"runs/{given.stem if given.is_file() else given.name}-aligned")
    with working(voice) as begin:
        run, report = train_aligned(
            options.model, reward, options.preferences, options.method, out, options.beta, options.weight,
            options.samples, judge,
            minutes=options.minutes, seed=options.seed, device=options.device, console=console(voice), on_start=begin,
        )  # fmt: skip
    facts = serialization.read_contract(run.path)
    voice.emit(
        {"event": "done", "run": str(run.path), "model": facts["path"], "hash": facts["hash"], **report.to_dict()}
    )  # fmt: skip
    voice.say("", *str(report).splitlines(), "", f"Done: the run is in {run.path}", "", "Next:")
    voice.say(f"  sfumato sample {run.path} -n 64", f"  sfumato sample {given} -n 64    the same seeds before")


def function(words: str) -> Callable[[Any], Any]:
    """The function that "my_reward.py:brightness" names. The file is the user's, and is run."""
    path, _, name = words.rpartition(":")
    found = getattr(from_file(path), name, None) if path else None
    if not callable(found):
        raise SfumatoError(f"{words!r:.80} names no function: write FILE.py:FUNCTION, such as my_reward.py:brightness.")
    reward: Callable[[Any], Any] = found
    return reward
