"""`plan`: the time, memory and disk space of a training run, in words or as JSON."""

from __future__ import annotations

import warnings
from typing import Any

from sfumato.cli.parse import chosen
from sfumato.cli.process import at_work, limited
from sfumato.cli.run import Voice
from sfumato.errors import SfumatoWarning, an, counted
from sfumato.progress import clock
from sfumato.training.forecast import Forecast, Range, forecast


@at_work()
@limited()
def plan(options: Any, voice: Voice) -> None:
    settings = chosen(options, "plan")
    data, out = settings.pop("data"), settings.pop("out", None)
    voice.note("Opening the data and timing a few steps; nothing is kept.")
    with warnings.catch_warnings():
        # after the few steps of a rehearsal samples are noise
        warnings.filterwarnings("ignore", ".* of the sampled values", SfumatoWarning)
        found = forecast(data, out, note=voice.note, **settings)
    voice.emit(found.to_dict())
    voice.say(*page(found))


def page(found: Forecast) -> list[str]:
    """A forecast in words."""
    facts = found.facts
    shape = " x ".join(map(str, facts["shape"]))
    samples = f"{counted(facts['samples'], 'sample')} of {shape}"
    what = f"{facts['samples']:,} {facts['lengths']}" if facts.get("lengths") else samples
    classes = f", {counted(facts['classes'], 'class', 'classes')}" if facts["classes"] else ""
    others = [name for name in facts.get("conditions", ()) if name != "label" or not facts["classes"]]
    classes += f", conditioned on {', '.join(others)}" if others else ""
    head = f"{facts['data']}: {what}, {facts['dtype']}{classes}; "
    head += f"{facts['train']:,} to train on, {facts['holdout']:,} held out."
    sampling = f"{counted(found.sampling['number'], 'sample')} in {counted(found.sampling['steps'], 'step')}: "
    sampling = f"sampling  {sampling}{duration(found.sampling['seconds'])}"
    if found.before:
        notes = [f"Note: {note}" for note in facts["notes"]]
        return [head, *notes, "", *_stages(found), "", sampling, "", verdict(found)]
    return [
        head,
        f"Trains {an(facts['network'])} of {counted(facts['parameters'], 'parameter')}{_trained(facts)}{_work(facts)}, "
        f"computed in {facts['precision']} on {_machine(facts)}, {counted(found.config.batch, 'sample')} per "
        f"step{_micro(found)}.",
        *(f"Note: {note}" for note in facts["notes"]),
        "",
        *_time(found),
        *_memory(found),
        f"disk      {size(found.disk['total'])} in the run folder ({_disk(found)}); "
        f"{size(found.disk['free'])} are free",
        sampling,
        "",
        verdict(found),
    ]  # fmt: skip


def _stages(found: Forecast) -> list[str]:
    """The two stages of a latent model beside each other."""
    each = (*found.before, found)
    work = [_work(one.facts).removeprefix(", ").removesuffix(" a sample and call") or "-" for one in each]
    seconds, disk = [one.total.value for one in each], [one.disk["total"] for one in each]
    memory = [one.memory["train"] for one in each]
    rows = {
        "": ["autoencoder", "denoiser", "in all"],
        "network": [one.facts["network"] for one in each],
        "parameters": [f"{one.facts['parameters']:,}" for one in each],
        "a sample and call": work,
        "samples at once": [f"{one.facts['micro']:,}" for one in each],
        "steps": [f"{one.steps.value:,}" for one in each],
        "a step": [duration(one.step.value) for one in each],
        "time": list(map(duration, (*seconds, sum(seconds)))),
        "memory": list(map(size, (*memory, max(memory)))),
        "disk": list(map(size, (*disk, sum(disk)))),
    }
    return [f"{name:<18}" + "".join(f"{cell:>14}" for cell in cells) for name, cells in rows.items()] + [
        f"The process takes its memory one stage after the other, of {size(found.memory['free'])} that are free; the "
        f"disk has {size(found.disk['free'])}."
    ]


def _trained(facts: dict[str, Any]) -> str:
    """How many parameters are trained, where others are fixed."""
    return "" if facts["trained"] == facts["parameters"] else f", of which {facts['trained']:,} are trained"


def _machine(facts: dict[str, Any]) -> str:
    threads = counted(facts["threads"], "thread")
    return f"the CPU with {threads}" if facts["device"] == "cpu" else str(facts["device"])


def _work(facts: dict[str, Any]) -> str:
    """The floating-point operations of a call, if they are known."""
    number = facts.get("flops")
    if not number:
        return ""
    unit, scale = next(
        ((u, s) for u, s in (("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6)) if number >= s), ("kFLOP", 1e3)
    )
    return f", {number / scale:.3g} {unit} a sample and call"


def _micro(found: Forecast) -> str:
    micro = found.facts["micro"]
    return "" if micro == found.config.batch else f" in parts of {micro}"


def _time(found: Forecast) -> list[str]:
    config, step = found.config, found.step
    whole = sum(found.parts.values())
    shares = ", ".join(f"{name} {seconds / whole:.1%}" for name, seconds in found.parts.items() if seconds)
    compiled = ["          compiled in the first step, as long as it took here"] if config.compile else []
    limits = "" if config.steps else f" ({found.steps.low:,} to {found.steps.high:,})"
    budget = "" if config.steps or config.minutes is None else f" for a budget of {duration(60 * config.minutes)}"
    return [
        f"time      {between(found.total)} in all{budget}",
        f"          of it {shares}",
        f"          {counted(found.steps.value, 'step')}{limits}, "
        f"{counted(found.steps.value * config.batch, 'sample')}, {found.epochs:.1f} epochs",
        f"          {between(step)} a step, "
        f"{config.batch / step.value:,.0f} samples a second",
        *compiled,
    ]  # fmt: skip


def _memory(found: Forecast) -> list[str]:
    held = found.memory
    lines = [f"memory    {size(held['train'])} at most in this process; {size(held['free'])} are free for it"]
    if "device_train" in held:
        lines.append(f"on device {size(held['device_train'])} at most; {size(held['device_free'])} are free for it")
    return lines


def _disk(found: Forecast) -> str:
    parts = {name: number for name, number in found.disk.items() if name not in ("total", "free")}
    ordered = sorted(parts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {size(number)}" for name, number in ordered if number >= 0.01 * found.disk["total"])


def verdict(found: Forecast) -> str:
    """Whether it fits, in a sentence."""
    if sum(each.disk["total"] for each in (*found.before, found)) > found.disk["free"]:
        return "It does not fit on the disk: take a smaller --net or fewer --snapshots, or another place with --out."
    if not found.fits:
        return "It does not fit into memory: give --micro, the samples that are computed at once, or a smaller --net."
    micro = found.facts["micro"]
    if micro < min(found.config.micro or found.config.batch, found.config.batch):
        return f"It fits in parts of {counted(micro, 'sample')}: add --micro {micro}, which changes nothing else."
    return "It fits."


def between(figure: Range) -> str:
    """2:05 (2:03 to 2:09), or a single figure if the ends are equal."""
    value, low, high = map(duration, (figure.value, *sorted(figure[1:])))
    return value if low == high else f"{value} ({low} to {high})"


def duration(seconds: float) -> str:
    """41 ms, 0.52 s, 8.1 s, 2:05, 1:02:03."""
    if seconds < 0.0995:
        return f"{1000 * seconds:.2g} ms"
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 0.995 else f"{seconds:.1f} s"
    return clock(seconds)


def size(number: int) -> str:
    """Bytes in words."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number} bytes"
