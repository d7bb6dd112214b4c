"""`info` and `inspect`: describe a model or a data set, in words or as JSON."""

from __future__ import annotations

import shlex
from typing import Any

from sfumato.cli.run import Voice


def info(options: Any, voice: Voice) -> None:
    from sfumato import serialization

    facts = serialization.read_contract(options.model)
    voice.emit(facts)
    voice.say(*serialization.describe(options.model), "", *how_to_sample(options.model, facts))


def how_to_sample(model: str, facts: dict[str, Any]) -> list[str]:
    """The shell command and the Python call that draw from a model."""
    from sfumato.diagnostics import examples
    from sfumato.sampling import ARGUMENTS

    if (other := examples.without_samples(model, facts)) is not None:
        return ["To use it:", f"  {other}"]
    spec, scale = facts["spec"], facts["provenance"].get("guidance", 2.0)
    out = "grid.png" if (spec or {}).get("kind") == "image" else "samples.npz"
    return [
        "To sample it:",
        f"  sfumato sample {shlex.quote(model)} -n 64 -o {out}{examples.flags(spec, scale)}{examples.modules(facts)}",
        "or in Python, in the units of the data:",
        f"  import sfumato as sf; x = {examples.python(spec, scale, f'sf.load({model!r})', ARGUMENTS)}",
    ]


def inspect(options: Any, voice: Voice) -> None:
    from sfumato import data
    from sfumato.data.labels import read_labels
    from sfumato.sampling import apart

    labels = None if options.labels is None else read_labels(options.labels)
    kinds = dict(options.condition)
    facts = data.inspect(options.data, labels, options.size, conditions=kinds, max_gb=options.max_gb)
    facts["notes"] += apart(facts["conditions"])
    voice.emit(facts)
    voice.say(*describe(facts))


def describe(facts: dict[str, Any]) -> list[str]:
    """A data set in words, one fact per line."""
    shape = " x ".join(map(str, facts["shape"]))
    low, high = facts["range"]
    lines = [
        f"{facts['name']}: {facts['samples']:,} samples of {shape}, {facts['dtype']}, taken as {facts['kind']} data.",
        f"Values run from {low:g} to {high:g}.",
    ]
    for c, (mean, std) in enumerate(zip(facts["mean"], facts["std"], strict=True)):
        if c == 8:
            lines.append(f"  ... and {len(facts['mean']) - 8} more channels")
            break
        constant = ", constant" if c in facts["constant_channels"] else ""
        lines.append(f"  channel {c}: mean {mean:.6g}, std {std:.6g}{constant}")
    lines += _conditions(facts)
    lines.append(f"Training would use {facts['train']:,} and hold out {facts['holdout']:,}.")
    if facts["duplicates"]:
        lines.append(f"{facts['duplicates']:,} samples are exact copies of others.")
    skipped = facts["skipped"]
    if skipped:
        lines.append(f"{len(skipped):,} files are skipped:")
        lines += [f"  {entry['path']}: {entry['reason']}" for entry in skipped[:20]]
        lines += [f"  ... and {len(skipped) - 20:,} more (--json lists all)"] if len(skipped) > 20 else []
    lines += [f"Note: {note}" for note in facts["notes"]]
    return lines


def _conditions(facts: dict[str, Any]) -> list[str]:
    """The classes with their counts, and one line per other condition."""
    if not facts["conditions"]:
        return ["No classes: a model trained on it would be unconditional."]
    lines = _classes(facts["classes"]) if facts["classes"] else []
    for name, found in facts["conditions"].items():
        missing = f"; {found['missing']:,} are missing" if found["missing"] else ""
        if name != "label" or missing or not facts["classes"]:
            lines.append(f"Condition {name} ({found['kind']}): {found['words']}{missing}.")
    return lines


def _classes(counts: dict[str, int]) -> list[str]:
    width = max(len(name) for name in list(counts)[:30])
    lines = [f"{len(counts)} classes:"]
    lines += [f"  {name:<{width}}  {count:,}" for name, count in list(counts.items())[:30]]
    return lines + ([f"  ... and {len(counts) - 30} more"] if len(counts) > 30 else [])
