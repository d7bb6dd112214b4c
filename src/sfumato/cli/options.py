"""The arguments of each command, as classes; flags, help and errors are made from them (`parse`). No torch here."""

from __future__ import annotations

import dataclasses
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sfumato.registry import names
from sfumato.training.config import NAMING, TrainConfig, choices, docs

PAIR = tuple[float, float]
Several = tuple[str, ...]  # a flag that may be given again, or places without end
PLACES, EVERY = "arguments", "with every command"
REQUIRED = dataclasses.MISSING


@dataclasses.dataclass(frozen=True)
class Flag:
    """An attribute of a command on the command line: a flag, or a value that stands in its place without one."""

    words: str
    usual: Any = None
    metavar: str | None = None
    name: str = ""
    short: str | None = None
    group: str = "options"
    kind: Any = str

    def of(self, attribute: str, hint: Any) -> Flag:
        """The same for an attribute of that name and type."""
        kind = get_args(hint)[0] if NoneType in get_args(hint) else hint
        return dataclasses.replace(self, name=self.name or attribute.replace("_", "-"), kind=kind)

    @property
    def spellings(self) -> list[str]:
        return [self.short, f"--{self.name}"] if self.short else [f"--{self.name}"]

    def __str__(self) -> str:
        return self.form if self.group == PLACES else self.spellings[-1]

    @property
    def few(self) -> tuple[str, ...]:
        """The words that it may be, where these are few."""
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    @property
    def form(self) -> str:
        """What stands for a value of it."""
        few = f"{{{','.join(self.few)}}}" if self.few else "TEXT"
        return self.metavar or {int: "INT", float: "FLOAT"}.get(self.kind, few)

    @property
    def takes(self) -> str:
        numbers = {int: "a whole number", float: "a number", PAIR: "two numbers", bool: "no value"}
        return " or ".join(map(repr, self.few)) or numbers.get(self.kind, self.form)

    @property
    def help(self) -> str:
        """The words and the default, where there is one worth naming; % is argparse's."""
        unnamed = self.usual is False or self.usual in (None, "", (), REQUIRED)
        return (self.words + ("" if unnamed else f" (default: {self.usual})")).replace("%", "%%")


def flag(words: str, usual: Any = None, metavar: str | None = None, **more: Any) -> Any:
    return Flag(words, usual, metavar, **more)


def place(words: str, metavar: str, usual: Any = REQUIRED) -> Any:
    return Flag(words, usual, metavar, group=PLACES)


DECLARED = flag(
    "What a column beside the samples is, where it should not be guessed: label, multilabel, scalar, vector, field, "
    "or ignore. May be given again for another.",
    (), 'NAME:KIND',
)  # fmt: skip
ASKED = flag(
    "A condition in the user's units, such as temperature=300; several numbers or classes, one a sample in turn, "
    "have commas between. May be given again for another.",
    (), 'NAME=VALUE',
)  # fmt: skip
MODEL = place("A run folder or a .safetensors file.", "MODEL")
RUN = place("The run folder.", "RUN")
DEVICE = flag("auto (a GPU where there is one), cpu, cuda, cuda:1 ...", "auto", "NAME")
WEIGHTS = flag("The moving average of the weights, or the last raw ones.", "ema")
INTERVAL = flag("Guide only between these two levels of logsnr (lowest, highest).", metavar="LOW HIGH")
SIDE = flag("Side in pixels that images are resized to.")
LABELS = flag("A .npy or text file with one class label a sample.", metavar="FILE")
LABELS_OF = flag("A .npy or text file with one class label a sample of DATA.", metavar="FILE")
BATCH = flag("Samples drawn at once; changes memory and speed alone.", 256)
SEED = flag("Seed of the samples.", 0)


class Command:
    """What every command takes. An instance has the values: those that are given, else the defaults."""

    modules: str | None = flag(
        "Python files of your own to run first, with commas between: what they register (docs/extending.md) may be "
        "named.",
        metavar='FILE', group=EVERY,
    )  # fmt: skip
    json: bool = flag("Results as JSON on stdout; everything else goes to stderr.", False, group=EVERY)
    debug: bool = flag("Show a traceback where something fails.", False, group=EVERY)

    def __init__(self, **given: Any) -> None:
        for name, flag in self.flags().items():
            setattr(self, name, given.get(name, flag.usual))

    @classmethod
    def flags(cls) -> dict[str, Flag]:
        """The attributes -> what they are on the command line."""
        return {name: getattr(cls, name).of(name, hint) for name, hint in get_type_hints(cls).items()}


class Demo(Command):
    """Train a class-conditional model on the built-in clothes (Fashion-MNIST) and draw ten samples of each class.

    It leaves a run folder with the model, the grid and report.html, and says what to type next. With --json, one JSON
    object a line: {"event": "progress", ...} while it trains, then {"event": "done", ...}.
    """

    minutes: float = flag("Minutes of training.", 2.0)
    out: str = flag("The run folder; where it exists, the next free name is taken.", "runs/demo", "FOLDER", short="-o")


class Resume(Command):
    """Go on with a run from its last checkpoint, exactly as if it had not been interrupted.

    With --json, one JSON object a line, as in `sfumato train`.
    """

    folder: str = RUN
    minutes: float | None = flag("A new budget for the whole run, in minutes.")
    steps: int | None = flag("A new budget for the whole run, in steps.")
    parallel: Literal["auto", "ddp", "fsdp"] | None = flag("What each process of torchrun holds from here on.")
    changed: bool = flag("Take what was changed in the run's config.yaml; else such changes are an error.", False)


class Control(Command):
    """Say a word to a RUN that another process trains: save, sample, pause, go (on after a pause), stop.

    It is heard between two steps. With --json, one JSON object.
    """

    folder: str = RUN
    word: str = place("save, sample, pause, go or stop.", "WORD")


class Sample(Command):
    """Draw samples from a model: a run folder, or one .safetensors file. The training data is not needed.

    Sample i of a seed is the same whatever -n and --batch are (with --solver adaptive: within its tolerance). With
    --json, one JSON object: where the samples are and their manifest.
    """

    model: str = MODEL
    number: int | None = flag("How many; 64, or ten of each class where there are up to 20.", short="-n")
    out: str | None = flag(
        "grid.png (a picture), out.npz (x, labels, manifest), out.npy (x alone), or folder/ (a file a sample). "
        "Without it: samples.png for images, samples.npz for other data.",
        metavar='PATH', short='-o',
    )  # fmt: skip
    class_: str | None = flag(
        "Class by name or index. Without it, samples go through all classes in turn.",
        metavar='CLASS', name='class',
    )  # fmt: skip
    condition: Several = ASKED
    guidance: float | None = flag(
        "Guidance scale: 1 is the conditional model, 0 the unconditional, above 1 sharper classes. Without it, that "
        "of the model's own training grids."
    )
    guidance_interval: PAIR | None = INTERVAL
    steps: int | None = flag("Steps of the solver; 20 where it is not given.")
    solver: str | None = flag(
        f"Solver: {', '.join(names('solver'))}. Without it, the plan of so many steps that the model carries "
        "(`sfumato tune`), or multistep with a corrector.",
        metavar="NAME",
    )
    seed: int = SEED
    first: int = flag("Number of the first sample: 100 goes on after -n 100.", 0)
    batch: int = BATCH
    weights: Literal["ema", "raw"] = WEIGHTS
    device: str = DEVICE
    precision: Literal["auto", "float32", "bfloat16"] = flag(
        "What the network computes in; auto is bfloat16 where that is faster.",
        "auto",
    )


class Tune(Command):
    """Fit a plan of few steps to a model and store it in its file: `sfumato sample MODEL --steps N` then uses it.

    The times and coefficients are fitted to where a fine solve of the same noise ends, and judged on other noise. A
    plan whose median error there is above that of the best untuned one, or whose mean square is beyond chance, is never
    stored. With --noise, a stochastic plan, its coefficients fitted along paths of noise and to the law of the samples.
    With --json, one JSON object: both errors.
    """

    model: str = MODEL
    steps: int = flag("Steps of the plan, each one call of the network.", 8)
    noise: float = flag("0: the ODE, without noise; 1: the reverse SDE, whose samples draw noise at each step.", 0.0)
    condition: Several = ASKED
    guidance: float | None = flag(
        "Guidance scale that the plan is for. Without it, that of the model's own training grids."
    )
    guidance_interval: PAIR | None = INTERVAL
    points: int | None = flag("Samples that are fitted; 64 to 4,096 by their size. Half as many judge.")
    rounds: int = flag("Rounds of the fit at most.", 40)
    batch: int = flag("Samples at once; changes memory and speed alone.", 256)
    seed: int = flag("Seed of the noise.", 0)
    device: str = DEVICE


class Runs(Command):
    """Runs side by side: how far each came, its losses, and the settings that tell them apart, the best first.

    With --json, one JSON object.
    """

    folders: Several = place("Run folders, or folders of them; runs without it.", "RUN", ())


class Doctor(Command):
    """Say what is wrong with a RUN (finished, stopped or under way) or a model file: each fault by a code.

    It looks at the log, the data, the weights and what the network answers where the truth is known, says what it
    looked for and what it could not, and writes nothing. Exit status 1 where there is an error. With --explain CODE it
    prints the page on a fault instead. With --json, one JSON object.
    """

    subject: str | None = place("A run folder or a .safetensors file.", "RUN", None)
    explain: str | None = flag(
        "Print the page on this fault: how it is detected, how it comes about, what cures it.", metavar="CODE"
    )
    data: str | None = flag(
        "A folder of images, a .npy or .npz file, or a built-in set, in the units of the training data; without it, "
        "that of the run.",
        metavar="DATA",
    )
    labels: str | None = LABELS_OF
    size: int | None = flag("Side in pixels that images of DATA are resized to.")
    seed: int = flag("Seed of the draws.", 0)
    device: str = DEVICE


class Average(Command):
    """Make a model of a finished RUN whose weights are averaged over another part of it than the run's --ema.

    Wider is smoother and reaches further back; the run kept snapshots for it (`sfumato train --snapshots`). With
    --json, one JSON object.
    """

    run: str = place("A run folder.", "RUN")
    width: float = flag("Standard deviation of the window as a fraction of the run, such as 0.03 or 0.15.", 0.1)
    out: str | None = flag("The model file; average-WIDTH.safetensors without it.", metavar="FILE", short="-o")


class Memorization(Command):
    """Say whether samples of a model repeat its training samples, against how near new ones come to these.

    Each sample's distance to the nearest training sample is taken over that to the nearest held-out one, and set beside
    the same ratio of training samples that are left out themselves. With --json, one JSON object.
    """

    model: str = MODEL
    data: str | None = place("What it was trained on; that of the run folder without it.", "DATA", None)
    holdout: str | None = flag(
        "Unseen data; without it, what training held out. DATA is then the training set.",
        metavar="DATA",
    )
    labels: str | None = LABELS_OF
    size: int | None = SIDE
    number: int = flag("Samples to draw.", 512, short="-n")
    steps: int = flag("Steps of the solver.", 10)
    guidance: float | None = flag("Guidance scale; without it none, which is the law that was learned.")
    weights: Literal["ema", "raw"] = WEIGHTS
    out: str | None = flag(
        "A picture (.png) of the samples nearest to training samples, beside these.",
        metavar='PATH', short='-o',
    )  # fmt: skip
    batch: int = BATCH
    seed: int = SEED
    device: str = DEVICE


class Info(Command):
    """Say what a model is: its data and units, process, target, network, classes, origin, and how to sample it.

    No weights are loaded. With --json, one JSON object: the contract in the model's header.
    """

    model: str = MODEL


class Inspect(Command):
    """Look at a data set as training would see it: shape, values, classes, duplicates, and the files that are skipped.

    With --json, one JSON object.
    """

    data: str = place(
        "A folder of images, a .npy or .npz file, .tar archives or .parquet tables, or a built-in set (fashion, "
        "emoji, digits).",
        "DATA",
    )
    labels: str | None = LABELS
    condition: Several = DECLARED
    size: int | None = SIDE


class Likelihood(Command):
    """Say how probable a model finds DATA: log p(x) in nats and the units of the data, bits/dim for whole numbers.

    By the probability-flow ODE, with what the probes, the steps, the prior and the least noise may be wrong by, or by
    a variational bound, with its terms. With --json, one JSON object.
    """

    model: str = MODEL
    data: str = place(
        "A folder of images, a .npy or .npz file, or a built-in set, in the units of the training data.",
        "DATA",
    )
    number: int = flag("Samples, spread over the set.", 16, short="-n")
    klass: str | None = flag("The class that all are thought to be of.", metavar="NAME", name="class")
    condition: Several = ASKED
    conditional: bool = flag("Take each sample under its own class and other conditions.", False)
    labels: str | None = LABELS
    size: int | None = SIDE
    method: Literal["auto", "ode", "elbo", "importance"] = flag(
        "ode: the probability flow. elbo: the bound by noise level. importance: the bound of many trajectories. "
        "auto: ode, or of symbols their bound.",
        "auto",
    )
    steps: int = flag(
        "Steps of the ODE, an even number, each 4 calls and a trace; or noise levels of a bound, each a call.",
        64,
    )
    trace: Literal["auto", "exact", "rademacher", "gaussian", "deflated"] = flag(
        "How the divergence is taken; auto is exact up to 128 numbers a sample, else rademacher.",
        "auto",
    )
    probes: int = flag("Probes of each sample where the trace is not exact, or replicates of a bound.", 8)
    particles: int = flag("Trajectories that --method importance weighs against each other.", 16)
    dequantisation: Literal["auto", "uniform", "discretised"] = flag(
        "How whole numbers are taken: noise of their width, or probabilities of their cells (bounds alone).",
        "auto",
    )
    batch: int | None = flag("Samples at once; changes memory and speed alone.")
    seed: int = flag("Seed of the probes and of the dequantisation.", 0)
    out: str | None = flag("A .npz file for the figures of each sample.", metavar="FILE", short="-o")
    device: str = DEVICE


class Certify(Command):
    """Measure a solver on exact models under VP, VE and flow schedules: order, calls, contiguity, stability, law.

    Without SOLVER, all of them in quick mode and a line for each. Exit status 0 where all promises hold, 1 where one
    does not, which is then said in words. With --json, one JSON object.
    """

    solver: str | None = place(f"One of {', '.join(names('solver'))}, or a plan's .json file.", "SOLVER", None)
    quick: bool = flag("Fewer steps and samples for SOLVER.", False)
    full: bool = flag("All steps and samples where no SOLVER is given.", False)


class ExplainObjective(Command):
    """Say what a training objective weighs: w and p by noise level, the nearest named weight, whether it is an ELBO.

    That of a run, of a model file (with --times and --weight), or of names; what is not given is what `sfumato train`
    takes. A flag beside MODEL asks what would be with it. With --data also the board of MODEL: its loss by noise level
    on the data, beside a trivial guess, what each level adds, gradient and noise scale. With --json, one JSON object.
    """

    model: str | None = place("A run folder or a .safetensors file.", "MODEL", None)
    schedule: str | None = flag(f"One of {', '.join(choices('schedule'))}.", metavar="NAME")
    target: str | None = flag(f"One of {', '.join(choices('target'))}.", metavar="NAME")
    times: str | None = flag(f"One of {', '.join(choices('times'))}.", metavar="NAME")
    weight: str | None = flag(f"One of {', '.join(choices('weight'))}.", metavar="NAME")
    plot: str | None = flag(
        "A picture to draw (.png, .svg, .pdf): w beside named weights, and p. With --data a page (.html).",
        metavar="PATH",
    )
    data: str | None = flag(
        "Judge MODEL on it: a folder of images, a .npy or .npz file, or a built-in set. Of the data that it was "
        "trained on, only what was held out is looked at.",
        metavar="DATA",
    )
    labels: str | None = LABELS_OF
    number: int = flag("Draws a noise level.", 64, short="-n")
    device: str = DEVICE


# the first setting of each group of flags -> its title
_GROUPS = {
    "out": "the run", "labels": "the data", "net": "the network and its loss", "batch": "training",
    "schedule": "the diffusion", "drop": "conditions, validation and samples",
    "checkpoint_every": "checkpoints and dashboards", "compile": "the machine",
}  # fmt: skip
_METAVARS = {"out": "FOLDER", "labels": "FILE", "model": "MODEL", "loggers": "NAMES", "device": "NAME"}


class Train(Command):
    """Train a model on DATA and leave a run folder: model.safetensors, samples, metrics, report.html.

    Settings come from the defaults, then --config, then flags. Ctrl-C saves a checkpoint. With --json, one JSON object
    a line: {"event": "progress", ...} while it trains, then {"event": "done", ...}.
    """

    config: str | None = flag(
        "A YAML file of settings, named as the flags are (with _ for -); flags have the last word.",
        metavar="FILE",
        group=_GROUPS["out"],
    )

    @classmethod
    def flags(cls) -> dict[str, Flag]:
        """Those of TrainConfig, whose checks stay there, and the usual ones."""
        words, hints, title, found = docs(), get_type_hints(TrainConfig), "", {}
        for name, setting in ((field.name, field) for field in dataclasses.fields(TrainConfig)):
            title, short = _GROUPS.get(name, title), "-o" if name == "out" else None
            one = Flag(words[name], setting.default, _metavar(name), short=short, group=title)
            found[name] = one.of(name, hints[name])
        found["data"] = place(words["data"], "DATA", "").of("data", str)
        declared = dataclasses.replace(DECLARED, name="condition", group=_GROUPS["labels"])
        return found | {"conditions": declared.of("conditions", Several)} | super().flags()


class PlanRun(Train):
    """Say what `sfumato train` would take with the same DATA and flags: time, memory, disk; does it fit?

    It takes some 24 steps and does once what a run does beside its steps; no file is left, but pictures that were
    decoded stay in the cache. With --json, one JSON object: seconds and bytes.
    """


def _metavar(setting: str) -> str | None:
    """What stands for the value of a setting that is no number: a name, or one of few words."""
    if setting in NAMING:
        return "NAME"
    return f"{{{','.join(choices(setting))}}}" if choices(setting) else _METAVARS.get(setting)


CLASSES: dict[str, type[Command]] = {
    "demo": Demo, "train": Train, "resume": Resume, "sample": Sample, "info": Info, "inspect": Inspect,
    "certify": Certify, "tune": Tune, "likelihood": Likelihood, "average": Average, "runs": Runs, "control": Control,
    "memorization": Memorization, "plan": PlanRun, "explain-objective": ExplainObjective, "doctor": Doctor,
}  # fmt: skip
