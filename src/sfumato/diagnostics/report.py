"""report.html, a self-contained page: loss curves, losses by noise level, samples, settings, next steps."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from sfumato import __version__, folder
from sfumato.data import DataSpec
from sfumato.data.text import printable
from sfumato.diagnostics import board_page, examples, summary
from sfumato.diagnostics.plots import BLUE, GREEN, ORANGE, PURPLE, Line, Panel, chart, charts
from sfumato.diagnostics.sentences import figure
from sfumato.diagnostics.summary import Facts
from sfumato.errors import counted
from sfumato.files import write_text
from sfumato.progress import clock
from sfumato.registry import Named, bare, get

LADDER = "ladder.json"  # of a student with a teacher (`training.ladder`)
SOLVERS = ("multistep", "ancestral(eta=0)")  # of the teacher in a ladder, the second, of first order, of interpolants
GRIDS = 12  # most sample grids shown
NEAREST = "nearest.png"  # in a run's samples folder: samples closest to training samples, next to those
_PAGES = Environment(loader=PackageLoader("sfumato.diagnostics", ""), autoescape=True, trim_blocks=True)
_PAGES.filters |= {"clock": clock, "figure": figure}


def page(title: str, subtitle: str, facts: Facts | None = None, **parts: Any) -> str:
    """An HTML document: the charts of a board (`Board.to_dict` with its curves), and further parts of the template."""
    if facts is not None:
        parts |= {
            "board": facts,
            "drawings": board_page.drawings(facts),
            "drowned": board_page.drowned(facts["gradients"]),
        }
    return _PAGES.get_template("report.html.jinja").render(title=title, subtitle=subtitle, **parts)


def write(
    run: Path, lines: Sequence[Facts], levels: Facts | None, settings: Mapping[str, Any], meanings: Mapping[str, str]
) -> None:
    """Write report.html of a run folder from the files in it.

    lines: of its log; levels: the board in them (`board_figures.from_log`); settings: of the run, by name, and their
    descriptions.
    """
    model, facts, nearest = summary.contract(run), summary.load(run), run / "samples" / NEAREST
    text = page(
        title=run.resolve().name,
        subtitle=_subtitle(run, lines, model),
        facts=levels,
        model=model,
        conditions=[] if model is None else list(DataSpec.from_dict(model["spec"]).conditions),
        last=lines[-1] if lines else None,
        scored=next((line for line in reversed(lines) if "valid_raw" in line), None),
        said=summary.words(facts) if facts else [],
        holdout=facts["holdout"] if facts else None,
        metrics=facts.get("metrics") if facts else None,
        nearest=_encoded(nearest) if facts and facts["memorisation"] and nearest.is_file() else None,
        samples=_samples(run),
        texts=_texts(run),
        losses=_losses(lines),
        watched=_watched(lines),
        ladder=_ladder(run / LADDER),
        commands=_commands(run, model, settings, facts),
        settings=_settings(settings, meanings, model),
    )
    write_text(run / "report.html", text)


def _subtitle(run: Path, lines: Sequence[Facts], model: Facts | None) -> str:
    done = bool(lines) and bool(lines[-1].get("done"))
    step = lines[-1]["step"] if lines else folder.newest_step(run)
    state = "Finished" if done else "Not finished:"
    made = "" if model is None else f" · {model['provenance']['date'].replace('T', ' ').removesuffix('+00:00')} UTC"
    return f"{state} at step {step:,}{made} · sfumato {__version__}"


def _samples(run: Path) -> list[tuple[int, str]]:
    """(step, picture) of the sample grids, newest first; of more than GRIDS, an even selection."""
    grids = (run / "samples").glob("step_*.png")
    paths = sorted(path for path in grids if path.stem.removeprefix("step_").isdecimal() and path.is_file())
    if len(paths) > GRIDS:
        paths = [paths[round(i * (len(paths) - 1) / (GRIDS - 1))] for i in range(GRIDS)]
    return [(int(path.stem.removeprefix("step_")), _encoded(path)) for path in reversed(paths)]


def _texts(run: Path) -> list[tuple[int, str]]:
    """(step, texts) of the samples of a model of text, newest first."""
    paths = sorted((run / "samples").glob("step_*.txt"), reverse=True)
    return [
        (int(path.stem.removeprefix("step_")), printable(path.read_text(encoding="utf-8"))) for path in paths[:GRIDS]
    ]


def _encoded(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def _ladder(path: Path) -> Facts | None:
    """The table of a ladder, {"heads", "rows": [(calls, cells)], "samples", "metric", "advice", "chart"}; None without
    one."""
    if not path.is_file():
        return None
    facts = json.loads(path.read_text(encoding="utf-8"))
    found = {(rung["calls"], rung["how"]): rung for rung in facts["rungs"]}
    ways, calls = list(dict.fromkeys(how for _, how in found)), sorted({count for count, _ in found})
    metric, heads, panels = _metric(facts["rungs"]), list[str](), list[Panel]()
    rows: list[tuple[int, list[str]]] = [(count, []) for count in calls]
    for what, name in [("distance, in deviations of the data", "rms"), *([(metric, "value")] if metric else [])]:
        lines = []
        for way, colour in zip(ways, cycle((BLUE, ORANGE, GREEN, PURPLE)), strict=False):
            each = {n: found[n, way] for n in calls if found.get((n, way), {}).get(name) is not None}
            bars = None if name == "rms" else [(rung["high"] - rung["low"]) / 2 for rung in each.values()]
            lines.append(Line(called(way), list(each), [rung[name] for rung in each.values()], colour, True, bars))
            heads.append(called(way) if name == "rms" else f"{metric}, {called(way)}")
            for count, cells in rows:
                rung = each.get(count)
                cells.append("" if rung is None else f"{rung['rms']:.3f}" if name == "rms" else beside(rung))
        panels.append(Panel(what, lines))
    drawn = charts(panels, "calls of the network", log=True)
    kept = {"samples": facts["samples"], "advice": facts["advice"]}
    return {"heads": heads, "rows": rows, "metric": metric, "chart": drawn, **kept}


def called(how: str) -> str:
    """A way of a ladder, as a table names it."""
    return how if how in ("student", "default", *SOLVERS) else f"plan {how}"


def beside(rung: Facts) -> str:
    """The metric of a rung, with half the width of its interval."""
    return f"{rung['value']:.3g}±{(rung['high'] - rung['low']) / 2:.2g}"


def _metric(rungs: Sequence[Facts]) -> str:
    """The name of the metric of a ladder; "" without one."""
    return next((rung["metric"].upper() for rung in rungs if rung.get("metric")), "")


def _losses(lines: Sequence[Facts]) -> str | None:
    """A chart of the losses over the run; training losses are means over at most 150 equal intervals."""

    def points(name: str, most: int | None = None) -> tuple[list[float], list[float]]:
        found = [(line["samples"], line[name]) for line in lines if line.get(name) is not None]
        size = 1 if most is None else -(-len(found) // most) or 1
        parts = [found[i : i + size] for i in range(0, len(found), size)]
        return [part[-1][0] for part in parts], [sum(y for _, y in part) / len(part) for part in parts]

    curves = [
        Line("training", *points("loss", 150), GREEN),
        Line("training samples, on validation draws", *points("valid_train"), PURPLE, True, dashes=":"),
        Line("validation, raw weights", *points("valid_raw"), ORANGE, True),
        Line("validation, moving average", *points("valid_ema"), BLUE, True),
    ]
    return chart(curves, "samples seen", "loss per element", log=True)


def _watched(lines: Sequence[Facts]) -> tuple[str, str | None] | None:
    """(name, chart over the run) of the metric of a student beside its teacher; None of other runs."""
    name = next((name for line in lines for name in ("kid", "mmd") if f"valid_{name}" in line), None)
    if name is None:
        return None
    first = f"valid_{name}"
    of_calls = {int(calls) for line in lines for key in line if (calls := key.removeprefix(f"{first}_")).isdigit()}
    keys = {"the first number of calls": first} | {counted(n, "call"): f"{first}_{n}" for n in sorted(of_calls)}

    def curve(title: str, key: str, colour: str) -> Line:
        found = [line for line in lines if key in line]
        bars = [(line[f"{key}_high"] - line[f"{key}_low"]) / 2 for line in found]
        return Line(title, [line["samples"] for line in found], [line[key] for line in found], colour, True, bars)

    colours = cycle((BLUE, ORANGE, GREEN, PURPLE))
    curves = [curve(title, key, colour) for (title, key), colour in zip(keys.items(), colours, strict=False)]
    log = all(line[f"{key}_low"] > 0 for line in lines for key in keys.values() if key in line)
    return name.upper(), chart(curves, "samples seen", name.upper(), log=log)


def _commands(run: Path, model: Facts | None, settings: Mapping[str, Any], facts: Facts | None) -> list[str]:
    """Commands to run next, in a shell and in Python."""
    known = facts["next"] if facts else summary.commands(run, model, settings, done=False)
    if model is None or examples.without_samples(str(run), model) is not None:
        return known
    draw = "texts = sf.sample_text(model, 4)" if model["spec"]["kind"] == "text" else "x = sf.sample(model, 64, seed=0)"
    if (source := model["process"] and model["process"]["args"].get("source")) is not None:
        draw = f"x = sf.sample(model, len(sources), cond={{{source!r}: sources}})"
    python = ("import sfumato as sf", f"model = sf.load({str(run)!r})", draw)
    return [*known, "", *python]


def _process(asked: Any, model: Facts | None) -> Any:
    """The setting, or the process of a model that was trained further and kept its own (--init)."""
    own = (model and model["process"] or {}).get("name")
    if own is None or _class(get("process", bare(asked))) == own:
        return asked
    names = [name for name, kind in Named("process").items() if _class(kind) == own]
    return names[0] if len(names) == 1 else own


def _class(kind: Any) -> str:
    name: str = getattr(kind, "func", kind).__name__
    return name


def _settings(
    settings: Mapping[str, Any], meanings: Mapping[str, str], model: Facts | None
) -> list[tuple[str, Any, str]]:
    """(name, value, description) of the settings, and of the software versions of the run."""
    known = {**settings, "process": _process(settings.get("process"), model)}
    rows = [(name, value, meanings.get(name, "")) for name, value in known.items() if value is not None]
    if model is not None:
        made = model["provenance"]
        rows += [(name, made[name], "As recorded.") for name in ("threads", "torch", "python") if name in made]
        rows.append(("computed in", made.get("precision", "float32"), "As recorded."))
        rows.append(("hash", model["hash"], "SHA-256 over the contract and the weights."))
    return rows
