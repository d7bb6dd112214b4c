"""The arguments of each command, as dataclasses; flags, help and errors are made from them (`parse`). No torch here."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform, get_type_hints

import tyro

from sfumato.registry import names
from sfumato.training.config import TrainConfig, choices, docs


def flag(words: str, metavar: str | None = None, *, name: str | None = None, short: str | None = None) -> Any:
    """A flag's words; its default is named in them where it helps, never as a bare None."""
    return tyro.conf.arg(
        help=words, metavar=metavar, name=name, aliases=[short] if short else None, help_behavior_hint=_hint
    )


def _hint(default: str) -> str:
    return "" if default in ("None", "False", "''", "") else f"(default: {default})"


Several = tyro.conf.UseAppendAction[tuple[str, ...]]  # a flag that may be given again
DECLARED = Annotated[
    Several,
    flag("What a column beside the samples is, where it should not be guessed: label, multilabel, scalar, vector, "
         "field, or ignore. May be given again for another.", "NAME:KIND"),
]  # fmt: skip
ASKED = Annotated[
    Several,
    flag("A condition in the user's units, such as temperature=300; several numbers or classes, one a sample in turn, "
         "have commas between. May be given again for another.", "NAME=VALUE"),
]  # fmt: skip

T = TypeVar("T")


@dataclass_transform(kw_only_default=True, frozen_default=True)
def command(cls: type[T]) -> type[T]:
    """The class as a dataclass, with the flags that every command takes at the end."""
    json = Annotated[bool, flag("Results as JSON on stdout; everything else goes to stderr.")]
    debug = Annotated[bool, flag("Show a traceback where something fails.")]
    modules = Annotated[
        str | None,
        flag("Python files of your own to run first, with commas between: what they register (docs/extending.md) may "
             "be named.", "FILE"),
    ]  # fmt: skip
    for name, kind, usual in (("modules", modules, None), ("json", json, False), ("debug", debug, False)):
        cls.__annotations__[name] = kind
        setattr(cls, name, usual)
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


@command
class Demo:
    """Train a class-conditional model on the built-in clothes (Fashion-MNIST) and draw ten samples of each class.

    It leaves a run folder with the model, the grid and report.html, and says what to type next. With --json, one JSON
    object a line: {"event": "progress", ...} while it trains, then {"event": "done", ...}.
    """

    minutes: Annotated[float, flag("Minutes of training.", "FLOAT")] = 2.0
    out: Annotated[str, flag("The run folder; where it exists, the next free name is taken.", "FOLDER", short="-o")] = (
        "runs/demo"
    )


@command
class Resume:
    """Go on with a run from its last checkpoint, exactly as if it had not been interrupted.

    With --json, one JSON object a line, as in `sfumato train`.
    """

    folder: Annotated[tyro.conf.Positional[str], flag("The run folder.", "RUN")]
    minutes: Annotated[float | None, flag("A new budget for the whole run, in minutes.", "FLOAT")] = None
    steps: Annotated[int | None, flag("A new budget for the whole run, in steps.", "INT")] = None
    parallel: Annotated[
        Literal["auto", "ddp", "fsdp"] | None, flag("What each process of torchrun holds from here on.", "NAME")
    ] = None
    changed: Annotated[
        bool, flag("Take what was changed in the run's config.yaml; else such changes are an error.")
    ] = False


@command
class Control:
    """Say a word to a RUN that another process trains: save, sample, pause, go (on after a pause), stop.

    It is heard between two steps. With --json, one JSON object.
    """

    folder: Annotated[tyro.conf.Positional[str], flag("The run folder.", "RUN")]
    word: Annotated[tyro.conf.Positional[str], flag("save, sample, pause, go or stop.", "WORD")]


@command
class Sample:
    """Draw samples from a model: a run folder, or one .safetensors file. The training data is not needed.

    Sample i of a seed is the same whatever -n and --batch are (with --solver adaptive: within its tolerance). With
    --json, one JSON object: where the samples are and their manifest.
    """

    model: Annotated[tyro.conf.Positional[str], flag("A run folder or a .safetensors file.", "MODEL")]
    number: Annotated[
        int | None, flag("How many; 64, or ten of each class where there are up to 20.", "INT", short="-n")
    ] = None
    out: Annotated[
        str | None,
        flag(
            "grid.png (a picture), out.npz (x, labels, manifest), out.npy (x alone), or folder/ (a file a sample). "
            "Without it: samples.png for images, samples.npz for other data.",
            "PATH",
            short="-o",
        ),
    ] = None
    class_: Annotated[
        str | None,
        flag("Class by name or index. Without it, samples go through all classes in turn.", "CLASS", name="class"),
    ] = None
    condition: ASKED = ()
    guidance: Annotated[
        float | None,
        flag("Guidance scale: 1 is the conditional model, 0 the unconditional, above 1 sharper classes. Without it, "
             "that of the model's own training grids.", "FLOAT"),
    ] = None  # fmt: skip
    guidance_interval: Annotated[
        tuple[float, float] | None,
        flag("Guide only between these two levels of logsnr (lowest, highest).", "LOW HIGH"),
    ] = None
    steps: Annotated[int | None, flag("Steps of the solver; 20 where it is not given.", "INT")] = None
    solver: Annotated[
        str | None,
        flag(f"Solver: {', '.join(names('solver'))}. Without it, the plan of so many steps that the model carries "
             "(`sfumato tune`), or multistep with a corrector.", "NAME"),
    ] = None  # fmt: skip
    seed: Annotated[int, flag("Seed of the samples.", "INT")] = 0
    first: Annotated[int, flag("Number of the first sample: 100 goes on after -n 100.", "INT")] = 0
    batch: Annotated[int, flag("Samples drawn at once; changes memory and speed alone.", "INT")] = 256
    weights: Annotated[
        Literal["ema", "raw"], flag("The moving average of the weights, or the last raw ones.", "{ema,raw}")
    ] = "ema"
    device: Annotated[str, flag("auto (a GPU where there is one), cpu, cuda, cuda:1 ...", "NAME")] = "auto"
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        flag("What the network computes in; auto is bfloat16 where that is faster.", "{auto,float32,bfloat16}"),
    ] = "auto"


@command
class Tune:
    """Fit a plan of few steps to a model and store it in its file: `sfumato sample MODEL --steps N` then uses it.

    The times and coefficients are fitted to where a fine solve of the same noise ends, and judged on other noise; a
    plan that is worse than the best untuned one is never stored. With --noise, a stochastic plan, its coefficients
    fitted along paths of noise and to the law of the samples. With --json, one JSON object: both errors.
    """

    model: Annotated[tyro.conf.Positional[str], flag("A run folder or a .safetensors file.", "MODEL")]
    steps: Annotated[int, flag("Steps of the plan, each one call of the network.", "INT")] = 8
    noise: Annotated[
        float, flag("0: the ODE, without noise; 1: the reverse SDE, whose samples draw noise at each step.", "FLOAT")
    ] = 0.0
    condition: ASKED = ()
    guidance: Annotated[
        float | None,
        flag("Guidance scale that the plan is for. Without it, that of the model's own training grids.", "FLOAT"),
    ] = None
    guidance_interval: Annotated[
        tuple[float, float] | None,
        flag("Guide only between these two levels of logsnr (lowest, highest).", "LOW HIGH"),
    ] = None
    points: Annotated[
        int | None, flag("Samples that are fitted; 64 to 4,096 by their size. Half as many judge.", "INT")
    ] = None
    rounds: Annotated[int, flag("Rounds of the fit at most.", "INT")] = 40
    batch: Annotated[int, flag("Samples at once; changes memory and speed alone.", "INT")] = 256
    seed: Annotated[int, flag("Seed of the noise.", "INT")] = 0
    device: Annotated[str, flag("auto (a GPU where there is one), cpu, cuda, cuda:1 ...", "NAME")] = "auto"


@command
class Runs:
    """Runs side by side: how far each came, its losses, and the settings that tell them apart, the best first.

    With --json, one JSON object.
    """

    folders: Annotated[
        tyro.conf.Positional[tuple[str, ...]], flag("Run folders, or folders of them; runs without it.", "RUN")
    ] = ()


@command
class Doctor:
    """Say what is wrong with a RUN (finished, stopped or under way) or a model file: each fault by a code.

    It looks at the log, the data, the weights and what the network answers where the truth is known, says what it
    looked for and what it could not, and writes nothing. Exit status 1 where there is an error. With --json, one JSON
    object.
    """

    subject: Annotated[tyro.conf.Positional[str], flag("A run folder or a .safetensors file.", "RUN")]
    data: Annotated[
        str | None,
        flag("A folder of images, a .npy or .npz file, or a built-in set, in the units of the training data; "
             "without it, that of the run.", "DATA"),
    ] = None  # fmt: skip
    labels: Annotated[str | None, flag("A .npy or text file with one class label a sample of DATA.", "FILE")] = None
    size: Annotated[int | None, flag("Side in pixels that images of DATA are resized to.", "INT")] = None
    seed: Annotated[int, flag("Seed of the draws.", "INT")] = 0
    device: Annotated[str, flag("auto (a GPU where there is one), cpu, cuda, cuda:1 ...", "NAME")] = "auto"


@command
class Average:
    """Make a model of a finished RUN whose weights are averaged over another part of it than the run's --ema.

    Wider is smoother and reaches further back; the run kept snapshots for it (`sfumato train --snapshots`). With
    --json, one JSON object.
    """

    run: Annotated[tyro.conf.Positional[str], flag("A run folder.", "RUN")]
    width: Annotated[
        float, flag("Standard deviation of the window as a fraction of the run, such as 0.03 or 0.15.", "FLOAT")
    ] = 0.1
    out: Annotated[str | None, flag("The model file; average-WIDTH.safetensors without it.", "FILE", short="-o")] = None


@command
class Memorisation:
    """Say whether samples of a model repeat its training samples, against how near new ones come to these.

    Each sample's distance to the nearest training sample is taken over that to the nearest held-out one, and set beside
    the same ratio of training samples that are left out themselves. With --json, one JSON object.
    """

    model: Annotated[tyro.conf.Positional[str], flag("A run folder or a .safetensors file.", "MODEL")]
    data: Annotated[
        tyro.conf.Positional[str | None], flag("What it was trained on; that of the run folder without it.", "DATA")
    ] = None
    holdout: Annotated[
        str | None, flag("Unseen data; without it, what training held out. DATA is then the training set.", "DATA")
    ] = None
    labels: Annotated[str | None, flag("A .npy or text file with one class label a sample of DATA.", "FILE")] = None
    size: Annotated[int | None, flag("Side in pixels that images are resized to.", "INT")] = None
    number: Annotated[int, flag("Samples to draw.", "INT", short="-n")] = 512
    steps: Annotated[int, flag("Steps of the solver.", "INT")] = 10
    guidance: Annotated[
        float | None, flag("Guidance scale; without it none, which is the law that was learned.", "FLOAT")
    ] = None
    weights: Annotated[
        Literal["ema", "raw"], flag("The moving average of the weights, or the last raw ones.", "{ema,raw}")
    ] = "ema"
    out: Annotated[
        str | None,
        flag("A picture (.png) of the samples nearest to training samples, beside these.", "PATH", short="-o"),
    ] = None
    batch: Annotated[int, flag("Samples drawn at once; changes memory and speed alone.", "INT")] = 256
    seed: Annotated[int, flag("Seed of the samples.", "INT")] = 0
    device: Annotated[str, flag("auto (a GPU where there is one), cpu, cuda, cuda:1 ...", "NAME")] = "auto"


@command
class Info:
    """Say what a model is: its data and units, process, target, network, classes, origin, and how to sample it.

    No weights are loaded. With --json, one JSON object: the contract in the model's header.
    """

    model: Annotated[tyro.conf.Positional[str], flag("A run folder or a .safetensors file.", "MODEL")]


@command
class Inspect:
    """Look at a data set as training would see it: shape, values, classes, duplicates, and the files that are skipped.

    With --json, one JSON object.
    """

    data: Annotated[
        tyro.conf.Positional[str],
        flag("A folder of images, a .npy or .npz file, .tar archives or .parquet tables, or a built-in set (fashion, "
             "emoji, digits).", "DATA"),
    ]  # fmt: skip
    labels: Annotated[str | None, flag("A .npy or text file with one class label a sample.", "FILE")] = None
    condition: DECLARED = ()
    size: Annotated[int | None, flag("Side in pixels that images are resized to.", "INT")] = None


@command
class Likelihood:
    """Say how probable a model finds DATA: log p(x) in nats and the units of the data, bits/dim for whole numbers.

    By the probability-flow ODE, with what the probes, the steps, the prior and the least noise may be wrong by, or by
    a variational bound, with its terms. With --json, one JSON object.
    """

    model: Annotated[tyro.conf.Positional[str], flag("A run folder or a .safetensors file.", "MODEL")]
    data: Annotated[
        tyro.conf.Positional[str],
        flag("A folder of images, a .npy or .npz file, or a built-in set, in the units of the training data.", "DATA"),
    ]
    number: Annotated[int, flag("Samples, spread over the set.", "INT", short="-n")] = 16
    klass: Annotated[str | None, flag("The class that all are thought to be of.", "NAME", name="class")] = None
    condition: ASKED = ()
    conditional: Annotated[bool, flag("Take each sample under its own class and other conditions.")] = False
    labels: Annotated[str | None, flag("A .npy or text file with one class label a sample.", "FILE")] = None
    size: Annotated[int | None, flag("Side in pixels that images are resized to.", "INT")] = None
    method: Annotated[
        Literal["auto", "ode", "elbo", "importance"],
        flag("ode: the probability flow. elbo: the bound by noise level. importance: the bound of many trajectories. "
             "auto: ode, or of symbols their bound.", "NAME"),
    ] = "auto"  # fmt: skip
    steps: Annotated[
        int,
        flag("Steps of the ODE, an even number, each 4 calls and a trace; or noise levels of a bound, each a call.",
             "INT"),
    ] = 64  # fmt: skip
    trace: Annotated[
        Literal["auto", "exact", "rademacher", "gaussian", "deflated"],
        flag("How the divergence is taken; auto is exact up to 128 numbers a sample, else rademacher.", "NAME"),
    ] = "auto"
    probes: Annotated[
        int, flag("Probes of each sample where the trace is not exact, or replicates of a bound.", "INT")
    ] = 8
    particles: Annotated[int, flag("Trajectories that --method importance weighs against each other.", "INT")] = 16
    dequantisation: Annotated[
        Literal["auto", "uniform", "discretised"],
        flag("How whole numbers are taken: noise of their width, or probabilities of their cells (bounds alone).",
             "NAME"),
    ] = "auto"  # fmt: skip
    batch: Annotated[int | None, flag("Samples at once; changes memory and speed alone.", "INT")] = None
    seed: Annotated[int, flag("Seed of the probes and of the dequantisation.", "INT")] = 0
    out: Annotated[str | None, flag("A .npz file for the figures of each sample.", "FILE", short="-o")] = None
    device: Annotated[str, flag("auto (a GPU where there is one), cpu, cuda, cuda:1 ...", "NAME")] = "auto"


@command
class Certify:
    """Measure a solver on exact models under VP, VE and flow schedules: order, calls, contiguity, stability, law.

    Without SOLVER, all of them in quick mode and a line for each. Exit status 0 where all promises hold, 1 where one
    does not, which is then said in words. With --json, one JSON object.
    """

    solver: Annotated[
        tyro.conf.Positional[str | None],
        flag(f"One of {', '.join(names('solver'))}, or a plan's .json file.", "SOLVER"),
    ] = None
    quick: Annotated[bool, flag("Fewer steps and samples for SOLVER.")] = False
    full: Annotated[bool, flag("All steps and samples where no SOLVER is given.")] = False


@command
class ExplainObjective:
    """Say what a training objective weighs: w and p by noise level, the nearest named weight, whether it is an ELBO.

    That of a run, of a model file (with --times and --weight), or of names; what is not given is what `sfumato train`
    takes. A flag beside MODEL asks what would be with it. With --data also the board of MODEL: its loss by noise level
    on the data, beside a trivial guess, what each level adds, gradient and noise scale. With --json, one JSON object.
    """

    model: Annotated[tyro.conf.Positional[str | None], flag("A run folder or a .safetensors file.", "MODEL")] = None
    schedule: Annotated[str | None, flag(f"One of {', '.join(choices('schedule'))}.", "NAME")] = None
    target: Annotated[str | None, flag(f"One of {', '.join(choices('target'))}.", "NAME")] = None
    times: Annotated[str | None, flag(f"One of {', '.join(choices('times'))}.", "NAME")] = None
    weight: Annotated[str | None, flag(f"One of {', '.join(choices('weight'))}.", "NAME")] = None
    plot: Annotated[
        str | None,
        flag(
            "A picture to draw (.png, .svg, .pdf): w beside named weights, and p. With --data a page (.html).", "PATH"
        ),
    ] = None
    data: Annotated[
        str | None,
        flag("Judge MODEL on it: a folder of images, a .npy or .npz file, or a built-in set. Of the data that it was "
             "trained on, only what was held out is looked at.", "DATA"),
    ] = None  # fmt: skip
    labels: Annotated[str | None, flag("A .npy or text file with one class label a sample of DATA.", "FILE")] = None
    number: Annotated[int, flag("Draws a noise level.", "INT", short="-n")] = 64
    device: Annotated[str, flag("auto (a GPU where there is one), cpu, cuda, cuda:1 ...", "NAME")] = "auto"


_TRAIN_WORDS = """Train a model on DATA and leave a run folder: model.safetensors, samples, metrics, report.html.

Settings come from the defaults, then --config, then flags. Ctrl-C saves a checkpoint. With --json, one JSON object a
line: {"event": "progress", ...} while it trains, then {"event": "done", ...}.
"""


_PLAN_WORDS = """Say what `sfumato train` would take with the same DATA and flags: time, memory, disk; does it fit?

It takes some 24 steps and does once what a run does beside its steps; no file is left, but pictures that were decoded
stay in the cache. With --json, one JSON object: seconds and bytes.
"""


def _train(name: str, about: str) -> type:
    """TrainConfig as flags: DATA is positional, --config and the common flags are added, checks stay TrainConfig's."""
    words, hints = docs(), get_type_hints(TrainConfig)
    body: dict[str, Any] = {"__doc__": about, "__module__": __name__, "__annotations__": {}}
    for field in dataclasses.fields(TrainConfig):
        kind, meta = hints[field.name], _metavar(hints[field.name])
        if field.name == "data":
            kind, meta = tyro.conf.Positional[str], "DATA"
        if field.name == "conditions":
            body["__annotations__"]["condition"], body["condition"] = DECLARED, ()
            continue
        short = "-o" if field.name == "out" else None
        body["__annotations__"][field.name] = Annotated[kind, flag(words[field.name], meta, short=short)]
        body[field.name] = field.default
    config = flag("A YAML file of settings, named as the flags are (with _ for -); flags have the last word.", "FILE")
    body["__annotations__"]["config"], body["config"] = Annotated[str | None, config], None
    return command(type(name, (), body))


def _metavar(kind: Any) -> str | None:
    text = str(kind)
    if kind is bool:
        return None
    return "FLOAT" if "float" in text else "INT" if "int" in text else "TEXT"


Train, PlanRun = _train("Train", _TRAIN_WORDS), _train("PlanRun", _PLAN_WORDS)
CLASSES: dict[str, type] = {
    "demo": Demo, "train": Train, "resume": Resume, "sample": Sample, "info": Info, "inspect": Inspect,
    "certify": Certify, "tune": Tune, "likelihood": Likelihood, "average": Average, "runs": Runs, "control": Control,
    "memorisation": Memorisation, "plan": PlanRun, "explain-objective": ExplainObjective, "doctor": Doctor,
}  # fmt: skip
