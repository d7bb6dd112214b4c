"""Damaged data files: each is read or refused in one sentence, without a signal, within memory and time.

The files are opened in a process of their own, which serves all examples: a crash is seen, and its peak of memory is
known. `-m slow` tries some thousands of each kind.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import csv, ipc, parquet

MAX_GB = 0.05  # the limit of one file here
MEMORY = 300 << 20  # bytes that all examples together may take beyond what an ordinary file takes
SECONDS = 10.0  # of computing, for one file: what others do on the machine does not count
WORKER = """
import json, sys, time
import sfumato.data as data
from sfumato.errors import SfumatoError
from sfumato.machine import peak_memory
data.inspect("digits")
for line in sys.stdin:
    begun = time.process_time()
    try:
        data.inspect(line.strip(), max_gb=float(sys.argv[1]))
        said = "read"
    except SfumatoError as error:
        said = "refused" if len(str(error).splitlines()) == 1 else f"several lines: {error}"
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
    print(json.dumps([said, time.process_time() - begun, peak_memory()]), flush=True)
"""
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 255, (6, 12, 10, 3), dtype=np.uint8)
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".gif": "GIF", ".webp": "WEBP", ".bmp": "BMP", ".tif": "TIFF", ".ppm": "PPM",
           ".tga": "TGA", ".jp2": "JPEG2000", ".ico": "ICO", ".avif": "AVIF"}  # fmt: skip


def image(form: str, pixels: np.ndarray = PIXELS[0]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def deep_png() -> bytes:
    """A PNG of 16 bits, filtered row by row, as none of Pillow's."""
    import struct
    import zlib

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    rows = b"".join(bytes([i % 5]) + RNG.integers(0, 255, 60, dtype=np.uint8).tobytes() for i in range(8))
    head = struct.pack(">IIBBBBB", 10, 8, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tar(form: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for i, pixels in enumerate(PIXELS):
            members = {"png": image("PNG", pixels), "json": json.dumps({"label": i % 2, "mass": 0.5 * i}).encode()}
            for ending, content in members.items():
                member = tarfile.TarInfo(f"{'deep/' * 30}{i}.{ending}" if i % 2 else f"{i}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def table() -> pa.Table:
    words = [f"c{i % 3}" for i in range(40)]
    return pa.table({
        "x": RNG.normal(size=40), "i": range(40), "s": words, "d": pa.array(words).dictionary_encode(),
        "l": [[1.0, 2.0]] * 40, "n": [None if i % 4 == 0 else i for i in range(40)],
        "f": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(80.0)), 2), "t": [i % 2 == 0 for i in range(40)],
    })  # fmt: skip


def pictures() -> pa.Table:
    """As `datasets` writes it, with the classes in its metadata."""
    cells = [{"bytes": image("PNG", PIXELS[i % 6]), "path": None} for i in range(8)]
    features = {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}
    made = pa.table({"image": cells, "label": [i % 2 for i in range(8)]})
    return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def arrow(made: pa.Table, kind, compression: str | None = None) -> bytes:
    file = io.BytesIO()
    with kind(file, made.schema, options=ipc.IpcWriteOptions(compression=compression)) as stream:
        stream.write_table(made, max_chunksize=16)
    return file.getvalue()


def saved(write) -> bytes:
    """The bytes that a function writes to an open file."""
    file = io.BytesIO()
    write(file)
    return file.getvalue()


@cache
def files() -> dict[str, list[tuple[str, bytes]]]:
    """Kind -> whole files, each with its ending."""
    x, y = RNG.normal(size=(20, 3)), RNG.integers(0, 3, 20)
    rows, shown = table(), pictures()
    metadata = "".join(
        json.dumps({"file_name": f"{i}.png", "mass": i / 2, "label": "ab"[i % 2]}) + "\n" for i in range(6)
    )
    return {
        "images": [*((ending, image(form)) for ending, form in FORMATS.items()), (".png", deep_png())],
        "tar": [(".tar", tar(form)) for form in (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)],
        "numpy": [
            (".npy", saved(lambda file: np.save(file, x))),
            (".npz", saved(lambda file: np.savez(file, x=x, y=y, other=x[:3]))),
            (".npz", saved(lambda file: np.savez_compressed(file, x=x, y=y, other=x[:3]))),
        ],
        "arrow": [
            (".arrow", arrow(made, kind, compression))
            for made in (rows, shown) for kind in (ipc.new_stream, ipc.new_file)
            for compression in (None, "lz4", "zstd")
        ],
        "parquet": [
            (".parquet", saved(lambda file: parquet.write_table(rows, file, row_group_size=16))),
            (".parquet", saved(lambda file: parquet.write_table(shown, file, compression="none"))),
        ],
        "text": [
            (".csv", saved(lambda file: csv.write_csv(rows.select(["x", "i", "s"]), file))),
            (".jsonl", metadata.encode()),
        ],
    }  # fmt: skip


WORDS = [
    *(b"\0" * 4, b"\xff" * 4, b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\0\0\0\x01"),
    *(b"\xff" * 8, b"\0\0\0\0\1\0\0\0", b"\xff" * 7 + b"\x7f"),
    *(b"9" * 20, b"-1", b"[" * 2000, b"\x80\xfe", b"\x1b[31m\n", b"NaN", b"1e999"),
]
CHANGE = st.one_of(
    st.tuples(st.just("flip"), st.integers(0, 7)),
    st.tuples(st.just("put"), st.sampled_from(WORDS)),
    st.tuples(st.just("insert"), st.sampled_from(WORDS)),
    st.tuples(st.just("cut"), st.just(0)),
    st.tuples(st.just("repeat"), st.integers(1, 600)),
)
CHANGES = st.lists(st.tuples(st.integers(0, 2**24), CHANGE), min_size=1, max_size=4)


def changed(raw: bytes, changes) -> bytes:
    """The file with each change made at its place, counted round the file."""
    found = bytearray(raw)
    for place, (how, what) in changes:
        at = place % max(1, len(found))
        if how == "flip" and found:
            found[at] ^= 1 << what
        elif how == "put":
            found[at : at + len(what)] = what
        elif how == "insert":
            found[at:at] = what
        elif how == "repeat":
            found[at:at] = found[at : at + what]
        elif how == "cut":
            del found[at:]
    return bytes(found)


class Reader:
    """The process that opens the files."""

    def __init__(self, folder: Path) -> None:
        words, env = [sys.executable, "-c", WORKER, str(MAX_GB)], {**os.environ, "SFUMATO_CACHE": "off"}
        self.process = subprocess.Popen(words, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.folder = folder
        self.usual = self.open(self.written("digits.npy", saved(lambda file: np.save(file, RNG.normal(size=(20, 3))))))[
            2
        ]

    def written(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return path

    def open(self, path: Path) -> tuple[str, float, int]:
        """(what came of it, seconds of computing, bytes of memory at the peak so far)."""
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the reader ended with status {self.process.wait()}"
        said, seconds, peak = json.loads(line)
        return said, seconds, peak

    def try_one(self, kind: str, ending: str, content: bytes) -> str:
        """Open a file, in a folder of sound pictures where it belongs in one; returns what came of it."""
        if kind == "images":
            path = self.written(f"pictures/a{ending}", content)
            opened = path.parent
        elif ending == ".jsonl":
            for i in range(6):
                self.written(f"beside/{i}.png", image("PNG", PIXELS[i]))
            opened = self.written("beside/metadata.jsonl", content).parent
        else:
            opened = path = self.written(f"a{ending}", content)
        said, seconds, peak = self.open(opened)
        if kind == "images":
            path.unlink()
        assert said in ("read", "refused") and seconds < SECONDS and peak < self.usual + MEMORY, (said, seconds, peak)
        return said


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    made = Reader(tmp_path_factory.mktemp("files"))
    yield made
    made.process.stdin.close()
    assert made.process.wait(60) == 0


KINDS = ("images", "tar", "numpy", "arrow", "parquet", "text")


@pytest.mark.parametrize("kind", KINDS)
def test_whole_files_are_read(reader, kind):
    for ending, content in files()[kind]:
        assert reader.try_one(kind, ending, content) == "read", ending


def trials(reader: Reader, kind: str, count: int) -> Counter[str]:
    """How many of `count` damaged files of a kind were read and refused; always the same files."""
    found: Counter[str] = Counter()

    @settings(
        max_examples=count, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.sampled_from(files()[kind]), CHANGES)
    def one(whole, changes):
        ending, content = whole
        found[reader.try_one(kind, ending, changed(content, changes))] += 1

    one()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_read_or_refused(reader, kind):
    found = trials(reader, kind, 60)
    assert found["read"] and found["refused"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_damaged_files_are_read_or_refused(reader, kind):
    trials(reader, kind, 3000)
