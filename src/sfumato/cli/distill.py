"""`distill`: train a student that samples in few calls, and show what it is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sfumato import serialization
from sfumato.cli.process import outliving_output
from sfumato.cli.run import Voice
from sfumato.cli.sample import guidance_scale
from sfumato.cli.train import console, working
from sfumato.cli.write import free
from sfumato.distillation import advice, in_turn, ladder
from sfumato.distillation import distill as train_student
from sfumato.errors import SfumatoError
from sfumato.guidance import guide
from sfumato.machine import device_of

MOST = 8  # calls up to which the student is compared


@outliving_output()
def distill(options: Any, voice: Voice) -> None:
    calls = numbers(options.steps)
    teacher = serialization.load_sampler(options.model, device=device_of(options.device))
    scale = guidance_scale(options, teacher, list(in_turn(teacher, 1)))
    given = Path(options.model)
    name = given.stem if given.is_file() else given.name
    out = options.out or free(f"runs/{name}-distilled")
    with working(voice) as begin:
        run = train_student(
            teacher, out, options.data, options.labels, options.method, calls, scale, options.guidance_interval,
            options.samples,
            minutes=options.minutes, seed=options.seed, device=options.device, console=console(voice), on_start=begin,
        )  # fmt: skip
    guided = teacher if scale is None else guide(teacher, scale, options.guidance_interval)
    rungs = ladder(run.denoiser, guided, sorted({1, 2, 4, MOST, *calls}))
    facts = serialization.read_contract(run.path)
    voice.emit(
        {"event": "done", "run": str(run.path), "model": facts["path"], "hash": facts["hash"],
         "ladder": [rung._asdict() for rung in rungs]}
    )  # fmt: skip
    ways = list(dict.fromkeys(rung.how for rung in rungs))
    found = {(rung.calls, rung.how): rung.rms for rung in rungs}
    voice.say(
        "", "Distance to the model's own fine solution on the same noise, in standard deviations of the data:",
        "  calls" + "".join(f"{way:>12}" for way in ways),
    )  # fmt: skip
    for count in sorted({rung.calls for rung in rungs}):
        cells = (f"{found[count, way]:>12.3f}" if (count, way) in found else f"{'-':>12}" for way in ways)
        voice.say(f"{count:>7}" + "".join(cells))
    voice.say(advice(rungs), "", f"Done: the run is in {run.path}", "", "Next:", f"  sfumato sample {run.path} -n 64")


def numbers(words: str) -> tuple[int, ...]:
    """The numbers of calls in "1,2,4"."""
    try:
        found = tuple(int(word) for word in words.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise SfumatoError(f"--steps are numbers of calls, such as 1,2,4, not {words!r:.60}.")
    return found
