"""`sample` of a model of text: printed, and written as .txt, as lines of JSON, or as a file each."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from sfumato.autoregressive import Autoregressive
from sfumato.cli import write
from sfumato.data.text import printable
from sfumato.distributed import World
from sfumato.errors import SfumatoError
from sfumato.files import write_text
from sfumato.process import Masked
from sfumato.sampling import BATCH
from sfumato.text_samples import RULE, STEPS, sample_text

NUMBER = 4
FILES = (".txt", ".jsonl")
_FLAGS = ("length", "prompt", "infill", "order", "temperature", "top_p")


def refuse(options: Any, but: str = "") -> None:
    """Raise SfumatoError for flags of text, given of another model. but: a flag that it has, too."""
    for name in (name for name in _FLAGS if name != but):
        if getattr(options, name, None) is not None:
            raise SfumatoError(f"--{name.replace('_', '-')} is for models of text, and this is none: leave it out")


def draw(options: Any, denoiser: Any, origin: dict[str, Any], world: World) -> dict[str, Any]:
    """Sample and write texts; returns out, files, seconds, the texts and the manifest, which begins with `origin`."""
    started = time.monotonic()
    out = world.broadcast_result(lambda: options.out or write.free("samples.txt"))
    path, folder = world.broadcast_result(lambda: (write.check(out, FILES), write.is_folder(out)))
    index = torch.arange(options.first, options.first + origin["number"])
    if isinstance(denoiser, Autoregressive) and options.steps is not None:
        raise SfumatoError("--steps is for masked text: an autoregressive model makes one call a symbol; leave it out")
    asked = {name: value for name in _FLAGS if (value := getattr(options, name)) is not None}
    texts = sample_text(
        denoiser, steps=options.steps, solver=options.solver, seed=options.seed, index=index,
        batch=options.batch or BATCH, **asked,
    )  # fmt: skip
    if isinstance(denoiser, Autoregressive):
        how: dict[str, Any] = {"solver": "autoregressive", "steps": denoiser.shape[-1]}
    else:
        usual = "reveal" if isinstance(denoiser.process, Masked) else denoiser.process.default_solver
        how = {"solver": options.solver or usual, "steps": options.steps or STEPS}
    facts = {**origin, **how, **asked}
    facts = {name: value for name, value in facts.items() if value is not None}
    files = world.broadcast_result(lambda: _write(path, folder, texts, facts))
    seconds = round(time.monotonic() - started, 2)
    return {"out": out, "files": files, "seconds": seconds, "texts": texts, "manifest": facts}


def _write(path: Path, folder: bool, texts: list[str], facts: dict[str, Any]) -> int:
    """The number of files."""
    if folder:
        for number, text in enumerate(texts, facts["first"]):
            write_text(path / f"{number:05d}.txt", text)
        return len(texts)
    if path.suffix.lower() == ".txt":
        write_text(path, RULE.join(texts) + "\n")
        return 1
    kept = {name: value for name, value in facts.items() if name not in ("first", "number")}
    lines = [{"text": text, "index": number, **kept} for number, text in enumerate(texts, facts["first"])]
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return 1


def shown(texts: list[str]) -> list[str]:
    """The texts for a terminal, with a rule after each."""
    rule = RULE.strip()
    return [line for text in texts for line in (printable(text), rule)]
