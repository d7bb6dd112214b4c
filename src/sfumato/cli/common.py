"""Flags that several commands have. No torch here."""

from __future__ import annotations

from sfumato.cli.flags import flag, place, several
from sfumato.training.config import TrainConfig

DEVICE = flag("--device", "NAME", "auto (a GPU if there is one), cpu, cuda, cuda:1 ...", "auto")
MODEL = place("model", "MODEL", "A run folder or a .safetensors file.")
RUN = place("folder", "RUN", "The run folder.")
DECLARED = (
    "The kind of a condition column, if it should not be guessed: label, multilabel, scalar, vector, field, text, "
    "text(minilm), or ignore."
)
COLUMNS = "The kind of a column of a table, if it should not be inferred: category, number, or ignore to leave it out."
GIVEN = several(
    "=", "NAME=VALUE",
    "A condition in your own units, such as temperature=300; several numbers or classes, used in turn by samples, have "
    "commas between; arrays are .npy files, and the pictures of a pair also picture files.",
    default=[],
)  # fmt: skip
CAPTION = flag(
    "--caption", "TEXT",
    "A caption, for a model that was trained with captions. Repeat it for more, used in turn by samples; "
    "--condition NAME=FILE.txt has one a line.",
    action="append",
)  # fmt: skip
RETRIEVAL = flag(
    "--retrieval",
    bool,
    "Draw a caption that training did not have as the trained caption that is nearest to it; --json and a note say "
    "which. For models of few pictures.",
)
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
PAIRS = (
    flag("--from", "DATA", "Of a model of pairs: the data that its samples are made of, the sources of DATA.",
         dest="sources"),
    flag("--pairs", ("name", "row"), "How samples of DATA belong to their sources of --from."),
)  # fmt: skip
READING = (LABELS, SIDE, SPLIT, KEY, MAX_GB, *PAIRS)  # how DATA are read, of every command that judges a model on them
