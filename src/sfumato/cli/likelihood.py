"""`likelihood`: the likelihood of data under a model, in nats and, for whole numbers, in bits per dimension."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfumato import data, serialization
from sfumato.cli import conditions as asked
from sfumato.cli.look import opened
from sfumato.cli.process import at_work
from sfumato.cli.run import Voice
from sfumato.conditions import Conditions, of_data
from sfumato.coupling_flow import CouplingFlow
from sfumato.data import DataSpec, frames
from sfumato.errors import SfumatoError, counted
from sfumato.files import atomic
from sfumato.likelihood import Measured, log_prob
from sfumato.likelihood.measured import WHOLE
from sfumato.likelihood.rows import row_log_prob
from sfumato.machine import device_of
from sfumato.process import source_of

WORDS = {
    "stderr": "standard error of the estimate",
    "solver_error": "change from half the steps",
    "prior_mismatch": "included for the prior",
    "truncation": "lost without the step to no noise",
    "prior": "the prior's term",
    "diffusion": "the terms of the noise levels",
    "reconstruction": "the term of the least noise",
}


@at_work()
def likelihood(options: Any, voice: Voice) -> None:
    started = time.monotonic()
    if options.number < 1:
        raise SfumatoError(f"-n needs at least 1 sample, got {options.number}")
    if options.out is not None and Path(options.out).suffix.lower() != ".npz":
        raise SfumatoError(f"{options.out} has no known kind: end it in .npz")
    denoiser = serialization.load_sampler(options.model, device=device_of(options.device), also=CouplingFlow)
    spec = asked.spec_of(denoiser, options.model)
    if spec.table is not None:
        of_rows(denoiser, options, voice, started)
        return
    source = opened(options, spec)
    if any(source.missing) and not any(spec.missing):
        raise SfumatoError(
            f"{source.name} has {source.gaps}, and the model knows whole samples alone: fill them, or leave them out"
        )
    # spread over the set: folders are sorted by class
    chosen = torch.linspace(0, len(source) - 1, min(options.number, len(source))).round().long()
    said = asked.said(options, spec.conditions, options.class_)
    given = asked.conditions(said, spec, torch.arange(len(chosen)))
    begin = source_of(getattr(denoiser, "process", None))  # without which there is no path
    own = _own(source, chosen, spec) if options.conditional or begin in source.conditions else {}
    own = own if options.conditional else {name: each for name, each in own.items() if name == begin}
    cond = Conditions({**own, **given})
    known = [name for name in source.conditions if name in spec.conditions and name != begin]
    if known and not cond.keys() - {begin}:
        voice.note(f"Not conditioned on {', '.join(known)}; --conditional takes each sample under its own.")
    method = None if options.method == "auto" else options.method
    found = log_prob(
        denoiser, source.x[chosen], method, options.steps, options.trace, options.probes, options.seed,
        index=chosen, sigma_min=options.sigma_min, batch=options.batch, dequantisation=options.dequantisation,
        particles=options.particles, cond=cond,
    )  # fmt: skip
    if options.out is not None:
        _write(Path(options.out).expanduser(), found, chosen)
    voice.emit({**facts(found), "model": str(options.model), "data": source.name, "out": options.out,
                "seconds": round(time.monotonic() - started, 1)})  # fmt: skip
    voice.say(*report(found, spec))


def of_rows(denoiser: Any, options: Any, voice: Voice, started: float) -> None:
    """Nats of rows and bits by column; -o writes both for every row."""
    table = frames.arrow_of(options.data)
    chosen = np.linspace(0, len(table) - 1, min(options.number, len(table))).round().astype(int)
    found = row_log_prob(denoiser, table.take(chosen), options.steps, options.batch)
    if options.out is not None:
        both: dict[str, Any] = {"value": found.value, "chain": found.chain, "rest": found.rest}
        with atomic(Path(options.out).expanduser()) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, index=chosen, columns=np.array(found.columns), **both)
    bits = {name: float(each.mean()) for name, each in found.bits.items()}
    rest = (-found.rest.mean(0) / math.log(2)).tolist()
    voice.emit({
        "nats": _finite([float(found.value.mean())])[0], "samples": len(found), "bits": _finite([*bits.values()]),
        "bits_given_rest": _finite(rest), "columns": found.columns, "steps": found.steps, "model": str(options.model),
        "data": options.data, "out": options.out, "seconds": round(time.monotonic() - started, 1),
    })  # fmt: skip
    voice.say(f"{found}. Bits of a cell, given the columns before it, and given all others:")
    for (name, each), own in zip(bits.items(), rest, strict=True):
        density = ", a density in its units" if name in found.densities else ""
        voice.say(f"  {name:<20} {each:9.3f} {own:9.3f}{density}")
    rows = ", ".join(f"{chosen[i]} ({float(found.value[i]):.1f})" for i in found.value.argsort()[:5].tolist())
    voice.say(f"The least likely rows, by number (nats): {rows}.")


def _own(source: data.Source, chosen: torch.Tensor, spec: DataSpec) -> Conditions:
    """The samples' own conditions, encoded for the model."""
    found = of_data(spec, source, chosen)
    if not found:
        raise SfumatoError("--conditional needs data with classes (or other conditions): set --labels, or leave it out")
    return found


def facts(found: Measured) -> dict[str, Any]:
    """The result over all samples, for JSON."""
    mean, error = found.mean()
    made: dict[str, Any] = {
        "nats": mean,
        "nats_stderr": error if len(found) > 1 else None,
        "samples": len(found),
        "dim": found.dim,
    }
    if found.dequantisation is not None:
        made |= {"bits_per_dim": float(found.bits_per_dim.mean()), "dequantisation": found.dequantisation}
    rms = {name: float(figure.square().mean().sqrt()) for name, figure in found.figures.items()}
    made |= {"method": found.method, "bound": found.bound, "steps": found.steps, "rms": rms}
    if found.by_level is not None and found.levels is not None:
        made["levels"] = {"logsnr": _finite(found.levels.tolist()), "nats": found.by_level.mean(0).tolist()}
    return made


def _figure(value: float) -> str:
    """Two significant digits: 0.012, 4.7, 190, 92,000."""
    rounded = float(f"{value:.2g}")
    return f"{rounded:,.0f}" if 100 <= abs(rounded) < 1e6 else f"{rounded:g}"


def _finite(values: list[float]) -> list[float | None]:
    """The values with None for the infinite end of a schedule, which JSON lacks."""
    return [value if math.isfinite(value) else None for value in values]


def report(found: Measured, spec: DataSpec) -> list[str]:
    """The result over all samples, in words."""
    mean, error = found.mean()
    between = f" (its standard error {_figure(error)})" if len(found) > 1 else ""
    sign = ">=" if found.bound else "="
    what = "log p(x)" if spec.lengths is None else "log p(x | its length)"
    lines = [f"{what} {sign} {mean:.6g} nats per sample{between}, in the units of the data ({spec.dtype})."]
    if found.dequantisation is not None:
        bits = float(found.bits_per_dim.mean())
        above = ": a bound from above" if found.bound or found.dequantisation != "symbols" else ""
        lines.append(f"{bits:.4f} bits per dimension, {WHOLE[found.dequantisation]}{above}.")
    lines.append(
        f"{counted(len(found), 'sample')} of {found.sizes} numbers; {found.method}, {counted(found.steps, 'step')}. Of "
        "one sample (rms):"
    )
    return lines + [f"  {WORDS[name]:<33} {_figure(value)} nats" for name, value in facts(found)["rms"].items()]


def _write(path: Path, found: Measured, chosen: torch.Tensor) -> None:
    columns: dict[str, Any] = {name: figure.numpy() for name, figure in {"value": found.value, **found.figures}.items()}
    if found.by_level is not None and found.levels is not None:
        columns |= {"levels": found.levels.numpy(), "by_level": found.by_level.numpy()}
    if found.dequantisation is not None:
        columns["bits_per_dim"] = found.bits_per_dim.numpy()
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, index=chosen.numpy(), **columns)
