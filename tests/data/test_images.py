"""Decoding many pictures: it is counted, may be broken off, and no process waits for another without need."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import sfumato as sf

COUNT = 30

# pictures that take as long to decode as large ones, in a cache that is worth it for a few
SLOW = """
import os, sys, time
from sfumato.cli import main
from sfumato.data import images
os.cpu_count = lambda: 2
real, images.WORTH_COUNT = images.decode, 1
def decode(*given):
    time.sleep(0.3)
    return real(*given)
images.decode = decode
sys.exit(main(sys.argv[1:]))
"""


def photos(place, count):
    draw = np.random.default_rng(0)
    place.mkdir()
    for i in range(count):
        Image.fromarray(draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(place / f"{i:02d}.png")
    return place


@pytest.fixture
def folder(tmp_path):
    return photos(tmp_path / "photos", COUNT)


def last(told):
    return {count.what: (count.done, count.total) for count in told if count.over}


def test_pictures_are_counted_twice(folder, told):
    """Their headers are looked at, and then they are decoded; figures of them are taken at the end."""
    (folder / "03.png").write_bytes(b"nothing")
    source = sf.data.open(folder)
    assert last(told) == {"Looking at pictures": (COUNT, COUNT), "Decoding pictures": (COUNT - 1, COUNT - 1)}
    sf.data.DataSpec.fit(source, source.split(0.5)[0])
    assert last(told)["Computing statistics"] == (len(source.split(0.5)[0]),) * 2


def test_archives_and_tables_are_counted(tmp_path, folder, told):
    import tarfile

    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, path.name)
    sf.data.open(tmp_path / "photos.tar")
    assert last(told)["Walking archives, members"] == (COUNT, None) and last(told)["Decoding pictures"][0] == COUNT
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table({"a": np.arange(50.0), "b": np.arange(50.0)}), tmp_path / "t.parquet")
    sf.data.open(tmp_path / "t.parquet")
    assert last(told)["Reading rows"] == (50, 50)


def started(*words, place):
    env = {**os.environ, "SFUMATO_CACHE": str(place / "cache"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", SLOW, *map(str, words)], cwd=place, env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_ctrl_c_while_pictures_are_decoded(tmp_path):
    """After the first line of progress: one sentence, no run folder, nothing in the cache."""
    many = 20 * COUNT  # a minute and a half: on a busy machine too the signal comes before the last of them
    process = started("train", photos(tmp_path / "photos", many), place=tmp_path)
    first = process.stderr.readline()
    assert first.startswith("Decoding pictures: ") and f" of {many}" in first and "eta" in first, first
    assert list((tmp_path / "cache").glob("*.tmp"))
    process.send_signal(signal.SIGINT)
    out, rest = process.communicate(timeout=200)
    *counted, said = rest.splitlines()
    assert process.returncode == 130 and out == "" and said == "Interrupted.", rest
    assert all(line.startswith("Decoding pictures: ") for line in counted)
    assert not list((tmp_path / "cache").iterdir()) and not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_json_has_lines_of_json_alone(folder, tmp_path):
    words = ["--steps", "2", "--batch", "4", "--net", "tiny", "--precision", "float32", "--json"]
    process = started("train", folder, *words, place=tmp_path)
    out, rest = process.communicate(timeout=200)
    lines = [json.loads(line) for line in out.splitlines()]
    counts = [line for line in lines if line["event"] == "count"]
    assert process.returncode == 0 and "Decoding pictures" not in rest
    assert counts[-1]["over"] and counts[-1]["done"] == counts[-1]["total"] == COUNT and counts[0]["rate"] > 0
    assert lines[-1]["event"] == "done"


@pytest.mark.slow
def test_what_was_broken_off_is_decoded_anew(folder, tmp_path):
    process = started("inspect", folder, place=tmp_path)
    assert process.stderr.readline().startswith("Decoding pictures: ")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=200)
    assert process.returncode == 130 and not list((tmp_path / "cache").iterdir())
    process = started("inspect", folder, "--json", place=tmp_path)
    out, rest = process.communicate(timeout=200)
    assert json.loads(out)["samples"] == COUNT and "Decoding pictures" in rest and len(rest.splitlines()) >= 2
    (entry,) = (tmp_path / "cache").glob("*/facts.json")
    assert np.load(entry.parent / "x.npy").shape == (COUNT, 3, 8, 8)
