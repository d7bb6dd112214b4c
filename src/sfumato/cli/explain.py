"""`explain-objective`: how a training objective really weighs noise levels, and what that means."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from sfumato import registry, serialization
from sfumato.cli.look import opened
from sfumato.cli.run import Voice
from sfumato.data import DataSpec
from sfumato.diagnostics.board import board
from sfumato.diagnostics.board_figures import Board
from sfumato.errors import SfumatoError
from sfumato.machine import device_of
from sfumato.objectives import Objective, SymbolObjective
from sfumato.objectives.counts import CountedMasks
from sfumato.process import Additive, Embedded, Masked, Spectral, Symbols, from_config
from sfumato.registry import make
from sfumato.schedule import schedule_of
from sfumato.training.config import NO_PROCESS, TrainConfig, from_dict, read
from sfumato.training.parts import known_here, loss_of

_OF_SEVERAL = "An objective is explained for one kind of data, and this model is of a product of several."
_OF_FREQUENCIES = (
    "An objective is explained for one noise level a sample, and this process has one for each frequency: see "
    "docs/how-to/spectra.md."
)
_DIALS = ("schedule", "target", "times", "weight")
_OF_DATA = ("labels", "size", "split", "key")
_OF_SYMBOLS = ("process", "schedule", "loss", "times", "weight")
_STEP, _WIDEST = 2, 12  # of logsnr, between rows of the table and where it ends


def explain_objective(options: Any, voice: Voice) -> None:
    config, process, sigma_data = _settings(options)
    if isinstance(process, Symbols):
        return _of_symbols(options, voice, config, process)
    objective, names = _objective(config, process, sigma_data)
    fault = _fault(objective)
    seen = _board(options)
    if options.plot is not None:
        (objective if seen is None else seen).plot(options.plot)
    facts = objective.to_dict() | {"named": names, "trainable": fault is None}
    if objective.monotone:
        law = objective.augmentation()
        facts["augmentation"] = {"no_noise": law.atom, "quartiles": _quartiles(objective)}
    if seen is not None:
        facts["board"] = seen.to_dict()
    voice.emit(facts | ({} if fault is None else {"fault": fault}) | ({"plot": options.plot} if options.plot else {}))
    words = ", ".join(f"{dial} {names[dial]}" for dial in _DIALS)
    lo, hi = objective.range
    voice.say(f"{words}; logsnr from {lo:.3g} (noise) to {hi:.3g} (data).", "", *_table(objective), "")
    voice.say(*_nearest(objective), *_bound(objective))
    if fault is not None:
        voice.say("", f"No model can be trained by this objective. {fault}")
    if seen is not None:
        voice.say("", *str(seen).split("\n"))
    if options.plot:
        voice.say("", f"Drawn: {options.plot}")


def _board(options: Any) -> Board | None:
    """The board of the model on the data, if --data is set."""
    if options.data is None:
        given = [name for name in _OF_DATA if getattr(options, name) is not None]
        if given:
            raise SfumatoError(f"--{given[0]} needs --data, to which it belongs.")
        return None
    if options.model is None:
        raise SfumatoError("--data needs a MODEL to judge: a run folder or a model file.")
    if options.schedule is not None or options.target is not None:
        raise SfumatoError("--data judges the model as it is: leave out --schedule and --target.")
    spec = serialization.read_contract(options.model)["spec"]
    source = opened(options, None if spec is None else DataSpec.from_dict(spec))
    return board(
        options.model, source, samples=options.number, gradients=min(8, options.number), times=options.times,
        weight=options.weight, device=device_of(options.device),
    )  # fmt: skip


def _objective(config: TrainConfig, process: Additive | None, sigma_data: float) -> tuple[Objective, dict[str, str]]:
    """The objective of real numbers, and the names of its dials."""
    if loss_of(config).levels() is None:  # raises for settings that cannot be trained
        raise SfumatoError(f"The loss {config.loss} has no noise levels to explain.")
    names = {dial: getattr(config, dial) for dial in _DIALS}
    if process is not None:
        names["schedule"] = type(process.schedule).__name__
    if isinstance(process, Embedded):
        names["target"] = process.target
    schedule = schedule_of(config.schedule) if process is None else process.schedule
    return Objective(schedule, names["target"], config.times, config.weight, sigma_data), names


def _settings(options: Any) -> tuple[TrainConfig, Any, float]:
    """(settings of a run or a model, replaced by those on the command line; process; sigma_data).

    The process is None for real numbers under the schedule of the settings.
    """
    dials = dict.fromkeys((*_DIALS, *_OF_SYMBOLS))
    given = {dial: getattr(options, dial) for dial in dials if getattr(options, dial) is not None}
    if options.model is None:
        config = from_dict(given)
        return config, _process(config), 1.0
    run = Path(options.model).expanduser()
    if (run / "config.yaml").is_file():
        kept = read(str(run / "config.yaml")) | given
        known_here(kept, run)
        config = from_dict(kept)
        return config, _process(config), 1.0
    return _of_file(options.model, given)


def _process(config: TrainConfig) -> Any:
    """The process of symbols of the settings, of two where they leave their number to the data; None for numbers."""
    if config.process in ("gaussian", NO_PROCESS):
        return None
    if config.process == "product":
        raise SfumatoError(_OF_SEVERAL)
    if registry.get("process", registry.bare(config.process)) in Spectral.__subclasses__():
        raise SfumatoError(_OF_FREQUENCIES)
    return make("process", config.process, {"schedule": schedule_of(config.schedule), "states": 2})


def _of_file(word: str, given: dict[str, str]) -> tuple[TrainConfig, Any, float]:
    contract = serialization.read_contract(word)
    if contract["process"] is None:
        raise SfumatoError(f"{word} holds a model without noise levels, which has no objective to explain.")
    if "process" in given:
        raise SfumatoError("A model file knows its process: leave out --process.")
    process = from_config(contract["process"])
    if isinstance(process, Spectral):
        raise SfumatoError(_OF_FREQUENCIES)
    if not isinstance(process, Additive | Symbols):
        raise SfumatoError(_OF_SEVERAL)
    needed = ("times", "weight") if isinstance(process, Additive) else ("times", "weight", "loss")
    given = {**{dial: v for dial, v in contract["provenance"].items() if dial in needed}, **given}
    missing = [f"--{dial}" for dial in needed if dial not in given]
    if missing:
        raise SfumatoError(
            f"{word} does not record how it was trained: add {' and '.join(missing)}, or give its run folder instead."
        )
    if isinstance(process, Symbols):
        given = {"process": contract["process"]["name"].lower(), **given}
        return from_dict(given), process.rescheduled(schedule_of(given.get("schedule", process.schedule))), 1.0
    config = from_dict({"target": process.target, **given})
    return config, None if "schedule" in given else process, process.sigma_data


def _of_symbols(options: Any, voice: Voice, config: TrainConfig, process: Symbols) -> None:
    for name in ("data", "plot", "target"):
        if getattr(options, name) is not None:
            raise SfumatoError(f"The objective of symbols has no --{name}: leave it out.")
    objective = SymbolObjective(process, loss_of(config))
    usual = "masked" if isinstance(objective.loss, CountedMasks) else "denoising"
    loss = usual if config.loss == "auto" else config.loss
    facts = objective.to_dict() | {"loss": loss}
    voice.emit(facts | {"named": {dial: getattr(config, dial) for dial in _OF_SYMBOLS}})
    kind, curve = facts["process"].lower(), facts["schedule"]
    drawn = f", times {config.times}, weight {config.weight}" if hasattr(objective.loss, "times") else ""
    voice.say(f"process {kind}, schedule {curve}, loss {loss}{drawn}.", "")
    voice.say("symbols kept   of the draws   weight w")
    for row in facts["levels"]:
        w = "-" if row["weight"] is None else f"{row['weight']:.4g}"
        voice.say(f"{row['kept'][0]:4g} to {row['kept'][1]:<4g}   {row['drawn']:12.1%}   {w:>8}")
    voice.say("The weight is that at the middle of each range, relative to the bound on -log p(x).", "")
    voice.say(*_told(objective))


def _told(objective: SymbolObjective) -> list[str]:
    lines = ["The weight is 1: the loss is the bound on -log p(x)."] if objective.bound else []
    lines += [f"The same: {', '.join(objective.same)}."] if objective.same else []
    lines += [objective.note] if objective.note else []
    if objective.infinite:
        other = "--loss masked" if isinstance(objective.process, Masked) else "--times uniform-logsnr"
        lines.append(f"The variance of one sample's loss grows with the range of levels without limit: take {other}.")
    elif isinstance(objective.loss, CountedMasks):
        lines.append("A batch spreads over the counts of masks: no chance is left in their number.")
    return lines


def _fault(objective: Objective) -> str | None:
    try:
        objective.check()
    except SfumatoError as error:
        return str(error)
    return None


def _table(objective: Objective) -> list[str]:
    """w, the share of the draws and the factor on the squared error, one line per range of noise levels."""
    lo, hi = objective.range
    edges = [float(at) for at in range(-_WIDEST, _WIDEST + 1, _STEP) if lo < at < hi]
    edges = [lo, *edges, hi] if edges else [lo, hi]
    lines = ["logsnr             noise/signal   of the draws     weight w   factor on the error"]
    unit = float(objective.weight(torch.tensor([min(max(0.0, lo), hi)], dtype=torch.float64))[0]) or 1.0
    for start, stop in zip(edges, edges[1:], strict=False):
        share = objective.share(start, stop)
        middle = torch.tensor([(start + stop) / 2], dtype=torch.float64)
        w, factor = float(objective.weight(middle)[0]) / unit, float(objective.factor(middle)[0])
        ratio = math.exp(-float(middle) / 2)
        lines.append(f"{start:6.4g} to {stop:<6.4g}   {ratio:12.4g}   {share:12.1%}   {w:10.4g}   {factor:19.4g}")
    return [*lines, "Weight and factor are those at the middle of each range; w is relative to its value at logsnr 0."]


def _nearest(objective: Objective) -> list[str]:
    near = objective.nearest()
    name = f"{near.name!r}" + (f" (also called {', '.join(near.aliases)})" if near.aliases else "")
    if near.same:
        return [f"The weight is that of {name}, times {near.scale:.4g}."]
    return [f"No named weight is the same; the nearest is {name}, off by a factor of {near.factor:.3g} (RMS)."]


def _bound(objective: Objective) -> list[str]:
    """Whether the loss is an evidence bound of noised data, and what that means."""
    if not objective.monotone:
        where = " and ".join(f"from {start:.3g} to {stop:.3g}" for start, stop in objective.rises[:3])
        return [
            f"The weight rises with logsnr {where}: the loss is no evidence bound, but trades some",
            "coarse levels away for finer ones (a choice that often looks better than it scores in likelihood).",
        ]
    law = objective.augmentation()
    if law.atom > 1 - 1e-9:
        return ["The weight is constant: the loss is the evidence bound (ELBO) of the data themselves."]
    low, middle, high = _quartiles(objective)
    clean = f", and {law.atom:.2%} have only the least noise" if law.atom >= 5e-5 else ""
    return [
        "The weight never rises with logsnr: the loss is the evidence bound (ELBO) of data to which Gaussian noise was",
        f"added, half of it at logsnr above {middle:.2f}, the middle half from {low:.2f} to {high:.2f}{clean}.",
    ]


def _quartiles(objective: Objective) -> list[float]:
    return objective.augmentation().quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
