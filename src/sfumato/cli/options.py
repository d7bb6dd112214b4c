"""The commands: their descriptions and their flags. No torch here."""

from __future__ import annotations

from sfumato.cli.common import (
    BATCH,
    CAPTION,
    DEVICE,
    GIVEN,
    GUIDANCE_OF_GRIDS,
    INTERVAL,
    LABELS,
    MODEL,
    PAIRS,
    RETRIEVAL,
    RUN,
    SOURCES,
    WEIGHTS,
)
from sfumato.cli.flags import Command, flag, place, scale_or_range, seed, several, whole_numbers
from sfumato.cli.questions import (
    CERTIFY,
    DOCTOR,
    EVALUATE,
    EXPLAIN_GUIDANCE,
    EXPLAIN_OBJECTIVE,
    INFO,
    INSPECT,
    LIKELIHOOD,
    MEMORIZATION,
)
from sfumato.cli.settings import SETTINGS
from sfumato.registry import names

DEMO = Command(
    "Train a class-conditional model on the built-in clothes (Fashion-MNIST) and draw ten samples of each class, or "
    "with --text a model of the works of Shakespeare and print verse. It writes a run folder with the model, the "
    "samples and report.html, and suggests commands to run next. With --json, "
    'prints one JSON object per line: {"event": "progress", ...} during training, then {"event": "done", ...}.',
    [
        flag("--text", bool, "Train on the works of Shakespeare, and print verse."),
        flag("--text-to-image", bool, "Train on emoji and their names, and draw pictures of captions."),
        flag("--minutes", float, "Minutes of training; by default 2, of --text-to-image 10."),
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

UNCALIBRATED = flag(
    "--uncalibrated", bool,
    "Of tables: every row that the model draws, also those that its weights would not accept.",
)  # fmt: skip

_EDIT = "given a sample or a measurement (pictures, or .npy files)"

EDITS = [
    flag("--inpaint", "FILE", "Fill in what --mask covers, or the NaN of an array; draws 16.", group=_EDIT),
    flag("--mask", "FILE", "Of --inpaint: white (or above half of the largest) where it is filled in.", group=_EDIT),
    flag("--extend", "FILE", "Continue a smaller picture beyond its edges; it is laid in the middle.", group=_EDIT),
    flag(
        "--upscale", "FILE",
        "Enlarge to the model's size, by a whole factor; of a cascade from the size of one of its stages.",
        group=_EDIT,
    ),
    flag("--deblur", "FILE", "Sharpen what is blurred by a Gaussian of --blur-width.", group=_EDIT),
    flag("--blur-width", float, "Of --deblur: the standard deviation of the blur in pixels.", group=_EDIT),
    flag("--denoise", "FILE", "Remove noise of the standard deviation --noise.", group=_EDIT),
    flag("--measured", "FILE", "Samples x with A x = the numbers in this file, A by --sensor.", group=_EDIT),
    flag("--sensor", "FILE", "Of --measured: the matrix A, (m, numbers of a sample).", group=_EDIT),
    flag(
        "--noise", float,
        "Standard deviation of what is measured, as a part of the range of the data, or of their deviation where "
        "they have no bounds; by default 0.01.",
        group=_EDIT,
    ),
    flag(
        "--method", "NAME",
        f"How what is measured is used: {', '.join(names('method'))}; by default auto, which "
        "docs/how-to/inverse-problems.md explains.",
        group=_EDIT,
    ),
    flag("--particles", int, "Of the method smc: how many; by default 1,024.", group=_EDIT),
    flag("--from", "FILE", "Variations of a sample, as far as --strength says.", group=_EDIT),
    flag("--variations", "FILE", "Of an unCLIP pair: pictures that have the embedding of this one.", group=_EDIT),
    flag("--strength", float, "Of --from: from 0, the sample itself, to 1, any sample; by default 0.6.", group=_EDIT),
    flag(
        "--interpolate", "FILE",
        "The way between two samples through the latents, of an unCLIP pair the embeddings, in -n pictures.",
        group=_EDIT, nargs=2, metavar=("A", "B"),
    ),
]  # fmt: skip

SAMPLE = Command(
    "Draw samples from a model: a run folder, or one .safetensors file. The training data are not needed. Sample i of "
    "a seed is the same for any -n and --batch (with --solver adaptive: within its tolerance). It guides towards "
    "classes and may compute in bfloat16; `sf.sample` in Python does neither: --guidance 1 --precision float32 draws "
    "the same samples as Python. With --json, prints one JSON object: where the samples are, and their manifest.",
    [
        MODEL,
        flag(
            "-n --number", int,
            "How many; 64, ten of each class where there are up to 20, or four of each caption; of text 4, of tables "
            "1,000.",
        ),
        flag(
            "-o --out", "PATH",
            "grid.png (a picture), out.npz (x, labels, manifest), out.npy (only x), out.h5, out.nc, out.tif, "
            "out.nii.gz, out.fits, out.wav, or folder/ (one file per sample); of sequences of several lengths out.npz "
            "(an array each), out.parquet or folder/; of text out.txt, out.jsonl or folder/; of tables out.csv, .tsv, "
            ".parquet or .feather. By default samples.png for images, samples.txt for text, "
            "samples.csv for tables, samples.npz for other data.",
        ),
        several(
            "=", "NAME=VALUE",
            "Of tables: a column that is known, such as cut=Ideal or carat=1.0; NAME= for an empty cell.",
            name="--given", empty=True, default=[],
        ),
        UNCALIBRATED,
        flag(
            "--length", "INT",
            "Of text: how many symbols, by default one window of training; of sequences of several lengths: how many "
            "steps, one number or one for each sample (5,20,30), by default drawn from the lengths of the training.",
            type=whole_numbers,
        ),
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
        CAPTION,
        RETRIEVAL,
        GIVEN,
        flag(
            "--guidance", float,
            "Guidance scale: 1 is the conditional model, 0 the unconditional, above 1 gives sharper classes. "
            + GUIDANCE_OF_GRIDS,
        ),
        INTERVAL,
        flag(
            "--negative", "CLASS",
            "Guide away from this class or caption, or from NAME=VALUE, instead of from no condition at all.",
        ),
        flag("--rescale", float, "Share of the guided contrast that is brought back to the conditional model's: 0.7."),
        flag(
            "--threshold", "QUANTILE",
            "Keep clean signals within the declared bounds of the data: static, or dynamic by a quantile: 0.995.",
        ),
        flag(
            "--autoguide", "FILE",
            "Guide away from this weaker model of the same data, by --guidance. The run's own raw weights: raw.",
        ),
        flag("--steps", int, "Steps of the solver; by default 20, of text 64 a window."),
        flag(
            "--solver", "NAME",
            f"Solver: {', '.join(names('solver'))}. By default the model's own plan for this number of steps "
            "(`sfumato tune`), or else multistep with a corrector.",
        ),
        *EDITS,
        flag("--first", int, "Number of the first sample: 100 continues after -n 100.", 0),
        flag(
            "--batch", int,
            "Samples drawn at once, by default 256, of a table 1,024 (4,096 on a GPU); affects only memory and speed.",
        ),
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

IMPUTE = Command(
    "Fill the empty cells of a table with draws of a model of it, given the cells that are known, which stay as they "
    "are. With --json, prints one JSON object.",
    [
        MODEL,
        place("data", "DATA", "The rows: a .csv, .tsv, .parquet or .feather file with columns of the model's table."),
        flag("-o --out", "FILE", "A .csv, .tsv, .parquet or .feather file; by default imputed.csv."),
        flag(
            "-n --number", int,
            "Independent draws of the table; for more than one they are numbered, imputed-1.csv, imputed-2.csv ...", 1,
        ),
        flag("--steps", int, "Steps of the solver; by default 20."),
        flag("--batch", int, "Rows filled at once, by default 1,024 (4,096 on a GPU); affects only memory and speed."),
        WEIGHTS,
        seed("draws"),
        DEVICE,
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
        flag(
            "--method", "NAME",
            "The loss: auto, semigroup, lagrangian, consistency-distillation ..., or two for two stages, A + B.",
            "auto",
        ),
        flag("--init", "STUDENT", "A student that is trained further; by default it starts at the model's weights."),
        flag("--minutes", float, "Minutes of training.", 5.0),
        flag("-o --out", "FOLDER", "The run folder; by default runs/NAME-distilled."),
        flag(
            "--guidance", "SCALE",
            "Guidance scale of the teacher, which the student keeps; or a range, 1:4, of which `sample --guidance` "
            "later sets one. " + GUIDANCE_OF_GRIDS,
            type=scale_or_range,
        ),
        INTERVAL,
        flag("--data", "DATA", f"The training data: {SOURCES}, instead of samples of the model."),
        LABELS,
        *PAIRS,
        flag(
            "--samples", int,
            "Samples drawn from the model where there are no data; by default as many as take a fifth of the minutes, "
            "from 256 to 4,096.",
        ),
        flag("--plan", bool, "Only forecast the time, memory and disk of the run; nothing is kept."),
        seed("student"),
        DEVICE,
    ],
)  # fmt: skip

TRANSLATE = Command(
    "Turn pictures or arrays into those of another kind, by a model that was trained with --from: a bridge draws one "
    "of the possible answers (another --seed, another one), a rectified flow has one. With --json, prints one JSON "
    "object: where they are, and their manifest.",
    [
        MODEL,
        place("input", "INPUT", "A picture, a folder of pictures, or a .npy file of one or more samples."),
        flag(
            "-o --out", "PATH",
            "out.png (the picture, or a grid of several), out.npz (x and its sources, with which a run can be "
            "trained), or folder/ (a file each).",
        ),
        GIVEN,
        flag("--guidance", float, "Guidance scale, where the model has classes. " + GUIDANCE_OF_GRIDS),
        flag("--steps", int, "Steps of the solver."),
        flag("--solver", "NAME", "Solver, as for `sfumato sample`."),
        WEIGHTS,
        seed("samples"),
        BATCH,
        DEVICE,
    ],
)  # fmt: skip

ALIGN = Command(
    "Train a model further by a reward, or by pairs of samples of which one is preferred, in a run folder of its own: "
    "towards p e^(reward / beta) / Z. Ends with what it gained (reward, margin of the pairs) and what it cost "
    "(KL to the model before, in nats; diversity), and says if it was over-optimised; the same is in the run's "
    "alignment.json. With --json, prints one JSON object per line, the last with these figures.",
    [
        MODEL,
        flag(
            "--reward", "FILE.py:NAME",
            "A function of your own: NAME(x) returns one number for each of the samples x (B, *shape), in their units.",
        ),
        flag(
            "--preferences", "FILE",
            "Pairs: .npz with the arrays winner and loser, or .jsonl with {\"winner\": [..], \"loser\": [..]} a line.",
        ),
        flag(
            "--method", "NAME",
            "The loss: reward-weighted, fpo, fpo++, advantage-weighted, nft, ddpo, flow-grpo, diffu-grpo, "
            "adjoint-matching, direct; of pairs dpo, ipo, kto.", "auto",
        ),
        flag("--beta", float, "The temperature, in units of the reward: a larger one stays nearer to the model.", 1.0),
        flag("--weight", "NAME", "The weight of the log-ratio; any but elbo ends at another law.", "elbo"),
        flag("--judge", "FILE.py:NAME", "A second reward, which is measured and not trained on."),
        flag("--reward-seconds", float, "How long one call of a reward may take.", 600.0),
        flag("--minutes", float, "Minutes of training.", 5.0),
        flag("--lr", float, "The peak learning rate.", 5e-5),
        flag("-o --out", "FOLDER", "The run folder; by default runs/NAME-aligned."),
        flag(
            "--samples", int,
            "Samples drawn from the model; by default 4,096, or 1,024 in each round of an on-policy method.",
        ),
        seed("training"),
        DEVICE,
    ],
)  # fmt: skip

RUNS = Command(
    "Compare runs side by side, best first: how far each got, its losses, and the settings that differ. With --json, "
    "prints one JSON object.",
    [place("folders", "RUN", "Run folders, or folders of them; by default runs.", nargs="*", default=[])],
)

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

MERGE = Command(
    "Make one plain model file of a model and its adapters (`sfumato train --lora`): of a run or a model file that has "
    "both, or of adapters alone and the model that they were trained from. It draws the same samples. With --json, "
    "prints one JSON object.",
    [
        place("model", "MODEL", "A run folder, a .safetensors file, or the adapter.safetensors of a run."),
        flag("--base", "MODEL", "Of adapters alone: the model that they were trained from, a run folder or a file."),
        flag("-o --out", "FILE", "The model file.", "merged.safetensors"),
    ],
)  # fmt: skip

TRAIN = Command(
    "Train a model on DATA and write a run folder: model.safetensors, samples, metrics, report.html. Settings come "
    "from the defaults, then --config, then flags. Ctrl-C saves a checkpoint. With --json, prints one JSON object per "
    'line: {"event": "progress", ...} during training, then {"event": "done", ...}.',
    SETTINGS,
)

PLAN = Command(
    "Predict the time, memory and disk space that `sfumato train` needs with the same DATA and flags, and whether it "
    "fits. Takes about 24 steps and does everything else in a run once; keeps no files, except that decoded pictures "
    "stay in the cache. With --json, prints one JSON object: seconds and bytes.",
    SETTINGS,
)

COMMANDS = {
    "demo": DEMO, "train": TRAIN, "resume": RESUME, "sample": SAMPLE, "info": INFO, "inspect": INSPECT,
    "certify": CERTIFY, "tune": TUNE, "likelihood": LIKELIHOOD, "average": AVERAGE, "runs": RUNS, "control": CONTROL,
    "impute": IMPUTE, "merge": MERGE,
    "evaluate": EVALUATE, "memorization": MEMORIZATION, "plan": PLAN, "explain-objective": EXPLAIN_OBJECTIVE,
    "explain-guidance": EXPLAIN_GUIDANCE, "doctor": DOCTOR, "distill": DISTILL, "translate": TRANSLATE, "align": ALIGN,
}  # fmt: skip
