"""`sample` given a measurement or a sample: inpainting, enlarging, deblurring, variations, interpolation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfumato import inverse, latents, pictures
from sfumato.cascade import Cascade, Staged
from sfumato.cli import conditions, write
from sfumato.cli.guidance import FLAGS, guided, refuse_alone
from sfumato.compose import Wrapped
from sfumato.data import DataSpec
from sfumato.data.images import ImageFiles, read_images
from sfumato.data.numpy_files import load
from sfumato.errors import SfumatoError, counted
from sfumato.files import atomic, require_plain
from sfumato.inverse import operators
from sfumato.process import Masked
from sfumato.progress import counting
from sfumato.sampling import plans, sample
from sfumato.state import first_leaf
from sfumato.unclip import UnCLIP

NUMBER, NOISE, STRENGTH = 16, 0.01, 0.6
GREY, MOST_GREY = 0.1, 0.25  # of the range from black or white, and the share of a mask that may be between, at edges
MEASURED = ("inpaint", "extend", "upscale", "deblur", "denoise", "measured")
_EDITS = (*MEASURED, "from", "interpolate", "variations")
_OF_STAGES = {"upscale": Cascade, "interpolate": UnCLIP, "variations": UnCLIP}
_WITH: dict[str, tuple[str, ...]] = {
    "mask": ("inpaint",), "sensor": ("measured",), "blur_width": ("deblur",), "strength": ("from",),
    "noise": MEASURED, "method": MEASURED, "particles": MEASURED,
}  # fmt: skip


def wanted(options: Any) -> str | None:
    """The edit that the options ask for, or None. SfumatoError for two, and for flags of an edit that is not asked."""
    asked = [name for name in _EDITS if _value(options, name) is not None]
    if len(asked) > 1:
        raise SfumatoError(f"--{asked[0]} and --{asked[1]} are two things to do: leave out one")
    for name, edits in _WITH.items():
        if _value(options, name) is not None and not set(asked) & set(edits):
            flag = name.replace("_", "-")
            raise SfumatoError(f"--{flag} goes with {' or '.join(f'--{edit}' for edit in edits)}, and none is given")
    return asked[0] if asked else None


def require(edit: str | None, model: Any) -> None:
    """Raise SfumatoError for an edit that the model cannot do: one of stages some, another one all but variations."""
    if isinstance(model, Staged) and edit is not None and not isinstance(model, _OF_STAGES.get(edit, ())):
        kind = "an unCLIP pair" if isinstance(model, UnCLIP) else "a cascade"
        raise SfumatoError(f"--{edit} asks one model, and {kind} has {len(model.stages)}: train one without stages")
    if edit == "variations" and not isinstance(model, UnCLIP):
        raise SfumatoError("--variations are those of an unCLIP pair (train --unclip): take --from with this model")


def refuse(options: Any, what: str, instead: str) -> None:
    """Raise SfumatoError for an edit of data for which there is none."""
    asked = wanted(options)
    if asked is not None:
        raise SfumatoError(f"--{asked} is for pictures and arrays, and this is a model of {what}: {instead}")


def draw(edit: str, options: Any, denoiser: Any, origin: dict[str, Any], note: Callable[[str], None]) -> dict[str, Any]:
    """Sample and write, with mean and deviation beside; returns out, files, seconds and the manifest."""
    started, spec = time.monotonic(), denoiser.spec
    out = options.out or write.default_name(spec)
    path, folder = write.check_samples(out, origin["number"], spec), write.is_folder(out)
    denoiser.compute_dtype = None  # what is known of a sample is more than bfloat16 keeps
    cond = conditions.values(conditions.said(options, spec.conditions, options.class_), spec.conditions)
    refuse_alone(options, options.guidance)
    model = guided(options, denoiser, options.guidance)
    if cond and options.guidance is None:
        note("Not guided; --guidance sets a scale.")
    facts = {**origin, "precision": "float32", "edit": edit}
    names = ("guidance", "guidance_interval", *FLAGS)
    facts |= {name: value for name in names if (value := getattr(options, name)) is not None}
    if cond:
        facts |= {"conditions": {name: str(value) for name, value in cond.items()}}
    how = {"n": origin["number"], "seed": options.seed, "batch": options.batch, "cond": cond}
    if isinstance(denoiser, Staged):
        x, more = _by_stages(edit, options, model, spec, how, note)
    elif edit in MEASURED:
        x, more = _posterior(edit, options, model, spec, how, note)
    elif edit == "from":
        x, more = _variations(options, model, spec, how, note)
    else:
        x, more = _between(options, model, spec, how, note)
    facts |= more
    files = write.write(path, folder, x.numpy(), {}, spec, facts)
    if edit != "interpolate" and len(x) > 1:
        beside = _beside(path, folder, x.double().numpy(), spec, facts)
        note(f"The mean of the samples is in {beside[0]}, their standard deviation in {beside[1]}.")
        files += len(beside)
    return {"out": out, "files": files, "seconds": round(time.monotonic() - started, 2), "manifest": facts}


class _Counted(Wrapped):
    """The model, which calls `begun` first, and counts the rows that it is called for."""

    def __init__(self, inner: Any, count: Callable[[int], None], begun: Callable[[], None]) -> None:
        super().__init__(inner)
        self._count, self._begun, self.two_times = count, begun, getattr(inner, "two_times", False)
        self._idle = True

    def __call__(self, z: Any, t: Any, /, **cond: Any) -> Any:
        if self._idle:
            self._idle = False
            self._begun()
        self._count(len(first_leaf(z)))
        return self.inner(z, t, **cond)


@contextmanager
def _costing(model: Any, what: str, rows: str, number: int, calls: int, note: Callable[[str], None]) -> Iterator[Any]:
    """Yield the model, which says at its first call, after all that is refused, what is drawn how and at what cost, and
    counts its calls where progress is shown."""
    with counting("Calls of the model for a sample", number * calls) as count:
        words = f"{what}: {counted(calls, 'call')} for each of {number:,} {rows}."
        yield _Counted(model, count, lambda: note(words))


def _variations(
    options: Any, model: Any, spec: DataSpec, how: dict[str, Any], note: Callable[[str], None]
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Samples from a noised one on, and the facts."""
    strength = STRENGTH if options.strength is None else options.strength
    how |= {"steps": options.steps, "solver": options.solver}
    x, plan = _sample(getattr(options, "from"), spec), plans(model, options.steps, options.solver)[0]
    with _costing(model, f"From strength {strength:g} by {plan.name}", "samples", how["n"], plan.spent, note) as heard:
        x = inverse.vary(heard, x, strength, **how)
    return x, {"strength": strength, "steps": plan.steps, "solver": plan.name}


def _between(
    options: Any, model: Any, spec: DataSpec, how: dict[str, Any], note: Callable[[str], None]
) -> tuple[torch.Tensor, dict[str, Any]]:
    """The way between two samples, and the facts."""
    a, b = (_sample(name, spec)[None] for name in options.interpolate)
    n, calls = max(how["n"], 2), 4 * latents.DEFAULT_STEPS
    with _costing(model, "Encoded and decoded by the probability flow", "samples", n + 2, calls, note) as heard:
        x = latents.interpolate(heard, a, b, torch.linspace(0, 1, n).tolist(), cond=how["cond"])[:, 0]
    return x, {"steps": latents.DEFAULT_STEPS, "solver": "probability flow"}


def _by_stages(
    edit: str, options: Any, model: Any, spec: DataSpec, how: dict[str, Any], note: Callable[[str], None]
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Samples of the last stage, told by pictures what the stages before would say, and the facts."""
    how |= {"steps": options.steps, "solver": options.solver}
    plan = plans(model, options.steps, options.solver)[-1]
    more, n = {"steps": plan.steps, "solver": plan.name}, how["n"]
    said = f"The last stage by {plan.name}: {counted(plan.spent, 'call')} for each of {counted(n, 'sample')}."
    if edit == "upscale":
        small = _small(options.upscale, model, spec)
        note(said)
        return sample(model, low_resolution=small, **how), more
    x = [_sample(name, spec) for name in (options.interpolate or [options.variations])]
    note(said)
    if edit == "variations":
        return latents.variations(model, x[0], **how), more
    shares = torch.linspace(0, 1, max(how.pop("n"), 2)).tolist()
    return latents.interpolate(model, x[0][None], x[1][None], shares, **how)[:, 0], more


def _small(file: str, model: Any, spec: DataSpec) -> torch.Tensor:
    """The pictures that a cascade enlarges, one or one each, of the size of what one of its stages draws."""
    small = _values(file, spec)
    shapes = [tuple(stage.shape) for stage in model.stages[:-1]]
    if tuple(small.shape[-len(spec.shape) :]) not in shapes:
        sizes = " or ".join(_size(shape) for shape in shapes)
        raise SfumatoError(f"{file} is {_size(small.shape)}, and the model enlarges pictures of {sizes}: resize it")
    return small


def _value(options: Any, name: str) -> Any:
    return getattr(options, name, None)


def _posterior(
    edit: str, options: Any, model: Any, spec: DataSpec, how: dict[str, Any], note: Callable[[str], None]
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Samples given what is measured, and the facts about them."""
    y, operator = _measurement(edit, options, spec)
    scale = spec.bounds[1] - spec.bounds[0] if spec.bounds else sum(spec.statistics.std) / len(spec.statistics.std)
    noise = (NOISE if options.noise is None else options.noise) * scale
    own = {"method": options.method or "auto", "steps": options.steps, "solver": options.solver}
    own |= {} if options.particles is None else {"particles": options.particles}
    if isinstance(model.process, Masked):  # its unknown symbols are revealed, as in any other sampling
        found = inverse.posterior(model, y, operator, noise, **own, **how)
    else:
        way = inverse.way(model, inverse.Measurement(model, y, operator, noise), n=how["n"], **own)
        what, rows = str(way.method), "samples"
        if isinstance(way.method, inverse.SMC):
            what, rows = f"{what}, {math.prod(spec.shape):,} products with the Jacobian a call", "particles"
        with _costing(model, what, rows, way.rows, way.calls, note) as heard:
            found = inverse.posterior(heard, y, operator, noise, **own, **how)
    facts = {"method": found.method, "noise": noise, "steps": found.steps, "solver": found.method}
    if found.log_evidence is not None:
        facts |= {"log_evidence": found.log_evidence, "error": found.error, "effective": found.effective}
    return found.samples, facts


def _measurement(edit: str, options: Any, spec: DataSpec) -> tuple[Any, operators.Operator]:
    """(y, operator) of an edit, in the units of the data."""
    file = _value(options, edit)
    if edit == "measured":
        return torch.from_numpy(load(Path(file))).double(), operators.Linear(torch.from_numpy(_sensor(options)))
    if edit == "inpaint":
        return _with_gaps(options, spec)
    if edit == "denoise":
        return _sample(file, spec), operators.Mask(torch.ones(spec.shape))
    if edit == "deblur":
        if options.blur_width is None:
            raise SfumatoError("--deblur needs how wide the blur is: --blur-width 1.5, a standard deviation in pixels")
        return _sample(file, spec), operators.Blur(options.blur_width)
    small = _values(file, spec)
    if small.ndim != len(spec.shape) or small.shape[0] != spec.shape[0]:
        raise SfumatoError(f"{file} has shape {tuple(small.shape)}, and the model's samples {spec.shape}")
    if edit == "extend":
        return _in_the_middle(file, small, spec.shape)
    factors = {whole / part for whole, part in zip(spec.shape[1:], small.shape[1:], strict=True)}
    factor = factors.pop()
    if factors or factor != int(factor) or factor < 2:
        raise SfumatoError(
            f"{file} is {_size(small.shape)}, which no whole factor enlarges to the model's {_size(spec.shape)}: "
            "resize it"
        )
    return small, operators.Pool(int(factor))


def _with_gaps(options: Any, spec: DataSpec) -> tuple[torch.Tensor, operators.Mask]:
    x = _sample(options.inpaint, spec)
    if options.mask is None:
        if not bool(x.isnan().any()):
            raise SfumatoError(
                f"{options.inpaint} has no gaps (NaN): add --mask mask.png, which is white where it is to be filled in"
            )
        return x, operators.Mask.of(x)
    mask = _raw(options.mask)[0]
    if mask.shape[-len(spec.shape) + 1 :] != spec.shape[1:]:
        raise SfumatoError(
            f"{options.mask} is {_size(mask.shape)}, and the model's samples are {_size(spec.shape)}: the sides of the "
            "mask have to be those of the samples"
        )
    _require_two_values(options.mask, mask)
    hidden = torch.from_numpy(mask > mask.max() / 2)
    if not bool(hidden.any()):
        raise SfumatoError(f"{options.mask} is black: make white what is to be filled in")
    if hidden.ndim == len(spec.shape) and len(hidden) != spec.shape[0]:  # a picture of other channels
        hidden = hidden.any(0)
    return x, operators.Mask(~hidden)


def _require_two_values(file: str, mask: np.ndarray) -> None:
    """Raise SfumatoError for a picture that is no mask: more than its edges are grey."""
    low, high = float(mask.min()), float(mask.max())
    grey = (mask > low + GREY * (high - low)) & (mask < high - GREY * (high - low))
    if grey.mean() > MOST_GREY:
        raise SfumatoError(
            f"{file} is no mask, {grey.mean():.0%} of it is grey: make what is to be filled in white, all else black"
        )


def _in_the_middle(file: str, small: torch.Tensor, shape: tuple[int, ...]) -> tuple[torch.Tensor, operators.Mask]:
    if tuple(small.shape) == shape or any(a > b for a, b in zip(small.shape, shape, strict=True)):
        raise SfumatoError(
            f"{file} is {_size(small.shape)}, and the model's samples are {_size(shape)}: what is extended has to be "
            "smaller"
        )
    whole = torch.full(shape, torch.nan, dtype=torch.float64)
    first = [(b - a) // 2 for a, b in zip(small.shape, shape, strict=True)]
    whole[tuple(slice(i, i + a) for i, a in zip(first, small.shape, strict=True))] = small
    return whole, operators.Mask.of(whole)


def _sensor(options: Any) -> np.ndarray:
    if options.sensor is None:
        raise SfumatoError("--measured needs the matrix A that measures: --sensor A.npy, (m, numbers of a sample)")
    return load(Path(options.sensor)).astype(np.float64)


def _raw(file: str) -> tuple[np.ndarray, bool]:
    """(the array of a .npy file, or a picture as (C, H, W); whether it is a picture)."""
    path = Path(file).expanduser()
    if path.suffix.lower() == ".npy":
        return load(path), False
    require_plain(path)
    return read_images(ImageFiles(path.parent, [path]), None).x[:].numpy()[0], True


def _values(file: str, spec: DataSpec) -> torch.Tensor:
    """What a file holds in the units of the data, float64; pictures are stretched over the declared bounds."""
    x, picture = _raw(file)
    values = torch.from_numpy(x.astype(np.float64))
    if picture and x.dtype.kind == "u" and spec.bounds is not None:
        low, high = spec.bounds
        values = low + (high - low) * values / np.iinfo(x.dtype).max
    return values


def _sample(file: str, spec: DataSpec) -> torch.Tensor:
    """A sample (*shape) from a file, in the units of the data."""
    x = _values(file, spec)
    x = x[0] if x.ndim == len(spec.shape) + 1 and len(x) == 1 else x
    if tuple(x.shape) != spec.shape:
        if spec.kind == "image" and x.ndim == 3 and tuple(x.shape[1:]) == spec.shape[1:]:
            raise SfumatoError(
                f"{file} has {x.shape[0]} channels, and the model's pictures have {spec.shape[0]}: convert it"
            )
        raise SfumatoError(f"{file} is {_size(x.shape)}, and the model's samples are {_size(spec.shape)}: resize it")
    return x


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _beside(path: Path, folder: bool, x: np.ndarray, spec: DataSpec, facts: Mapping[str, Any]) -> list[Path]:
    """Write mean and standard deviation of the samples: pictures beside a picture, or else .npy files."""
    mean, std = x.mean(0), x.std(0, ddof=1)
    drawn = spec.kind == "image" and (folder or path.suffix.lower() == ".png")
    names = []
    for name, values, bounds in (("mean", mean, spec.bounds), ("std", std, (0.0, float(std.max()) or 1.0))):
        place = path / name if folder else path.with_name(f"{path.stem}-{name}")
        place = place.with_name(place.name + (".png" if drawn else ".npy"))
        if drawn:
            own = {**facts, "shows": name} | ({"white": bounds[1]} if bounds else {})
            pictures.save_png(pictures.picture(values[None], spec.kind, bounds), place, own)
        else:
            with atomic(place) as temporary, temporary.open("wb") as file:
                np.save(file, values, allow_pickle=False)
        names.append(place)
    return names
