"""`plan`: what a training would take. A process of its own measures it, so that no torch is loaded here."""

from __future__ import annotations

from typing import Any

from sfumato.cli.parse import train_config
from sfumato.cli.run import Voice
from sfumato.training.costs import Interval
from sfumato.training.forecast import Forecast, forecast


def plan(options: Any, voice: Voice) -> None:
    settings = train_config(options, "plan").to_dict()
    data, out = settings.pop("data"), settings.pop("out")
    voice.note("Taking some steps to measure them; nothing is kept.")
    found = forecast(data, out, **settings)
    voice.emit(found.to_dict())
    voice.say(*page(found))


def page(found: Forecast) -> list[str]:
    """A forecast in words."""
    facts = found.facts
    shape = " x ".join(map(str, facts["shape"]))
    classes = f", {facts['classes']} classes" if facts["classes"] else ""
    others = [name for name in facts.get("conditions", ()) if name != "label" or not facts["classes"]]
    classes += f", conditioned on {', '.join(others)}" if others else ""
    return [
        f"{facts['data']}: {facts['samples']:,} samples of {shape}, {facts['dtype']}{classes}; "
        f"{facts['train']:,} to train on, {facts['holdout']:,} held out.",
        f"A {facts['network']} of {facts['parameters']:,} parameters, computed in {facts['precision']} "
        f"on {_machine(facts)}, {found.config.batch} samples a step{_micro(found)}.",
        *(f"Note: {note}" for note in facts["notes"]),
        "",
        *_time(found),
        *_compiling(found),
        *_memory(found),
        f"disk      {size(found.disk['total'])} in the run folder ({_disk(found)}); "
        f"{size(found.disk['free'])} are free",
        f"sampling  {found.sampling['number']} samples in {found.sampling['steps']} steps: "
        f"{duration(found.sampling['seconds'])}",
        "",
        verdict(found),
    ]  # fmt: skip


def _machine(facts: dict[str, Any]) -> str:
    threads = "1 thread" if facts["threads"] == 1 else f"{facts['threads']} threads"
    return f"the CPU with {threads}" if facts["device"] == "cpu" else str(facts["device"])


def _micro(found: Forecast) -> str:
    micro = found.facts["micro"]
    return "" if micro == found.config.batch else f" in parts of {micro}"


def _time(found: Forecast) -> list[str]:
    config, step = found.config, found.step
    whole = sum(found.loop.values())
    shares = ", ".join(f"{name} {seconds / whole:.1%}" for name, seconds in found.loop.items() if seconds)
    limits = "" if config.steps else f" ({found.steps.low:,} to {found.steps.high:,})"
    return [
        f"time      {between(found.total)} in all, {duration(found.start)} of it to start and "
        f"{duration(found.end)} to end",
        f"          {found.steps.value:,} steps{limits}, {found.steps.value * config.batch:,} samples, "
        f"{found.epochs:.1f} epochs",
        f"          {between(step)} a step, "
        f"{config.batch / step.value:,.0f} samples a second",
        f"          {between(found.thousand)} for 1,000 steps with all that is between them ({shares})",
    ]  # fmt: skip


def _compiling(found: Forecast) -> list[str]:
    """When the network is compiled, and what the figures are then."""
    way = found.facts["compile"]
    if way == "before":
        return ["compile   before the first step, which is counted as long as it took here; what it made may be kept"]
    if way == "beside":
        return [
            "compile   beside the run, from the first step on, some minutes of one more core; ten steps then decide",
            "          no gain is counted here, as none is known before: a step takes at most this, save meanwhile",
        ]
    return []


def _memory(found: Forecast) -> list[str]:
    held = found.memory
    lines = [("memory", "train", "sample", "free")]
    if "device_train" in held:
        lines.append(("on device", "device_train", "device_sample", "device_free"))
    return [
        f"{title:<9} {size(held[train])} at most in training, {size(held[sample])} in sampling; "
        f"{size(held[free])} are free"
        for title, train, sample, free in lines
    ]  # fmt: skip


def _disk(found: Forecast) -> str:
    parts = {name: number for name, number in found.disk.items() if name not in ("total", "free")}
    ordered = sorted(parts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {size(number)}" for name, number in ordered if number >= 0.01 * found.disk["total"])


def verdict(found: Forecast) -> str:
    """Whether it fits, in a sentence."""
    if found.fits is None:
        return "What memory is free is not known on this system."
    if found.disk["total"] > found.disk["free"]:
        return "It does not fit on the disk: take a smaller --net or fewer --snapshots, or another place with --out."
    if not found.fits:
        return "It does not fit into memory: give --micro, the samples that are computed at once, or a smaller --net."
    micro = found.facts["micro"]
    if micro < min(found.config.micro or found.config.batch, found.config.batch):
        return f"It fits in parts of {micro} samples: add --micro {micro}, which changes nothing else."
    return "It fits."


def between(figure: Interval) -> str:
    """2:05 (2:03 to 2:09), or one figure where the ends are the same."""
    value, low, high = map(duration, (figure.value, *sorted(figure[1:])))
    return value if low == high else f"{value} ({low} to {high})"


def duration(seconds: float) -> str:
    """41 ms, 0.52 s, 8.1 s, 2:05, 1:02:03."""
    if seconds < 0.0995:
        return f"{1000 * seconds:.2g} ms"
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 0.995 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def size(number: int | None) -> str:
    """Bytes in words."""
    if number is None:
        return "an unknown amount"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number} bytes"
