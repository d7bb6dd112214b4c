"""What names say: splits (train, test), the level of folders that makes the classes, pairs, and which array is what.

Folders, members of archives, files and arrays are all read by these rules, so that they mean the same everywhere.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from ..errors import SfumatoError, counted

SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
# names of samples, the likeliest first; of a pair, what is to be made stands before what it is made from
SAMPLE_NAMES = (
    "x", "images", "image", "data", "samples", "sample", "target", "targets", "output", "outputs", "img", "imgs",
    "picture", "pictures", "photo", "photos", "features", "input", "inputs", "jpg", "png",
)  # fmt: skip
LABEL_NAMES = ("y", "labels", "label", "target", "targets", "class", "classes", "cls", "category", "categories")
PARTNERS = frozenset(  # names that only pictures of a pair have
    "input inputs target targets output outputs mask masks seg segmentation depth edges condition cond".split()
)
ODD = 0.1  # share of samples up to which several pictures of one are an oddity, not a rule
SHOWN = 3  # most names listed in a note
_WORDS = "|".join(SPLITS)
_BEFORE, _AFTER = re.compile(rf"(?i:({_WORDS}))([xy]|[A-Z]\w*)"), re.compile(rf"([xyXY])(?i:({_WORDS}))")


class Asked(NamedTuple):
    """What a user said of the data: the split to read; the name of the array, column or picture of a pair that is to be
    learned; of text, the length of a window, the tokens, in words or a `Tokeniser`, and whether each text is a sample;
    of a table of columns, their kinds or its `TableSchema`, False where it is none; None where nothing was said; the
    layout of sequences of several lengths (`lengths.LAYOUTS`), also where all of these are as long, or ""."""

    split: str | None
    key: str | None
    length: int | None = None
    tokens: Any = None
    columns: Any = None
    whole: bool = False
    layout: str = ""

    def require_unused(self, where: str) -> None:
        """Raise SfumatoError for data that have neither splits nor names to choose from, and are no text."""
        choose_split({}, self.split, where, "")
        self.require_no_text(where)
        if self.key is not None:
            raise SfumatoError(f"{where} has no arrays, columns or pairs to choose from by name: leave --key out")

    def require_no_text(self, where: str) -> None:
        """Raise SfumatoError if something was said of text."""
        if self.tokens is not None and not isinstance(self.tokens, str):
            raise SfumatoError(f"{where} is no text, which the model was trained on")
        if self.length is not None or self.tokens is not None:
            raise SfumatoError(f"{where} is no text: leave --length and --tokens out")


def listed(names: Iterable[str], most: int = SHOWN) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def split_of(folder: str) -> str | None:
    """The split that a folder is named after, "train", "val" or "test"; a year may follow, as in train2017."""
    return SPLITS.get(re.sub(r"[-_]?(19|20)\d\d$", "", folder.lower()))


def split_of_file(path: str) -> str | None:
    """The split in a file's name or in the folders above it: train-00000-of-00004.parquet, cats-train-000.tar."""
    *folders, name = PurePosixPath(path).parts
    words = [split_of(word) for word in (*folders, *re.split(r"[-_. ]+", name))]
    found = {word for word in words if word}
    return found.pop() if len(found) == 1 else None


def array_name(name: str) -> tuple[str | None, str]:
    """(split, the rest): x_train, trainX -> ("train", "x"), test_labels, testLabels -> ("test", "labels")."""
    if found := _AFTER.fullmatch(name):
        return SPLITS[found[2].lower()], found[1]
    if found := _BEFORE.fullmatch(name):
        return SPLITS[found[1].lower()], found[2]
    words = re.split(r"[-_. ]+", name)
    for place in (0, -1):
        if split := SPLITS.get(words[place].lower()):
            rest = words[1:] if place == 0 else words[:-1]
            return split, "_".join(rest) or "x"
    return None, name


class Split(NamedTuple):
    """The split that is read, None if there are none; note: says so."""

    name: str | None
    note: list[str]


def choose_split(counts: Mapping[str | None, int], asked: str | None, where: str, what: str, by: str = "name") -> Split:
    """The split to read, where everything is named after one; by default that for training.

    counts: how many things are named after each split, or None. asked: the user's --split. by: what names them. Raises
    SfumatoError for a split that is not there.
    """
    if not counts or None in counts:
        if asked is not None:
            raise SfumatoError(
                f"{where} has no splits, which are folders, files, arrays or rows (by a column 'split') all named "
                "train, val, test ..: leave --split out"
            )
        return Split(None, [])
    there = ", ".join(f"{name} ({counted(count, what, what + 's')})" for name, count in sorted(counts.items(), key=str))
    wanted = "train" if asked is None else SPLITS.get(asked.lower(), asked)
    if asked is None and len(counts) == 1:
        (wanted,) = (name for name in counts if name)
    if wanted not in counts:
        missing = "no split for training" if asked is None else f"no split {asked!r}"
        raise SfumatoError(f"{where} has {missing}, but {there}: choose one with --split")
    rest = "" if len(counts) == 1 else "; the others are left out (choose with --split)"
    return Split(wanted, [f"Splits by {by}: {there}. {wanted!r} is read{rest}."])


class Pictures(NamedTuple):
    """What the names of some pictures say.

    rows: numbers of the pictures that are samples. fields: name -> number of the picture that goes with each sample,
    or None. folders: those of each sample, without those of splits and pairs. left: (number, reason) of others.
    """

    rows: list[int]
    fields: dict[str, list[int | None]]
    folders: list[tuple[str, ...]]
    left: list[tuple[int, str]]
    notes: list[str]


def read_names(names: Sequence[str], asked: Asked, where: str, archive: bool = False) -> Pictures:
    """What the names of pictures (paths) say of splits and pairs.

    archive: whether they are members of archives, where 0001.a.png and 0001.b.png are of one sample by convention.
    """
    folders = _folders(names)
    level = _split_level(folders)
    found = [None if level is None else split_of(each[level]) for each in folders]
    chosen = choose_split(Counter(found), asked.split, where, "picture")
    rows = list(range(len(names)))
    if level is not None:
        rows = [i for i in rows if found[i] == chosen.name]
        folders = [each[:level] + each[level + 1 :] for each in folders]
    own = ["/".join((*folders[i], names[i].rpartition("/")[2])) for i in rows]
    paired = _pairs(own, asked.key, where, archive)
    return Pictures(
        [rows[i] for i in paired.rows],
        {role: [None if i is None else rows[i] for i in each] for role, each in paired.fields.items()},
        paired.folders,
        [(rows[i], why) for i, why in paired.left],
        [*chosen.note, *paired.notes],
    )


def _split_level(folders: Sequence[tuple[str, ...]]) -> int | None:
    """The first level at which all folders are named after splits."""
    depth = min(map(len, folders), default=0)
    return next((level for level in range(depth) if all(split_of(each[level]) for each in folders)), None)


def _pairs(names: Sequence[str], key: str | None, where: str, archive: bool) -> Pictures:
    """Samples of several pictures: 0001.input.png and 0001.target.png, or input/0001.png and target/0001.png."""
    known, folders = _samples(names)
    counts = Counter(role for roles in known.values() for role in roles)
    several = sum(len(roles) > 1 for roles in known.values())
    if len(known) < 2 or several <= ODD * len(known) or not (archive or PARTNERS & counts.keys()):
        if key is not None:
            raise SfumatoError(f"{where} has no pairs of pictures to choose from: leave --key out")
        return Pictures(list(range(len(names))), {}, _folders(names), [], [])
    chosen = key.lower() if key is not None else next((role for role in SAMPLE_NAMES if role in counts), None)
    if chosen is None or chosen not in counts or (key is None and 2 * several <= len(known)):
        said = f"has no pictures named {key!r}" if key is not None else f"holds several pictures of {several:,} samples"
        there = ", ".join(f"{role} ({count:,})" for role, count in counts.items())
        raise SfumatoError(f"{where} {said}, by name {there}: say with --key which are to be learned")
    whole = [roles for roles in known.values() if chosen in roles]
    beside = [role for role, count in counts.items() if role != chosen and 2 * count > len(whole)]
    left = [
        (i, "another picture of its sample" if chosen in roles else f"there is no {chosen} of its sample")
        for roles in known.values() for role, i in roles.items()
        if chosen not in roles or role not in (chosen, *beside)
    ]  # fmt: skip
    fields = {role: [roles.get(role) for roles in whole] for role in beside}
    given = f", given {' and '.join(beside)}" if beside else ""
    note = f"Pictures of one sample, by name: {chosen} is learned{given} (--key names another)."
    rows = [roles[chosen] for roles in whole]
    return Pictures(rows, fields, [folders[i] for i in rows], left, [note])


def _samples(names: Sequence[str]) -> tuple[dict[str, dict[str, int]], list[tuple[str, ...]]]:
    """(sample -> role -> number of the picture, the folders of each picture without that of a role)."""
    known: dict[str, dict[str, int]] = {}
    folders = []
    level = _role_level(_folders(names))
    for i, name in enumerate(names):
        place, sample, role = _role(name, level)
        folders.append(place)
        if role in known.get(sample, ()):
            sample = name
        known.setdefault(sample, {})[role] = i
    return known, folders


def _folders(names: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(name.split("/")[:-1]) for name in names]


def _role_level(folders: Sequence[tuple[str, ...]]) -> int | None:
    """The level at which all folders are named after the parts of a pair, such as images/ and masks/."""
    depth = min(map(len, folders), default=0)
    for level in range(depth):
        found = {each[level].lower() for each in folders}
        if len(found) > 1 and found & PARTNERS and found <= PARTNERS | set(SAMPLE_NAMES):
            return level
    return None


def _role(name: str, level: int | None) -> tuple[tuple[str, ...], str, str]:
    """(folders, sample, role) of a picture: a/0001.target.png -> (("a",), "a/0001", "target")."""
    *folders, file = name.split("/")
    stem, _, suffix = file.rpartition(".")
    if level is not None:
        role = folders.pop(level)
        return tuple(folders), "/".join((*folders, stem)), role.lower()
    sample, dot, role = stem.partition(".")
    if dot and not re.fullmatch(r"[A-Za-z_]+", role):  # a dot within a name
        return tuple(folders), name, ""
    return tuple(folders), "/".join((*folders, sample)), (role or suffix).lower()


def class_names(folders: Sequence[tuple[str, ...]]) -> tuple[list[str] | None, list[str]]:
    """(a class for each picture, notes): its folder at the first level where folders differ.

    None where there are no folders, and where pictures lie beside the folders.
    """
    common = tuple(os.path.commonprefix(list(folders)))
    level = len(common)
    loose = sum(len(each) == level for each in folders)
    if loose == len(folders):
        return ([common[-1]] * loose if common else None), []
    if loose:
        outside = counted(loose, "image is", "images are")
        return None, [f"{outside} outside the sub-folders, so the sub-folders were not taken as classes."]
    place = f" in {'/'.join(common)}" if common else ""
    number = len({each[level] for each in folders})
    note = f"The {number:,} folders{place} are taken as classes (--condition label:ignore leaves them out)."
    return [each[level] for each in folders], [note]
