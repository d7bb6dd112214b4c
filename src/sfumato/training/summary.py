"""The stop report: what was trained, whether it went well, where the time went, what next; report.json and its words.

    last quarter: d = loss now - loss at three quarters of what was trained, on the same triples
    twice the time: at best d log 2 / log(4/3) more, as if the loss went on falling with the logarithm of time

It falls ever slower, and the last quarter is helped by the falling learning rate: that is why it is "at best".
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sfumato import artefact
from sfumato.data import DataSpec
from sfumato.diagnostics.memorization import words as copies_words
from sfumato.diagnostics.triples import BANDS, Triples, trend
from sfumato.diagnostics.triples import read as triples_of
from sfumato.errors import SfumatoError
from sfumato.files import write_text
from sfumato.intervals import Interval
from sfumato.training import examples
from sfumato.training.config import from_yaml
from sfumato.training.folder import newest_step, read

FILE, VERSION = "report.json", 1
_QUARTER = 0.75
_LITTLE = 0.02  # of the loss: a change that is known to be less is none
Facts = dict[str, Any]


def write(
    run: Path, spent: dict[str, float], memorisation: Facts | None, why: str | None = None,
    conditions: Facts | None = None, silent: str | None = None,
) -> Facts:  # fmt: skip
    """Make report.json of a run folder from what lies in it; returns its facts.

    spent: seconds by what they went into, beside the steps; memorisation: `Memorisation.to_dict`, or None with a reason
    why it was not measured; conditions: `Information.to_dict`, what each condition says of samples held out,
    or None with a reason (`silent`) where there are conditions.
    """
    lines = read(run / "metrics.jsonl")
    facts = {"version": VERSION, **_trained(run, lines), "holdout": _holdout(lines), "time": _time(lines, spent)}
    facts |= {"memorisation": memorisation, "memorisation_missing": why}
    facts |= {"conditions": conditions, "conditions_missing": silent}
    facts["next"] = _next(run, facts)
    write_text(run / FILE, json.dumps(facts, indent=1, allow_nan=False) + "\n")
    return facts


def load(run: Path) -> Facts | None:
    """What `write` left; None where there is nothing, or what another version left."""
    path = run / FILE
    try:
        facts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError:
        raise SfumatoError(f"{path} is damaged: it is no JSON.") from None
    return facts if facts.get("version") == VERSION else None


def _trained(run: Path, lines: Sequence[Facts]) -> Facts:
    config, last = from_yaml(str(run / "config.yaml")), lines[-1] if lines else {}
    facts: Facts = {
        "run": str(run), "done": bool(last.get("done")), "step": last.get("step", newest_step(run)),
        "samples": last.get("samples", 0), "epochs": last.get("epoch", 0.0), "fraction": last.get("fraction", 0.0),
        "budget": f"{config.steps:,} steps" if config.steps else f"{config.minutes:g} minutes",
        "loss": next((line["loss"] for line in reversed(lines) if line.get("loss") is not None), None),
    }  # fmt: skip
    incidents = run / "incident.json"
    facts["incidents"] = len(json.loads(incidents.read_text(encoding="utf-8"))) if incidents.exists() else 0
    if (run / artefact.FILE).exists():
        model = artefact.read_contract(run)
        spec = DataSpec.from_dict(model["spec"])
        facts["model"] = {
            "network": model["net"]["name"], "parameters": model["parameters"], "shape": model["spec"]["shape"],
            "data": model["provenance"]["data"], "classes": list(spec.classes), "conditions": list(spec.conditions),
            "example": examples.flags(model["spec"], config.guidance), "guidance": config.guidance,
            "kind": model["spec"]["kind"],
        }  # fmt: skip
    return facts


def _holdout(lines: Sequence[Facts]) -> Facts | None:
    """The last validation, and what changed up to it."""
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
    """What changed since a fraction of what was trained."""
    change = now.change(before)
    assert change is not None
    twice = math.log(2) / math.log(1 / since)
    more = Interval(*(min(0.0, v * twice) for v in change[:3])) if change.high < 0 else None
    settled = trend(change) == "no change" and change.half < _LITTLE * now.interval().value
    return {
        "since": since, "change": change.to_dict(), "trend": trend(change), "settled": settled, "twice": _plain(more)
    }  # fmt: skip


def _bands(line: Facts, now: Triples) -> list[Facts]:
    edges = line.get("bins_edges")
    if not now.bands or not edges:
        return []
    size = now.levels // now.bands
    return [
        {"name": BANDS[k], "logsnr": [edges[(k + 1) * size], edges[k * size]],
         "loss": now.interval(band=k).to_dict(), "gap": _plain(now.gap(k))}
        for k in range(now.bands)
    ]  # fmt: skip


def _plain(found: Interval | None) -> Facts | None:
    return None if found is None else found.to_dict()


def _time(lines: Sequence[Facts], spent: dict[str, float]) -> Facts:
    """Seconds of the whole run, and fractions of them."""
    elapsed = lines[-1]["elapsed"] if lines else 0.0
    total = elapsed + spent.get("ending", 0.0)
    waits = [line["data_wait"] for line in lines if line.get("data_wait") is not None]
    parts = {name: seconds for name, seconds in spent.items() if name != "ending"}
    parts["data wait"] = elapsed * math.fsum(waits) / len(waits) if waits else 0.0
    shares = {name: seconds / max(total, 1e-9) for name, seconds in parts.items()}
    evaluation = math.fsum(shares.get(name, 0.0) for name in ("validation", "grids", "memorisation", "conditions"))
    return {"seconds": total, "training": elapsed, "shares": shares, "evaluation": evaluation}


def _next(run: Path, facts: Facts) -> list[str]:
    """Commands worth typing now."""
    where, model, own = shlex.quote(str(run)), facts.get("model"), examples.modules()
    if not facts["done"]:
        return [f"sfumato resume {where}{own}"] + ([f"sfumato sample {where}{own}"] if model else [])
    chosen = facts["model"]["example"] if model else ""
    found = facts["holdout"] or {}
    out = "samples.png" if model and model["kind"] == "image" else "samples.npz"
    raw = " --weights raw" if best_weights(found) == "raw" else ""
    commands = [f"sfumato sample {where} -n 64{chosen}{raw} -o {out}{own}"]
    if ((found.get("quarter") or {}).get("trend")) == "improving":
        longer = f"--{'steps' if 'steps' in facts['budget'] else 'minutes'}"
        amount = facts["budget"].split()[0].replace(",", "")
        commands.append(f"sfumato resume {where} {longer} {float(amount) * 2:g}{own}")
    return [*commands, f"sfumato memorisation {where}{own}", f"sfumato info {where}"]


def best_weights(holdout: Facts) -> str | None:
    """Which weights have the lower loss on the hold-out, "ema" or "raw"; None where nothing tells them apart."""
    average = holdout.get("average")
    if not average or average["low"] is None:
        return None
    return "ema" if average["high"] < 0 else "raw" if average["low"] > 0 else None


def words(facts: Facts) -> list[str]:
    """The stop report in sentences."""
    from sfumato.counting import clock

    state = "Trained" if facts["done"] else f"Stopped after {facts['fraction']:.0%} of {facts['budget']}:"
    lines = [
        f"{state} {facts['step']:,} steps, {facts['samples']:,} samples ({facts['epochs']:.1f} epochs), in "
        f"{clock(facts['time']['training'])}."
    ]
    if facts["holdout"] is None:
        lines.append("Nothing was held out, or the run ended before its first validation: no loss on unseen samples.")
    else:
        lines += holdout_words(facts["holdout"])
    found = facts["memorisation"]
    if found is not None:
        shown = copies_words(found)
        lines.append(f"{shown[0]} Ratio {figure(found['ratio'])}, closer {figure(found['closer'], '.0%')}.")
        lines += [line for line in shown if line.startswith("LEAK")]
    elif facts["memorisation_missing"]:
        lines.append(f"Memorisation was not measured: {facts['memorisation_missing']}.")
    if facts.get("conditions"):
        lines.append(conditions_words(facts["conditions"]))
    elif facts.get("conditions_missing"):
        lines.append(f"What the conditions say was not measured: {facts['conditions_missing']}.")
    lines.append(time_words(facts["time"]))
    if facts["incidents"]:
        lines.append(f"{facts['incidents']} steps could not be taken: see incident.json.")
    return lines


def holdout_words(found: Facts) -> list[str]:
    """The loss, its change, the gap, the weights: a sentence each."""
    trivial = "" if found["trivial"] is None else f"; a guess that looks at no neighbours: {found['trivial']:.4f}"
    lines = [f"Hold-out loss {figure(found['loss'], '.4f')}{trivial}."]
    if found["quarter"] is not None:
        lines.append(_quarter_words(found["quarter"]))
    if found["lowest"] is not None:
        lines.append(
            f"It was lowest at step {found['lowest']['step']:,}, {found['lowest']['change']['value']:.4f} below: what "
            "came after did harm."
        )
    gap = found["gap"]
    if gap is not None and gap["low"] is not None:
        told = "none that these triples tell" if gap["low"] <= 0 else "the model knows its training samples better"
        lines.append(f"Gap to training samples {figure(gap, '+.4f')}: {told}.")
    if found["average"] is not None and found["average"]["low"] is not None:
        best = best_weights(found)
        known = {"ema": "the average is better", "raw": "the raw weights are better (--weights raw)"}
        lines.append(
            f"Moving average less raw weights {figure(found['average'], '+.4f')}: "
            f"{known.get(best or '', 'no difference that these triples tell')}."
        )
    return lines


def conditions_words(found: Facts) -> str:
    """What the conditions say of a sample, in nats."""
    each = [f"{name} {figure(said)}" for name, said in found["each"].items()]
    together = f"; all together {figure(found['together'])}" if len(each) > 1 else ""
    beside = " beside the others" if len(each) > 1 else ""
    return f"Nats that a condition says of a held-out sample{beside}: {', '.join(each)}{together}."


def _quarter_words(found: Facts) -> str:
    part = f"Since {found['since']:.0%} of the run {figure(found['change'], '+.4f')}"
    if found["trend"] == "improving":
        return f"{part}, still improving; twice the time brings {found['twice']['value']:+.4f} at best."
    if found["trend"] == "worse":
        return f"{part}, getting worse: more time would not help, more data or a smaller --net might."
    if found["settled"]:
        return f"{part}, no change: more time alone is hardly worth it."
    return f"{part}: these triples do not tell it from no change; more time would bring little."


def time_words(found: Facts) -> str:
    """Where the time went."""
    shares = found["shares"]
    kept = [f"{name} {shares[name]:.1%}" for name in ("checkpoints", "averages", "data wait") if name in shares]
    return ", ".join([f"Of the time, evaluation took {found['evaluation']:.1%}", *kept]) + "."


def figure(found: Facts, kind: str = ".3g") -> str:
    """A value and its interval."""
    if found["value"] is None:
        return "-"
    if found["low"] is None or found["high"] is None:
        return f"{found['value']:{kind}}"
    return f"{found['value']:{kind}} ({found['low']:{kind}} to {found['high']:{kind}})"
