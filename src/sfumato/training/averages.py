"""Moving averages of any width, reconstructed after the run from snapshots of two power-function averages.

    profile of a snapshot (gamma, N):   p(n) = (gamma + 1) n^gamma / N^(gamma + 1),   0 < n <= N samples seen
    <p_a, p_b> = (gamma_a + 1) (gamma_b + 1) / (gamma_a + gamma_b + 1)  N_a^gamma_b / N_b^(gamma_b + 1),   N_a <= N_b
    theta(width) = sum_i c_i theta_i,   c = argmin |sum_i c_i p_i - p_width|^2  with  sum_i c_i = 1

A snapshot is one file, RUN/averages/step_00001234.safetensors, with both averages in half precision.
Source: Karras et al. 2023 (2312.02696), Sec. 3.2 and Alg. 3.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sfumato import schema, serialization
from sfumato.cascade import Staged
from sfumato.columns import uncalibrated
from sfumato.errors import SfumatoError
from sfumato.files import read_header, read_sealed, remove, write_sealed
from sfumato.folder import step_of
from sfumato.nets.lora import trained_names
from sfumato.training.ema import EMA, exponent

WIDTHS = (0.05, 0.10)  # of the two averages that snapshots save
FOLDER = "averages"
_FORMAT, _VERSION, _WHAT = "sfumato averages", 2, "snapshot of averages"
_CONTRACT = schema.fields(
    {
        "samples": schema.whole(1, 2**53),
        "widths": schema.listed(schema.number(1e-3, 0.28), 1, 9),
    }
)  # fmt: skip


def tensors(followed: Sequence[EMA]) -> dict[str, Tensor]:
    """The weights of the averages, named `WIDTH.NAME` for each of `WIDTHS`."""
    each = zip(WIDTHS, followed, strict=True)
    return {f"{width:g}.{name}": value for width, ema in each for name, value in ema.state_dict().items()}


def found(run: Path) -> list[Path]:
    """The snapshots of a run folder, sorted by step."""
    return sorted((run / FOLDER).glob("step_*.safetensors"), key=step_of)


def write(run: Path, averages: Mapping[str, Tensor], step: int, samples: int) -> Path:
    """Write a snapshot of the averages, named `WIDTH.NAME`, in half precision. Snapshots of the same or later steps,
    left from before the run went back, are deleted."""
    for old in found(run):
        if step_of(old) >= step:
            remove(old)
    path = run / FOLDER / f"step_{step:08d}.safetensors"
    contract = {"format": _FORMAT, "version": _VERSION, "step": step, "samples": samples, "widths": WIDTHS}
    write_sealed(path, {name: _half(value.detach()) for name, value in averages.items()}, contract)
    return path


def _half(value: Tensor) -> Tensor:
    """A floating-point tensor in half precision, unchanged if it would overflow."""
    half = value.half()
    return half if value.is_floating_point() and bool(half.isfinite().all()) else value


def contents(path: Path) -> list[tuple[Profile, str]]:
    """(profile, prefix of its tensor names) of each average in a snapshot."""
    contract, _ = read_header(path, _WHAT)
    if contract.get("version") != _VERSION:
        raise SfumatoError(
            f"{path} was written by another version of sfumato: average this run with that version, or move "
            f"{path.parent} away."
        )
    schema.require(contract, _CONTRACT, path)
    return [(Profile(exponent(width), contract["samples"]), f"{width:g}.") for width in contract["widths"]]


class Profile(NamedTuple):
    """How an average weighs the past: its exponent gamma and the number of samples seen, N."""

    gamma: float
    samples: float


def overlap(a: Profile, b: Profile) -> float:
    """int p_a(n) p_b(n) dn."""
    a, b = (a, b) if a.samples <= b.samples else (b, a)
    scale = (a.gamma + 1) * (b.gamma + 1) / (a.gamma + b.gamma + 1)
    return scale / b.samples * (a.samples / b.samples) ** b.gamma


def combination(known: Sequence[Profile], wanted: Profile) -> tuple[list[float], float]:
    """(coefficients that sum to 1, relative error |sum c_i p_i - p| / |p| of the combined profile)."""
    n = len(known)
    system = np.zeros((n + 1, n + 1))
    system[:n, :n] = [[overlap(a, b) for b in known] for a in known]
    scale = system[0, 0]
    system[:n, n] = system[n, :n] = scale
    right = np.array([*(overlap(a, wanted) for a in known), scale])
    c = np.linalg.lstsq(system / scale, right / scale, rcond=1e-13)[0][:n]
    own = overlap(wanted, wanted)
    square = own - 2 * c @ right[:n] + c @ system[:n, :n] @ c
    return c.tolist(), math.sqrt(max(0.0, square) / own)


def due(before: float, after: float, count: int) -> bool:
    """Whether one of `count` snapshots, at fractions sqrt(k / count) of the budget, is due between two fractions."""
    return math.floor(count * min(1.0, after) ** 2 + 1e-9) > math.floor(count * min(1.0, before) ** 2 + 1e-9)


def average(run: str | os.PathLike[str], width: float) -> Any:
    """The model of a run with its weights averaged over a window of any width (a fraction of the run).

    theta(width) = sum_i c_i theta_i over the snapshots in RUN/averages (2312.02696, Alg. 3); of a cascade the snapshots
    are those of its last stage. `provenance["average"]`
    holds the width and the relative error of the reconstructed profile. Raises SfumatoError if the run kept no
    snapshots, or if they cannot reconstruct this width (profile error above 1/2).
    """
    path = Path(run).expanduser()
    files = found(path)
    if not files:
        raise SfumatoError(f"{path} kept no snapshots of its averages: train with snapshots above 0.")
    parts = [(file, *each) for file in files for each in contents(file)]
    known = [profile for _, profile, _ in parts]
    coefficients, error = combination(known, Profile(exponent(width), known[-1].samples))
    if error > 0.5:
        raise SfumatoError(
            f"The {len(files)} snapshots of {path} cannot reconstruct an average of width {width:g} (profile error "
            f"{error:.0%}): choose a width closer to {WIDTHS[0]:g} to {WIDTHS[1]:g}, or train with more snapshots."
        )
    model = serialization.load(path)
    denoiser = model.last if isinstance(model, Staged) else model
    own = denoiser.net.state_dict()
    averaged = trained_names(denoiser.net)
    total = {name: torch.zeros(own[name].shape, dtype=torch.float64) for name in averaged}
    for c, (file, _, start) in zip(coefficients, parts, strict=True):
        _, weights = read_sealed(file, _WHAT)
        for name, before in total.items():  # integers are taken from the last snapshot
            value = weights.get(start + name)
            if value is None or value.shape != before.shape:
                raise SfumatoError(f"{file} is of another network than the model: it has no {start + name} like it.")
            total[name] = total[name] + c * value.double() if value.is_floating_point() else value
    denoiser.net.load_state_dict({**own, **{name: value.to(own[name]) for name, value in total.items()}})
    model, provenance = uncalibrated(model), model.provenance  # weights of rows were fitted to other weights
    model.provenance = {**provenance, "average": {"width": width, "profile_error": error}}
    return model
