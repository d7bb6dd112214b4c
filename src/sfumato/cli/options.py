"""The commands: what each does in words, and its arguments as `argparse` takes them (`parse`). No torch here."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from types import NoneType
from typing import Any, NamedTuple, get_args, get_type_hints

from sfumato.registry import names
from sfumato.training.config import NAMING, TrainConfig, choices, docs


class Flag(NamedTuple):
    """The arguments of `add_argument`, and the title that the flag stands under in the help."""

    names: tuple[str, ...]
    how: dict[str, Any]
    group: str = "options"


class Command(NamedTuple):
    about: str
    flags: Sequence[Flag]


def flag(name: str, takes: Any, words: str, default: Any = None, group: str = "options", **how: Any) -> Flag:
    """A flag, "-o --out", or an argument without dashes; the help names a default that is worth it.

    takes: int, float, bool for a flag without a value, a tuple of the words that it may be, or the name of a text.
    """
    if isinstance(takes, tuple):
        how["choices"] = takes
    elif takes is bool:
        how, default = {"action": "store_true", **how}, default or False
    elif takes in (int, float):
        how |= {"type": takes, "metavar": how.get("metavar", "INT" if takes is int else "FLOAT")}
    else:
        how["metavar"] = takes
    if default is not False and default not in (None, "", []):
        words += f" (default: {default})"
    return Flag(tuple(name.split()), {"default": default, "help": words.replace("%", "%%"), **how}, group)


def place(name: str, metavar: str, words: str, **how: Any) -> Flag:
    """An argument without dashes."""
    return flag(name, metavar, words, group="arguments", **how)


def several(mark: str, metavar: str, words: str, **more: Any) -> Flag:
    """--condition, which may be given again: (what stands before the mark, what stands after it) of each."""

    def pair(word: str) -> tuple[str, str]:
        name, found, value = word.partition(mark) if mark == "=" else word.rpartition(mark)
        if not (found and name.strip() and value.strip()):
            raise argparse.ArgumentTypeError(f"takes {metavar}, not {word!r}")
        return name.strip(), value.strip()

    words += " May be given again for another."
    return flag("--condition", metavar, words, action="append", type=pair, **more)


def seed(what: str) -> Flag:
    return flag("--seed", int, f"Seed of the {what}.", 0)


DEVICE = flag("--device", "NAME", "auto (a GPU where there is one), cpu, cuda, cuda:1 ...", "auto")
MODEL = place("model", "MODEL", "A run folder or a .safetensors file.")
RUN = place("folder", "RUN", "The run folder.")
DECLARED = (
    "What a column beside the samples is, where it should not be guessed: label, multilabel, scalar, vector, field, or "
    "ignore."
)
GIVEN = several(
    "=", "NAME=VALUE",
    "A condition in the user's units, such as temperature=300; several numbers or classes, one a sample in turn, have "
    "commas between.",
    default=[],
)  # fmt: skip
INTERVAL = flag(
    "--guidance-interval", float, "Guide only between these two levels of logsnr (lowest, highest).",
    nargs=2, metavar=("LOW", "HIGH"),
)  # fmt: skip
GUIDANCE_OF_GRIDS = "Without it, that of the model's own training grids."
WEIGHTS = flag("--weights", ("ema", "raw"), "The moving average of the weights, or the last raw ones.", "ema")
SIDE = flag("--size", int, "Side in pixels that images are resized to.")
LABELS = flag("--labels", "FILE", "A .npy or text file with one class label a sample of DATA.")
BATCH = flag("--batch", int, "Samples drawn at once; changes memory and speed alone.", 256)
SOURCES = "a folder of images, a .npy or .npz file, .tar archives or .parquet tables, or a built-in set"

DEMO = Command(
    "Train a class-conditional model on the built-in clothes (Fashion-MNIST) and draw ten samples of each class. It "
    "leaves a run folder with the model, the grid and report.html, and says what to type next. With --json, one JSON "
    'object a line: {"event": "progress", ...} while it trains, then {"event": "done", ...}.',
    [
        flag("--minutes", float, "Minutes of training.", 2.0),
        flag("-o --out", "FOLDER", "The run folder; where it exists, the next free name is taken.", "runs/demo"),
    ],
)  # fmt: skip

RESUME = Command(
    "Go on with a run from its last checkpoint, exactly as if it had not been interrupted. With --json, one JSON "
    "object a line, as in `sfumato train`.",
    [
        RUN,
        flag("--minutes", float, "A new budget for the whole run, in minutes."),
        flag("--steps", int, "A new budget for the whole run, in steps."),
        flag("--parallel", ("auto", "ddp", "fsdp"), "What each process of torchrun holds from here on."),
        flag("--changed", bool, "Accept what was changed in the run's config.yaml; else such changes are an error."),
    ],
)  # fmt: skip

CONTROL = Command(
    "Send a word to a RUN that another process trains: save, sample, pause, go (on after a pause), stop. It takes "
    "effect between two steps. With --json, one JSON object.",
    [RUN, place("word", "WORD", "save, sample, pause, go or stop.")],
)

SAMPLE = Command(
    "Draw samples from a model: a run folder, or one .safetensors file. The training data is not needed. Sample i of "
    "a seed is the same whatever -n and --batch are (with --solver adaptive: within its tolerance). It guides "
    "towards classes and may compute in bfloat16, where `sf.sample` in Python does neither: --guidance 1 --precision "
    "float32 gives the samples of Python. With --json, one JSON object: where the samples are and their manifest.",
    [
        MODEL,
        flag("-n --number", int, "How many; 64, or ten of each class where there are up to 20."),
        flag(
            "-o --out", "PATH",
            "grid.png (a picture), out.npz (x, labels, manifest), out.npy (x alone), or folder/ (a file a sample). "
            "Without it: samples.png for images, samples.npz for other data.",
        ),
        flag(
            "--class", "CLASS",
            "Class by name or index. Without it, samples go through all classes in turn.",
            dest="class_",
        ),
        GIVEN,
        flag(
            "--guidance", float,
            "Guidance scale: 1 is the conditional model, 0 the unconditional, above 1 sharper classes. "
            + GUIDANCE_OF_GRIDS,
        ),
        INTERVAL,
        flag("--steps", int, "Steps of the solver; 20 where it is not given."),
        flag(
            "--solver", "NAME",
            f"Solver: {', '.join(names('solver'))}. Without it, the plan of so many steps that the model carries "
            "(`sfumato tune`), or multistep with a corrector.",
        ),
        flag("--first", int, "Number of the first sample: 100 goes on after -n 100.", 0),
        BATCH,
        WEIGHTS,
        seed("samples"),
        DEVICE,
        flag(
            "--precision", ("auto", "float32", "bfloat16"),
            "What the network computes in; auto is bfloat16 where that is faster, else float32.",
            "auto",
        ),
    ],
)  # fmt: skip

TUNE = Command(
    "Fit a plan of few steps to a model and store it in its file: `sfumato sample MODEL --steps N` then uses it. The "
    "times and coefficients are fitted to where a fine solve of the same noise ends, and judged on other noise. A "
    "plan whose median error there is above that of the best untuned one, or whose mean square is beyond chance, is "
    "never stored. With --noise, a stochastic plan, its coefficients fitted along paths of noise and to the law of "
    "the samples. With --json, one JSON object: both errors.",
    [
        MODEL,
        flag("--steps", int, "Steps of the plan, each one call of the network.", 8),
        flag(
            "--noise", float,
            "0: the ODE, without noise; 1: the reverse SDE, whose samples draw noise at each step.",
            0.0,
        ),
        GIVEN,
        flag("--guidance", float, "Guidance scale that the plan is for. " + GUIDANCE_OF_GRIDS),
        INTERVAL,
        flag("--points", int, "Samples that are fitted; 64 to 4,096 by their size. Half as many judge."),
        flag("--rounds", int, "Rounds of the fit at most.", 40),
        BATCH,
        seed("noise"),
        DEVICE,
    ],
)  # fmt: skip

RUNS = Command(
    "Runs side by side: how far each came, its losses, and the settings that tell them apart, the best first. With "
    "--json, one JSON object.",
    [place("folders", "RUN", "Run folders, or folders of them; runs without it.", nargs="*", default=[])],
)

DOCTOR = Command(
    "Say what is wrong with a RUN (finished, stopped or under way) or a model file: each fault by a code. It looks at "
    "the log, the data, the weights and what the network answers where the truth is known, says what it looked for "
    "and what it could not, and writes nothing. Exit status 1 where there is an error. With --explain CODE it prints "
    "the page on a fault instead. With --json, one JSON object.",
    [
        place("subject", "RUN", "A run folder or a .safetensors file.", nargs="?"),
        flag(
            "--explain", "CODE",
            "Print the page on this fault: how it is detected, how it comes about, what cures it.",
        ),
        flag(
            "--data", "DATA",
            f"The training data: {SOURCES}, in the units of training; without it, what the run was trained on.",
        ),
        LABELS,
        SIDE,
        seed("draws"),
        DEVICE,
    ],
)  # fmt: skip

AVERAGE = Command(
    "Make a model of a finished RUN whose weights are averaged over another part of it than the run's --ema. Wider is "
    "smoother and reaches further back; the run kept snapshots for it (`sfumato train --snapshots`). With --json, one "
    "JSON object.",
    [
        RUN,
        flag("--width", float, "Standard deviation of the window as a fraction of the run, such as 0.03 or 0.15.", 0.1),
        flag("-o --out", "FILE", "The model file; average-WIDTH.safetensors without it."),
    ],
)  # fmt: skip

MEMORIZATION = Command(
    "Say whether samples of a model repeat its training samples, against how near new ones come to these. Each "
    "sample's distance to the nearest training sample is taken over that to the nearest held-out one, and set beside "
    "the same ratio of training samples that are left out themselves. With --json, one JSON object.",
    [
        MODEL,
        place("data", "DATA", "What it was trained on; that of the run folder without it.", nargs="?"),
        flag("--holdout", "DATA", "Unseen data; without it, what training held out. DATA is then the training set."),
        LABELS,
        SIDE,
        flag("-n --number", int, "Samples to draw.", 512),
        flag("--steps", int, "Steps of the solver.", 10),
        flag("--guidance", float, "Guidance scale; without it none, which is the law that was learned."),
        WEIGHTS,
        flag("-o --out", "PATH", "A picture (.png) of the samples nearest to training samples, beside these."),
        BATCH,
        seed("samples"),
        DEVICE,
    ],
)  # fmt: skip

INFO = Command(
    "Say what a model is: its data and units, process, target, network, classes, origin, and how to sample it. No "
    "weights are loaded. With --json, one JSON object: the contract in the model's header.",
    [MODEL],
)

INSPECT = Command(
    "Look at a data set as training would see it: shape, values, classes, duplicates, and the files that are skipped. "
    "With --json, one JSON object.",
    [
        place("data", "DATA", f"{SOURCES[0].upper()}{SOURCES[1:]} (fashion, emoji, digits)."),
        LABELS,
        several(":", "NAME:KIND", DECLARED, default=[]),
        SIDE,
    ],
)

LIKELIHOOD = Command(
    "Say how probable a model finds DATA: log p(x) in nats and the units of the data, bits/dim for whole numbers. By "
    "the probability-flow ODE, with what the probes, the steps, the prior and the least noise may be wrong by, or by "
    "a variational bound, with its terms. With --json, one JSON object.",
    [
        MODEL,
        place("data", "DATA", f"The samples, in the units of the training data: {SOURCES}."),
        flag("-n --number", int, "Samples, spread over the set.", 16),
        flag("--class", "NAME", "The class that all are thought to be of.", dest="class_"),
        GIVEN,
        flag("--conditional", bool, "Take each sample under its own class and other conditions."),
        LABELS,
        SIDE,
        flag(
            "--method", ("auto", "ode", "elbo", "importance"),
            "ode: the probability flow. elbo: the bound by noise level. importance: the bound of many trajectories. "
            "auto: ode, or of symbols their bound.",
            "auto",
        ),
        flag(
            "--steps", int,
            "Steps of the ODE, an even number, each 4 calls and a trace; or noise levels of a bound, each a call.",
            64,
        ),
        flag(
            "--trace", ("auto", "exact", "rademacher", "gaussian", "deflated"),
            "How the divergence is taken; auto is exact up to 128 numbers a sample, else rademacher.",
            "auto",
        ),
        flag("--probes", int, "Probes of each sample where the trace is not exact, or replicates of a bound.", 8),
        flag("--particles", int, "Trajectories that --method importance weighs against each other.", 16),
        flag(
            "--dequantisation", ("auto", "uniform", "discretised"),
            "How whole numbers are taken: noise of their width, or probabilities of their cells (bounds alone).",
            "auto",
        ),
        flag("--batch", int, "Samples at once; changes memory and speed alone."),
        flag("-o --out", "FILE", "A .npz file for the figures of each sample."),
        seed("probes and of the dequantisation"),
        DEVICE,
    ],
)  # fmt: skip

CERTIFY = Command(
    "Measure a solver on exact models under VP, VE and flow schedules: order, calls, contiguity, stability, law. "
    "Without SOLVER, all of them in quick mode and a line for each. Exit status 0 where all promises hold, 1 where "
    "one does not, which is then said in words. With --json, one JSON object.",
    [
        place("solver", "SOLVER", f"One of {', '.join(names('solver'))}, or a plan's .json file.", nargs="?"),
        flag("--quick", bool, "Fewer steps and samples for SOLVER."),
        flag("--full", bool, "All steps and samples where no SOLVER is given."),
    ],
)  # fmt: skip

EXPLAIN_OBJECTIVE = Command(
    "Say what a training objective weighs: w and p by noise level, the nearest named weight, whether it is an ELBO. "
    "That of a run, of a model file (with --times and --weight), or of names; what is not given is what `sfumato "
    "train` takes. A flag beside MODEL asks what would be with it. With --data also the board of MODEL: its loss by "
    "noise level on the data, beside a trivial guess, what each level adds, gradient and noise scale. With --json, "
    "one JSON object.",
    [
        place("model", "MODEL", "A run folder or a .safetensors file.", nargs="?"),
        *(
            flag(f"--{dial}", "NAME", f"One of {', '.join(choices(dial))}.")
            for dial in ("schedule", "target", "times", "weight")
        ),
        flag(
            "--plot", "PATH",
            "A picture to draw (.png, .svg, .pdf): w beside named weights, and p. With --data a page (.html).",
        ),
        flag(
            "--data", "DATA",
            f"Judge MODEL on it: {SOURCES}. Of its own training data only what was held out is looked at.",
        ),
        LABELS,
        flag("-n --number", int, "Draws a noise level.", 64),
        DEVICE,
    ],
)  # fmt: skip

# the first setting of each group of flags -> its title
_GROUPS = {
    "out": "the run", "labels": "the data", "net": "the network and its loss", "batch": "training",
    "schedule": "the diffusion", "drop": "conditions, validation and samples",
    "checkpoint_every": "checkpoints and dashboards", "compile": "the machine",
}  # fmt: skip
_METAVARS = dict.fromkeys([*NAMING, "device"], "NAME")
_METAVARS |= {"out": "FOLDER", "labels": "FILE", "model": "MODEL", "loggers": "NAMES"}


def _settings() -> list[Flag]:
    """The flags of TrainConfig, which checks their values, as it does those of a YAML file."""
    words, hints, title, found = docs(), get_type_hints(TrainConfig), "", []
    for field in dataclasses.fields(TrainConfig):
        title = _GROUPS.get(field.name, title)
        if field.name == "data":
            found.append(place("data", "DATA", words["data"], nargs="?"))
        elif field.name == "conditions":
            found.append(several(":", "NAME:KIND", DECLARED, dest="conditions", group=title))
        else:
            found.append(_setting(field, hints[field.name], words[field.name], title))
    for each in found:
        each.how["default"] = argparse.SUPPRESS  # so that a flag that is not given does not overrule the YAML file
    return found


def _setting(field: dataclasses.Field[Any], hint: Any, words: str, group: str) -> Flag:
    """The flag of one setting; --energy has --no-energy beside it, since the YAML file may have set either."""
    kind = get_args(hint)[0] if NoneType in get_args(hint) else hint
    name = ("-o " if field.name == "out" else "") + "--" + field.name.replace("_", "-")
    if kind is bool:
        return flag(name, bool, words, field.default, group, action=argparse.BooleanOptionalAction)
    if kind is str:
        few = choices(field.name)
        kind = f"{{{','.join(few)}}}" if few and field.name not in NAMING else _METAVARS.get(field.name, "TEXT")
    return flag(name, kind, words, field.default, group)


CONFIG = flag(
    "--config", "FILE",
    "A YAML file of settings, named as the flags are (with _ for -); flags have the last word.",
    group="the run",
)  # fmt: skip
TRAIN = Command(
    "Train a model on DATA and leave a run folder: model.safetensors, samples, metrics, report.html. Settings come "
    "from the defaults, then --config, then flags. Ctrl-C saves a checkpoint. With --json, one JSON object a line: "
    '{"event": "progress", ...} while it trains, then {"event": "done", ...}.',
    [*_settings(), CONFIG],
)

PLAN = Command(
    "Say what `sfumato train` would take with the same DATA and flags: time, memory, disk; does it fit? It takes some "
    "24 steps and does once what a run does beside its steps; no file is left, but pictures that were decoded stay in "
    "the cache. With --json, one JSON object: seconds and bytes.",
    [*_settings(), CONFIG],
)

COMMANDS = {
    "demo": DEMO, "train": TRAIN, "resume": RESUME, "sample": SAMPLE, "info": INFO, "inspect": INSPECT,
    "certify": CERTIFY, "tune": TUNE, "likelihood": LIKELIHOOD, "average": AVERAGE, "runs": RUNS, "control": CONTROL,
    "memorization": MEMORIZATION, "plan": PLAN, "explain-objective": EXPLAIN_OBJECTIVE, "doctor": DOCTOR,
}  # fmt: skip
