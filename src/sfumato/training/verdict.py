"""The stop report as a part of report.html: sentences, losses by band of noise, samples nearest to training data."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from typing import Any

from sfumato.training.summary import Facts, figure, load, words

_NEAREST = "nearest.png"


def verdict(run: Path) -> str:
    """The part of the page, from report.json of a run folder; nothing where there is none yet."""
    facts = load(run)
    if facts is None:
        return ""
    said = "".join(f"<li>{escape(line)}</li>" for line in words(facts))
    parts = [f"<h2>How it went</h2><ul>{said}</ul>", _bands(facts["holdout"])]
    if facts["memorisation"] is not None and (run / "samples" / _NEAREST).exists():
        parts.append(_nearest(run / "samples" / _NEAREST))
    return "".join(parts)


def _bands(holdout: dict[str, Any] | None) -> str:
    """A row a band, and one for all."""
    if holdout is None or not holdout["bands"]:
        return ""
    whole = {"name": "all", "logsnr": None, "loss": holdout["loss"], "gap": holdout["gap"]}
    rows = "".join(_row(band) for band in [*holdout["bands"], whole])
    head = "<tr><th></th><th>logsnr</th><th>hold-out loss</th><th>gap to training samples</th></tr>"
    told = (
        f"{holdout['triples']} fixed triples of sample, noise and level from {holdout['samples']} held-out samples; "
        "95 % intervals for new samples. The gap is taken triple by triple under the same noise: above 0, the model "
        "knows its training samples better."
    )
    table = f'<div class="wide"><table class="figures">{head}{rows}</table></div>'
    return f'<h2>Loss on unseen samples, by noise</h2><p class="quiet">{told}</p>{table}'


def _row(band: Facts) -> str:
    levels = "" if band["logsnr"] is None else " to ".join(_level(edge) for edge in band["logsnr"])
    gap = "" if band["gap"] is None else figure(band["gap"], "+.4f")
    cells = [band["name"], levels, figure(band["loss"], ".4f"), gap]
    return f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"


def _level(edge: float | None) -> str:
    return "its end" if edge is None else f"{edge:.2f}"


def _nearest(path: Path) -> str:
    encoded = base64.b64encode(path.read_bytes()).decode()
    told = "The samples that come nearest to training samples (above), and these (below)."
    image = f'<img alt="samples beside the nearest training samples" src="data:image/png;base64,{encoded}">'
    return f"<h2>Nearest to the training data</h2><figure><figcaption>{told}</figcaption>{image}</figure>"
