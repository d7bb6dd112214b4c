"""`tune`: fit a plan of few steps to a model and store it in its file."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Mapping
from typing import Any

from sfumato import serialization
from sfumato.cli import conditions as asked
from sfumato.cli.process import at_work
from sfumato.cli.run import Voice
from sfumato.cli.sample import guidance_scale
from sfumato.diagnostics import examples
from sfumato.errors import counted
from sfumato.machine import device_of
from sfumato.solvers import Plan
from sfumato.tuning import TuneProgress
from sfumato.tuning import tune as fit


@at_work()
def tune(options: Any, voice: Voice) -> None:
    started = time.monotonic()
    denoiser = serialization.load_sampler(options.model, device=device_of(options.device))
    known = {} if denoiser.spec is None else denoiser.spec.conditions
    given = asked.said(options, known)
    scale = guidance_scale(options, denoiser, given or (["label"] if "label" in known else []))
    plan = fit(
        denoiser, options.steps, noise=options.noise, guidance=scale, interval=options.guidance_interval,
        points=options.points, rounds=options.rounds, batch=options.batch, seed=options.seed,
        progress=lambda progress: None if progress.round % 10 else voice.note(how_far(progress)),
        cond=asked.values(given, known),
    )  # fmt: skip
    name = serialization.store_plan(options.model, plan)
    facts = serialization.read_contract(options.model)
    assert plan.tuned is not None
    made = {"model": facts["path"], "hash": facts["hash"], "plan": name, "calls": plan.calls, **plan.tuned}
    voice.emit({**made, "seconds": round(time.monotonic() - started, 1)})
    used = how_to_use(options.model, options.steps, options.guidance, given)
    voice.say(*report(plan, name, facts["path"]), "", *used)


def report(plan: Plan, name: str, path: str) -> list[str]:
    """The improvement, in words."""
    assert plan.tuned is not None
    after, before = plan.tuned["error"], plan.tuned["untuned"]
    if "nats" in after:
        return [
            f"Divergence from the model's law, {counted(plan.calls, 'call')} in random order, predicted by its own "
            "entropies:",
            f"  tuned    {after['nats']:.3g} nats a sample",
            f"  untuned  {before['nats']:.3g} nats a sample ({before['name']})",
            f"Stored in {path} as plan {name!r}.",
        ]
    way = "fine solve along the same path of noise" if "law" in after else "exact solution of the flow"
    lines = [
        f"Distance from the {way}, {counted(plan.calls, 'call')}, on noise that it was not fitted to:",
        f"  tuned    {_figures(after)}",
        f"  untuned  {_figures(before)} ({before['name']}, the best of many)",
    ]
    if plan.name == before["name"]:
        lines.append("No plan was better than the untuned one, which is stored unchanged.")
    return [*lines, f"Stored in {path} as plan {name!r}."]


def _figures(found: dict[str, float]) -> str:
    law = f", between the laws {found['law']:.3g}" if "law" in found else ""
    return f"rms {found['rms']:.3g}, median {found['median']:.3g}{law}"


def how_to_use(model: str, steps: int, guidance: float | None, given: Mapping[str, str]) -> list[str]:
    chosen = "".join(f" --condition {shlex.quote(f'{name}={value}')}" for name, value in given.items())
    chosen += "" if guidance is None else f" --guidance {guidance:g}"
    return ["To use it:", f"  sfumato sample {shlex.quote(model)} --steps {steps}{chosen}{examples.modules()}"]


def how_far(progress: TuneProgress) -> str:
    """The progress of the fit, in words."""
    found = f", {progress.round} of {progress.rounds}" if progress.round else ""
    return progress.stage + found + ("" if math.isnan(progress.rms) else f", rms {progress.rms:.3g}")
