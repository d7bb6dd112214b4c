"""The commands that ask something of a model, a run or data: their descriptions and their flags. No torch here."""

from __future__ import annotations

from sfumato.cli.common import (
    BATCH,
    COLUMNS,
    DECLARED,
    DEVICE,
    GIVEN,
    KEY,
    LABELS,
    LENGTH,
    MAX_GB,
    MODEL,
    READING,
    SIDE,
    SOURCES,
    SPLIT,
    TOKENS,
    WEIGHTS,
)
from sfumato.cli.flags import Command, flag, place, seed, several
from sfumato.registry import names
from sfumato.training.config import choices

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
        *READING,
        seed("draws"),
        DEVICE,
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
        *READING,
        flag("-n --number", int, "Samples to draw.", 512),
        flag("--steps", int, "Steps of the solver; by default 10."),
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
        flag("--reference", "DATA", "The real data, or a run with them; by default those of MODEL.", dest="data"),
        flag(
            "--metric", "NAME",
            f"One of {', '.join(names('metric'))}; several with commas. By default those usual for this kind of data.",
            action="append", dest="metrics",
        ),
        flag("-n --number", int, "Samples, at most half of the real ones; by default up to 1,000, or 100 texts."),
        flag(
            "--features", "NAME",
            "Features in which pictures are compared: convolutions, numbers (the values), or a file of the weights of "
            "the FID's Inception network (.safetensors, .pth).",
        ),
        flag(
            "--part", ("train", "holdout", "all"),
            "Which of the training data to compare with; by default train. Other data are compared with whole.",
        ),
        flag(
            "--unordered", bool,
            "Samples are sets of points (C, L), whose order says nothing, as it does not to --net SetTransformer.",
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
        *READING,
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
    "lowest noise, or by a variational bound, with its terms. Of rows of a table: nats of a row and bits by column. "
    "With --json, prints one JSON object.",
    [
        MODEL,
        place("data", "DATA", f"The samples, in the units of the training data: {SOURCES}."),
        flag("-n --number", int, "Samples, spread over the set.", 16),
        flag("--class", "NAME", "Condition all samples on this class.", dest="class_"),
        GIVEN,
        flag("--conditional", bool, "Condition each sample on its own class and other conditions."),
        *READING,
        flag(
            "--method", ("auto", "ode", "elbo", "importance", "order", "map"),
            "ode: the probability flow. elbo: the bound by noise level. importance: the bound from many trajectories, "
            "or orders of masks. order: exact, of masked symbols from left to right. map: what a flow map samples, up "
            "to 64 numbers. auto: ode, or the bound for symbols.",
            "auto",
        ),
        flag(
            "--steps", int,
            "Steps of the ODE, an even number, each 4 calls and a trace; or noise levels of a bound, each one call. "
            "By default 64; of a table 16, each two calls a column.",
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
        *READING,
        flag("-n --number", int, "Draws per noise level.", 64),
        DEVICE,
    ],
)  # fmt: skip

EXPLAIN_GUIDANCE = Command(
    "Show what law guidance samples: means and variances along the widest directions, by the ODE and by DDPM, beside "
    "the tilted law that guidance is taken for. The formulas are those of Gaussians with the moments of samples that "
    "are drawn first, without and with the condition. With --json, prints one JSON object.",
    [
        MODEL,
        flag("--class", "CLASS", "Class by name or index.", dest="class_"),
        GIVEN,
        flag("--guidance", float, "Guidance scale.", 3.0),
        flag("-n --number", int, "Samples for each moment.", 256),
        flag("--steps", int, "Steps of the solver.", 20),
        flag("--measured", bool, "Also draw guided samples, by the ODE and by the SDE, and show their moments."),
        WEIGHTS,
        seed("samples"),
        DEVICE,
    ],
)  # fmt: skip

# the first setting of each group of flags -> the group's title
