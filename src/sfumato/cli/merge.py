"""`merge`: one plain model file of a base and its adapters."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from sfumato import adapters, serialization
from sfumato.cli.run import Voice
from sfumato.errors import SfumatoError


def merge(options: Any, voice: Voice) -> None:
    out = Path(options.out)
    if out.suffix != ".safetensors":
        raise SfumatoError(f"{out} must end in .safetensors, as model files do.")
    model = serialization.load(options.model, base=options.base)
    merged = adapters.merge(model)
    if merged is model:
        raise SfumatoError(f"{options.model} has no adapters to merge: it is one model already.")
    serialization.save(merged, out)
    voice.emit({"model": str(out), "hash": serialization.read_contract(out)["hash"]})
    voice.say(
        f"{out}: the model with its adapters merged.", "", "To sample it:", f"  sfumato sample {shlex.quote(str(out))}"
    )
