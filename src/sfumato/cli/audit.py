"""`audit` and `views`: what a model violates, and what it is in eight languages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sfumato import serialization
from sfumato.cli.look import opened, with_training_data
from sfumato.cli.process import at_work
from sfumato.cli.run import Voice
from sfumato.data import Source
from sfumato.diagnostics.audit import audit as audited
from sfumato.eight_views import views as looked_at
from sfumato.errors import SfumatoError
from sfumato.files import write_text
from sfumato.machine import device_of


@at_work()
def audit(options: Any, voice: Voice) -> None:
    if options.out is not None and Path(options.out).suffix.lower() != ".json":
        raise SfumatoError(f"{options.out} has no known kind: end it in .json")
    model, source = _asked(options, "sf.audit")
    names = "all" if options.audits == ["all"] else options.audits
    found = audited(
        model, source, audits=names, bins=options.bins, samples=options.number, seed=options.seed, batch=options.batch
    )
    facts = found.to_dict() | {"model": str(options.model), "out": options.out}
    if options.out is not None:
        write_text(Path(options.out).expanduser(), json.dumps(facts, allow_nan=False))
    voice.emit(facts)
    voice.say(*str(found).split("\n"))


@at_work()
def views(options: Any, voice: Voice) -> None:
    if Path(options.out).suffix.lower() != ".html":
        raise SfumatoError(f"{options.out} has no known kind: end it in .html")
    model, source = _asked(options, "sf.views")
    found = looked_at(model, source, samples=options.number, seed=options.seed, batch=options.batch)
    path = found.save(options.out)
    voice.emit(found.to_dict() | {"model": str(options.model), "out": options.out})
    voice.say(*str(found).split("\n"), f"{options.out}: the page; {path.with_suffix('.json').name}: its figures.")


def _asked(options: Any, in_python: str) -> tuple[Any, Source]:
    """The model, and the data to judge it on: those given, or those of its run."""
    options = with_training_data(options, "give --data DATA", in_python)
    model = serialization.load_sampler(options.model, options.weights, device_of(options.device))
    return model, opened(options, getattr(model, "spec", None))
