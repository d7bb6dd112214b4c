"""The flags of `audit` and `views`. No torch here."""

from __future__ import annotations

from sfumato.cli.common import BATCH, DEVICE, MODEL, READING, SOURCES, WEIGHTS
from sfumato.cli.flags import Command, flag, seed

AUDIT = Command(
    "Measure what a model violates of what holds for every conditional expectation: numbers by noise level that are 0 "
    "for an exact model, with their standard errors, what each means and what to do. Needs no true score and draws no "
    "samples. Writes nothing but -o. With --json, prints one JSON object.",
    [
        MODEL,
        flag("--data", "DATA", f"Data to judge it on: {SOURCES}; by default those of the run, held-out part only."),
        flag(
            "--audit", "NAME",
            "One of those listed in docs/how-to/audit.md, or all; repeat it for more. By default those that cost "
            "little.",
            action="append", dest="audits",
        ),
        flag("-n --number", int, "Draws per noise level.", 512),
        flag("--bins", int, "Noise levels.", 8),
        flag("-o --out", "FILE", "A .json file for the figures."),
        WEIGHTS,
        *READING,
        BATCH,
        seed("draws"),
        DEVICE,
    ],
)  # fmt: skip

VIEWS = Command(
    "Show what a model is in eight languages: autoencoder, latent-variable model, score, reverse SDE, flow, recurrent "
    "network, autoregression over frequencies, conditional expectation. One self-contained page (.html) of a picture "
    "and a number for each, which is checked against the others, and the figures beside it (.json). With --json, "
    "prints one JSON object.",
    [
        MODEL,
        flag("--data", "DATA", f"Data to judge it on: {SOURCES}; by default those of the run, held-out part only."),
        flag("-o --out", "PATH", "The page.", "views.html"),
        flag("-n --number", int, "Samples of the data; likelihood and sensitivity take an eighth of them.", 256),
        WEIGHTS,
        *READING,
        BATCH,
        seed("draws"),
        DEVICE,
    ],
)  # fmt: skip

COMMANDS = {"audit": AUDIT, "views": VIEWS}
