"""`memorization`: how close a model's samples are to its training data."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sfumato import serialization
from sfumato.cli.look import opened, with_training_data
from sfumato.cli.process import at_work
from sfumato.cli.run import Voice
from sfumato.data import Source
from sfumato.diagnostics.memorization import Memorization, pairs_picture
from sfumato.diagnostics.memorization import memorization as judged
from sfumato.errors import SfumatoError
from sfumato.machine import device_of
from sfumato.model import Denoiser
from sfumato.pictures import save_png
from sfumato.sampling import STATELESS
from sfumato.training.precision import compute_dtype


@at_work()
def memorization(options: Any, voice: Voice) -> None:
    if options.number < 2 or (options.steps is not None and options.steps < 1) or options.batch < 1:
        raise SfumatoError("-n needs at least 2 samples, and --steps and --batch at least 1")
    if options.out is not None and Path(options.out).suffix.lower() != ".png":
        raise SfumatoError(f"{options.out} has no known kind: end it in .png")
    options = with_training_data(options, "give DATA after it", "sf.memorization")
    device = device_of(options.device)
    denoiser = serialization.load_sampler(options.model, options.weights, device, STATELESS)
    denoiser.compute_dtype = compute_dtype("auto", device)
    found = judged(
        denoiser, opened(options, denoiser.spec), _unseen(options), samples=options.number, size=options.size,
        steps=options.steps, guidance=options.guidance, seed=options.seed, batch=options.batch, device=device,
    )  # fmt: skip
    if options.out is not None:
        _draw(Path(options.out).expanduser(), found, denoiser)
    voice.emit({**found.to_dict(), "model": str(options.model), "data": options.data, "out": options.out})
    voice.say(*str(found).splitlines())
    if options.out is not None:
        voice.say(f"{options.out}: the samples closest to training samples (above), and those (below).")


def _unseen(options: Any) -> Source | None:
    """The data of --holdout, read as DATA are but for their split."""
    if options.holdout is None:
        if options.holdout_split is not None:
            raise SfumatoError("--holdout-split needs --holdout, to which it belongs")
        return None
    own = {"data": options.holdout, "labels": None, "split": options.holdout_split, "sources": None, "pairs": None}
    return opened(argparse.Namespace(**{**vars(options), **own}))


def _draw(path: Path, found: Memorization, denoiser: Denoiser) -> None:
    picture = pairs_picture(found, denoiser.spec)
    if picture is None:
        raise SfumatoError("There is no picture for points in a plane: leave out --out")
    save_png(picture, path)
