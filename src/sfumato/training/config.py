"""TrainConfig: every setting of a training run with its description, the one source of flags, YAML and Python.

This module imports no torch, so that the command line shows its help at once.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from sfumato import registry, schema
from sfumato.errors import SfumatoError, suggest

# Settings whose value names a registered part, with the kind of part; _WORDS: values besides registered names.
NAMING = {
    "schedule": "schedule", "target": "target", "times": "density", "weight": "weight", "net": "network",
    "loss": "loss", "optimizer": "optimizer", "process": "process",
}  # fmt: skip
NO_PROCESS = "none"  # of a model that has none
_WORDS: dict[str, tuple[str, ...]] = {
    "weight": ("plain",), "loss": ("auto",), "variance": ("fixed", "learned"),
    "pairs": ("name", "row"), "process": (NO_PROCESS,), "precision": ("auto", "float32", "bfloat16"),
    "parallel": ("auto", "ddp", "fsdp"), "train_only": ("all", "conditions"),
    "prior": ("network", "regression"),
}  # fmt: skip
_RENAMED = {"model": "init"}  # settings in files of earlier versions
_COMPILE = {"always": True, "auto": False, "never": False}  # values in files of earlier versions


def choices(setting: str) -> tuple[str, ...]:
    """The names that a setting accepts; empty for numbers and free text."""
    return _WORDS.get(setting, ()) + (registry.names(NAMING[setting]) if setting in NAMING else ())


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of one training run."""

    data: str = ""
    """Training data: a folder of images or texts, a .npy, .npz, .txt or .jsonl file, .tar archives, .parquet or .csv
    tables, a file of another format (.h5, .nc, .zarr, .tif, .nii, .fits, .wav, .mp4, .pt), or a built-in set (fashion,
    emoji, digits, shakespeare)."""
    out: str | None = None
    """The run folder; runs/NAME by default."""
    minutes: float | None = None
    """Budget of wall time. Without minutes or steps, chosen from the size of the data."""
    steps: int | None = None
    """Budget in optimiser steps instead of minutes; on a CPU such a run is reproducible to the last bit."""
    labels: str | None = None
    """A .npy or text file with one class label per sample, for data without labels of their own."""
    conditions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Kinds of condition columns, where they should not be guessed: name: label, multilabel, scalar, vector, field,
    text or text(minilm), or ignore to leave a column out."""
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Kinds of the columns of a table, where they should not be inferred: name: category or number, or ignore to leave
    a column out."""
    size: int | None = None
    """Side in pixels to which images are resized."""
    split: str | None = None
    """The split to read where folders, files, arrays or rows are named after one: train (the default), val or test."""
    key: str | None = None
    """Name of the array (of a .npz or .h5 file ..), the column (of a table) or the picture (of a pair) to learn, where
    names and shapes should not decide."""
    sources: str | None = None
    """Data of the same shape that the samples are made of (--from): their condition input. The process is then
    rectified-flow, or bridge with --pairs."""
    pairs: str | None = None
    """How samples belong to sources: name (files that are named alike) or row. By default to none: the loss is then
    coupled."""
    max_gb: float = 1.0
    """GiB of memory that one file of the data may take once it is unpacked, or 32 times its own size if that is more;
    a picture takes three times the size of its pixels."""
    length: int | None = None
    """Symbols of a window of text, by default 256, or 128 byte pairs, and fewer of short texts; of recordings, the
    numbers of a window, by default the shortest one whole."""
    tokens: str | None = None
    """What text is made of: characters, bytes, bpe or bpe(4096), which needs the extra text; by default characters
    where there are up to 256, else bytes."""
    normalise: str = "auto"
    """How floats are normalised: affine (mean and deviation of each channel), log (values above 0), bounded or
    bounded(0, 1) (values within limits), quantile (any shape), position (mean and deviation of each position of a
    channel); auto is log of positive skewed values, quantile of vectors with heavy tails, position of arrays whose
    positions differ by powers of ten, else affine. Samples and likelihoods are in your units with each."""
    net: str = "auto"
    """The network: a size (auto, tiny, small, base) of the kind that suits the data, or a network by name ({net}),
    with arguments as in DiT(depth=8, width=256) or --net DiT --net.depth 8."""
    init: str | None = None
    """A run folder or model file whose model is trained further, on data of the same shape: it keeps process, network
    and units, and learns classes and conditions that are new."""
    lora: int | None = None
    """Of --init: train low-rank adapters (LoRA) of this rank, and new classes and conditions, beside fixed weights."""
    train_only: str = "all"
    """Of --init: all weights, or only those of new classes and conditions."""
    latent: bool = False
    """Train an autoencoder first, on two fifths of the budget, and then the model of its codes: for large pictures.
    With unclip, those of the decoder."""
    autoencoder: str | None = None
    """Of a latent model: a run folder or file of a trained autoencoder, or the network of a new one, such as
    Autoencoder(latent=8)."""
    cascade: str | None = None
    """Sizes of pictures, such as 16,32: a model of the smallest, and one for each size that enlarges what the one
    before has drawn."""
    unclip: bool = False
    """Train a prior, of an embedding of the pictures given captions and other conditions, and a decoder, of pictures
    given their embedding, each on half of the budget."""
    embedding: str | None = None
    """What pictures are embedded by: {features}, numbers (the values), the folder of an image encoder of CLIP, or the
    file of an embedder. Without unclip the prior alone is trained."""
    prior: str = "network"
    """Of an unCLIP pair: a network, or regression, kernel ridge regression on the vector of one caption and the normal
    law of what it misses, sharpened: no training, and of a few thousand captions it finds new ones more often."""
    reconstruction: float = 0.8
    """The share of the variance of held-out samples that the autoencoder has to explain; 0 takes any."""
    loss: str = "auto"
    """The loss to minimise: {loss}; also with arguments, such as hybrid(share=0.01). auto is denoising, hybrid if the
    variance is learned, or table of a table."""
    energy: bool = False
    """Make the network the gradient of an energy, so that the score is a gradient field, at twice the cost."""
    batch: int = 64
    """Samples per step, over all processes."""
    micro: int | None = None
    """Samples computed at once, if a batch does not fit into memory; changes nothing else."""
    workers: int | None = None
    """Threads that prefetch samples not held in memory; by default chosen from the data. 0 fetches each batch when it
    is needed. Changes nothing else."""
    optimizer: str = "muon"
    """The optimiser: {optimizer}. muon uses Muon for the matrices and AdamW for the rest."""
    lr: float = 4e-3
    """Peak learning rate; 2e-3 suits adamw. With lora it is by default 0.02, as adapters take larger steps."""
    warmup: int = 4000
    """Samples over which the learning rate rises; at most 3 % of the run."""
    decay: float = 0.7
    """Final fraction of the run over which the learning rate falls to zero; 0 keeps it constant."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    clip: float = 1.0
    """Largest gradient norm; longer gradients are scaled down to it. 0 never clips."""
    ema: float = 0.06
    """Width of the moving average of the weights, as a fraction of the run; 0 keeps none."""
    snapshots: int = 8
    """Number of snapshots of two moving averages, from which one of any width can be made after the run; 0 for none."""
    schedule: str = "flow"
    """Noise schedule: {schedule}; also with arguments, such as ve(sigma_max=80)."""
    process: str = "gaussian"
    """Corruption process: {process}. bridge, rectified-flow and interpolant lead from the condition input to the data;
    of numbers are also gaussian, blur, heat, coloured and subspace, all others of symbols, whole numbers from 0; text
    is masked, a table a product of numbers and masked symbols; none is what an autoregressive model has."""
    target: str = "velocity"
    """What the network predicts: {target}; of the numbers of a table F, unless it is given."""
    times: str = "logit-normal"
    """Density of the noise levels in training: {times} (those that learn from the losses need a
    weight, or the loss cross-entropy; that of symbols is cosmap, of rectified-flow uniform); also with arguments, such
    as mode(s=0.8)."""
    weight: str = "plain"
    """Loss weight: {weight}, where plain is the squared error of the target; also with arguments, such as
    sigmoid(bias=-2)."""
    variance: str = "fixed"
    """Variance of the ancestral sampler's steps: fixed, or learned together with the signal by the hybrid loss."""
    drop: float = 0.1
    """Fraction of the samples in which each condition is dropped, and with several conditions also all at once, as
    guidance needs."""
    calibrate: bool = True
    """Of a table: at the end of the run, beyond its budget, fit weights to draws of the model, by which rows are
    accepted, so that they are nearer to those of training and have their marginals. About two of five rows are then
    drawn again."""
    holdout: float = 0.05
    """Fraction of the samples held out for validation, chosen by the hash of each sample."""
    guidance: float = 2.5
    """Guidance scale of the sample grids; 1 is the conditional model."""
    seed: int = 0
    """Seed of the weights, data order, noise and samples."""
    sample_every: int | None = None
    """Steps between sample grids; by default one halfway and one at the end. 0 draws only the last."""
    checkpoint_every: float = 5.0
    """Minutes between checkpoints; the last two are kept."""
    loggers: str | None = None
    """Dashboards besides metrics.jsonl, separated by commas: {loggers}."""
    compile: bool = False
    """Compile the network in the first step, which takes minutes; later runs load it from the cache."""
    threads: int | None = None
    """CPU threads during the run. By default torch's number is unchanged; the command line gives a run with a budget
    in minutes as many as other processes leave free."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1 ..."""
    precision: str = "auto"
    """auto (bfloat16 where it is faster), float32 or bfloat16. Weights, optimiser and loss are always float32."""
    parallel: str = "auto"
    """What each process of torchrun holds: ddp (all weights; auto) or fsdp (a shard of weights, moments and averages,
    for networks too large for one GPU)."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _typed(field, getattr(self, field.name)))
        for name in (*NAMING, *_WORDS):
            value, known = getattr(self, name), choices(name)
            named = name in NAMING and name != "target" and registry.known(NAMING[name], registry.bare(value))
            if value is not None and value not in known and not named:
                raise SfumatoError(f"{name} cannot be {value!r}: {suggest(str(registry.bare(value)), known)}")
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                limit = f"at least {low:g}" if value < low and high > 1e6 else f"from {low:g} to {high:g}"
                raise SfumatoError(f"{name} must be a number {limit}, not {value!r:.40}.")
        if self.energy and self.variance == "learned":
            raise SfumatoError("An energy network cannot learn a variance: choose energy or variance='learned'.")
        if self.cascade is not None:
            self.sizes  # noqa: B018  (raises for what are no sizes)
        for name in (self.loggers or "").split(","):
            if name.strip():
                registry.check("logger", name.strip())
        if self.pairs is not None and self.sources is None:
            raise SfumatoError("pairs says how samples belong to sources: give these, too (--from).")
        if self.init is None and (self.lora is not None or self.train_only != "all"):
            raise SfumatoError("lora and train_only are for a model that is trained further: give it, too (--init).")
        if self.lora is not None and self.train_only != "all":
            raise SfumatoError(
                "lora trains adapters besides the new conditions, train_only='conditions' these alone: choose one."
            )
        if self.minutes is not None and self.steps is not None:
            raise SfumatoError("Give minutes or steps as the budget, not both.")

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of the stages of a cascade; () without one."""
        try:
            found = tuple(int(word) for word in (self.cascade or "").split(",") if self.cascade)
        except ValueError:
            found = (0,)
        if self.cascade is not None and (len(found) < 2 or any(b % max(a, 1) or b <= a for a, b in pairwise(found))):
            raise SfumatoError(
                f"cascade is sizes that grow, each a multiple of the one before, such as 16,32, not {self.cascade!r}."
            )
        return found

    def replace(self, **changes: Any) -> TrainConfig:
        """A copy with some settings changed. Raises SfumatoError with a suggestion for an unknown name."""
        return from_dict({**dataclasses.asdict(self), **changes})

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_yaml(self) -> str:
        """The settings as YAML, each below a comment that describes it."""
        import yaml

        words = docs()
        lines = []
        for name, value in self.to_dict().items():
            lines.append(f"# {words[name]}")
            lines.append(yaml.safe_dump({name: value}, allow_unicode=True, width=1000).strip())
        return "\n".join(lines) + "\n"


def _typed(field: dataclasses.Field[Any], value: Any) -> Any:
    """The value converted to the declared type; NumPy numbers and whole floats are accepted."""
    name, hint = field.name, str(field.type)
    if value is None and hint.endswith("| None"):
        return None
    if name in ("conditions", "columns"):
        if not isinstance(value, Mapping) or not all(isinstance(word, str) for pair in value.items() for word in pair):
            raise SfumatoError(f"{name} are names and kinds, such as {_KINDS[name]}, not {value!r:.80}.")
        return dict(value)
    if name == "cascade" and isinstance(value, list | tuple):
        value = ",".join(map(str, value))
    value = _COMPILE.get(str(value), value) if name == "compile" else value
    kind = hint.split()[0]
    if kind == "bool" and not isinstance(value, bool):
        raise SfumatoError(f"{name} must be true or false, not {value!r:.80}.")
    if kind == "str" and not isinstance(value, str):
        if name in ("out", "device") and not isinstance(value, int | float | type(None)):  # Path, torch.device
            return str(value)
        what = registry.KINDS[NAMING[name]].words if name in NAMING else name
        more = f": register the {what} and pass its name" if callable(value) else ""
        raise SfumatoError(f"{name} must be text, not {value!r:.80}{more}.")
    if kind == "str" and "\0" in value:
        raise SfumatoError(f"{name} cannot have a NUL character: {value!r:.80}.")
    if kind in ("int", "float"):
        if isinstance(value, bool | str) or not hasattr(value, "__float__"):
            raise SfumatoError(f"{name} must be a number, not {value!r:.80}.")
        value = value.item() if hasattr(value, "item") else value
        if kind == "int" and value % 1 != 0:  # of infinity and NaN that is NaN
            raise SfumatoError(f"{name} must be a whole number, not {value!r}.")
        return int(value) if kind == "int" else value
    return value


_KINDS = {"conditions": "{'mass': 'scalar'}", "columns": "{'zip': 'category'}"}
_LARGEST = 1 << 16  # bytes of a file of settings, ten times those of one with every setting and its description
ADAPTERS_LR = 0.02  # five times that of all weights (docs/how-to/fine-tuning.md)
_TINY, _YEARS = 1e-12, 1e7  # minutes: about twenty years
_RANGES: tuple[tuple[str, float, float], ...] = (
    ("minutes", 1e-3, _YEARS), ("steps", 1, 2**53), ("size", 1, 65536), ("length", 1, 2**20),
    ("max_gb", 1e-3, 1e6), ("batch", 1, 2**31),
    ("lr", _TINY, 1e3), ("warmup", 0, math.inf), ("decay", 0, 1), ("weight_decay", 0, 1e3), ("clip", 0, math.inf),
    ("ema", 0, 0.28), ("drop", 0, 1), ("holdout", 0, 0.9), ("guidance", -1e3, 1e3), ("seed", 0, 2**63 - 1),
    ("sample_every", 0, math.inf), ("snapshots", 0, 1000), ("micro", 1, math.inf), ("checkpoint_every", 1e-3, _YEARS),
    ("workers", 0, 64), ("threads", 1, 1024), ("lora", 1, 4096), ("reconstruction", 0, 1),
)  # fmt: skip


def docs() -> dict[str, str]:
    """Field name -> its one-line description, read from the class source, with the registered names filled in."""
    import ast
    import inspect
    import textwrap

    with registry.PARSING:
        body = ast.parse(textwrap.dedent(inspect.getsource(TrainConfig))).body[0]
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for field, words in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(words, ast.Expr) and isinstance(words.value, ast.Constant):
            name, text = ast.unparse(field.target), " ".join(str(words.value.value).split())
            listed = registry.names("logger") if name == "loggers" else choices(name)
            text = text.replace("{features}", ", ".join(registry.names("features")))
            found[name] = text.replace(f"{{{name}}}", ", ".join(listed))
    return found


def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings under the names of this version."""
    return {_RENAMED.get(name, name): value for name, value in values.items()}


def from_dict(values: Mapping[str, Any], where: str = "") -> TrainConfig:
    """Settings from a mapping (keyword arguments, YAML). Raises SfumatoError with a suggestion for an unknown name."""
    known, values = [field.name for field in dataclasses.fields(TrainConfig)], renamed(values)
    for name in values:
        if name not in known:
            place = f" in {where}" if where else ""
            raise SfumatoError(f"There is no setting {name!r}{place}: {suggest(str(name), known)}")
    return TrainConfig(**_of_adapters(values))


def _of_adapters(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the default learning rate of adapters, if these are trained."""
    return {"lr": ADAPTERS_LR, **values} if values.get("lora") is not None else dict(values)


def from_yaml(path: str) -> TrainConfig:
    """Settings from a YAML file."""
    return from_dict(read(path), where=path)


def read(path: str) -> dict[str, Any]:
    """The settings of a YAML file over the defaults: types are checked, names of parts (perhaps the user's) are not."""
    import yaml

    text = schema.read_text(path, _LARGEST)
    try:
        _scan(text, path)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SfumatoError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
    except SfumatoError:
        raise
    except (ValueError, RecursionError) as error:  # thousands of digits or of brackets, the 31st of February
        raise SfumatoError(f"{path} holds a value that cannot be read ({type(error).__name__}).") from None
    if not isinstance(values, dict):
        raise SfumatoError(f"{path} must hold settings, one `name: value` per line.")
    twice = [name for name, count in Counter(key.value for key, _ in yaml.compose(text).value).items() if count > 1]
    if twice:  # of which YAML takes the last
        raise SfumatoError(f"{path} has the setting {twice[0]!r} twice: leave out one of them.")
    for field in dataclasses.fields(TrainConfig):
        if field.name in values:
            schema.require(values, functools.partial(_well_typed, field), path)
    return {**TrainConfig().to_dict(), **_of_adapters(renamed(values))}


def _scan(text: str, path: str) -> None:
    """Raise SfumatoError for YAML that would take long or much to read: aliases, of which few stand for gigabytes, and
    lists and mappings deep within each other. Also for 1:30, which is 90 in YAML 1.1."""
    import yaml
    from yaml.resolver import Resolver

    opening = (
        yaml.BlockSequenceStartToken, yaml.BlockMappingStartToken, yaml.FlowSequenceStartToken,
        yaml.FlowMappingStartToken,
    )  # fmt: skip
    depth = 0
    for token in yaml.scan(text):
        depth += isinstance(token, opening)
        depth -= isinstance(token, yaml.BlockEndToken | yaml.FlowSequenceEndToken | yaml.FlowMappingEndToken)
        if isinstance(token, yaml.AliasToken):
            raise SfumatoError(f"{path} has YAML aliases (*name), which settings may not have: write the value out.")
        if isinstance(token, yaml.ScalarToken) and token.plain and ":" in token.value:
            if Resolver().resolve(yaml.ScalarNode, token.value, (True, False)).endswith((":int", ":float")):
                raise SfumatoError(f"{path}: {token.value} is no plain number: write it without colons, or in quotes.")
        if depth > schema.DEPTH:
            raise SfumatoError(f"{path}: lists and mappings stand more than {schema.DEPTH} deep within each other.")


def _well_typed(field: dataclasses.Field[Any], values: Mapping[str, Any], where: str) -> None:
    """The check of one of the settings of a file (`schema`)."""
    _typed(field, values[field.name])


def budget(samples: int, elements: int) -> float:
    """Default budget in minutes: 2 to 60, the square root of the data's size in millions of values."""
    size = samples * elements / 1e6
    return float(min(60, max(2, round(math.sqrt(size)))))
