"""Any string or object -> a Source; only `_read` decides what it is."""

import difflib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import schema
from ..errors import SfumatoError, an, counted, place, whole
from ..files import require_plain
from ..machine import default_cpu, fits
from . import arrays, builtin, file_format, frames, hugging_face, limits, metadata, sequences, tables
from .folders import open_archives, open_pictures, open_table
from .formats import Size
from .images import IMAGE_SUFFIXES, together
from .kinds import columns, with_kinds, with_label
from .labels import encode_labels
from .lengths import MANIFEST, layout_in
from .named_arrays import label_keys, pick, spelt
from .names import Asked, choose_split, split_of, split_of_file
from .numpy_files import Archive
from .picture import check_size, fit_cover
from .rows import Mapped, Samples
from .source import LABEL, Source
from .spec import DataSpec, missing_words
from .stacks import conditions_of_files, open_stacks
from .tars import expand
from .text_files import LINES, SUFFIXES, from_documents, open_column, open_texts, text_column
from .walk import Files, walk

TABLE_SUFFIXES = (".parquet", ".pq", ".arrow", ".feather", ".csv", ".tsv")
TAR_SUFFIXES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
_EACH = "Each array is a sequence (--key names one that holds all samples)."
_MANIFEST = 1 << 24  # bytes
HANDFUL = 16  # fewer samples than this are almost certainly a mistake


@default_cpu()
def open(
    obj: Any,
    labels: Any = None,
    size: Size | None = None,
    name: str | None = None,
    conditions: Mapping[str, str] | DataSpec | None = None,
    split: str | None = None,
    key: str | None = None,
    max_gb: float = limits.DEFAULT_GB,
    length: int | None = None,
    tokens: str | None = None,
    columns: Mapping[str, str] | None = None,
    whole_texts: bool = False,
) -> Source:
    """Open a data source of any kind.

    obj: a folder of images (flat, or one sub-folder per class), a .npy or .npz file, archives of pictures in WebDataset
        format ("photos.tar", "photos-{000..012}.tar", "photos-*.tar", or their folder), tables of pictures or numbers
        (.parquet, .feather, .arrow, .csv, or a folder saved by `datasets`), text (.txt, a folder of them, .jsonl, a
        column of a table), a file of another format (.h5, .nc, .zarr, .tif, .nii, .fits, .wav, .mp4, .pt ..) or a
        folder of volumes or recordings, a built-in set ("fashion", "digits" ..), a list of strings, a data frame of
        pandas or polars, a data set of `datasets`, a tensor or array (N, *shape), a pair (x, labels), or a dict {"x":
        x, "temperature": t, ...} of samples and their conditions, the layout of an .npz file.
    labels: one integer or string per sample; they replace those of the source.
    size: side in pixels, or (height, width); for images only. name: of the source.
    conditions: name -> "label", "multilabel", "scalar", "vector", "field" or "text", for kinds not to be guessed from
        the values, or "ignore" to leave a column out; or the spec of a model, to read the data in its format.
    split: "train", "val" or "test", where folders, files, arrays or rows are named after one; by default train.
    key: the name of the array (of an .npz or a dict), of the column (of a table) or of the picture (of a pair such as
        0001.input.png and 0001.target.png) that is to be learned, where the names and shapes should not decide.
    max_gb: GiB of memory that one file may take once it is unpacked, or 32 times its own size if that is more; a
        picture takes three times the size of its pixels.
    length: symbols of a window of text, or numbers of one of a recording, where the usual length does not suit.
    tokens: of text: "characters", "bytes", "bpe" or "bpe(4096)"; by default characters where there are few.
    whole_texts: of text, make each a sample of its own length, filled up behind its end, instead of windows.
    columns: name -> "category", "number" or "ignore", of a table that is learned row by row (`data.frames`), for kinds
        that should not be inferred. A file is one where some columns are neither floats nor, beside a label, numbers.

    What was decided, and how to say otherwise, is in the notes of the source; files that are left out are in `skipped`.
    Raises SfumatoError for data that cannot be used.
    """
    conditions = getattr(conditions, "data", conditions)  # of the spec of a latent model
    known = isinstance(conditions, DataSpec)
    kinds, asked = _said(obj, conditions, Asked(split, key, length, tokens, columns or None, whole_texts))
    if _is_pair(obj):
        obj, labels = obj[0], obj[1] if labels is None else labels
    if length is not None:
        whole("length, the symbols of a window,", length)
    with limits.at_most(max_gb):
        source = _read(obj, size, kinds, asked)
    if columns and source.table is None:
        raise SfumatoError(f"{source.name} is no table of columns, so that it has no kinds of them: leave columns out")
    if size is not None:
        source = _resized(source, size)
    if labels is not None:
        source = _labelled(source, labels)
    if not isinstance(obj, Source):
        source = _as_known(source, conditions)
        source = _noted(source, [*missing_words(source.missing), *([] if known else _few(len(source)))], [])
    return with_kinds(replace(source, name=name or source.name), kinds, known)


def lengthened(source: Source, length: int) -> Source:
    """Sequences padded to this length; of other data the source as it is."""
    if not source.layout or source.shape[1] >= length:
        return source
    x = torch.nn.functional.pad(source.x[torch.arange(len(source))], (0, length - source.shape[1]), value=np.nan)
    return replace(source, x=x, identity=None)


def _as_known(source: Source, known: Any) -> Source:
    """Sequences padded to the length of those of a model's spec; of other data, or without one, the source as it is."""
    return lengthened(source, known.shape[1]) if getattr(known, "lengths", None) is not None else source


def _few(count: int) -> list[str]:
    number = "is only 1 sample" if count == 1 else f"are only {count} samples"
    few = f"There {number}: a model will repeat what it sees and learn little else."
    return [few] if count < HANDFUL else []


def _said(obj: Any, conditions: Any, asked: Asked) -> tuple[dict[str, str], Asked]:
    """(name -> kind of condition, what else was said of the data), which the spec of a model says too."""
    if isinstance(conditions, DataSpec):
        if conditions.text is not None and isinstance(obj, str | os.PathLike | list):
            length = asked.length or conditions.shape[1]
            asked = asked._replace(length=length, tokens=conditions.text, whole=conditions.whole_texts)
        layout = "" if conditions.lengths is None else conditions.lengths.layout
        asked = asked._replace(columns=conditions.table or False, layout=layout)
        conditions = {each: condition.kind for each, condition in conditions.conditions.items()}
    if not isinstance(conditions, Mapping | None):
        raise SfumatoError(f"conditions are names and kinds, {{'mass': 'scalar'}}, not {conditions!r:.80}")
    return dict(conditions or {}), asked


def _labelled(source: Source, labels: Any) -> Source:
    if source.text is not None:
        raise SfumatoError(f"{source.name} is text, which is cut into windows: there are no samples to label")
    if source.table is not None:
        raise SfumatoError(f"{source.name} is a table, whose labels are a column of it: leave labels out")
    rest = {other: each for other, each in source.conditions.items() if other != LABEL}
    return replace(source, conditions={LABEL: encode_labels(labels, len(source)), **rest})


def _read(obj: Any, size: Size | None, kinds: Mapping[str, str], asked: Asked) -> Source:
    """Decide whether obj is an object, a name, a folder, a file or several files, and read it."""
    if isinstance(obj, Source):
        asked.require_unused(obj.name)
        return obj
    if not isinstance(obj, str | os.PathLike):
        if hugging_face.is_dataset(obj):
            return hugging_face.open_dataset(obj, size, kinds, asked)
        return _from_object(obj, size, kinds, asked)
    text = os.fspath(obj)
    if text in builtin.NAMES:
        source = builtin.load(text, asked, kinds)
        if Path(text).exists():
            source.notes.append(f"This is the built-in set; for the file or folder of that name write ./{text}")
        return source
    paths = _found(text)
    for path in paths:
        require_plain(path)
    if paths[0].is_dir() and not isinstance(file_format.of(paths[0]), file_format.Arrays):
        return _read_folder(paths[0], size, kinds, asked)
    name = paths[0].name.partition(".")[0] if len(paths) == 1 else paths[0].resolve().parent.name
    return _read_files(paths, name, size, kinds, asked)


def _read_files(
    paths: Sequence[Path],
    name: str,
    size: Size | None,
    kinds: Mapping[str, str],
    asked: Asked,
    root: Path | None = None,
) -> Source:
    """One file, or several archives or tables of one set. root: the folder that holds them."""
    paths, asked, note = _of_split(paths, root, asked)
    first, suffix = paths[0], paths[0].suffix.lower()
    if suffix in LINES and len(paths) == 1 and (lines := sequences.of_lines(first, asked.key)) is not None:
        return _from_arrays(lines[0], str(first), name, asked._replace(key=lines[1]))
    if suffix in (*SUFFIXES, *LINES):
        return _noted(open_texts(paths, name, asked), note, [])
    if suffix in TABLE_SUFFIXES and (asked.key is not None or suffix not in (".csv", ".tsv")):
        if (column := text_column(tables.TableFiles(paths[:1]), asked.key)) is not None:
            table = tables.TableFiles(paths)
            return _noted(open_column(table, name, column, asked._replace(key=None)), note, [])
    form = file_format.of(first)
    if isinstance(form, file_format.Stack):
        return _noted(open_stacks(paths, form, name, asked, root), note, [])
    asked.require_no_text(together(paths))
    if first.name.lower().endswith(TAR_SUFFIXES):
        return _noted(open_archives(paths, size, name, asked), note, [])
    if suffix in TABLE_SUFFIXES:
        return _noted(open_table(tables.TableFiles(paths), size, name, kinds, asked), note, [])
    if len(paths) > 1:
        raise SfumatoError(
            f"{first} and {len(paths) - 1:,} more: only .tar archives, .parquet tables and texts may be several"
        )
    if isinstance(form, file_format.Arrays):
        if asked.key is None and (found := _numbered(first, form, asked)) is not None:
            return found
        named, stored = arrays.read_named(first, form, lambda found: pick(found, str(first), asked).name)
        return replace(_from_arrays(named, str(first), name, asked), stored=stored)
    if suffix == ".npz" and asked.key is None and (found := _members(first, asked)) is not None:
        return found
    if suffix == ".npz":
        named = arrays.read_npz(first, lambda found: pick(found, str(first), asked).name)
        return _from_arrays(named, str(first), first.stem, asked)
    if suffix == ".npy":
        asked.require_unused(str(first))
        return _from_array(arrays.read_npy(first), {}, str(first), first.stem)
    if suffix in IMAGE_SUFFIXES:
        raise SfumatoError(f"{first} is a single image: give the folder that holds the images")
    raise SfumatoError(
        f"{first} is not a kind of data that can be read: give a folder of images, a .npy, .npz, .tar, .parquet, "
        f".csv, .txt, .jsonl, {', '.join(each.endings[0] for each in file_format.known())} file, or one of "
        f"{', '.join(builtin.NAMES)}"
    )


def _numbered(path: Path, form: file_format.Arrays, asked: Asked) -> Source | None:
    """The sequences in a file of arrays that have numbers for names; None for any other."""
    with file_format.reading(path, form.what, form.extra), form.open(path) as contents:
        if not (keys := sequences.numbered(contents.arrays)):
            return None
        asked.require_unused(str(path))
        count = (len(keys),)
        others = [key for key, each in contents.arrays.items() if key not in keys and each.shape[:1] == count]
        limits.require_file(path, sum(contents.arrays[key].nbytes for key in (*keys, *others)))
        parts, beside = [contents.read(key) for key in keys], {key: contents.read(key) for key in others}
    return _noted(_from_array(parts, beside, str(path), path.name.partition(".")[0]), [_EACH], [])


def _members(path: Path, asked: Asked) -> Source | None:
    """The sequences in a .npz file with an array for each; None for any other."""
    archive = Archive(path)
    own = archive.arrays.get("manifest", np.zeros(()))  # of a file that `sfumato sample` wrote
    text = own.dtype.kind == "U" and own.ndim == 0 and own.nbytes <= _MANIFEST
    layout = layout_in(str(archive.read(["manifest"])["manifest"])) if text else asked.layout
    keys, others = sequences.members(archive.arrays, layout)
    if not keys:
        return None
    others += [arrays.CLASSES] if arrays.CLASSES in archive.arrays and arrays.CLASSES not in others else []
    asked.require_unused(str(path))
    named = archive.read([*keys, *others])
    parts, beside = [named[key] for key in keys], {key: named[key] for key in others}
    found = _from_array(parts, beside, str(path), path.stem, layout)
    return _noted(found, [_EACH], [])


def _read_folder(root: Path, size: Size | None, kinds: Mapping[str, str], asked: Asked) -> Source:
    """A data set saved by `datasets`, otherwise whichever of images, archives and tables takes most of the folder."""
    name = root.resolve().name
    if splits := tables.saved_splits(root):
        split = choose_split(
            Counter(split_of(path.name) or path.name for path in splits), asked.split, str(root), "folder"
        )
        chosen = next(path for path in splits if split.name in (path.name, split_of(path.name)))
        return _noted(_read_folder(chosen, size, kinds, asked._replace(split=None)), split.note, [])
    if saved := tables.saved(root):
        return _read_files(saved, name, size, kinds, asked)
    found = walk(root)
    kinds_of_files = {
        "images": [p for p in found.paths if p.suffix.lower() in IMAGE_SUFFIXES],
        "archives": [p for p in found.paths if p.suffix.lower() == ".tar"],
        "tables": [
            p for p in found.paths if p.suffix.lower() in TABLE_SUFFIXES and p.suffix.lower() not in (".csv", ".tsv")
        ],
    }
    if kinds_of_files["images"]:  # what metadata say is of the images
        kinds_of_files["tables"] = [p for p in kinds_of_files["tables"] if p.name.lower() not in metadata.NAMES]
    present = [kind for kind, paths in kinds_of_files.items() if paths]
    read_too: tuple[str, ...] = ()
    if (not present and (stacks := _stacks(found.paths))) or (stacks := _tiff_stacks(kinds_of_files["images"])):
        kinds_of_files, present, read_too = stacks, list(stacks), metadata.NAMES
    if not present and not any(p.suffix.lower() in (".npy", ".npz", ".csv", ".tsv") for p in found.paths):
        kinds_of_files["texts"] = [p for p in found.paths if p.suffix.lower() in SUFFIXES]
        kinds_of_files["lines of JSON"] = [p for p in found.paths if p.suffix.lower() in LINES]
        present = [kind for kind in ("texts", "lines of JSON") if kinds_of_files[kind]]
    if not present and len(files := [path for path in found.paths if path.suffix.lower() == ".npy"]) > 1:
        return _each_a_sample(root, files, found, asked)
    if not present:
        raise SfumatoError(_nothing(root, found))
    if len(present) > 1:
        present.sort(key=lambda kind: -sum(path.stat().st_size for path in kinds_of_files[kind]))
    if present[0] == "images":
        asked.require_no_text(str(root))
        return open_pictures(root, found, size, kinds, asked)
    source = _read_files(kinds_of_files[present[0]], name, size, kinds, asked, root)
    others = sorted(set(found.paths) - set(kinds_of_files[present[0]]))
    others = [path for path in others if path.name.lower() not in read_too]
    left = [(path.relative_to(root).as_posix(), f"not one of the {present[0]}") for path in others]
    return _noted(source, found.notes, [*left, *found.skipped])


def _each_a_sample(root: Path, files: Sequence[Path], found: Files, asked: Asked) -> Source:
    """The .npy files of a folder, a sample each, of one shape or sequences of several lengths."""
    files, asked, note = _of_split(files, root, asked)
    asked.require_unused(str(root))
    parts = [arrays.read_npy(path) for path in files]
    if len({part.shape for part in parts}) > 1 and not sequences.found(parts):
        raise SfumatoError(f"{root} {arrays.ragged(parts)}")
    manifest = root / MANIFEST  # of a folder that `sfumato sample` wrote
    text = schema.read_text(manifest, _MANIFEST) if manifest.is_file() else ""
    source = _from_array(parts, {}, str(root), root.resolve().name, layout_in(text) or asked.layout)
    names = [path.relative_to(root).as_posix() for path in files]
    conditions, notes = conditions_of_files(root, names)
    source = replace(source, conditions=conditions, ids=names, groups=names)
    used = {*files, *(path for path in found.paths if path.name.lower() in (*metadata.NAMES, MANIFEST))}
    left = [(path.relative_to(root).as_posix(), "not a .npy file of this split") for path in {*found.paths} - used]
    return _noted(source, [*notes, *note, *found.notes], [*left, *found.skipped])


def _stacks(paths: Sequence[Path]) -> dict[str, list[Path]]:
    """The files of one or more samples each, by what they are."""
    forms = [form for form in file_format.known() if isinstance(form, file_format.Stack)]
    found = {f"{form.what}s": [p for p in paths if p.name.lower().endswith(form.endings)] for form in forms}
    return {what: some for what, some in found.items() if some}


def _tiff_stacks(images: Sequence[Path]) -> dict[str, list[Path]]:
    """The pictures of a folder as TIFF stacks, if all of them end so and the first has several pages of one size."""
    form = file_format.of(images[0]) if images else None
    if not isinstance(form, file_format.Stack) or not all(p.name.lower().endswith(form.endings) for p in images):
        return {}
    require_plain(images[0])
    with suppress(SfumatoError), file_format.reading(images[0], form.what, form.extra):
        return {f"{form.what}s": list(images)} if form.scan(images[0], None).number > 1 else {}
    return {}


def _of_split(paths: Sequence[Path], root: Path | None, asked: Asked) -> tuple[list[Path], Asked, list[str]]:
    """The files of one split, where all are named after splits, with a note; else all. root: a folder of them."""
    found = [split_of_file(path.name if root is None else path.relative_to(root).as_posix()) for path in paths]
    if None in found or (root is None and len(paths) == 1):
        return list(paths), asked, []
    split = choose_split(Counter(found), asked.split, together(paths), "file")
    chosen = [path for path, name in zip(paths, found, strict=True) if name == split.name]
    return chosen, asked._replace(split=None), split.note


def _noted(source: Source, notes: Sequence[str], skipped: Sequence[tuple[str, str]]) -> Source:
    return replace(source, notes=[*source.notes, *notes], skipped=sorted([*source.skipped, *skipped]))


def _nothing(root: Path, found: Files) -> str:
    """What to say of a folder without images, archives and tables."""
    if not found.paths:
        left = f" (left out: {found.skipped[0][0]}, {found.skipped[0][1]})" if found.skipped else ""
        return f"{root} is empty: it holds no images{left}"
    array = next((p for p in found.paths if p.suffix.lower() in (".npy", ".npz", ".csv", ".tsv")), None)
    hint = f"; for an array give its file, e.g. {array}" if array else ", no .tar archives, no .parquet tables"
    return f"{root} holds no images among its {len(found.paths):,} files{hint}"


def _found(text: str) -> list[Path]:
    """The folder, file or files that a text names. Raises SfumatoError with a suggestion if there are none."""
    if not text.strip():
        raise SfumatoError(f"no data given: name a folder, a file or one of {', '.join(builtin.NAMES)}")
    path = place(text, "Data")
    if path.exists():
        return [path]
    if several := expand(text):
        return several
    if path.is_symlink():
        raise SfumatoError(f"{text} is a link to nothing: give the data themselves, or mend the link")
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near_set = difflib.get_close_matches(text.lower(), builtin.NAMES, n=1)
    near_file = difflib.get_close_matches(path.name, siblings, n=1)
    if near_set:
        raise SfumatoError(f"{text} does not exist: did you mean the built-in set {near_set[0]!r}?")
    if near_file:
        raise SfumatoError(f"{text} does not exist: did you mean {path.parent / near_file[0]}?")
    raise SfumatoError(f"{text} does not exist, and is not one of the built-in sets ({', '.join(builtin.NAMES)})")


def _from_object(obj: Any, size: Size | None, kinds: Mapping[str, str], asked: Asked) -> Source:
    if frames.is_frame(obj):
        asked.require_no_text("the frame")
        arrow = frames.arrow_of(obj)
        if not asked.columns and frames.has_lists(arrow):
            return open_table(tables.TableFiles([], arrow, "the frame"), size, "frame", kinds, asked)
        return frames.open_frame(obj, arrow, asked)
    if isinstance(obj, list) and obj and all(isinstance(each, str) for each in obj):
        asked._replace(length=None, tokens=None).require_unused("the list")
        return from_documents(obj, "texts", "the list", asked)
    if isinstance(obj, Mapping):
        asked.require_no_text("the dict")
        return _from_arrays(obj, "the dict", "array", asked)
    asked.require_unused("the array")
    return _from_array(_stacked(obj, asked.layout), {}, "the array", "array", asked.layout)


def _from_arrays(named: Mapping[str, Any], where: str, name: str, asked: Asked) -> Source:
    """The samples among several arrays, with those beside them."""
    picked = pick(named, where, asked)
    x = _stacked(picked.x, asked.layout)
    for key, values in picked.beside.items() if where == "the dict" else ():
        if _has_axis(values) and _has_axis(x) and len(values) != len(x):
            raise SfumatoError(  # an error in the caller's dict, but only a note for a file
                f"the condition {key!r} has {counted(len(values), 'entry', 'entries')} for "
                f"{counted(len(x), 'sample')}: give one per sample, or "
                "leave it out"
            )
    found = _from_array(x, picked.beside, f"{where}: {picked.name!r}", name, asked.layout)
    return _noted(found, picked.notes, [])


def _stacked(x: Any, layout: str = "") -> Any:
    """Tensors in a list as one. Raises SfumatoError for what cannot be samples."""
    if parts := sequences.found(x, layout):
        return parts
    if isinstance(x, list | tuple) and x and all(isinstance(item, Tensor) for item in x):
        if len({item.shape for item in x}) > 1:
            raise SfumatoError("the tensors in the list have different shapes: every sample must have the same")
        limits.require_real(x[0], "the list")
        return torch.stack(list(x))
    if x is None or isinstance(x, bytes) or callable(x):
        raise SfumatoError(f"{an(type(x).__name__)} is not data: give an array, a tensor, a folder or a file")
    return x


def _has_axis(values: Any) -> bool:
    one = isinstance(values, str | bytes | Mapping) or getattr(values, "ndim", 1) == 0
    return hasattr(values, "__len__") and not one


def _is_pair(obj: Any) -> bool:
    """Whether obj is (x, labels): a tuple of two whose first is itself a data source."""
    return (
        isinstance(obj, tuple)
        and len(obj) == 2
        and (isinstance(obj[0], str | os.PathLike | Mapping | list) or getattr(obj[0], "ndim", 0) > 0)
    )


def _from_array(data: Any, beside: Mapping[str, Any], where: str, name: str, layout: str = "") -> Source:
    """beside: further arrays by name, which become conditions. layout: of sequences that may all be as long."""
    limits.require_real(data, where)
    x: Samples
    whole = ""
    if parts := sequences.found(data, layout):
        x, layout, notes, whole = sequences.joined(parts, where, layout)
        kind = "array"
    else:
        x, kind, notes = _arranged(data, where)
        notes, layout = [Source.headline(x), *notes], ""
    missing = arrays.missing_share(x, where, layout)
    arrays.require_unfilled(x, where)
    beside = spelt(beside)
    label = next((beside[key] for key in label_keys(beside) if beside[key] is not None), None)
    if label is not None and len(label) != len(x):
        raise SfumatoError(
            f"there are {len(label):,} labels for {counted(len(x), 'sample')}: give exactly one per sample"
        )
    found, unread = columns(beside, len(x))
    conditions = with_label(found, label_keys(found))
    return Source(x, kind, name, conditions, notes=[*notes, *unread], missing=missing, layout=layout, whole=whole)


def _arranged(data: Any, where: str) -> tuple[Samples, str, list[str]]:
    mapped = isinstance(data, np.memmap) and not data.flags.writeable and not fits(data.nbytes)  # as by `read_npy`
    if mapped or isinstance(data, file_format.Unread):
        rows = Mapped(data, where)
        note = f"{rows.nbytes / 2**30:.1f} GiB do not fit into memory: samples are read when needed."
        return rows, rows.kind, [*rows.notes, note]
    return arrays.arrange(arrays.to_tensor(data, where), where)


def _resized(source: Source, size: Size) -> Source:
    """Images of another size than `size` resized to cover it and cropped at the centre."""
    target = check_size(size)
    if len(source.shape) == 3 and source.shape[1:] == target:
        return source
    if source.kind != "image":
        raise SfumatoError(f"size is for images, but {source.name} holds arrays of shape {source.shape}")
    if not isinstance(source.x, Tensor):
        raise SfumatoError(
            f"{source.name} is larger than memory, and size cannot change it: resize it once and save it"
        )
    pictures = source.x.numpy().transpose(0, 2, 3, 1)
    resized = np.stack([fit_cover(np.ascontiguousarray(p), target) for p in pictures])
    if source.bounds is not None:  # the filter overshoots at edges
        resized = resized.clip(*(resized.dtype.type(bound) for bound in source.bounds))
    x = torch.from_numpy(resized)
    note = f"All images were resized to cover {target[0]} x {target[1]} and cropped at the centre, as asked."
    return replace(source, x=x.movedim(-1, 1).contiguous(), notes=[*source.notes, note], identity=None)
