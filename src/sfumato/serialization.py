"""Save and load models, each as one self-describing safetensors file.

The contract in its header holds the model as a tree {"name": .., "args": {..}} of registered parts, whose arguments may
be trees themselves (a network, a process and its schedule, the data spec with its normaliser, solver plans, another
model), and the model's provenance; a hash covers everything (`files`). Tensors are named as in the model's state dict,
`net.*` for a denoiser: the weights to use (the moving average if there is one); `raw.*` are the last raw weights. Files
never name code to import: classes from outside this package must first be registered, or passed to `load`.
"""

from __future__ import annotations

import datetime
import inspect
import math
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato import __version__, registry, trees
from sfumato.autoregressive import Autoregressive
from sfumato.data import DataSpec
from sfumato.errors import SfumatoError, place
from sfumato.files import read_header, read_sealed, write_sealed
from sfumato.model import Denoiser
from sfumato.noise import seeded
from sfumato.objectives.density import drawn_levels
from sfumato.solvers import Plan

FORMAT, CODEC, VERSION = "sfumato model", "sfumato codec", 2  # codecs had a format of their own in version 1
FILE = "model.safetensors"  # its name within a run folder


def save(model: Any, path: str | os.PathLike[str], raw: Mapping[str, Tensor] | None = None) -> Path:
    """Write a model (a denoiser, a wrapped one, an autoencoder ..) atomically as one self-describing file.

    raw: the state dict of the network's raw weights, stored in addition to those of `model` (their moving average).
    Raises SfumatoError if the model cannot be described, weights are not finite, or the path cannot be written.
    """
    path, made = place(path, "The destination of a model"), contract(model)
    tensors = {prefix + name: value for prefix, part in parts(model) for name, value in part.state_dict().items()}
    tensors |= {f"raw.{name}": value for name, value in (raw or {}).items()}
    broken = next((name for name, value in tensors.items() if not bool(torch.isfinite(value).all())), None)
    if broken is not None:
        raise SfumatoError(f"The weights {broken} hold NaN or infinite values, and are not written to {path}.")
    write_sealed(path, tensors, made)
    return path


def contract(model: Any) -> dict[str, Any]:
    """The contract that describes a model in a file, as plain JSON."""
    name = type(model).__name__
    known = registry.Named("model")
    if type(model) not in known.values():
        raise SfumatoError(
            f"A file holds a model ({', '.join(known)}), not a {name}: save its weights alone, or register its class, "
            f'@sf.register("model").'
        )
    provenance = _made() | (getattr(model, "provenance", None) or {})
    return {"format": FORMAT, "version": VERSION, "model": trees.tree(model), "provenance": provenance}


def parts(model: Any, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """(tensor prefix, module) of each module of a model: the model itself, or the modules that it wraps."""
    if isinstance(model, nn.Module):
        yield prefix, model
        return
    for name in inspect.signature(type(model)).parameters:
        inner = getattr(model, name, None)
        if isinstance(inner, nn.Module) or type(inner) in registry.Named("model").values():
            yield from parts(inner, f"{prefix}{name}.")


def _made() -> dict[str, Any]:
    return {
        "sfumato": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def locate(path: str | os.PathLike[str]) -> Path:
    """The model file of a path: the path itself, or model.safetensors in a run folder."""
    path = place(path, "A model file or a run folder")
    if not path.exists():
        raise SfumatoError(f"{path} does not exist: give a model file or a run folder.")
    if not path.is_dir():
        return path
    if (path / FILE).is_file():
        return path / FILE
    if (path / "checkpoints").is_dir():
        raise SfumatoError(f"{path} holds no {FILE} yet: its training was not finished (sfumato resume {path}).")
    raise SfumatoError(f"{path} is a folder without {FILE}: give a run folder or a model file.")


def _checked(contract: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A contract in the format of this version. Raises SfumatoError if it cannot be read."""
    if contract.get("format") not in (FORMAT, CODEC):
        raise SfumatoError(f"{path} is not a model file but a {contract.get('format', 'file of unknown kind')!s}.")
    version = contract.get("version")
    if not isinstance(version, int) or version < 1:
        raise SfumatoError(f"{path} is not a model file: its contract has the version {version!r}.")
    if version > VERSION:
        by = contract.get("provenance", {}).get("sfumato", "unknown")
        raise SfumatoError(
            f"{path} was written by a newer version of sfumato ({by}, format {version}; this one is {__version__} and "
            f"reads up to format {VERSION}): upgrade sfumato to read it."
        )
    try:
        tree = contract["model"] if version > 1 else _tree_of_version_1(contract)
        return {"format": FORMAT, "version": VERSION, "model": tree, "provenance": contract["provenance"]}
    except (KeyError, TypeError) as error:
        raise SfumatoError(
            f"{path} has an incomplete contract ({error}): it was not written by sfumato.save."
        ) from None


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(contract in the format of this version, tensors) of a model file."""
    _checked(read_header(path)[0], path)  # report a newer version before comparing the hash
    contract, tensors = read_sealed(path)
    return _checked(contract, path), tensors


def _tree_of_version_1(contract: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of a model in a file of format 1."""
    spec = None if contract["spec"] is None else {"name": "DataSpec", "args": contract["spec"]}
    args = {"net": contract["net"], "spec": spec}
    if contract["format"] == CODEC:
        return {"name": "Codec", "args": args}
    plans = {name: {"name": "Plan", "args": plan} for name, plan in contract["plans"].items()}
    # files older than the choice of variance do not record it
    read = {name: contract[name] for name in ("target", "sigma_data", "variance") if name in contract}
    process = {"name": contract["process"]["name"], "args": {**contract["process"]["args"], **read}}
    return {"name": "Denoiser", "args": {**args, "process": process, "plans": plans}}


def _innermost(tree: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """(prefix of the tensors, arguments) of the innermost model of a tree, the one with the network."""
    prefix, args = "", tree["args"]
    while "net" not in args:
        name = next((name for name, value in args.items() if _is_model(value)), None)
        if name is None:
            return prefix, args
        prefix, args = f"{prefix}{name}.", args[name]["args"]
    return f"{prefix}net.", args


def _is_model(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == {"name", "args"} and registry.known("model", value["name"])


def read_contract(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The contract of a model file or run folder, without loading weights.

    It is extended by facts of the innermost model: spec, process, target, sigma_data, variance, net, conditions, plans
    (None or empty if absent), parameters (of its network); and of the file: version, raw (whether it has raw weights),
    path, bytes.
    """
    path = locate(path)
    written, header = read_header(path)
    whole = _checked(written, path)
    prefix, args = _innermost(whole["model"])
    spec, process = args.get("spec"), args.get("process")
    spec = None if spec is None else spec["args"]
    classes = (spec or {}).get("classes")  # separate in format 1
    counted = [entry for name, entry in header.items() if name.startswith(prefix)]
    return {
        **whole,
        "version": written["version"],
        "hash": written["hash"],
        "spec": spec,
        "process": process,
        **{name: (process or {"args": {}})["args"].get(name) for name in ("target", "sigma_data", "variance")},
        "net": args.get("net"),
        "conditions": (spec or {}).get("conditions") or ({"label": {"classes": classes}} if classes else {}),
        "plans": {name: plan["args"] for name, plan in (args.get("plans") or {}).items()},
        "parameters": sum(math.prod(entry["shape"]) for entry in counted),
        "raw": any(name.startswith("raw.") for name in header),
        "path": str(path),
        "bytes": path.stat().st_size,
    }


def load(
    path: str | os.PathLike[str],
    weights: str = "ema",
    device: str | torch.device = "cpu",
    modules: Iterable[type[nn.Module]] = (),
) -> Any:
    """The model (a denoiser, a wrapped one, an autoencoder ..) in a model file or run folder, ready to use.

    weights: "ema", the moving average, or "raw", the last weights of training if the file has them. modules: your own
    classes that the model needs, if not registered: sf.load(path, modules=[MyNet]). Weights keep the dtype in which
    they were saved. Raises SfumatoError for a file that is missing, truncated, modified, foreign, of a newer format, or
    that needs an unknown class.
    """
    if weights not in ("ema", "raw"):
        raise SfumatoError(f"weights must be 'ema' or 'raw', not {weights!r}.")
    registry.add(modules)
    path = locate(path)
    whole, tensors = _read(path)
    state = {name: value for name, value in tensors.items() if not name.startswith("raw.")}
    raw = {name.removeprefix("raw."): value for name, value in tensors.items() if name.startswith("raw.")}
    if weights == "raw":
        if not raw:
            raise SfumatoError(f"{path} has no raw weights besides the moving average: load it with weights='ema'.")
        prefix, _ = _innermost(whole["model"])
        state |= {prefix + name: value for name, value in raw.items()}
    with seeded(0):  # initial weights are overwritten; drawing them must not change the caller's random state
        model = trees.build(whole["model"], "model")
    model.provenance = dict(whole["provenance"])
    _know_levels(model, whole["model"]["args"])
    _fill(model, state, path)
    for _, part in parts(model):
        part.to(device).eval().requires_grad_(False)
    return model


def _know_levels(model: Any, args: Mapping[str, Any]) -> None:
    """Set the noise levels of a denoiser's training from its settings, in a file of before they were stored.

    A density of the user's own that is not registered here leaves them unknown.
    """
    times = model.provenance.get("times")
    if not isinstance(model, Denoiser) or "noise_levels" in args or not isinstance(times, str):
        return
    if registry.known("density", registry.bare(times)):
        model.noise_levels = drawn_levels(registry.make("density", times), model.process)


def load_sampler(path: str | os.PathLike[str], weights: str = "ema", device: str | torch.device = "cpu") -> Any:
    """`load` for a model that draws samples. Raises SfumatoError for others, such as an autoencoder."""
    model = load(path, weights, device)
    if not hasattr(model, "process") and not isinstance(model, Autoregressive):
        raise SfumatoError(f"{path} holds a {type(model).__name__}, which has no noise levels and draws no samples.")
    return model


def _fill(model: Any, state: Mapping[str, Tensor], path: Path) -> None:
    own = {prefix + name: tuple(v.shape) for prefix, part in parts(model) for name, v in part.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    if own != found:
        wrong = sorted(name for name in own.keys() | found.keys() if own.get(name) != found.get(name))
        raise SfumatoError(
            f"{path} does not hold the weights of its network: {len(wrong)} are missing or of "
            f"another shape, such as {wrong[0]}."
        )
    for prefix, part in parts(model):
        for name, value in part.state_dict(keep_vars=True).items():
            kept = state[prefix + name].dtype
            if value.dtype != kept and value.is_floating_point() and kept.is_floating_point:
                value.data = value.data.to(kept)
        part.load_state_dict({name: state[prefix + name] for name in part.state_dict()})


def store_plan(path: str | os.PathLike[str], plan: Plan) -> str:
    """Add a plan to a model file or run folder, replacing the one of the same name; returns its name (`plan_name`).

    The file is rewritten atomically, with a new hash. Raises SfumatoError for a file that is not a model.
    """
    path = locate(path)
    whole, tensors = _read(path)
    name, (_, args) = plan_name(plan), _innermost(whole["model"])
    args["plans"] = {**(args.get("plans") or {}), name: trees.tree(plan)}
    write_sealed(path, tensors, whole)
    return name


def plan_name(plan: Plan) -> str:
    """The number of steps, with guidance and range if they are not the default: "6", "6 guidance 2"."""
    scale, interval = plan.guidance or (1.0, None)
    words = [str(plan.steps)]
    if isinstance(scale, Mapping):
        words += [f"guidance {w:g} to {name}" for name, w in scale.items()]
    else:
        words += [f"guidance {scale:g}"] if scale != 1 else []
    words += [f"in {interval[0]:g} to {interval[1]:g}"] if interval else []
    words += [f"from {plan.times[0]:g} to {plan.stop:g}"] if (plan.times[0], plan.stop) != (1.0, 0.0) else []
    return " ".join(words)


def _predicts(process: Mapping[str, Any]) -> str:
    """A description of what a network of this process predicts, under which schedule; part by part for a product."""
    name, args = process["name"], process["args"]
    if "processes" in args:
        return "; ".join(f"of {part!r} {_predicts(inner)}" for part, inner in args["processes"].items())
    learned = " and the variance of a step" if args.get("variance") == "learned" else ""
    what = args.get("target") or f"which of {args.get('states')} symbols each is"
    schedule = args.get("schedule", {}).get("name", "its own")
    return f"{what}{learned} under the {schedule} schedule ({name} process)"


def describe(path: str | os.PathLike[str]) -> list[str]:
    """A model file in words, one sentence per line; no weights are loaded."""
    facts = read_contract(path)
    made = facts["provenance"]
    lines = [f"{facts['path']}: {_kind(facts)} of {facts['parameters']:,} parameters, {facts['bytes'] / 1e6:.1f} MB."]
    if facts["process"] is not None:
        lines.append(f"It predicts {_predicts(facts['process'])}.")
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


def _kind(facts: Mapping[str, Any]) -> str:
    """The network in words, with the models that wrap it if there are more than a denoiser."""
    net, tree = facts["net"], facts["model"]
    inner = net["args"].get("net") if net else None  # of an energy, the network that it is made of
    kind = f"an energy made of a {inner['name']}" if isinstance(inner, dict) else f"a {net['name'] if net else 'law'}"
    around = []
    while tree["args"] is not None and tree["name"] != "Denoiser":
        around.append(tree["name"])
        tree = next((value for value in tree["args"].values() if _is_model(value)), {"name": "Denoiser", "args": None})
    return f"{kind} in a {' of a '.join(around)}" if around else kind


def _plan_words(plan: Plan) -> str:
    words = f"{plan.name}, {plan.steps} steps, {plan.calls} calls"
    if plan.tuned is None:
        return words
    before, after = plan.tuned["untuned"]["rms"], plan.tuned["error"]["rms"]
    return f"{words}, {after:.2g} from the exact solution where the best untuned plan is {before:.2g}"
