"""A model is one safetensors file that says what it is.

Tensors `net.*` are the weights to use (the moving average, where there is one) and `raw.*` the last raw weights beside
them. The contract in the header holds the data spec with its normaliser, the process and its schedule, the target,
the network's class and arguments, the conditions, solver plans and provenance; a hash seals all of it (`files`).
"""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato import __version__, nets, process
from sfumato.codec import Codec
from sfumato.data import DataSpec
from sfumato.errors import SfumatoError
from sfumato.files import parameters, read_header, read_sealed, write_sealed
from sfumato.model import Denoiser
from sfumato.solvers import Plan

FORMAT, CODEC, VERSION = "sfumato model", "sfumato codec", 1
FILE = "model.safetensors"  # its name within a run folder


def save(model: Denoiser | Codec, path: str | os.PathLike[str], raw: Mapping[str, Tensor] | None = None) -> Path:
    """Write a denoiser or an autoencoder as one self-describing file, whole or not at all.

    raw: the state dict of the network's raw weights, kept beside those of `model` (their moving average). `load` reads
    a denoiser and `load_codec` an autoencoder.
    Raises SfumatoError where the network cannot be described, weights are not finite, or the path cannot be written.
    """
    if not isinstance(model, Denoiser | Codec):
        raise SfumatoError(f"A file holds a Denoiser or a Codec, not a {type(model).__name__}: save its weights alone.")
    net = model.net
    if not isinstance(getattr(net, "config", None), dict):
        raise SfumatoError(
            f"{type(net).__name__} has no `config` (a dict with its name and arguments), so that no file "
            "could say how to rebuild it: save one of sfumato.nets."
        )
    tensors = {f"net.{name}": value for name, value in net.state_dict().items()}
    tensors |= {f"raw.{name}": value for name, value in (raw or {}).items()}
    broken = next((name for name, value in tensors.items() if not bool(torch.isfinite(value).all())), None)
    if broken is not None:
        raise SfumatoError(f"The weights {broken} hold NaN or infinite values, and are not written to {path}.")
    write_sealed(path, tensors, codec_contract(model) if isinstance(model, Codec) else contract(model))
    return Path(path)


def contract(denoiser: Denoiser) -> dict[str, Any]:
    """What a file says of a denoiser, JSON-able."""
    spec = denoiser.spec
    classes = list(getattr(spec, "classes", ()) or ())
    return {
        "format": FORMAT,
        "version": VERSION,
        "spec": None if spec is None else spec.to_dict(),
        "process": denoiser.process.config(),
        "target": denoiser.target,
        "sigma_data": denoiser.sigma_data,
        "variance": denoiser.variance,
        "net": denoiser.net.config,
        "conditions": {"label": {"classes": classes}} if classes else {},
        "plans": {name: plan.to_dict() if isinstance(plan, Plan) else plan for name, plan in denoiser.plans.items()},
        "provenance": _made() | denoiser.provenance,
    }


def codec_contract(codec: Codec) -> dict[str, Any]:
    """What a file says of an autoencoder, JSON-able."""
    return {
        "format": CODEC,
        "version": VERSION,
        "spec": None if codec.spec is None else codec.spec.to_dict(),
        "net": codec.net.config,
        "provenance": _made() | codec.provenance,
    }


def _made() -> dict[str, Any]:
    return {
        "sfumato": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def locate(path: str | os.PathLike[str]) -> Path:
    """The model file that a path names: itself, or model.safetensors in a run folder."""
    path = Path(path).expanduser()
    if not path.exists():
        raise SfumatoError(f"{path} does not exist: give a model file or a run folder.")
    if not path.is_dir():
        return path
    if (path / FILE).is_file():
        return path / FILE
    if (path / "checkpoints").is_dir():
        raise SfumatoError(f"{path} holds no {FILE} yet: its training was not finished (sfumato resume {path}).")
    raise SfumatoError(f"{path} is a folder without {FILE}: give a run folder or a model file.")


def _check(contract: Mapping[str, Any], path: Path, wanted: str = FORMAT) -> None:
    if contract.get("format") != wanted:
        kind = "model file" if wanted == FORMAT else wanted
        how = " (load it with load_codec)" if contract.get("format") == CODEC else ""
        raise SfumatoError(f"{path} is not a {kind} but a {contract.get('format', 'file of unknown kind')!s}{how}.")
    version = contract.get("version")
    if not isinstance(version, int) or version < 1:
        raise SfumatoError(f"{path} is not a model file: its contract has the version {version!r}.")
    if version > VERSION:
        by = contract.get("provenance", {}).get("sfumato", "unknown")
        raise SfumatoError(
            f"{path} was written by a newer version of sfumato ({by}, format {version}; this one is {__version__} and "
            f"reads up to format {VERSION}): upgrade sfumato to read it."
        )


def read_contract(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The contract of a model file or run folder, without loading weights; `parameters` and `raw` are added."""
    path = locate(path)
    contract, header = read_header(path)
    _check(contract, path)
    counts = {"parameters": parameters(header, "net."), "raw": parameters(header, "raw.") > 0}
    return {**contract, **counts, "path": str(path), "bytes": path.stat().st_size}


def load(path: str | os.PathLike[str], weights: str = "ema", device: str | torch.device = "cpu") -> Denoiser:
    """The denoiser in a model file or run folder, ready to sample.

    weights: "ema", the moving average, or "raw", the last weights of training where the file keeps them.
    Raises SfumatoError for a file that is missing, cut, changed, foreign, or of a newer format.
    """
    if weights not in ("ema", "raw"):
        raise SfumatoError(f"weights must be 'ema' or 'raw', not {weights!r}.")
    path = locate(path)
    _check(read_header(path)[0], path)
    contract, tensors = read_sealed(path)
    prefix = "raw." if weights == "raw" else "net."
    state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if weights == "raw" and not state:
        raise SfumatoError(f"{path} keeps no raw weights beside the moving average: load it with weights='ema'.")
    try:
        denoiser = _rebuild(contract)
    except (KeyError, TypeError) as error:
        raise SfumatoError(
            f"{path} has an incomplete contract ({error}): it was not written by sfumato.save."
        ) from None
    _fill(denoiser, state, path)
    return denoiser.to(device).eval().requires_grad_(False)


def load_codec(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Codec:
    """The autoencoder in a file, ready to encode and decode.

    Raises SfumatoError for a file that is missing, cut, changed, foreign, or of a newer format.
    """
    path = locate(path)
    _check(read_header(path)[0], path, CODEC)
    contract, tensors = read_sealed(path)
    try:
        net = nets.from_config(contract["net"])
        assert isinstance(net, nets.Autoencoder)
        codec = Codec(net, None if contract["spec"] is None else DataSpec.from_dict(contract["spec"]))
        codec.provenance = dict(contract["provenance"])
    except (KeyError, TypeError, AssertionError) as error:
        raise SfumatoError(
            f"{path} has an incomplete contract ({error}): it was not written by sfumato.save."
        ) from None
    _fill(codec, {name.removeprefix("net."): value for name, value in tensors.items()}, path)
    return codec.to(device).eval().requires_grad_(False)


def _rebuild(contract: Mapping[str, Any]) -> Denoiser:
    spec = contract["spec"]
    denoiser = Denoiser(
        nets.from_config(contract["net"]),
        process.from_config(contract["process"]),
        contract["target"],
        contract["sigma_data"],
        None if spec is None else DataSpec.from_dict(spec),
        {name: Plan.from_dict(plan) for name, plan in contract["plans"].items()},
        contract.get("variance", "fixed"),  # files from before there was a choice
    )
    denoiser.provenance = dict(contract["provenance"])
    return denoiser


def _fill(denoiser: Denoiser | Codec, state: Mapping[str, Tensor], path: Path) -> None:
    wanted = {name: tuple(value.shape) for name, value in denoiser.net.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    if wanted != found:
        wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise SfumatoError(
            f"{path} does not hold the weights of its network: {len(wrong)} are missing or of "
            f"another shape, such as {wrong[0]}."
        )
    denoiser.net.load_state_dict(dict(state))


def store_plan(path: str | os.PathLike[str], plan: Plan) -> str:
    """Put a plan among those of a model file or run folder, in the place of one for the same use; returns its name.

    The file is written anew, whole or not at all, under a new hash. Raises SfumatoError for a file that is no model.
    """
    path = locate(path)
    _check(read_header(path)[0], path)
    contract, tensors = read_sealed(path)
    name = plan_name(plan)
    write_sealed(path, tensors, {**contract, "plans": {**contract["plans"], name: plan.to_dict()}})
    return name


def plan_name(plan: Plan) -> str:
    """By number of steps, and by guidance and range where they are not the usual ones: "6", "6 guidance 2"."""
    scale, interval = plan.guidance or (1.0, None)
    words = [str(plan.steps)]
    words += [f"guidance {scale:g}"] if scale != 1 else []
    words += [f"in {interval[0]:g} to {interval[1]:g}"] if interval else []
    words += [f"from {plan.times[0]:g} to {plan.stop:g}"] if (plan.times[0], plan.stop) != (1.0, 0.0) else []
    return " ".join(words)


def describe(path: str | os.PathLike[str]) -> list[str]:
    """What a model file is, in words, one sentence a line; no weights are loaded."""
    facts = read_contract(path)
    made, net = facts["provenance"], facts["net"]
    schedule = facts["process"]["args"]["schedule"]["name"]
    inner = net["args"].get("net")  # of an energy, the network that it is made of
    kind = f"an energy made of a {inner['name']}" if isinstance(inner, dict) else f"a {net['name']}"
    lines = [f"{facts['path']}: {kind} of {facts['parameters']:,} parameters, {facts['bytes'] / 1e6:.1f} MB."]
    learned = " and the variance of a step" if facts.get("variance") == "learned" else ""
    process_words = f"under the {schedule} schedule ({facts['process']['name']} process)"
    lines.append(f"It predicts {facts['target']}{learned} {process_words}.")
    if facts["spec"] is not None:
        lines += DataSpec.from_dict(facts["spec"]).describe()
    seen = made.get("samples_seen")
    trained = f"Trained on {seen:,} samples seen" if seen else "Written"
    seed = f", seed {made['seed']}" if "seed" in made else ""
    lines.append(f"{trained}{seed}; sfumato {made['sfumato']}, torch {made['torch']}, {made['date']}.")
    lines.append(
        "It keeps the raw weights beside their moving average." if facts["raw"] else "It keeps one set of weights."
    )
    if facts["plans"]:
        plans = {name: Plan.from_dict(plan) for name, plan in facts["plans"].items()}
        lines += [f"Solver plan {name!r}: {_plan_words(plan)}." for name, plan in plans.items()]
    lines.append(f"Hash {facts['hash'][:16]} (format {facts['version']}).")
    return lines


def _plan_words(plan: Plan) -> str:
    words = f"{plan.name}, {plan.steps} steps, {plan.calls} calls"
    if plan.tuned is None:
        return words
    before, after = plan.tuned["untuned"]["rms"], plan.tuned["error"]["rms"]
    return f"{words}, {after:.2g} from the exact solution where the best untuned plan is {before:.2g}"
