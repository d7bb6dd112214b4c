"""The report at the end of a run: what was trained, how well, where the time went, what next. Also compares runs.

    last quarter: d = loss now - loss at three quarters of the training so far, on the same triples
    twice the time: at best another d log 2 / log(4/3), if the loss kept falling with the logarithm of time

"At best", since the loss falls ever more slowly, and the falling learning rate helps the last quarter.
"""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sfumato import folder, schema, serialization
from sfumato.data import DataSpec
from sfumato.diagnostics import examples
from sfumato.diagnostics.sentences import conditions_words, copies_words, figure, marginals_words, text_words
from sfumato.diagnostics.triples import BANDS, Triples, trend
from sfumato.diagnostics.triples import read as triples_of
from sfumato.errors import SfumatoError, counted
from sfumato.files import write_text
from sfumato.intervals import Interval
from sfumato.progress import clock

FILE, VERSION = "report.json", 1
_QUARTER = 0.75
_LITTLE = 0.02  # fraction of the loss: a change surely smaller than this counts as none
_RULING = ("data", "labels", "size", "holdout", "seed", "target", "schedule", "weight", "times")
_ELSEWHERE = ("out", "device")  # settings that do not make a run different
Facts = dict[str, Any]
_NUMBER = schema.number()
_MEASURED = dict.fromkeys(("value", "low", "high", "stderr"), schema.optional(_NUMBER))
_INTERVAL = schema.fields(dict.fromkeys(("value", "low", "high"), schema.optional(_NUMBER)))
_SURE = schema.fields({"value": _NUMBER})
_QUARTERS = schema.fields(
    {
        "since": _NUMBER, "change": _INTERVAL, "trend": schema.text, "settled": schema.flag,
        "twice": schema.optional(_SURE),
    }
)  # fmt: skip
_HOLDOUT = schema.fields(
    {
        "loss": _INTERVAL, "trivial": schema.optional(_NUMBER), "gap": schema.optional(_INTERVAL),
        "average": schema.optional(_INTERVAL), "quarter": schema.optional(_QUARTERS),
        "lowest": schema.optional(schema.fields({"step": schema.whole(0), "change": _SURE})),
        "triples": schema.whole(0), "samples": schema.whole(0),
        "bands": schema.listed(
            schema.fields(
                {
                    "name": schema.text, "logsnr": schema.optional(schema.listed(_NUMBER, 2, 2)), "loss": _INTERVAL,
                    "gap": schema.optional(_INTERVAL),
                }
            )
        ),
    }
)  # fmt: skip
_COPIES = schema.fields(
    {
        **dict.fromkeys(("samples", "train", "holdout", "exact", "leaked"), schema.whole(0)),
        "verdict": schema.choice("memorised", "suspect", "none"), "ratio": _INTERVAL, "closer": _INTERVAL,
        "copies": _NUMBER, "copies_real": _NUMBER, "space": schema.text, "notes": schema.listed(schema.text),
    },
    {"repeated": schema.whole(0), "searched": schema.whole(0), "chance": schema.flag},
)  # fmt: skip
_TEXT = schema.fields(
    {
        "model": schema.fields(_MEASURED),
        **dict.fromkeys(("windows", "characters"), schema.whole(0)), "order0": _NUMBER, "xz": _NUMBER,
    }
)  # fmt: skip
_METRIC = schema.fields(
    {
        **_MEASURED, "floor": schema.optional(schema.fields(_MEASURED)), "hash": schema.text,
        "protocol": schema.mapping(schema.anything),
    }
)  # fmt: skip
_JUDGED = dict.fromkeys(("before", "after", "real"), schema.either("a number or an interval", _NUMBER, _INTERVAL))
_WEIGHED = schema.fields(dict.fromkeys(("draws", "rows", "seconds", "accepted"), _NUMBER), _JUDGED, rest=_NUMBER)
_REPORT = schema.fields(
    {
        **dict.fromkeys(("step", "samples", "incidents"), schema.whole(0)),
        "done": schema.flag, "fraction": _NUMBER, "epochs": _NUMBER, "budget": schema.text,
        "holdout": schema.optional(_HOLDOUT), "memorisation": schema.optional(_COPIES),
        "memorisation_missing": schema.optional(schema.text), "next": schema.listed(schema.text),
        "time": schema.fields(
            {"training": schema.number(-1e12, 1e12), "evaluation": _NUMBER, "shares": schema.mapping(_NUMBER)}
        ),
    },
    {
        **dict.fromkeys(("conditions_missing", "text_missing", "metrics_missing"), schema.optional(schema.text)),
        "conditions": schema.optional(schema.fields({"each": schema.mapping(_INTERVAL), "together": _INTERVAL})),
        "text": schema.optional(_TEXT), "metrics": schema.optional(schema.mapping(_METRIC)),
        "marginals": schema.optional(_WEIGHED),
    },
)  # fmt: skip


def write(
    run: Path, settings: Mapping[str, Any], spent: dict[str, float], memorisation: Facts | str,
    conditions: Facts | str | None, text: Facts | str | None = None, metrics: Facts | str | None = None,
    marginals: Facts | None = None,
) -> Facts:  # fmt: skip
    """Write report.json of a run folder from the files in it; returns its facts.

    settings: of the run, by name; spent: seconds besides the steps, by purpose; memorisation: `Memorization.to_dict`;
    conditions: `Information.to_dict`, None without conditions; text: `TextBits.to_dict`, None of other data; metrics:
    name -> `Metric.to_dict`. Each may be words that say why it was not measured. marginals: `Calibration.to_dict`.
    """
    lines = folder.read(run / "metrics.jsonl")
    last = lines[-1] if lines else {}
    holdout, model = _holdout(lines), contract(run)
    budget = counted(settings["steps"], "step") if settings["steps"] else counted(float(settings["minutes"]), "minute")
    facts: Facts = {
        "version": VERSION, "run": str(run), **_reached(run, lines), "epochs": last.get("epoch", 0.0),
        "fraction": last.get("fraction", 0.0), "budget": budget, "holdout": holdout,
        "time": _time(lines, spent), "marginals": marginals,
    }  # fmt: skip
    measured = {"memorisation": memorisation, "conditions": conditions, "text": text, "metrics": metrics}
    for name, found in measured.items():
        words = isinstance(found, str)
        facts |= {name: None if words else found, f"{name}_missing": found if words else None}
    if model is not None:
        facts["model"] = _model(model, settings)
    facts["next"] = commands(run, model, settings, facts["done"], holdout)
    write_text(run / FILE, json.dumps(facts, indent=1, allow_nan=False) + "\n")
    return facts


def load(run: Path) -> Facts | None:
    """The facts in report.json; None if there are none, or if another version wrote them."""
    path = run / FILE
    if not path.exists():
        return None
    facts: Facts = schema.json_of(schema.read_text(path), path)
    schema.require(facts, schema.fields({"version": schema.whole()}), path)
    if facts["version"] != VERSION:
        return None
    schema.require(facts, _REPORT, path)
    return facts


def contract(run: Path) -> Facts | None:
    """The contract in the model file of a run; None if there is no file yet."""
    return serialization.read_contract(run) if (run / serialization.FILE).exists() else None


def _reached(run: Path, lines: Sequence[Facts]) -> Facts:
    """How far a run got."""
    last = lines[-1] if lines else {}
    return {
        "step": last.get("step", folder.newest_step(run)), "samples": last.get("samples", 0),
        "loss": next((line["loss"] for line in reversed(lines) if line.get("loss") is not None), None),
        "incidents": len(folder.incidents(run)), "done": bool(last.get("done")),
    }  # fmt: skip


def missing(run: Path) -> list[str]:
    """The files that a run writes after its last step and has not, in the order of writing (`FinalReport.end`)."""
    return [name for name in (serialization.FILE, FILE, "report.html") if not (run / name).exists()]


def state(run: Path, done: bool) -> str:
    """How far a run got in words. done: whether its log is complete, after which a run may still be killed."""
    left = missing(run)
    if not done or not left:
        return "finished" if done else "not finished"
    return f"trained, but without {', '.join(left)}, which sfumato resume {run} writes"


def _model(model: Facts, settings: Mapping[str, Any]) -> Facts:
    spec = DataSpec.from_dict(model["spec"])
    return {
        "network": (model["net"] or model["model"])["name"], "parameters": model["parameters"],
        "shape": model["spec"]["shape"],
        "data": model["provenance"]["data"], "classes": list(spec.classes), "conditions": list(spec.conditions),
        "example": examples.flags(model["spec"], settings["guidance"]), "guidance": settings["guidance"],
        "kind": model["spec"]["kind"],
    }  # fmt: skip


def _holdout(lines: Sequence[Facts]) -> Facts | None:
    """The last validation, and the changes since earlier ones."""
    scored = [(line, found) for line in lines if (found := triples_of(line)) is not None]
    if not scored:
        return None
    last, now = scored[-1]
    facts: Facts = {
        "loss": now.interval().to_dict(), "weights": now.best, "trivial": last.get("valid_trivial"),
        "triples": len(now.sample), "samples": len(now.sample.unique()), "gap": _plain(now.gap()),
        "average": _plain(now.average()), "bands": _bands(last, now), "quarter": None, "lowest": None,
    }  # fmt: skip
    earlier = [(line, found) for line, found in scored[:-1] if now.change(found) is not None]
    wanted = _QUARTER * last["samples"]
    near = [pair for pair in earlier if 0.5 * last["samples"] <= pair[0]["samples"] <= 0.9 * last["samples"]]
    if near:
        line, before = min(near, key=lambda pair: abs(pair[0]["samples"] - wanted))
        facts["quarter"] = _quarter(now, before, line["samples"] / last["samples"])
    if earlier:
        line, lowest = min(earlier, key=lambda pair: pair[1].interval().value)
        change = now.change(lowest)
        if change is not None and trend(change) == "worse":
            facts["lowest"] = {"step": line["step"], "change": change.to_dict()}
    return facts


def _quarter(now: Triples, before: Triples, since: float) -> Facts:
    """The change of the loss since the fraction `since` of the run."""
    change = now.change(before)
    assert change is not None
    twice = math.log(2) / math.log(1 / since)
    more = Interval(*(min(0.0, v * twice) for v in change[:3])) if change.high < 0 else None
    settled = trend(change) == "no change" and change.half < _LITTLE * now.interval().value
    return {
        "since": since, "change": change.to_dict(), "trend": trend(change), "settled": settled, "twice": _plain(more)
    }  # fmt: skip


def _bands(line: Facts, now: Triples) -> list[Facts]:
    """The loss by thirds of the noise; their logsnr are known of numbers alone."""
    if not now.bands:
        return []
    edges = (line.get("bins_edges") or [])[:: now.levels // now.bands]
    ends = [list(pair) for pair in zip(edges[1:], edges, strict=False)]
    return [
        {
            "name": BANDS[k],
            "logsnr": ends[k] if ends else None,
            "loss": now.interval(band=k).to_dict(),
            "gap": _plain(now.gap(k)),
        }
        for k in range(now.bands)
    ]


def _plain(found: Interval | None) -> Facts | None:
    return None if found is None else found.to_dict()


def _time(lines: Sequence[Facts], spent: dict[str, float]) -> Facts:
    """Seconds of the whole run, and fractions of them."""
    elapsed = lines[-1]["elapsed"] if lines else 0.0
    total = elapsed + spent.get("ending", 0.0)
    waits = [line["data_wait"] for line in lines if line.get("data_wait") is not None]
    parts = {name: seconds for name, seconds in spent.items() if name != "ending"}
    parts["data wait"] = elapsed * math.fsum(waits) / len(waits) if waits else 0.0
    total = max(total, math.fsum(parts.values()))  # a run stopped at once has saved but not trained
    shares = {name: seconds / max(total, 1e-9) for name, seconds in parts.items()}
    evaluation = math.fsum(
        shares.get(name, 0.0) for name in ("validation", "grids", "memorisation", "conditions", "bits", "metrics")
    )
    return {"seconds": total, "training": elapsed, "shares": shares, "evaluation": evaluation}


def commands(
    run: Path, model: Facts | None, settings: Mapping[str, Any], done: bool, holdout: Facts | None = None
) -> list[str]:
    """Commands to run next; model: its contract, None if there is no file yet."""
    where, own, found = shlex.quote(str(run)), examples.modules(), holdout or {}
    if not done or model is None:
        return [f"sfumato resume {where}{own}"] + ([f"sfumato sample {where}{own}"] if model else [])
    if (other := examples.without_samples(str(run), model)) is not None:
        return [other, f"sfumato info {where}"]
    kind = model["spec"]["kind"]
    number, out = {"image": (64, "samples.png"), "text": (4, "samples.txt"), "table": (1000, "samples.csv")}.get(
        kind, (64, "samples.npz")
    )
    staged = settings.get("cascade") or settings.get("unclip")  # whose file keeps one set of weights
    raw = " --weights raw" if best_weights(found) == "raw" and model.get("raw", True) and not staged else ""
    flags = "" if settings.get("unclip") else examples.flags(model["spec"], settings["guidance"])
    lines = [f"sfumato sample {where} -n {number}{flags}{raw} -o {out}{own}"]
    if source := settings.get("sources"):
        lines = [f"sfumato translate {where} {_input(str(source))}{raw}{own}"]
    if (found.get("quarter") or {}).get("trend") == "improving":
        name = "steps" if settings["steps"] else "minutes"
        lines.append(f"sfumato resume {where} --{name} {settings[name] * 2:.12g}{own}")
    gaps = model["spec"].get("lengths") and any(model["spec"]["missing"])  # steps missing within sequences
    copies = [] if kind == "text" or gaps else [f"sfumato memorization {where}{own}"]
    return [*lines, *copies, f"sfumato info {where}"]


def _input(sources: str) -> str:
    """What `translate` is given: the sources of training, if it reads them."""
    return shlex.quote(sources) if Path(sources).suffix in ("", ".npy") else "INPUT"


def best_weights(holdout: Facts) -> str | None:
    """The weights with the lower loss on the hold-out, "ema" or "raw"; None if the difference is not significant."""
    average = holdout.get("average")
    if not average or average["low"] is None:
        return None
    return "ema" if average["high"] < 0 else "raw" if average["low"] > 0 else None


def words(facts: Facts) -> list[str]:
    """The report as sentences."""
    state = "Trained" if facts["done"] else f"Stopped after {facts['fraction']:.0%} of {facts['budget']}:"
    lines = [
        f"{state} {counted(facts['step'], 'step')}, {counted(facts['samples'], 'sample')} ({facts['epochs']:.1f} "
        f"epochs), in {clock(facts['time']['training'])}."
    ]
    if facts["holdout"] is None:
        lines.append("Nothing was held out, or the run ended before its first validation: no loss on unseen samples.")
    else:
        lines += holdout_words(facts["holdout"])
    found = facts["memorisation"]
    if found is not None:
        verdict, *rest = copies_words(found)
        lines.append(f"{verdict} Ratio {figure(found['ratio'])}, closer {figure(found['closer'], '.0%')}.")
        lines += [line for line in rest if line.startswith("LEAK")]
    elif facts["memorisation_missing"]:
        lines.append(f"Memorisation was not measured: {facts['memorisation_missing']}.")
    if facts.get("conditions"):
        lines.append(conditions_words(facts["conditions"]))
    elif facts.get("conditions_missing"):
        lines.append(f"The information of the conditions was not measured: {facts['conditions_missing']}.")
    if facts.get("text"):
        lines.append(text_words(facts["text"]))
    elif facts.get("text_missing"):
        lines.append(f"The bits per character were not measured: {facts['text_missing']}.")
    if facts.get("marginals"):
        lines.append(marginals_words(facts["marginals"]))
    if facts.get("metrics"):
        lines.append(metrics_words(facts["metrics"]))
    lines.append(time_words(facts["time"]))
    if facts["incidents"]:
        lines.append(f"{counted(facts['incidents'], 'step was', 'steps were')} skipped: see incident.json.")
    return lines


def holdout_words(found: Facts) -> list[str]:
    """One sentence each on the loss, its change, the gap and the weights."""
    trivial = "" if found["trivial"] is None else f"; a guess that ignores neighbours has {found['trivial']:.4f}"
    lines = [f"Hold-out loss {figure(found['loss'], '.4f')}{trivial}."]
    if found["quarter"] is not None:
        lines.append(_quarter_words(found["quarter"]))
    if found["lowest"] is not None:
        step, below = found["lowest"]["step"], found["lowest"]["change"]["value"]
        lines.append(f"It was lowest at step {step:,}, by {below:.4f}: training beyond that point made it worse.")
    gap, average = found["gap"], found["average"]
    if gap is not None and gap["low"] is None:
        lines.append(f"Gap to training samples {figure(gap, '+.4f')}: too few samples are held out to judge it.")
    elif gap is not None:
        verdict = "the model knows its training samples better" if gap["low"] > 0 else "not significant"
        lines.append(f"Gap to training samples {figure(gap, '+.4f')}: {verdict}.")
    if average is not None and average["low"] is not None:
        better = {"ema": "the average is better", "raw": "the raw weights are better (--weights raw)"}
        verdict = better.get(best_weights(found) or "", "no significant difference")
        lines.append(f"Moving average minus raw weights {figure(average, '+.4f')}: {verdict}.")
    return lines


def metrics_words(found: Facts) -> str:
    """A sentence on the metrics of samples."""
    parts = []
    for name, metric in found.items():
        floor = f", real data {metric['floor']['value']:.3g}" if metric["floor"] else ""
        parts.append(f"{name} {figure(metric)}{floor}")
    protocol = next(iter(found.values()))["protocol"]
    return f"Of {protocol['samples']:,} samples in {counted(protocol['calls'], 'call')}: {'; '.join(parts)}."


def _quarter_words(found: Facts) -> str:
    part = f"Change since {found['since']:.0%} of the run {figure(found['change'], '+.4f')}"
    if found["change"]["low"] is None:
        return f"{part}: too few samples are held out for an interval (raise --holdout)."
    if found["trend"] == "improving":
        return f"{part}, still improving; twice the time would bring {found['twice']['value']:+.4f} at best."
    if found["trend"] == "worse":
        return f"{part}, getting worse: more time would not help; more data or a smaller --net might."
    if found["settled"]:
        return f"{part}, no change: more time alone would hardly help."
    return f"{part}, no significant change: more time would bring little."


def time_words(found: Facts) -> str:
    """A sentence on where the time went."""
    shares = found["shares"]
    kept = [
        f"{name} {shares[name]:.1%}"
        for name in ("calibration", "checkpoints", "averages", "data wait")
        if name in shares
    ]
    return ", ".join([f"Of the time, evaluation took {found['evaluation']:.1%}", *kept]) + "."


def runs(places: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The runs among these folders and their direct subfolders, by name. Raises SfumatoError for a path without one."""
    found: list[Path] = []
    for place in map(Path, places):
        if not place.is_dir():
            raise SfumatoError(f"{place} is not a folder: give run folders, or a folder of them.")
        inside = [place] if folder.is_run(place) else [p for p in sorted(place.iterdir()) if folder.is_run(p)]
        if not inside:
            raise SfumatoError(f"{place} holds no run: give run folders, or a folder of them.")
        found += [p for p in inside if p not in found]
    return found


def overview(run: Path, settings: Mapping[str, Any]) -> Facts:
    """The settings of a run, how far it got and its validation loss; a truncated log is read as far as it goes."""
    lines = folder.read(run / "metrics.jsonl")
    scored = [line.get("valid_ema", line["valid_raw"]) for line in lines if "valid_raw" in line]
    return {
        "path": str(run), "config": dict(settings), **_reached(run, lines),
        "seconds": lines[-1].get("elapsed", 0.0) if lines else 0.0, "validation": scored[-1] if scored else None,
        "missing": missing(run),
    }  # fmt: skip


def differences(overviews: Sequence[Facts]) -> dict[str, list[Any]]:
    """Setting -> its value in each run, for settings that differ between runs."""
    names = [name for name in overviews[0]["config"] if name not in _ELSEWHERE]
    found = {name: [each["config"][name] for each in overviews] for name in names}
    return {name: values for name, values in found.items() if any(value != values[0] for value in values)}


def incomparable(overviews: Sequence[Facts]) -> str | None:
    """Why validation losses cannot be compared; None if they can, being the same loss on the same hold-out."""
    apart = [name for name in _RULING if name in differences(overviews)]
    return f"they differ in {', '.join(apart)}" if apart else None


def ranked(overviews: Sequence[Facts]) -> list[Facts]:
    """The runs sorted by validation loss, those without one last; unsorted if the losses cannot be compared."""
    if incomparable(overviews) is not None:
        return list(overviews)
    return sorted(overviews, key=lambda run: math.inf if run["validation"] is None else run["validation"])
