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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato import __version__, registry, schema, trees
from sfumato.adapters import completed
from sfumato.autoregressive import Autoregressive
from sfumato.cascade import Staged
from sfumato.columns import uncalibrated
from sfumato.data import DataSpec
from sfumato.data.spec import in_json as spec_in_json
from sfumato.errors import SfumatoError, an, counted, place
from sfumato.files import first_line, locked, read_header, read_sealed, reason, write_sealed
from sfumato.machine import default_cpu, device_of, outside_inference
from sfumato.model import Denoiser
from sfumato.nets.watching import registered_within
from sfumato.noise import seeded
from sfumato.objectives.density import drawn_levels
from sfumato.objectives.taught import lesson
from sfumato.process.paired import filled
from sfumato.solvers import Plan
from sfumato.solvers.plan import SCHEMA as PLAN

FORMAT, ADAPTER, VERSION = "sfumato model", "sfumato adapter", 2
CODEC = "sfumato codec"  # a format of its own in version 1
TREE = schema.fields({"name": schema.text, "args": schema.mapping(schema.anything)}, rest=None)
_PROVENANCE = schema.fields(
    {name: schema.text for name in ("sfumato", "torch", "date")},
    {
        **{name: schema.text for name in ("python", "data", "times", "weight", "loss", "precision")},
        **{name: schema.whole(0) for name in ("samples", "steps", "samples_seen", "threads")},
        "seed": schema.whole(), "guidance": schema.number(-1e6, 1e6), "holdout": schema.number(0, 1),
        "seconds": schema.number(),
    },
)  # fmt: skip
_CONTRACT = schema.fields({"model": lambda value, where: _model(value, where), "provenance": _PROVENANCE})
_CODEC_1 = schema.fields({"net": TREE, "spec": schema.optional(schema.mapping(schema.anything))})
_MODEL_1 = schema.fields(
    {
        "net": TREE, "spec": schema.optional(schema.mapping(schema.anything)), "process": TREE,
        "plans": schema.mapping(schema.anything),
    }
)  # fmt: skip
FILE, ADAPTER_FILE = "model.safetensors", "adapter.safetensors"  # their names within a run folder
# What a model's constructor may register: as often its weights, for those that it replaces, and buffers beside them.
_SPARE, _TENSORS, _ROOM = 4, 1000, 1_000_000
_WAIT = 60.0  # seconds that a plan waits for other processes that store one


def save(model: Any, path: str | os.PathLike[str], raw: Mapping[str, Tensor] | None = None) -> Path:
    """Write a model (a denoiser, a wrapped one, an autoencoder ..) atomically as one self-describing file.

    raw: the state dict of the network's raw weights, stored in addition to those of `model` (their moving average).
    Raises SfumatoError if the model cannot be described, weights are not finite, or the path cannot be written.
    """
    path, made = place(path, "The destination of a model"), contract(model)
    schema.require(made, _CONTRACT, f"{path} would not be read again")
    tensors = {prefix + name: value for prefix, part in parts(model) for name, value in part.state_dict().items()}
    tensors |= {f"raw.{name}": value for name, value in (raw or {}).items()}
    broken = next((name for name, value in tensors.items() if not bool(torch.isfinite(value).all())), None)
    if broken is not None:
        raise SfumatoError(f"The weights {broken} hold NaN or infinite values, and are not written to {path}.")
    write_sealed(path, tensors, made)
    return path


def save_adapter(model: Any, path: str | os.PathLike[str]) -> Path:
    """Write what was trained of an adapted model (`nets.Adapted`) without its base; `load(path, base=..)` reads it."""
    path, own = place(path, "The destination of adapters"), model.net.own()
    made = contract(model) | {"format": ADAPTER}
    prefix, _ = innermost(made["model"])
    tensors = {start + name: value for start, part in parts(model) for name, value in part.state_dict().items()}
    fixed = {prefix + name for name in model.net.state_dict() if name not in own}
    write_sealed(path, {name: value for name, value in tensors.items() if name not in fixed}, made)
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
    if contract.get("format") not in (FORMAT, ADAPTER, CODEC):
        raise SfumatoError(f"{path} is not a model file but a {contract.get('format', 'file of unknown kind')!s}.")
    schema.require(contract, schema.fields({"version": schema.whole(1)}), path)
    if contract["version"] > VERSION:
        raise SfumatoError(
            f"{path} was written by a newer version of sfumato (format {contract['version']}; this one is "
            f"{__version__} and reads up to format {VERSION}): upgrade sfumato to read it."
        )
    if contract["version"] == 1:
        schema.require(contract, _CODEC_1 if contract["format"] == CODEC else _MODEL_1, path)
        contract = {**contract, "model": _tree_of_version_1(contract)}
    schema.require(contract, _CONTRACT, path)
    kept = {"model": filled(contract["model"]), "provenance": contract["provenance"]}
    return {"format": ADAPTER if contract["format"] == ADAPTER else FORMAT, "version": VERSION, **kept}


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


def _process(value: Any, where: str) -> None:
    """The check of a process, which may be made of others."""
    own = {"target": schema.optional(schema.text), "schedule": TREE, "processes": schema.mapping(_process)}
    schema.fields({"name": schema.text, "args": schema.fields({}, own)}, rest=None)(value, where)


def _model(value: Any, where: str) -> None:
    """The check of a model, whose innermost one is looked into."""
    TREE(value, where)
    _, args = innermost(value)
    part = {"name": schema.text}
    schema.fields(
        {},
        {
            "net": TREE,
            "process": _process,
            "spec": schema.optional(schema.fields({**part, "args": spec_in_json}, rest=None)),
            "plans": schema.optional(schema.mapping(schema.fields({**part, "args": PLAN}, rest=None))),
        },
    )(args, f"{where}.args")


def innermost(tree: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """(prefix of the tensors, arguments) of the innermost model of a tree, the one with the network."""
    prefix, args = "", tree["args"]
    while "net" not in args:
        name = next((name for name, value in args.items() if _is_model(value)), None)
        if name is None:
            return prefix, args
        prefix, args = f"{prefix}{name}.", args[name]["args"]
    return f"{prefix}net.", args


def _spec_of(tree: Mapping[str, Any]) -> dict[str, Any] | None:
    """The spec of the samples of a model's tree: of the last stage (with the conditions of a prior), of what a latent
    model decodes to."""
    args = tree["args"]
    if tree["name"] == "Cascade":
        return _spec_of(args["upscaler"])
    if tree["name"] == "UnCLIP":
        pictures, prior = _spec_of(args["decoder"]), _spec_of(args["prior"])
        return None if pictures is None else {**pictures, "conditions": (prior or pictures)["conditions"]}
    spec = args.get("spec")
    if tree["name"] == "Latent":
        codes, spec = _spec_of(args["inner"]), args["autoencoder"]["args"]["spec"]
        return {**spec["args"], "conditions": (codes or spec["args"])["conditions"]}
    inner = next((value for value in args.values() if _is_model(value)), None)
    if spec is None and "net" not in args and inner is not None:
        return _spec_of(inner)
    return None if spec is None else dict(spec["args"])


def _is_model(value: Any) -> bool:
    return trees.is_tree(value) and registry.known("model", value["name"])


def read_contract(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The contract of a model file or run folder, without loading weights.

    It is extended by facts of the innermost model: spec, process, target, sigma_data, variance, net, conditions, plans
    (None or empty if absent), parameters (of its network); and of the file: version, raw (whether it has raw weights),
    path, bytes.
    """
    path = locate(path)
    written, header = read_header(path)
    whole = _checked(written, path)
    prefix, args = innermost(whole["model"])
    spec, process = _spec_of(whole["model"]), args.get("process")
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


@default_cpu()
@outside_inference
def load(
    path: str | os.PathLike[str],
    weights: str = "ema",
    device: str | torch.device = "cpu",
    modules: Iterable[type[nn.Module]] = (),
    base: Any = None,
) -> Any:
    """The model (a denoiser, a wrapped one, an autoencoder ..) in a model file or run folder, ready to use.

    weights: "ema", the moving average, or "raw", the last ones of training if the file has them, without weights of
    rows (`calibrate`), which were fitted to the average. modules: your own classes that it needs, if not registered.
    base: of a file of adapters alone, the model that they were trained from, or its file or run. The dtype is that of
    the file. Raises SfumatoError for a file that is missing, damaged, foreign, newer or of an unknown class.
    """
    if weights not in ("ema", "raw"):
        raise SfumatoError(f"weights must be 'ema' or 'raw', not {weights!r}.")
    registry.add(modules)
    device, path = device_of(device), locate(path)
    whole, tensors = _read(path)
    base = _base(whole, base, path)
    state = {name: value for name, value in tensors.items() if not name.startswith("raw.")}
    raw = {name.removeprefix("raw."): value for name, value in tensors.items() if name.startswith("raw.")}
    if weights == "raw":
        if not raw:
            raise SfumatoError(f"{path} has no raw weights besides the moving average: load it with weights='ema'.")
        prefix, _ = innermost(whole["model"])
        state |= {prefix + name: value for name, value in raw.items()}
    known = [*state.values(), *(() if base is None else base.net.state_dict().values())]
    with seeded(0):  # initial weights are overwritten; drawing them must not change the caller's random state
        with building({"model": whole["model"]}, len(known), sum(v.numel() for v in known), path):
            model = trees.build(whole["model"], "model")
            model.provenance = dict(whole["provenance"])
            _know_levels(model, whole["model"]["args"])
    if base is not None:
        prefix, _ = innermost(whole["model"])
        state |= {prefix + name: value for name, value in completed(model.net, base, path).items()}
    _fill(model, state, path)
    for _, part in parts(model):
        part.to(device).eval().requires_grad_(False)
    return uncalibrated(model) if weights == "raw" else model  # weights of rows were fitted to the average


def _base(whole: Mapping[str, Any], base: Any, path: Path) -> Any:
    """The model that a file of adapters needs besides; None for a file of a whole model."""
    if whole["format"] != ADAPTER:
        if base is not None:
            raise SfumatoError(f"{path} holds a whole model: leave the base out.")
        return None
    _, args = innermost(whole["model"])
    net = args.get("net")
    if base is None or net is None or net["name"] != "Adapted":
        known = str((net or {"args": {}})["args"].get("base", ""))[:16]
        raise SfumatoError(
            f"{path} holds adapters alone, of a network with the fingerprint {known}: give the model that they were "
            "trained from, base=... in Python, or make one model of both by `sfumato merge`."
        )
    return load(base) if isinstance(base, str | os.PathLike) else base


@contextmanager
def building(tree: Any, count: int, elements: int, file: Any) -> Iterator[None]:
    """Within the block the model or network of a tree is built, and is refused if it is larger than its weights.

    count, elements: of the tensors in the file. They are compared with the whole numbers of the tree, and with what the
    constructors register, before anything of that size is filled. Errors name the file.
    """
    most = max(_ROOM, elements)
    try:
        for where, value in schema.leaves(tree):
            if isinstance(value, int) and abs(value) > most:
                raise SfumatoError(f"{where}: {value} is more than the {elements:,} numbers in the file allow.")
        with registered_within(_SPARE * count + _TENSORS, _SPARE * elements + _ROOM):
            yield
    except SfumatoError as error:
        raise SfumatoError(f"{file}: {error}") from error.__cause__
    except (RuntimeError, MemoryError) as error:  # of a constructor; torch's errors are such
        raise SfumatoError(f"{file}: its network cannot be built ({first_line(error)}).") from error


def _know_levels(model: Any, args: Mapping[str, Any]) -> None:
    """Set the noise levels of a denoiser's training from its settings, in a file of before they were stored.

    A density of the user's own that is not registered here leaves them unknown.
    """
    times = model.provenance.get("times")
    if not isinstance(model, Denoiser) or "noise_levels" in args or not isinstance(times, str):
        return
    if registry.known("density", registry.bare(times)):
        model.noise_levels = drawn_levels(registry.make("density", times), model.process)


def load_sampler(
    path: str | os.PathLike[str], weights: str = "ema", device: str | torch.device = "cpu", also: Any = ()
) -> Any:
    """`load` for a model that draws samples. Raises SfumatoError for others, such as an autoencoder or a model of
    stages, unless they are of the classes `also`."""
    model = load(path, weights, device)
    if isinstance(model, (Autoregressive, also)) or (hasattr(model, "process") and not isinstance(model, Staged)):
        return model
    if isinstance(model, Staged):
        raise SfumatoError(
            f"{path} holds {an(type(model).__name__)}, and this is asked of a single model: give the run of its first "
            "stage (RUN/size_16, RUN/prior), or a file that sf.save(sf.load(path).stages[0], file) has written."
        )
    raise SfumatoError(
        f"{path} holds {an(type(model).__name__)}, and this needs a model with noise levels: use it in Python "
        f"(sfumato info {path} says how)."
    )


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

    The file is rewritten atomically, with a new hash; several processes take turns. Raises SfumatoError for a file that
    is not a model, or that another process has been changing for a minute.
    """
    path, name = locate(path), plan_name(plan)
    try:
        with locked(path, wait=_WAIT):
            whole, tensors = _read(path)
            _, args = innermost(whole["model"])
            args["plans"] = {**(args.get("plans") or {}), name: trees.tree(plan)}
            write_sealed(path, tensors, whole)
    except OSError as error:
        raise SfumatoError(f"{path} cannot be written: {reason(error)}.") from None
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
    if name == "Deletion":
        what = f"which of {args['states'] - 1} symbols are missing in each gap"
    schedule = args.get("schedule", {}).get("name", "its own")
    return f"{what}{learned} under the {schedule} schedule ({name} process)"


def describe(path: str | os.PathLike[str]) -> list[str]:
    """A model file in words, one sentence per line; no weights are loaded."""
    facts = read_contract(path)
    made = facts["provenance"]
    lines = [f"{facts['path']}: {_kind(facts)} of {facts['parameters']:,} parameters, {facts['bytes'] / 1e6:.1f} MB."]
    lines += _student(facts["model"], made)
    if facts["process"] is not None:
        lines.append(f"It predicts {_predicts(facts['process'])}.")
    if facts["spec"] is not None:
        lines += DataSpec.from_dict(facts["spec"]).describe()
    seen = made.get("samples_seen")
    trained = f"Trained on {seen:,} samples seen" if seen else "Written"
    seed = f", seed {made['seed']}" if "seed" in made else ""
    lines.append(f"{trained}{seed}; sfumato {made['sfumato']}, torch {made['torch']}, {made['date']}.")
    kept = "the raw weights beside their moving average" if facts["raw"] else "one set of weights"
    lines.append(f"It keeps {kept}.")
    plans = {name: Plan.from_dict(plan) for name, plan in facts["plans"].items()}
    lines += [f"Solver plan {name!r}: {_plan_words(plan)}." for name, plan in plans.items()]
    lines.append(f"Hash {facts['hash'][:16]} (format {facts['version']}).")
    return lines


def _kind(facts: Mapping[str, Any]) -> str:
    """The network in words, with the models that wrap it if there are more than a denoiser."""
    net, tree = facts["net"], facts["model"]
    inner: Any = net["args"].get("net") if net else None  # of an energy, the network that it is made of
    kind = f"an energy made of {an(inner['name'])}" if trees.is_tree(inner) else an(net["name"] if net else "law")
    if net and net["name"] == "Adapted":
        rank = net["args"]["rank"]
        kind = f"{an(inner['name'])} with {f'adapters of rank {rank}' if rank else 'conditions added to fixed weights'}"
    around = []
    while tree["args"] is not None and tree["name"] != "Denoiser":
        around.append(tree["name"])
        tree = next((value for value in tree["args"].values() if _is_model(value)), {"name": "Denoiser", "args": None})
    return f"{kind} in {' of '.join(map(an, around))}" if around else kind


def _student(tree: Any, made: Mapping[str, Any]) -> list[str]:
    """The numbers of calls that a flow map in a tree is for, and how it was distilled; nothing of other models."""
    taught, lines = lesson(made.get("loss")), []
    while _is_model(tree):
        if tree["name"] == "FlowMap":
            *some, last = map(str, tree["args"]["calls"])
            calls = f"{', '.join(some)} or {last}" if some else last
            lines.append(f"It was made to sample in {calls} call{'' if calls == '1' else 's'} of its network.")
        tree = next((value for value in (tree["args"] or {}).values() if _is_model(value)), None)
    return lines if taught is None else [*lines, taught.words(made.get("samples_seen"))]


def _plan_words(plan: Plan) -> str:
    words = f"{plan.name}, {counted(plan.steps, 'step')}, {counted(plan.calls, 'call')}"
    if plan.tuned is None:
        return words
    before, after = plan.tuned["untuned"], plan.tuned["error"]
    if "nats" in after and "nats" in before:
        return f"{words}, {after['nats']:.3g} nats from the model where equal sizes are {before['nats']:.3g}"
    before, after = before["rms"], after["rms"]
    return f"{words}, {after:.2g} from the exact solution where the best untuned plan is {before:.2g}"
