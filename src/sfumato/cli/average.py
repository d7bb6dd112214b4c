"""`average`: a model file whose weights are averaged over another part of the run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from sfumato import serialization
from sfumato.cli.run import Voice
from sfumato.errors import SfumatoError
from sfumato.training.averages import average as averaged


def average(options: Any, voice: Voice) -> None:
    out = Path(options.out or f"average-{options.width:g}.safetensors")
    if out.suffix != ".safetensors":
        raise SfumatoError(f"{out} must end in .safetensors, as model files do.")
    denoiser = averaged(options.folder, options.width)
    serialization.save(denoiser, out)
    made = denoiser.provenance["average"]
    voice.emit({"model": str(out), "hash": serialization.read_contract(out)["hash"], **made})
    voice.say(
        f"{out}: the weights of {options.folder}, averaged over a window of {options.width:g} of the run.",
        f"Its profile is {made['profile_error']:.1%} off the requested one.",
        "",
        "To sample it:",
        f"  sfumato sample {shlex.quote(str(out))}",
    )
