"""Two minutes of text: what `sfumato demo --text` learns, beside an autoregressive model of the same network.

    python benchmarks/verse.py [--minutes 2]

Each model is trained on Shakespeare for the same time, as the demo trains it, and draws 48 texts of 128 characters in
each of the ways that docs/how-to/text.md names; words are those that occur in the works held out. For idle cores, since
the budget is one of time. Results: results/verse.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import sfumato as sf
from record import HERE, commit, hardware
from sfumato.cli.train import VERSE, VERSE_NET
from sfumato.diagnostics.text_bits import known_words

TEXTS = 48
BY_LETTER = {"order": "left-to-right", "steps": VERSE}
WAYS: dict[str, dict[str, dict[str, Any]]] = {
    "masked": {
        "64 steps": {"steps": 64},
        "128 steps": {"steps": VERSE},
        "128 steps, left to right": BY_LETTER,
        "64 steps, left to right": {"order": "left-to-right", "steps": 64},
        "64 steps, temperature 0.7": {"steps": 64, "temperature": 0.7},
        "128 steps, left to right, temperature 0.7": {**BY_LETTER, "temperature": 0.7},
    },
    "autoregressive": {"plain": {}, "temperature 0.7": {"temperature": 0.7}},
}


def trained(loss: str, minutes: float, folder: Path) -> tuple[Any, dict[str, Any]]:
    """(the model, the bits of its report, with the number of characters seen)."""
    run = sf.train(
        "shakespeare", folder / loss, minutes=minutes, length=VERSE, batch=8, net=VERSE_NET, loss=loss, sample_every=0
    )
    text = json.loads((run.path / "report.json").read_text())["text"]
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    seen = max(line.get("samples", 0) for line in lines) * VERSE
    bits = {
        "bits": text["model"]["value"],
        "stderr": text["model"]["stderr"],
        "order0": text["order0"],
        "xz": text["xz"],
    }
    return sf.load(run.path), {**bits, "characters": seen}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=2.0)
    options = parser.parse_args()
    source = sf.data.open("shakespeare", length=VERSE)
    train, held = (source.text.decode(source.x[rows].flatten().tolist()) for rows in source.split())
    rows: dict[str, Any] = {"the other works": known_words([train], held)}
    with tempfile.TemporaryDirectory() as folder:
        for loss, ways in WAYS.items():
            model, facts = trained(loss, options.minutes, Path(folder))
            words = {
                name: known_words(sf.sample_text(model, TEXTS, length=VERSE, seed=1, **how), held)
                for name, how in ways.items()
            }
            rows[loss] = {**facts, "words": words}
            print(f"{loss}: {facts['bits']:.2f} +- {facts['stderr']:.2f} bits, {facts['characters'] / 1e6:.2f} M seen")
            print(*(f"    {share:4.0%}  {name}" for name, share in words.items()), sep="\n", flush=True)
    found = {"hardware": hardware(), "commit": commit(), "minutes": options.minutes, "rows": rows}
    (HERE / "results/verse.json").write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
