"""`info` and `inspect`: describe a model or a data set, in words or as JSON."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.cli.run import Voice
from sfumato.errors import SfumatoError, counted

if TYPE_CHECKING:
    from PIL.Image import Image

    from sfumato.data import Source
    from sfumato.data.column import Column

SHOWN = 3  # samples of each class
MOST_CLASSES = 20  # classes shown
_SIDE = 160  # pixels: larger pictures are reduced


def info(options: Any, voice: Voice) -> None:
    from sfumato import serialization

    facts = serialization.read_contract(options.model)
    voice.emit(facts)
    voice.say(*serialization.describe(options.model), "", *how_to_sample(options.model, facts))


def how_to_sample(model: str, facts: dict[str, Any]) -> list[str]:
    """The shell command and the Python call that draw from a model."""
    from sfumato import serialization
    from sfumato.diagnostics import examples
    from sfumato.sampling import ARGUMENTS

    if facts["format"] == serialization.ADAPTER:
        merged = f"  sfumato merge {shlex.quote(model)} --base RUN -o merged.safetensors"
        return ["To sample it, make one model of it and of the run that it was trained from:", merged]
    if (other := examples.without_samples(model, facts)) is not None:
        return ["To use it:", f"  {other}"]
    spec, scale = facts["spec"], facts["provenance"].get("guidance", 2.0)
    if (spec or {}).get("kind") == "text":
        return [
            "To sample it:",
            f"  sfumato sample {shlex.quote(model)} -n 4 -o samples.txt{examples.modules(facts)}",
            "or in Python:",
            f"  import sfumato as sf; texts = sf.sample_text(sf.load({model!r}), 4)",
        ]
    if (spec or {}).get("kind") == "table":
        return [
            "To sample it:",
            f"  sfumato sample {shlex.quote(model)} -n 1000 -o samples.csv{examples.modules(facts)}",
            "or in Python, as a data frame:",
            f"  import sfumato as sf; rows = sf.sample(sf.load({model!r}), 1000)",
        ]
    out = "grid.png" if (spec or {}).get("kind") == "image" else "samples.npz"
    return [
        "To sample it:",
        f"  sfumato sample {shlex.quote(model)} -n 64 -o {out}{examples.flags(spec, scale)}{examples.modules(facts)}",
        "or in Python, in the units of the data:",
        f"  import sfumato as sf; x = {examples.python(spec, scale, f'sf.load({model!r})', ARGUMENTS)}",
    ]


def opened(options: Any, conditions: Any = None) -> Source:
    """The data that the flags of a command name. conditions: as `data.open` takes them."""
    from sfumato import data
    from sfumato.data.labels import read_labels

    labels = None if options.labels is None else read_labels(options.labels)
    # what a model knows of its text is in its spec
    text: dict[str, Any] = {name: getattr(options, name, None) for name in ("length", "tokens")}
    found = data.open(
        options.data, labels=labels, size=options.size, conditions=conditions, split=options.split, key=options.key,
        max_gb=options.max_gb, columns=dict(getattr(options, "column", [])), **text,
    )  # fmt: skip
    if getattr(options, "sources", None) is None:
        if getattr(options, "pairs", None) is not None:
            raise SfumatoError("--pairs says how samples belong to their sources: give these, --from DATA")
        return found
    return data.with_sources(found, options.sources, options.pairs, options.max_gb)


def with_training_data(options: Any, otherwise: str, in_python: str) -> argparse.Namespace:
    """The options with data, labels, size, split, key and sources as given, or as the run folder was trained with.

    A run that is given as data stands for those that it was trained with.
    otherwise: what to do for data that are not known; in_python: the function that takes those in memory.
    """
    from sfumato.serialization import FILE
    from sfumato.training.config import read

    run = options.model if options.data is None else options.data
    settings = Path(run).expanduser() / "config.yaml"
    known_run = settings.exists() and any((settings.parent / name).exists() for name in (FILE, "checkpoints"))
    if options.data is not None and not known_run:
        return argparse.Namespace(**vars(options))
    if not settings.exists():
        raise SfumatoError(f"{run} is no run folder, so that its training data are not known: {otherwise}")
    kept = read(str(settings))
    if not kept["data"]:
        raise SfumatoError(f"{run} was trained on an array in memory: use {in_python} in Python")
    known = {name: getattr(options, name) or kept[name] for name in ("labels", "size", "split", "key")}
    known["data"] = kept["data"]
    if getattr(options, "sources", None) is None and getattr(options, "pairs", None) is None:
        known |= {name: kept[name] for name in ("sources", "pairs")}
    return argparse.Namespace(**{**vars(options), **known, "max_gb": max(options.max_gb, kept["max_gb"])})


def inspect(options: Any, voice: Voice) -> None:
    from sfumato import data
    from sfumato.pictures import save_png
    from sfumato.sampling import apart

    if options.out is not None and Path(options.out).suffix.lower() != ".png":
        raise SfumatoError(f"{options.out} has no known kind: end it in .png")
    source = opened(options, dict(options.condition))
    facts = data.inspect(source)
    facts["notes"] += apart(facts["conditions"])
    if options.out is not None and (source.text or source.table) is not None:
        raise SfumatoError(f"{source.name} is a {source.kind}, of which there is no picture: leave -o out")
    if options.out is not None:
        save_png(look(source), Path(options.out).expanduser())
    voice.emit({**facts, "out": options.out})
    voice.say(*describe(facts))
    if options.out is not None:
        voice.say(f"{options.out}: {_shown(source)}.")


def _classed(source: Source) -> Column | None:
    """The classes, "label" before others; None where samples are not drawn by class, as points in one scatter plot."""
    found = [column for _, column in sorted(source.conditions.items(), key=lambda item: item[0] != "label")]
    return next((column for column in found if column.names and source.shape != (2,)), None)


def _fields(source: Source) -> dict[str, Column]:
    return {name: column for name, column in source.conditions.items() if column.kind == "field"}


def _shown(source: Source) -> str:
    fields = _fields(source)
    given = f", beside {' and '.join(fields)}" if fields else ""
    column = _classed(source)
    if column is None:
        return f"some of the samples{given}"
    classes, most = len(column.names or ()), MOST_CLASSES
    return f"three samples of each class{given}" + (f", the first {most} of {classes:,}" if classes > most else "")


def look(source: Source) -> Image:
    """Three samples of each class, a row for each, spread over the class; without classes some samples in a grid.

    Fields stand to the left of the samples that they belong to.
    """
    import torch

    from sfumato.data.spec import declared_bounds
    from sfumato.pictures import beside, picture

    def spread(rows: torch.Tensor, most: int) -> torch.Tensor:
        return rows[torch.linspace(0, len(rows) - 1, min(len(rows), most)).round().long()]

    column = _classed(source)
    if column is None:
        rows = spread(torch.arange(len(source)), 1000 if source.shape == (2,) else SHOWN**2)
        layout: tuple[Any, ...] = ()
    else:
        known = list(column.names or ())[:MOST_CLASSES]
        own = [torch.from_numpy(((column.values == i) & column.present).nonzero()[0]) for i in range(len(known))]
        chosen = [spread(numbers, SHOWN) for numbers in own]
        names = [f"{name:.40} ({len(numbers):,})" for name, numbers in zip(known, own, strict=True)]
        rows, layout = torch.cat(chosen), (SHOWN, names, [len(numbers) for numbers in chosen])
    drawn = picture(_reduced(source.x[rows]), source.kind, source.bounds or declared_bounds(source.x.dtype), *layout)
    fields = {name: torch.from_numpy(found.values[rows.numpy()]) for name, found in _fields(source).items()}
    if not fields:
        return drawn
    given = [picture(_reduced(values), "array", declared_bounds(values.dtype), *layout) for values in fields.values()]
    return beside([*given, drawn], [*fields, "learned"])


def _reduced(x: Any) -> Any:
    """Pictures (n, C, H, W) with sides of up to 160 pixels."""
    import torch

    factor = -(-max(x.shape[2:]) // _SIDE) if x.ndim == 4 else 1
    if factor == 1:
        return x
    return torch.nn.functional.avg_pool2d(x.double(), factor).round().to(x.dtype)


def describe(facts: dict[str, Any]) -> list[str]:
    """A data set in words, one fact per line."""
    shape = " x ".join(map(str, facts["shape"]))
    low, high = facts["range"]
    samples = counted(facts["samples"], "sample")
    if facts["table"] is not None:
        return _table(facts)
    what = f"{samples} of {shape}" if facts["lengths"] is None else f"{facts['samples']:,} {facts['lengths']['words']}"
    lines = [
        f"{facts['name']}: {what}, {facts['dtype']}, taken as {facts['kind']} data.",
        f"Values run from {low:g} to {high:g}.",
    ]
    lines += _channels(facts) if facts["text"] is None else _text(facts["text"])
    lines += _conditions(facts) if facts["text"] is None else []
    lines.append(f"Training would use {facts['train']:,} and hold out {facts['holdout']:,}.")
    if facts["duplicates"]:
        are = counted(facts["duplicates"], "sample is an exact copy", "samples are exact copies")
        lines.append(f"{are} of others.")
    skipped = facts["skipped"]
    if skipped:
        are = counted(len(skipped), "file is", "files are")
        lines.append(f"{are} skipped:")
        lines += [f"  {entry['path']}: {entry['reason']}" for entry in skipped[:20]]
        lines += [f"  ... and {len(skipped) - 20:,} more (--json lists all)"] if len(skipped) > 20 else []
    lines += [f"Note: {note}" for note in facts["notes"]]
    return lines


def _table(facts: dict[str, Any]) -> list[str]:
    """The columns of a table."""
    columns = facts["table"]
    return [
        f"{facts['name']}: {counted(facts['samples'], 'row')} of {counted(len(columns), 'column')}, taken as a table.",
        *(f"  {name}: {words}" for name, words in columns.items()),
        f"Training would use {facts['train']:,} and hold out {facts['holdout']:,}.",
        *(f"Note: {note}" for note in facts["notes"]),
    ]


def _channels(facts: dict[str, Any]) -> list[str]:
    """Mean and standard deviation of the first channels."""
    lines = []
    for c, (mean, std) in enumerate(zip(facts["mean"], facts["std"], strict=True)):
        if c == 8:
            lines.append(f"  ... and {len(facts['mean']) - 8} more channels")
            break
        constant = ", constant" if c in facts["constant_channels"] else ""
        lines.append(f"  channel {c}: mean {mean:.6g}, std {std:.6g}{constant}")
    return lines


def _text(text: dict[str, Any]) -> list[str]:
    """The tokens of a text and its first lines."""
    from sfumato.data.text import printable

    return [
        f"Tokens: {text['tokens']}. It begins:",
        *(f"  {line}" for line in printable(text["beginning"]).split("\n")),
    ]


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
    lines = [f"{counted(len(counts), 'class', 'classes')}:"]
    lines += [f"  {name:<{width}}  {count:,}" for name, count in list(counts.items())[:30]]
    return lines + ([f"  ... and {len(counts) - 30} more"] if len(counts) > 30 else [])
