"""report.html: one file that opens without a network. Curves, losses by noise level, samples, settings, next steps."""

from __future__ import annotations

import base64
import shlex
from html import escape
from pathlib import Path
from typing import Any

import yaml

from sfumato import __version__, artefact
from sfumato.charts import Line, chart, page
from sfumato.counting import clock
from sfumato.data import DataSpec
from sfumato.diagnostics import log as levels
from sfumato.diagnostics.drawing import rows, section, sections
from sfumato.files import write_text
from sfumato.objectives import Objective
from sfumato.training import examples
from sfumato.training.config import docs
from sfumato.training.folder import newest_step, read
from sfumato.training.objective import schedule_of, times_of, weight_of
from sfumato.training.occasions import PICTURES
from sfumato.training.verdict import verdict


def write(run: Path) -> Path:
    """Make the report of a run folder from what lies in it; returns its path."""
    lines = read(run / "metrics.jsonl")
    settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    model = artefact.read_contract(run) if (run / artefact.FILE).exists() else None
    name = run.resolve().name
    parts = [
        f"<h1>{escape(name)}</h1>", f'<p class="quiet">{_subtitle(run, lines, model)}</p>',
        _cards(lines, model), verdict(run), _pictures(run), _curves(lines, _objective(settings)),
        _next(run, model, settings), _settings(settings, model),
    ]  # fmt: skip
    path = run / "report.html"
    write_text(path, page(name, parts))
    return path


def _objective(settings: dict[str, Any]) -> Objective:
    """What the settings train for."""
    times, weight = times_of(settings["times"]), weight_of(settings["weight"])
    return Objective(schedule_of(settings["schedule"]), settings["target"], times, weight)


def _subtitle(run: Path, lines: list[dict[str, Any]], model: dict[str, Any] | None) -> str:
    done = bool(lines) and bool(lines[-1].get("done"))
    step = lines[-1]["step"] if lines else newest_step(run)
    state = "Finished" if done else "Not finished:"
    made = "" if model is None else f" · {model['provenance']['date'].replace('T', ' ').removesuffix('+00:00')} UTC"
    return escape(f"{state} at step {step:,}{made} · sfumato {__version__}")


def _cards(lines: list[dict[str, Any]], model: dict[str, Any] | None) -> str:
    found: list[tuple[str, str]] = []
    if model is not None:
        found.append((f"{model['parameters'] / 1e6:.2f} M", f"parameters, {model['net']['name']}"))
        shape = "\u2009×\u2009".join(map(str, model["spec"]["shape"]))
        found.append((shape, f"{model['spec']['dtype']} {model['spec']['kind']}s"))
        conditions = DataSpec.from_dict(model["spec"]).conditions
        if conditions:
            found.append((", ".join(conditions), "what it is conditioned on"))
    if lines:
        last = lines[-1]
        found.append((f"{last['samples']:,}", f"samples seen, {last['epoch']:.1f} epochs"))
        found.append((clock(last["elapsed"]), "training time"))
        found.append((f"{last['samples'] / max(last['elapsed'], 1e-9):,.0f}", "samples a second, all included"))
    scored = next((line for line in reversed(lines) if "valid_raw" in line), None)
    if scored is not None:
        loss = scored.get("valid_ema", scored["valid_raw"])
        trivial = f"; trivial {scored['valid_trivial']:.4f}" if "valid_trivial" in scored else ""
        found.append((f"{loss:.4f}", f"validation loss{trivial}"))
    cards = "".join(f"<div><b>{escape(a)}</b><span>{escape(b)}</span></div>" for a, b in found)
    return f'<div class="cards">{cards}</div>'


def _pictures(run: Path) -> str:
    paths = sorted((run / "samples").glob("step_*.png")) if (run / "samples").is_dir() else []
    if len(paths) > PICTURES:
        paths = [paths[round(i * (len(paths) - 1) / (PICTURES - 1))] for i in range(PICTURES)]
    figures = []
    for path in reversed(paths):
        encoded = base64.b64encode(path.read_bytes()).decode()
        step = int(path.stem.removeprefix("step_"))
        figures.append(
            f'<figure><figcaption>step {step:,}</figcaption><img alt="samples at step {step}" '
            f'src="data:image/png;base64,{encoded}"></figure>'
        )
    if not figures:
        return ""
    earlier = f"<details><summary>Earlier samples</summary>{''.join(figures[1:])}</details>" if figures[1:] else ""
    return f"<h2>Samples</h2>{figures[0]}{earlier}"


def _curves(lines: list[dict[str, Any]], objective: Objective) -> str:
    def points(name: str) -> list[tuple[float, float]]:
        return [(line["samples"], line[name]) for line in lines if line.get(name) is not None]

    losses = [
        Line("training", _smooth(points("loss")), "c3"),
        Line("training samples, as validated", points("valid_train"), "c5", True),
        Line("validation, raw weights", points("valid_raw"), "c2", True),
        Line("validation, moving average", points("valid_ema"), "c1", True),
    ]
    over_time = chart(losses, "samples seen", "loss per element", log_y=True)
    first = section(
        "Loss",
        "What training minimises. Validation is on fixed samples, noise and noise levels that were never trained on; "
        "where it rises while training falls, the model begins to learn its samples by heart.",
        over_time,
    )
    found = levels.read(lines, objective)
    if found is None:
        return rows([first]) + '<p class="quiet">Nothing was held out, so there is no loss by noise level.</p>'
    return rows([first, *sections(found)])


def _smooth(points: list[tuple[float, float]], most: int = 150) -> list[tuple[float, float]]:
    """Means of equal stretches, at most `most` of them."""
    size = -(-len(points) // most)
    parts = [points[i : i + size] for i in range(0, len(points), size)] if size else []
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in parts]


def _next(run: Path, model: dict[str, Any] | None, settings: dict[str, Any]) -> str:
    chosen = examples.flags((model or {}).get("spec"), settings["guidance"])
    where, own = shlex.quote(str(run)), examples.modules()
    other = None if model is None else examples.without_samples(str(run), model)
    if other is not None:
        return f"<h2>What to type next</h2><pre>{escape(f'{other}{chr(10)}sfumato info {where}')}</pre>"
    commands = (
        f"sfumato sample {where} -n 64{chosen} -o samples.png{own}\n"
        f"sfumato resume {where} --minutes 30{own}        # a larger total: training goes on where it stopped\n"
        f"sfumato info {where}\n\n"
        f"import sfumato as sf\nmodel = sf.load({str(run)!r})\nx = sf.sample(model, 64, seed=0)"
    )
    return f"<h2>What to type next</h2><pre>{escape(commands)}</pre>"


def _settings(settings: dict[str, Any], model: dict[str, Any] | None) -> str:
    words = docs()
    rows = [(name, value, words.get(name, "")) for name, value in settings.items() if value is not None]
    if model is not None:
        made = model["provenance"]
        kept = ("precision", "threads", "torch", "python")
        rows += [(name, made[name], "As it ran.") for name in kept if name in made and name != "precision"]
        rows.append(("computed in", made.get("precision", "float32"), "As it ran."))
        rows.append(("hash", model["hash"], "SHA-256 over the contract and the weights."))
    body = "".join(f"<tr><td>{escape(n)}</td><td>{escape(str(v))}</td><td>{escape(w)}</td></tr>" for n, v, w in rows)
    return f"<h2>Settings</h2><details open><summary>All {len(rows)}</summary><table>{body}</table></details>"
