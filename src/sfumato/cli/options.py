"""The commands: their descriptions and their flags. No torch here."""

from __future__ import annotations

import argparse
import dataclasses
from types import NoneType
from typing import Any, get_args, get_type_hints

from sfumato.cli.flags import Command, Flag, flag, place, seed, several
from sfumato.registry import names
from sfumato.training.config import NAMING, TrainConfig, choices, docs

DEVICE = flag("--device", "NAME", "auto (a GPU if there is one), cpu, cuda, cuda:1 ...", "auto")
MODEL = place("model", "MODEL", "A run folder or a .safetensors file.")
RUN = place("folder", "RUN", "The run folder.")
DECLARED = (
    "The kind of a condition column, if it should not be guessed: label, multilabel, scalar, vector, field, or ignore."
)
COLUMNS = "The kind of a column of a table, if it should not be inferred: category, number, or ignore to leave it out."
GIVEN = several(
    "=", "NAME=VALUE",
    "A condition in your own units, such as temperature=300; several numbers or classes, used in turn by samples, have "
    "commas between; arrays are .npy files, and the pictures of a pair also picture files.",
    default=[],
)  # fmt: skip
INTERVAL = flag(
    "--guidance-interval", float, "Guide only between these two levels of logsnr (lowest, highest).",
    nargs=2, metavar=("LOW", "HIGH"),
)  # fmt: skip
GUIDANCE_OF_GRIDS = "By default, that of the model's training grids."
WEIGHTS = flag("--weights", ("ema", "raw"), "The moving average of the weights, or the last raw weights.", "ema")
SIDE = flag("--size", int, "Side in pixels to which images are resized.")
SPLIT = flag("--split", "NAME", "The split of DATA to read where it has some: train (the default), val or test.")
KEY = flag("--key", "NAME", "The array, column or picture of a pair that is learned, if not to be guessed.")
MAX_GB = flag(
    "--max-gb", float,
    "GiB of memory that one file of DATA may take once it is unpacked, or 32 times its own size if that is more.",
    TrainConfig.max_gb,
)  # fmt: skip
LABELS = flag("--labels", "FILE", "A .npy or text file with one class label per sample of DATA.")
BATCH = flag("--batch", int, "Samples drawn at once; affects only memory and speed.", 256)
LENGTH = flag("--length", int, "Symbols of a window of text, or numbers of one of a recording, if not the usual.")
TOKENS = flag("--tokens", "KIND", "What text is made of: characters, bytes, bpe or bpe(4096), if not to be chosen.")
SOURCES = (
    "a folder of images or texts, a .npy, .npz, .txt or .jsonl file, .tar archives, .parquet or .csv tables, a file of "
    "another format (.h5, .nc, .nii, .wav ..), or a built-in set"
)

DEMO = Command(
    "Train a class-conditional model on the built-in clothes (Fashion-MNIST) and draw ten samples of each class, or "
    "with --text a model of the works of Shakespeare and print verse. It writes a run folder with the model, the "
    "samples and report.html, and suggests commands to run next. With --json, "
    'prints one JSON object per line: {"event": "progress", ...} during training, then {"event": "done", ...}.',
    [
        flag("--text", bool, "Train on the works of Shakespeare, and print verse."),
        flag("--minutes", float, "Minutes of training.", 2.0),
        flag("-o --out", "FOLDER", "The run folder; if it exists, the next free name is used.", "runs/demo"),
    ],
)  # fmt: skip

RESUME = Command(
    "Resume a run from its last checkpoint, exactly as if it had not been interrupted. With --json, prints one JSON "
    "object per line, as `sfumato train` does.",
    [
        RUN,
        flag("--minutes", float, "A new budget for the whole run, in minutes."),
        flag("--steps", int, "A new budget for the whole run, in steps."),
        flag("--parallel", ("auto", "ddp", "fsdp"), "What each process of torchrun holds from now on."),
        flag("--changed", bool, "Accept edits of the run's config.yaml; without it they are an error."),
    ],
)  # fmt: skip

CONTROL = Command(
    "Send a command to a RUN that another process trains: save, sample, pause, go (continue after a pause), stop. It "
    "takes effect between two steps. With --json, prints one JSON object.",
    [RUN, place("word", "WORD", "save, sample, pause, go or stop.")],
)

SAMPLE = Command(
    "Draw samples from a model: a run folder, or one .safetensors file. The training data are not needed. Sample i of "
    "a seed is the same for any -n and --batch (with --solver adaptive: within its tolerance). It guides towards "
    "classes and may compute in bfloat16; `sf.sample` in Python does neither: --guidance 1 --precision float32 draws "
    "the same samples as Python. With --json, prints one JSON object: where the samples are, and their manifest.",
    [
        MODEL,
        flag(
            "-n --number", int,
            "How many; 64, or ten of each class where there are up to 20; of text 4, of tables 1,000.",
        ),
        flag(
            "-o --out", "PATH",
            "grid.png (a picture), out.npz (x, labels, manifest), out.npy (only x), out.h5, out.nc, out.tif, "
            "out.nii.gz, out.fits, out.wav, or folder/ (one file per sample); of text out.txt, out.jsonl or folder/; "
            "of tables out.csv, .tsv, .parquet or .feather. By default samples.png for images, samples.txt for text, "
            "samples.csv for tables, samples.npz for other data.",
        ),
        several(
            "=", "NAME=VALUE", "Of tables: a category that is known, such as cut=Ideal.", name="--given", default=[],
        ),
        flag("--length", int, "Of text: how many symbols; by default one window of training."),
        flag("--prompt", "TEXT", "Of text: how each begins."),
        flag(
            "--infill", "TEXT",
            "Of text: all of it, each _ being a symbol to be found, \\_ an underscore: 'The ____ of ____'.",
        ),
        flag(
            "--order", "NAME",
            "Of masked text: the order in which symbols are revealed: first-hitting (by default), random, "
            "left-to-right, confidence, entropy or margin.",
        ),
        flag("--temperature", float, "Of text: below 1 draws likelier symbols, above 1 rarer ones; by default 1."),
        flag("--top-p", float, "Of text: draw among the likeliest symbols of this total probability; by default 1."),
        flag(
            "--class", "CLASS",
            "Class by name or index. By default samples use all classes in turn.",
            dest="class_",
        ),
        GIVEN,
        flag(
            "--guidance", float,
            "Guidance scale: 1 is the conditional model, 0 the unconditional, above 1 gives sharper classes. "
            + GUIDANCE_OF_GRIDS,
        ),
        INTERVAL,
        flag("--steps", int, "Steps of the solver; by default 20, of text 64 a window."),
        flag(
            "--solver", "NAME",
            f"Solver: {', '.join(names('solver'))}. By default the model's own plan for this number of steps "
            "(`sfumato tune`), or else multistep with a corrector.",
        ),
        flag("--first", int, "Number of the first sample: 100 continues after -n 100.", 0),
        BATCH,
        WEIGHTS,
        seed("samples"),
        DEVICE,
        flag(
            "--precision", ("auto", "float32", "bfloat16"),
            "Precision of the network; auto is bfloat16 where that is faster, else float32.",
            "auto",
        ),
    ],
)  # fmt: skip

TUNE = Command(
    "Fit a plan of few steps to a model and store it in its file: `sfumato sample MODEL --steps N` then uses it. The "
    "times and coefficients are fitted to the end points of a fine solve of the same noise, and judged on other noise. "
    "A plan with a larger median error there than the best untuned plan, or a significantly larger mean square, is "
    "never stored. With --noise the plan is stochastic, its coefficients fitted along paths of noise and to the law of "
    "the samples. With --json, prints one JSON object: both errors.",
    [
        MODEL,
        flag("--steps", int, "Steps of the plan, each one call of the network.", 8),
        flag(
            "--noise", float,
            "0: the ODE, without noise; 1: the reverse SDE, which draws noise at each step.",
            0.0,
        ),
        GIVEN,
        flag("--guidance", float, "Guidance scale of the plan. " + GUIDANCE_OF_GRIDS),
        INTERVAL,
        flag("--points", int, "Samples to fit; by default 64 to 4,096, by their size. Half as many are held out."),
        flag("--rounds", int, "Most rounds of the fit.", 40),
        BATCH,
        seed("noise"),
        DEVICE,
    ],
)  # fmt: skip

DISTILL = Command(
    "Train a student that samples in one or a few calls of its network, from a trained model: a flow map, in a run "
    "folder of its own. The model's file is enough: without --data the student learns from samples of the model. Ends "
    "with a table of the distance to the model's own fine solution by the number of calls, for the student and for "
    "the model's solvers. With --json, prints one JSON object per line, the last with that table.",
    [
        MODEL,
        flag("--steps", "N,N..", "The numbers of calls that the student is for; the first is its default.", "1,2,4"),
        flag("--method", "NAME", "The loss: auto, semigroup, lagrangian, consistency-distillation ...", "auto"),
        flag("--minutes", float, "Minutes of training.", 5.0),
        flag("-o --out", "FOLDER", "The run folder; by default runs/NAME-distilled."),
        flag("--guidance", float, "Guidance scale of the teacher, which the student keeps. " + GUIDANCE_OF_GRIDS),
        INTERVAL,
        flag("--data", "DATA", f"The training data: {SOURCES}, instead of samples of the model."),
        LABELS,
        flag("--samples", int, "Samples drawn from the model where there are no data.", 4096),
        flag("--plan", bool, "Only forecast the time, memory and disk of the run; nothing is kept."),
        seed("student"),
        DEVICE,
    ],
)  # fmt: skip

RUNS = Command(
    "Compare runs side by side, best first: how far each got, its losses, and the settings that differ. With --json, "
    "prints one JSON object.",
    [place("folders", "RUN", "Run folders, or folders of them; by default runs.", nargs="*", default=[])],
)

DOCTOR = Command(
    "Find the faults of a RUN (finished, stopped or in progress) or a model file, each under a code. Examines the log, "
    "the data, the weights and the network's outputs where the truth is known, lists which checks were made and which "
    "could not be, and writes nothing. Exit status 1 if there is an error. With --explain CODE, prints the page on a "
    "fault instead. With --json, prints one JSON object.",
    [
        place("subject", "RUN", "A run folder or a .safetensors file.", nargs="?"),
        flag(
            "--explain", "CODE",
            "Print the page on this fault: how it is detected, its causes and its cure.",
        ),
        flag(
            "--data", "DATA",
            f"The training data: {SOURCES}, in the units of training; by default those of the run.",
        ),
        LABELS,
        SIDE,
        SPLIT,
        KEY,
        MAX_GB,
        seed("draws"),
        DEVICE,
    ],
)  # fmt: skip

AVERAGE = Command(
    "Make a model of a finished RUN with weights averaged over another window than the run's --ema. A wider window is "
    "smoother and reaches further back. Needs the run's snapshots (`sfumato train --snapshots`). With --json, prints "
    "one JSON object.",
    [
        RUN,
        flag("--width", float, "Standard deviation of the window as a fraction of the run, such as 0.03 or 0.15.", 0.1),
        flag("-o --out", "FILE", "The model file; by default average-WIDTH.safetensors."),
    ],
)  # fmt: skip

MEMORIZATION = Command(
    "Check whether a model's samples repeat its training samples. Each sample's distance to the nearest training "
    "sample is divided by that to the nearest held-out one, and compared with the same ratio for training samples that "
    "are left out of the search themselves. With --json, prints one JSON object.",
    [
        MODEL,
        place("data", "DATA", "The training data; by default those of the run folder.", nargs="?"),
        flag("--holdout", "DATA", "Unseen data, by default what training held out; DATA is then the training set."),
        flag("--holdout-split", "NAME", "The split of the unseen data to read, such as test; --key is that of both."),
        LABELS,
        SIDE,
        SPLIT,
        KEY,
        MAX_GB,
        flag("-n --number", int, "Samples to draw.", 512),
        flag("--steps", int, "Steps of the solver.", 10),
        flag("--guidance", float, "Guidance scale; by default none: the learned law."),
        WEIGHTS,
        flag("-o --out", "PATH", "A picture (.png) of the samples closest to training samples, above those."),
        BATCH,
        seed("samples"),
        DEVICE,
    ],
)  # fmt: skip

EVALUATE = Command(
    "Measure the samples of a model, or samples in files, against real data. Beside each value stand its 95 % interval "
    "and its floor: what other real samples, as many, score in the place of the model's. The real data are by default "
    "those of the run's training; samples are drawn under their conditions. With --sweep, measures several ways to "
    "sample, prints a table and draws each metric over the calls of the network. With --json, prints one JSON object: "
    "the values, with the protocol of each and its hash.",
    [
        place("model", "MODEL", "A run folder or a .safetensors file; or samples in files (a folder of pictures)."),
        flag("--reference", "DATA", "The real data; by default those of the run folder.", dest="data"),
        flag(
            "--metric", "NAME",
            f"One of {', '.join(names('metric'))}; repeat it for more. By default those usual for this kind of data.",
            action="append", dest="metrics",
        ),
        flag("-n --number", int, "Samples, at most half of the real ones; by default up to 1,000, or 100 texts."),
        flag(
            "--features", "NAME",
            f"Features in which pictures are compared: {', '.join(names('features'))}, or numbers (the values).",
        ),
        flag(
            "--part", ("train", "holdout", "all"),
            "Which of the training data to compare with; by default train. Other data are compared with whole.",
        ),
        flag("--steps", int, "Steps of the solver."),
        flag("--solver", "NAME", "Solver, as for `sfumato sample`."),
        flag("--guidance", float, "Guidance scale; by default none: the learned law."),
        several(
            "=", "NAME=VALUES", "Measure each of these values of steps, solver, guidance or seed: steps=5,10,20.",
            "--sweep", default=[],
        ),
        flag("-o --out", "PATH", "The picture of a sweep (.png, .svg, .pdf); by default sweep.png."),
        WEIGHTS,
        LABELS,
        SIDE,
        SPLIT,
        KEY,
        MAX_GB,
        BATCH,
        seed("samples"),
        DEVICE,
    ],
)  # fmt: skip

INFO = Command(
    "Describe a model: its data and units, process, target, network, classes, origin, and how to sample it. No weights "
    "are loaded. With --json, prints one JSON object: the contract in the model's header.",
    [MODEL],
)

INSPECT = Command(
    "Check a data set as training would see it: what was decided, and which flag says otherwise; shape, values, "
    "classes, duplicates, what is left out. With --json, prints one JSON object.",
    [
        place("data", "DATA", f"{SOURCES[0].upper()}{SOURCES[1:]} (fashion, emoji, digits, shakespeare)."),
        LABELS,
        several(":", "NAME:KIND", DECLARED, default=[]),
        several(":", "NAME:KIND", COLUMNS, name="--column", default=[]),
        SIDE,
        SPLIT,
        KEY,
        LENGTH,
        TOKENS,
        flag("-o --out", "PATH", "A picture (.png) to draw: three samples of each class, with names."),
        MAX_GB,
    ],
)

LIKELIHOOD = Command(
    "Measure the likelihood of DATA under a model: log p(x) in nats and the units of the data, bits/dim for whole "
    "numbers. Either by the probability-flow ODE, with error estimates for the probes, the steps, the prior and the "
    "lowest noise, or by a variational bound, with its terms. With --json, prints one JSON object.",
    [
        MODEL,
        place("data", "DATA", f"The samples, in the units of the training data: {SOURCES}."),
        flag("-n --number", int, "Samples, spread over the set.", 16),
        flag("--class", "NAME", "Condition all samples on this class.", dest="class_"),
        GIVEN,
        flag("--conditional", bool, "Condition each sample on its own class and other conditions."),
        LABELS,
        SIDE,
        SPLIT,
        KEY,
        MAX_GB,
        flag(
            "--method", ("auto", "ode", "elbo", "importance", "order"),
            "ode: the probability flow. elbo: the bound by noise level. importance: the bound from many trajectories, "
            "or orders of masks. order: exact, of masked symbols from left to right. auto: ode, or the bound for "
            "symbols.",
            "auto",
        ),
        flag(
            "--steps", int,
            "Steps of the ODE, an even number, each 4 calls and a trace; or noise levels of a bound, each one call.",
            64,
        ),
        flag(
            "--trace", ("auto", "exact", "rademacher", "gaussian", "deflated"),
            "How the divergence is computed; auto is exact up to 128 numbers per sample, else rademacher.",
            "auto",
        ),
        flag("--probes", int, "Probes per sample if the trace is not exact, or replicates of a bound.", 8),
        flag("--particles", int, "Trajectories per sample for --method importance.", 16),
        flag(
            "--sigma-min", float,
            "The log p of data with this much noise, sigma / alpha for standardised data; by default nearly none.",
        ),
        flag(
            "--dequantisation", ("auto", "uniform", "discretised"),
            "Treatment of whole numbers: noise of their width, or probabilities of their cells (bounds only).",
            "auto",
        ),
        flag("--batch", int, "Samples at once; affects only memory and speed."),
        flag("-o --out", "FILE", "A .npz file for the figures of each sample."),
        seed("probes and of the dequantisation"),
        DEVICE,
    ],
)  # fmt: skip

CERTIFY = Command(
    "Measure a solver on exact models under VP, VE and flow schedules: order, calls, contiguity, stability, law. "
    "Without SOLVER, measures all solvers in quick mode, one line each. Exit status 0 if all promises hold, 1 if one "
    "does not, with an explanation. With --json, prints one JSON object.",
    [
        place("solver", "SOLVER", f"One of {', '.join(names('solver'))}, or a plan's .json file.", nargs="?"),
        flag("--quick", bool, "Fewer steps and samples for SOLVER."),
        flag("--full", bool, "All steps and samples, even without SOLVER."),
    ],
)  # fmt: skip

EXPLAIN_OBJECTIVE = Command(
    "Show how a training objective weighs noise levels: w and p by level, the nearest named weight, whether it is an "
    "ELBO. The objective is that of a run, of a model file (with --times and --weight), or of names; the defaults are "
    "those of `sfumato train`. Flags given with MODEL replace its settings. With --data also shows the board of MODEL: "
    "its loss by noise level on the data, next to a trivial guess, the contribution of each level, gradient and noise "
    "scale. For symbols (--process masked --loss maskgit) the weight is relative to the bound on the likelihood. With "
    "--json, prints one JSON object.",
    [
        place("model", "MODEL", "A run folder or a .safetensors file.", nargs="?"),
        *(
            flag(f"--{dial}", "NAME", f"One of {', '.join(choices(dial))}.")
            for dial in ("schedule", "target", "times", "weight", "process", "loss")
        ),
        flag(
            "--plot", "PATH",
            "A picture to draw (.png, .svg, .pdf): w next to named weights, and p. With --data a page (.html).",
        ),
        flag(
            "--data", "DATA",
            f"Data to judge MODEL on: {SOURCES}. Of its own training data only the held-out part is used.",
        ),
        LABELS,
        SIDE,
        SPLIT,
        KEY,
        MAX_GB,
        flag("-n --number", int, "Draws per noise level.", 64),
        DEVICE,
    ],
)  # fmt: skip

# the first setting of each group of flags -> the group's title
_GROUPS = {
    "out": "the run", "labels": "the data", "net": "the network and its loss", "batch": "training",
    "schedule": "the diffusion", "drop": "conditions, validation and samples",
    "checkpoint_every": "checkpoints and dashboards", "compile": "the machine",
}  # fmt: skip
_METAVARS = dict.fromkeys([*NAMING, "device"], "NAME")
_METAVARS |= {"out": "FOLDER", "labels": "FILE", "model": "MODEL", "loggers": "NAMES"}


def _settings() -> list[Flag]:
    """The flags of TrainConfig, which checks their values like those of a YAML file."""
    words, hints, title, found = docs(), get_type_hints(TrainConfig), "", []
    for field in dataclasses.fields(TrainConfig):
        title = _GROUPS.get(field.name, title)
        if field.name == "data":
            found.append(place("data", "DATA", words["data"], nargs="?"))
        elif field.name == "conditions":
            found.append(several(":", "NAME:KIND", DECLARED, dest="conditions", group=title))
        elif field.name == "columns":
            found.append(several(":", "NAME:KIND", COLUMNS, name="--column", dest="columns", group=title))
        else:
            found.append(_setting(field, hints[field.name], words[field.name], title))
    for each in found:
        each.how["default"] = argparse.SUPPRESS  # so that unset flags do not override the YAML file
    return found


def _setting(field: dataclasses.Field[Any], hint: Any, words: str, group: str) -> Flag:
    """The flag of one setting; booleans also get a --no-energy, to override a YAML file."""
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
    "A YAML file of settings, named like the flags (with _ for -); flags override it.",
    group="the run",
)  # fmt: skip
TRAIN = Command(
    "Train a model on DATA and write a run folder: model.safetensors, samples, metrics, report.html. Settings come "
    "from the defaults, then --config, then flags. Ctrl-C saves a checkpoint. With --json, prints one JSON object per "
    'line: {"event": "progress", ...} during training, then {"event": "done", ...}.',
    [*_settings(), CONFIG],
)

PLAN = Command(
    "Predict the time, memory and disk space that `sfumato train` needs with the same DATA and flags, and whether it "
    "fits. Takes about 24 steps and does everything else in a run once; keeps no files, except that decoded pictures "
    "stay in the cache. With --json, prints one JSON object: seconds and bytes.",
    [*_settings(), CONFIG],
)

COMMANDS = {
    "demo": DEMO, "train": TRAIN, "resume": RESUME, "sample": SAMPLE, "info": INFO, "inspect": INSPECT,
    "certify": CERTIFY, "tune": TUNE, "likelihood": LIKELIHOOD, "average": AVERAGE, "runs": RUNS, "control": CONTROL,
    "evaluate": EVALUATE, "memorization": MEMORIZATION, "plan": PLAN, "explain-objective": EXPLAIN_OBJECTIVE,
    "doctor": DOCTOR, "distill": DISTILL,
}  # fmt: skip
