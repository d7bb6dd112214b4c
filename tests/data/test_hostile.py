"""Files made to hurt: formats that start programs, sizes that fill the memory, pipes, headers that lie."""

import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import feather, ipc, parquet

import sfumato as sf
from sfumato import data, folder
from sfumato.cli import main
from sfumato.data import limits, picture
from sfumato.data.images import IMAGE_SUFFIXES
from sfumato.data.labels import read_labels
from sfumato.data.tar_members import members
from sfumato.errors import SfumatoError
from sfumato.training.config import TrainConfig, read

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 255, (20, 8, 8, 3), dtype=np.uint8)
MIB = 2**20
ALLOW = "allow more with --max-gb"


def encoded(pixels: np.ndarray, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def refused(obj, words: str, **how) -> str:
    """Opening fails with one sentence that matches; returns it."""
    with pytest.raises(SfumatoError, match=words) as caught:
        data.open(obj, **how)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def pack(path: Path, contents: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def shard(path: Path, fields) -> Path:
    """An archive of pictures, with a .json each."""
    both = [(f"{i}.png", encoded(PIXELS[i])) for i in range(20)] + [(f"{i}.json", fields(i)) for i in range(20)]
    return pack(path, dict(both))


# -- formats


def foreign() -> dict[str, bytes]:
    """Files of formats that Pillow reads and the house does not, an EPS first, for which Pillow starts Ghostscript."""
    found = {form: encoded(PIXELS[0], form) for form in ("EPS", "PCX", "SGI", "IM")}
    assert found["EPS"].startswith(b"%!PS")
    return found


@pytest.mark.parametrize("form", ["EPS", "PCX", "SGI", "IM"])
def test_other_formats_are_never_opened_whatever_their_name(tmp_path, form):
    content = foreign()[form]
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == form  # without the list it would be
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.png").write_bytes(content)
    refused(tmp_path / "pictures", "a.png: it is not an image, or of a kind that cannot be read")
    refused(pack(tmp_path / "a.tar", {"a.png": content}), "a.png: it is not an image")
    parquet.write_table(pa.table({"image": [content] * 3}), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", "has no column to learn from: pictures")
    parquet.write_table(pa.table({"image": [encoded(PIXELS[0]), content]}), tmp_path / "b.parquet")
    assert dict(data.open(tmp_path / "b.parquet").skipped)["1"].startswith("it is not an image")


def test_every_ending_that_is_looked_for_is_of_a_format_that_is_opened():
    Image.init()
    missing = set(picture.FORMATS) - set(Image.OPEN)
    endings = {ending for ending, form in Image.registered_extensions().items() if form in picture.FORMATS}
    assert not missing and endings >= IMAGE_SUFFIXES


# -- limits


@pytest.mark.parametrize("shape, depth", [((300, 200), "uint8"), ((300, 200, 3), "uint8"), ((300, 200, 4), "uint8"),
                                          ((300, 200), "uint16")])  # fmt: skip
def test_a_picture_may_take_three_times_its_pixels(tmp_path, shape, depth):
    pixels = RNG.integers(0, 255, shape).astype(depth)
    needs = 3 * pixels.nbytes / 2**30
    (tmp_path / "a.png").write_bytes(encoded(pixels))
    for where in (tmp_path, pack(tmp_path / "a.tar", {"a.png": encoded(pixels)})):
        assert len(data.open(where, max_gb=1.001 * needs)) == 1
        said = refused(where, ALLOW, max_gb=0.999 * needs)
        assert "a.png: a picture of 200 x 300 pixels would take" in said


def test_what_is_too_large_is_skipped_among_others_and_kept_out_of_their_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sfumato.data.images.WORTH_COUNT", 1)
    (tmp_path / "pictures").mkdir()
    for i in range(19):
        (tmp_path / f"pictures/{i:02d}.png").write_bytes(encoded(PIXELS[i]))
    (tmp_path / "pictures/large.png").write_bytes(encoded(np.zeros((400, 400, 3), np.uint8)))
    few = data.open(tmp_path / "pictures", max_gb=0.001)
    assert len(few) == 19 and "would take" in dict(few.skipped)["large.png"]
    assert len(data.open(tmp_path / "pictures")) == 20


def test_the_default_lets_the_photographs_of_cameras_through():
    for width, height in ((6000, 4000), (9504, 6336), (11648, 8736)):  # of 24, 60 and 102 million pixels
        header = picture.Header("a.jpg", height, width, 3, "uint8")
        limits.require(header.memory, limits.DEFAULT_GB * 2**30, "a picture")
    with pytest.raises(SfumatoError, match="1.21 GiB of memory, more than the 1 GiB allowed for one file"):
        limits.require(picture.Header("a.png", 12000, 12000, 3, "uint8").memory, 2**30, "a picture")


def test_the_limit_is_the_house_s_own_and_not_that_of_pillow(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    (tmp_path / "a.png").write_bytes(encoded(PIXELS[0]))
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "a.png")
    assert len(data.open(tmp_path)) == 1


def test_pictures_wait_for_room_and_one_alone_always_has_it():
    room, taken, most = picture._Room(100), [], []

    def work(nbytes):
        with room.taking(nbytes):
            taken.append(nbytes)
            most.append(sum(taken))
            time.sleep(0.01)
            taken.remove(nbytes)

    threads = [threading.Thread(target=work, args=(nbytes,)) for nbytes in (60, 40, 60, 300, 30, 70, 60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 7 and max(most) == 300 and sorted(most)[-2] <= 100


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def deep_png(path: Path, mib: int) -> Path:
    """A PNG of 8 x 8 pixels at 16 bits, whose data inflate to this many MiB."""
    stream = zlib.compressobj(9)
    body = b"".join(stream.compress(bytes(MIB)) for _ in range(mib)) + stream.flush()
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b""))
    return path


def zeros_npz(path: Path, name: str, mib: int) -> Path:
    """20 samples, and a member of zeros of this name."""
    np.savez_compressed(path, samples=RNG.normal(size=(20, 4)))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive, archive.open(f"{name}.npy", "w") as file:
        head = {"descr": "|u1", "fortran_order": False, "shape": (mib, MIB)}
        np.lib.format.write_array_header_1_0(file, head)
        for _ in range(mib):
            file.write(bytes(MIB))
    return path


OPEN = """
import sys
import sfumato.data as data
from sfumato.errors import SfumatoError
from sfumato.machine import peak_memory
data.open("digits")
before = peak_memory()
for path in sys.argv[2:]:
    try:
        print(data.open(path, max_gb=float(sys.argv[1])).notes[0])
    except SfumatoError as error:
        print(error)
print(peak_memory() - before)
"""


def opened_apart(*paths: Path, max_gb: float = 0.1) -> tuple[list[str], int]:
    """(what opening each says, the bytes by which the peak of memory rises), in a process of its own."""
    words = [sys.executable, "-c", OPEN, str(max_gb), *map(str, paths)]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "SFUMATO_CACHE": "off"}, check=True)
    *said, more = done.stdout.splitlines()
    return said, int(more)


def test_a_few_bytes_never_become_gigabytes(tmp_path):
    (tmp_path / "pictures").mkdir()
    deep_png(tmp_path / "pictures/a.png", 256)
    (tmp_path / "large").mkdir()
    Image.new("RGB", (6000, 6000)).save(tmp_path / "large/a.gif")
    unused, used = zeros_npz(tmp_path / "unused.npz", "unused", 256), zeros_npz(tmp_path / "used.npz", "x", 256)
    said, more = opened_apart(tmp_path / "pictures", tmp_path / "large", unused, used)
    assert "a.png: its pixel data are more than its size holds" in said[0]
    assert "a.gif: a picture of 6,000 x 6,000 pixels would take 0.302 GiB" in said[1] and ALLOW in said[1]
    assert said[2].startswith("20 samples of shape (4,)")
    assert "used.npz, unpacked, would take 0.25 GiB" in said[3] and ALLOW in said[3]
    assert more < 64 * MIB


def test_a_table_is_measured_by_its_rows_before_it_is_read(tmp_path):
    path = tmp_path / "zeros.parquet"
    for columns, width in (
        ({"x": np.zeros(10**6)}, 8), ({"i": np.zeros(10**6, np.int32), "b": np.zeros(10**6, bool)}, 5),
        ({"x": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(10**6, np.float32)), 4)}, 4),
    ):  # fmt: skip
        for rows in (10**6, 10**5):  # in one group and in many
            parquet.write_table(pa.table(columns), path, row_group_size=rows)
            needs = width * 10**6 / 2**30
            assert len(data.open(path, max_gb=1.01 * needs)) in (10**6, 250_000)
            refused(path, f"zeros.parquet, unpacked, would take .*{ALLOW}", max_gb=0.99 * needs)


@pytest.mark.parametrize("form", ["png", "bmp"])
def test_a_picture_within_an_icon_is_measured_before_it_is_decoded(tmp_path, monkeypatch, form):
    """Pillow decodes it as it opens the icon, whose directory says 16 x 16 pixels."""
    file = io.BytesIO()
    Image.fromarray(PIXELS[0]).resize((16, 16)).save(file, "ICO", sizes=[(16, 16)], bitmap_format=form)
    icon = file.getvalue()
    (tmp_path / "a.ico").write_bytes(icon)
    assert len(data.open(tmp_path)) == 1
    (at,) = struct.unpack_from("<I", icon, 18)
    size = struct.pack(">II", 60_000, 60_000) if form == "png" else struct.pack("<II", 60_000, 60_000)
    place = at + (16 if form == "png" else 4)
    (tmp_path / "a.ico").write_bytes(icon[:place] + size + icon[place + 8 :])
    monkeypatch.setattr(Image.core, "new", None)  # no pixels are made
    monkeypatch.setattr(Image.core, "fill", None)
    refused(tmp_path, f"a.ico: a picture of 60,000 x 60,000 pixels would take .*{ALLOW}")


@pytest.mark.parametrize("where", ["word", "image", "tags", "text", "split"])
@pytest.mark.parametrize("group", [10**4, 500])
def test_a_string_that_many_rows_share_is_measured_before_each_has_its_own(tmp_path, where, group):
    """A text of 10^4 characters in 10^4 rows, 95 MiB, is a file of a few kilobytes."""
    again = pa.array(np.zeros(10**4, np.int32))
    long = b"a" * 10**4 if where != "image" else encoded(PIXELS[0]) + b"a" * 10**4
    words = pa.DictionaryArray.from_arrays(again, pa.array([long if where == "image" else long.decode()]))
    if where == "tags":
        words = pa.ListArray.from_arrays(pa.array(np.arange(10**4 + 1, dtype=np.int32)), words)
    columns = {where: words} if where in ("image", "text") else {"x": np.arange(10**4), where: words}
    group = 10**4 if where == "image" else group  # pictures are read group by group
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table(columns), path, row_group_size=group, compression="zstd", store_schema=False)
    assert path.stat().st_size * limits.RATIO < 64 * MIB
    refused(path, "a.parquet, unpacked, would take .*GiB of memory, more than the .* GiB allowed", max_gb=0.06)


def test_strings_that_rows_share_are_read_within_the_limit(tmp_path):
    words = pa.DictionaryArray.from_arrays(pa.array(np.arange(1000, dtype=np.int32) % 2), pa.array(["a" * 1000, "b"]))
    table = pa.table({"x": np.arange(1000.0), "word": words})
    needs = 500 * (1000 + 1) / 2**30
    for name, write in (("a.parquet", parquet.write_table), ("a.feather", feather.write_feather)):
        write(table, tmp_path / name)
        path = tmp_path / name
        assert path.stat().st_size * limits.RATIO < 0.9 * needs * 2**30 or name == "a.feather"
        assert data.open(path, conditions={"word": "label"}, max_gb=1.01 * needs).conditions["word"].names == (
            "a" * 1000,
            "b",
        )


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
@pytest.mark.parametrize("ending", ["arrow", "feather"])
def test_an_arrow_file_is_measured_by_its_buffers_before_it_is_read(tmp_path, compression, ending):
    table = pa.table({"x": np.zeros(10**6), "d": pa.array(["a", "b"] * 500_000).dictionary_encode()})
    path = tmp_path / f"a.{ending}"
    kind = ipc.new_stream if ending == "arrow" else ipc.new_file
    with kind(path, table.schema, options=ipc.IpcWriteOptions(compression=compression)) as file:
        file.write_table(table, max_chunksize=300_000)
    needs = (8 + 4) * 10**6 / 2**30
    source = data.open(path, conditions={"d": "label"}, max_gb=1.001 * needs)
    assert len(source) == 10**6 and not source.x.any() and source.conditions["d"].names == ("a", "b")
    refused(path, f"{path.name}, unpacked, would take .*{ALLOW}", max_gb=0.999 * needs)


def test_data_that_are_as_large_as_their_file_need_no_flag(tmp_path):
    x = RNG.normal(size=(2000, 100))
    np.savez(tmp_path / "x.npz", x=x)
    parquet.write_table(pa.table({"x": x.ravel()}), tmp_path / "x.parquet")
    for name in ("x.npz", "x.parquet"):
        assert data.open(tmp_path / name, max_gb=1e-6).x.nbytes == x.nbytes


def test_only_the_members_that_are_used_are_unpacked(tmp_path):
    x, y = RNG.normal(size=(30, 4)), RNG.integers(0, 3, 30)
    np.savez(tmp_path / "a.npz", x=x, y=y, test=np.ones((7, 10**5)))
    raw = (tmp_path / "a.npz").read_bytes()
    at = raw.index(np.ones(1000).tobytes())
    (tmp_path / "a.npz").write_bytes(raw[:at] + b"!" + raw[at + 1 :])  # against its checksum
    with np.load(tmp_path / "a.npz") as whole, pytest.raises(zipfile.BadZipFile):
        whole["test"]
    source = data.open(tmp_path / "a.npz")
    assert np.array_equal(source.x.numpy(), x) and source.labels.tolist() == y.tolist()
    assert "another split: test (7, 100000)" in " ".join(source.notes)


def test_the_limit_is_a_setting_of_training_and_a_flag(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(encoded(np.zeros((400, 300, 3), np.uint8)))
    for words in (["inspect"], ["train", "--steps", "1"], ["plan", "--steps", "1"]):
        assert (
            main([*words, str(tmp_path), "--max-gb", "0.001", *(["-o", str(tmp_path / "run")] * (words[0] == "train"))])
            == 2
        )
        assert ALLOW in capsys.readouterr().err
    assert main(["inspect", str(tmp_path), "--max-gb", "0.002"]) == 0
    config = TrainConfig(data=str(tmp_path), max_gb=0.002)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert read(str(tmp_path / "config.yaml"))["max_gb"] == 0.002 and TrainConfig().max_gb == limits.DEFAULT_GB
    for wrong in (0, -1, float("nan"), "much", True):
        refused("digits", "max_gb must be a number of GiB above 0", max_gb=wrong)


# -- pipes and devices


@pytest.fixture
def pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


PIPE = "is a pipe or a device, not a file"


@pytest.mark.parametrize(
    "ending",
    ["", ".tar", ".npy", ".npz", ".csv", ".parquet", ".arrow", ".png", ".h5", ".tif", ".nii.gz", ".wav", ".pt"],
)
def test_pipes_and_devices_are_no_data(tmp_path, ending):
    os.mkfifo(tmp_path / f"a{ending}")
    (tmp_path / f"b{ending}").symlink_to("/dev/zero")
    for name in "ab":
        refused(tmp_path / f"{name}{ending}", PIPE)
    refused(str(tmp_path / f"[ab]{ending}"), PIPE)


def test_pipes_among_pictures_and_in_a_saved_data_set_are_not_read(tmp_path):
    (tmp_path / "pictures").mkdir()
    for i in range(20):
        (tmp_path / f"pictures/{i}.png").write_bytes(encoded(PIXELS[i]))
    os.mkfifo(tmp_path / "pictures/x.png")
    os.mkfifo(tmp_path / "pictures/metadata.csv")
    assert len(data.open(tmp_path / "pictures")) == 20
    (tmp_path / "saved").mkdir()
    os.mkfifo(tmp_path / "saved/a.arrow")
    (tmp_path / "saved/state.json").write_text(json.dumps({"_data_files": [{"filename": "a.arrow"}]}))
    refused(tmp_path / "saved", PIPE)


def test_every_other_file_that_a_user_names_is_looked_at_before_it_is_opened(pipe, tmp_path):
    os.mkfifo(tmp_path / "pipe.npy")
    for call in (
        lambda: sf.load(pipe), lambda: sf.load("/dev/zero"), lambda: sf.solvers.Plan.load(pipe),
        lambda: read(str(pipe)), lambda: read_labels(str(pipe)), lambda: read_labels(str(tmp_path / "pipe.npy")),
    ):  # fmt: skip
        with pytest.raises(SfumatoError, match=PIPE):
            call()


def test_a_pipe_of_the_shell_is_one_sentence(tmp_path):
    np.save(tmp_path / "x.npy", RNG.normal(size=(20, 3)))
    for words in ("inspect <(cat x.npy)", "inspect /dev/stdin < <(cat x.npy)"):
        script = f"{sys.executable} -m sfumato.cli {words}"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 2 and PIPE in done.stderr and done.stderr.count("\n") == 1, (words, done)


def test_a_pipe_within_a_run_folder_is_one_sentence(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run/config.yaml")
    assert main(["runs", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert f"config.yaml {PIPE}" in said and said.count("\n") == 1
    os.mkfifo(tmp_path / "run/metrics.jsonl")
    os.mkfifo(tmp_path / "run/incident.json")
    for call in (lambda: folder.read(tmp_path / "run/metrics.jsonl"), lambda: folder.incidents(tmp_path / "run")):
        with pytest.raises(SfumatoError, match=PIPE):
            call()


def test_only_line_feeds_end_lines(tmp_path):
    """Not U+2028 and its like, which JSON may hold as they are."""
    (tmp_path / "labels.txt").write_text("a\u2028b\nc\x0bd\n", encoding="utf-8")
    assert read_labels(str(tmp_path / "labels.txt")) == ["a\u2028b", "c\x0bd"]
    rows = [f'{{"file_name": "{i}.png", "kind": "a\u2028{i % 2}"}}' for i in range(20)]
    (tmp_path / "set").mkdir()
    (tmp_path / "set/metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")
    for i in range(20):
        Image.fromarray(np.full((4, 4), i, np.uint8)).save(tmp_path / f"set/{i}.png")
    assert data.open(tmp_path / "set").conditions["kind"].names == ("a\u20280", "a\u20281")


def test_labels_that_are_no_text_are_one_sentence(tmp_path):
    (tmp_path / "labels.txt").write_bytes(b"a\n\xff\xfe\n")
    with pytest.raises(SfumatoError, match="labels.txt holds no labels: 'utf-8' codec can't decode"):
        read_labels(str(tmp_path / "labels.txt"))


# -- tables


def test_offsets_beyond_the_end_of_an_arrow_file_are_one_sentence(tmp_path):
    table = pa.table({"x": RNG.normal(size=40), "label": [f"class {i % 2}" for i in range(40)]})
    offsets = np.arange(0, 7 * 41, 7, dtype=np.int32)
    wrong = offsets + np.where(np.arange(41) < 20, 0, 2**30).astype(np.int32)
    paths = [tmp_path / "a.arrow", tmp_path / "b.feather"]
    for path, kind in zip(paths, (ipc.new_stream, ipc.new_file), strict=True):
        file = io.BytesIO()
        with kind(file, table.schema) as stream:
            stream.write_table(table)
        raw = file.getvalue()
        assert raw.count(offsets.tobytes()) == 1
        path.write_bytes(raw.replace(offsets.tobytes(), wrong.tobytes()))
    said, _ = opened_apart(*paths)  # where it is not checked this ends in a signal
    assert "a.arrow is damaged: " in said[0] and "b.feather is damaged: " in said[1]


NO_FEATURES = {
    "deep": "[" * 10**5, "a list": "[1]", "a long number": "9" * 10**5, "no object": '{"info": {"features": []}}',
    "names that are none": '{"info": {"features": {"label": {"names": 3, "_type": "ClassLabel"}}}}',
}  # fmt: skip


@pytest.mark.parametrize("features", NO_FEATURES.values(), ids=list(NO_FEATURES))
def test_metadata_of_a_table_that_mean_nothing_are_ignored(tmp_path, features):
    table = pa.table({"x": RNG.normal(size=40), "label": [i % 2 for i in range(40)]})
    parquet.write_table(table.replace_schema_metadata({"huggingface": features}), tmp_path / "a.parquet")
    assert data.open(tmp_path / "a.parquet").classes == ["0", "1"]
    (tmp_path / "state.json").write_text(features)
    refused(tmp_path, "state.json is damaged")


# -- labels and archives


HOSTILE_JSON = {
    "deep": b"[" * 400_000, "deep and whole": b'{"label": ' + b"[" * 900 + b"]" * 900 + b"}",
    "long": b'{"label": ' + b"9" * 100_000 + b"}", "half a character": b'{"label": "\\ud800"}',
    "a long word": b'{"label": "' + b"a" * 10_000 + b'"}',
}  # fmt: skip


@pytest.mark.parametrize("content", HOSTILE_JSON.values(), ids=list(HOSTILE_JSON))
def test_labels_that_are_none_are_named(tmp_path, monkeypatch, content):
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "cache"))
    source = data.open(shard(tmp_path / "a.tar", lambda i: content if i == 7 else b'{"label": %d}' % (i % 2)))
    assert dict(source.skipped) == {"a.tar/7.json": "it holds no label, such as one under 'label'"}
    assert source.classes == ["0", "1"] and source.labels.tolist().count(-1) == 1


def test_labels_of_many_digits_and_of_other_characters_are_words(tmp_path):
    both = {True: b"9" * 30, False: b"\xff\xfe"}
    contents = {f"{i}.png": encoded(PIXELS[i]) for i in range(20)} | {f"{i}.cls": both[i % 2 == 0] for i in range(20)}
    assert data.open(pack(tmp_path / "a.tar", contents)).classes == ["9" * 30, "\ufffd\ufffd"]
    long = data.open(pack(tmp_path / "b.tar", contents | {"3.cls": b"9" * 100_000}))
    assert [name for name, _ in long.skipped] == ["b.tar/3.cls"]


NO_VALUES = [
    ("[" * 400_000, "nested too deep"), ("[" * 900 + "]" * 900, "nested too deep"), ("9" * 100_000, "limit"),
    ('"\\ud800"', "halves of characters"),
]  # fmt: skip


@pytest.mark.parametrize("value, words", NO_VALUES, ids=[words + value[-1] for value, words in NO_VALUES])
def test_metadata_that_cannot_be_are_one_sentence(tmp_path, value, words):
    for i in range(20):
        (tmp_path / f"{i}.png").write_bytes(encoded(PIXELS[i]))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "1.png", "v": ' + value + "}\n")
    assert "metadata.jsonl is no table: line 1" in refused(tmp_path, words)


def test_cells_of_more_digits_than_numbers_have_are_text(tmp_path):
    for i in range(20):
        (tmp_path / f"{i}.png").write_bytes(encoded(PIXELS[i]))
    rows = "".join(f"{i}.png,{'9' * 400}{i % 2}\n" for i in range(20))
    (tmp_path / "metadata.csv").write_text("file_name,v\n" + rows)
    assert data.open(tmp_path).conditions["v"].names == ("9" * 400 + "0", "9" * 400 + "1")


@pytest.mark.parametrize("kind", [b"0", b"L", b"K", b"x", b"g", b"S"])
@pytest.mark.parametrize("size", [7 * 10**9, 2**62])
def test_headers_that_claim_what_is_not_there(tmp_path, kind, size):
    member = tarfile.TarInfo("a.png")
    member.type, member.size = kind, size
    (tmp_path / "a.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    assert "a.tar is no whole .tar archive (a header claims" in refused(
        tmp_path / "a.tar", "bytes where 4,096 are left"
    )


def test_a_name_of_megabytes_is_none(tmp_path):
    member = tarfile.TarInfo("a.png")
    member.type, member.size = b"L", 2 * MIB
    (tmp_path / "a.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(3 * MIB))
    refused(tmp_path / "a.tar", r"claims a name of 2,097,152 bytes")


def test_many_long_names_in_a_row_are_walked(tmp_path):
    """Python's tarfile calls itself for each."""
    name = tarfile.TarInfo("././@LongLink")
    name.type, name.size = b"L", 6
    header = name.tobuf(tarfile.GNU_FORMAT) + b"a.png\0" + bytes(506)
    raw = pack(tmp_path / "a.tar", {"b.png": encoded(PIXELS[0])}).read_bytes()
    (tmp_path / "a.tar").write_bytes(header * 5000 + raw)
    assert data.open(tmp_path / "a.tar").ids == ["a.png"]


@pytest.mark.parametrize("size", ["-5", "9" * 50, "x", ""])
def test_sizes_in_pax_headers_are_checked(tmp_path, size):
    member = tarfile.TarInfo("a.png")
    member.pax_headers = {"size": size}
    (tmp_path / "a.tar").write_bytes(member.tobuf(tarfile.PAX_FORMAT) + bytes(4096))
    refused(tmp_path / "a.tar", "a.tar is no whole .tar archive")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members_are_those_of_tarfile(tmp_path, form):
    names = [f"{i}.png" for i in range(5)] + ["ordner/größe.png", "a/" * 60 + "b.png", "c" * 90 + "/" + "d" * 90]
    if form != tarfile.USTAR_FORMAT:
        names += ["e" * 300, "f/" * 200 + "日本.png"]
    path = tmp_path / "a.tar"
    pack(path, {name: RNG.bytes(i * 300) for i, name in enumerate(names)}, form)
    with tarfile.open(path, "a", format=form) as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            member = tarfile.TarInfo(f"of kind {kind!r}")
            member.type, member.linkname = kind, "0.png" if form == tarfile.USTAR_FORMAT else "l" * 200
            archive.addfile(member)
    with tarfile.open(path) as archive, path.open("rb") as file:
        known = [(each.name, each.isreg(), each.isdir(), each.offset_data, each.size) for each in archive]
        found = [(each.name.rstrip("/"), *each[1:]) for each in members(file, path.stat().st_size)]
    assert found == known


@pytest.mark.skipif(not Path("/usr/bin/tar").exists(), reason="needs GNU tar")
@pytest.mark.parametrize("form", ["v7", "ustar", "gnu", "posix"])
def test_members_are_those_that_tar_writes(tmp_path, form):
    (tmp_path / "in").mkdir()
    for i in range(4):
        (tmp_path / f"in/{i}.png").write_bytes(RNG.bytes(1000 * i))
    if form in ("gnu", "posix"):
        with (tmp_path / "in/sparse.png").open("wb") as file:
            for place in range(0, 40 * MIB, MIB):  # more holes than one header lists
                file.seek(place)
                file.write(b"x" * 5000)
            file.truncate(41 * MIB)
        (tmp_path / "in" / ("n" * 200 + ".png")).write_bytes(b"last")
    path = tmp_path / "a.tar"
    words = [
        "tar",
        f"--format={form}",
        *["--sparse"] * (form in ("gnu", "posix")),
        "--sort=name",
        "-cf",
        str(path),
        "-C",
        str(tmp_path),
        "in",
    ]
    subprocess.run(words, check=True)
    with tarfile.open(path) as archive, path.open("rb") as file:
        known = [(each.name, each.isreg() and not each.issparse(), each.isdir()) for each in archive]
        found = [tuple(each)[:3] for each in members(file, path.stat().st_size)]
        sizes = [each.size for each in members(file, path.stat().st_size) if each.is_file]
    by_name = dict((name.split("/")[-1], rest) for name, *rest in found)
    assert [rest for _, *rest in found] == [rest for _, *rest in known] and by_name["3.png"] == [True, False]
    assert sizes[:4] == [0, 1000, 2000, 3000]


def test_empty_members_are_told_without_being_opened(tmp_path, monkeypatch):
    monkeypatch.setattr("sfumato.data.images.read_header", None)
    names = [f"{i:05d}.{'png' if i % 2 else 'cls'}" for i in range(3000)]
    refused(pack(tmp_path / "a.tar", dict.fromkeys(names, b"")), r"holds no pictures \(a.tar/00000.cls: it is empty\)")


# -- arrays


def npy(shape: str, descr: str = "'<f8'", body: bytes = bytes(480)) -> bytes:
    head = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + body


HOSTILE_NPY = {
    "endless": npy("(1" + "0" * 30 + ",)"), "beyond": npy("(61,)"), "True": npy("True"), "(True,)": npy("(True, 60)"),
    "negative": npy("(-60,)"), "text": npy("('60',)"), "zero and endless": npy("(0, 1" + "0" * 30 + ")"),
    "wide": npy("(1,)", "'<U2000000000'"), "nothing wide": npy("(1" + "0" * 17 + ",)", "'|V0'"),
    "deep": npy("(" * 500), "long": npy("(" + "9" * 6000 + ",)"), "of objects": npy("(60,)", "'|O'"),
}  # fmt: skip


@pytest.mark.parametrize("content", HOSTILE_NPY.values(), ids=list(HOSTILE_NPY))
def test_shapes_that_cannot_be_are_one_sentence(tmp_path, capsys, content):
    path = tmp_path / "a.npy"
    path.write_bytes(npy("(20, 3)"))
    assert data.open(path).shape == (3,)
    path.write_bytes(content)
    refused(path, "a.npy")
    with pytest.raises(SfumatoError, match="a.npy"):
        read_labels(str(path))
    assert main(["inspect", str(path)]) == 2 and "within sfumato" not in capsys.readouterr().err
    for how in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "a.npz", "w", how) as archive:
            archive.writestr("x.npy", content)
        refused(tmp_path / "a.npz", "a.npz")


@pytest.mark.parametrize("how", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_archives_are_of_numpy_s_two_kinds_alone(tmp_path, how):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", how) as archive:
        archive.writestr("x.npy", npy("(20, 3)"))
    refused(tmp_path / "a.npz", "x.npy is compressed in a way that NumPy does not use")


def test_a_nul_is_one_sentence_wherever_a_path_is_taken(capsys):
    for words in (
        ["train", "digits", "-o", "a\0b"],
        ["sample", "a\0b"],
        ["sample", "a", "-o", "b\0.png"],
        ["inspect", "\0"],
    ):
        assert main(words) == 2
        assert "There is a NUL character in" in capsys.readouterr().err
    for call in (
        lambda: sf.load("a\0b"), lambda: data.open("a\0b"), lambda: sf.train("digits", out="a\0b"),
        lambda: sf.train("a\0b"), lambda: read_labels("a\0b"),
    ):  # fmt: skip
        with pytest.raises(SfumatoError, match="NUL"):
            call()


HUGE = 10**13  # values, which are one in memory


@pytest.mark.parametrize(
    "made",
    [
        lambda: torch.zeros(1).expand(HUGE),
        lambda: torch.zeros(1, 1, dtype=torch.uint8).expand(10, HUGE),
        lambda: np.broadcast_to(np.float32(1), (HUGE // 4, 4)),
        lambda: {"x": np.broadcast_to(np.int64(1), (HUGE // 4, 4)), "mass": np.broadcast_to(1.0, HUGE // 4)},
        lambda: [torch.zeros(1).expand(HUGE)] * 2,
    ],
    ids=["tensor", "wide", "array", "dict", "list"],
)
def test_an_array_that_repeats_its_memory_is_refused_before_it_is_read(made):
    with pytest.raises(SfumatoError, match="GiB of values in .* GiB of memory, as expanded arrays have"):
        sf.data.open(made())


def test_a_condition_that_repeats_its_memory_is_refused():
    with pytest.raises(SfumatoError, match="the condition 'mass': it has .* GiB of values"):
        sf.data.open({"x": np.random.default_rng(0).random((20, 2)), "mass": torch.zeros(1, 1).expand(20, HUGE)})


def test_what_repeats_little_is_read():
    assert len(sf.data.open(torch.arange(3.0).expand(50, 3))) == 50
