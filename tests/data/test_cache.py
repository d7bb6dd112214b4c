"""The cache of what was decoded: the same samples, found whole or not at all, by any number of processes."""

import errno
import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato as sf
import sfumato.data as data
from sfumato import cache
from sfumato.data import images
from sfumato.data.rows import Mapped
from sfumato.errors import SfumatoError
from sfumato.training.console import Silent

RNG = np.random.default_rng(0)
COUNT = 30


@pytest.fixture
def folder(tmp_path):
    """Thirty pictures of three sizes in two classes, one of them broken."""
    for i in range(COUNT):
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 255, (9 + i % 3, 12, 3), dtype=np.uint8)).save(path)
    broken = tmp_path / "photos" / "a" / "04.png"
    broken.write_bytes(broken.read_bytes()[:100])
    return tmp_path / "photos"


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A cache of its own, and sets of every size worth it."""
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(images, "WORTH_COUNT", 1)
    return tmp_path / "cache"


def same(a, b) -> bool:
    return (
        torch.equal(a.x[:], b.x[:]) and a.x.dtype == b.x.dtype and a.ids == b.ids and a.skipped == b.skipped
        and a.classes == b.classes and torch.equal(a.labels, b.labels) and a.groups == b.groups
    )  # fmt: skip


def no_decoding(monkeypatch):
    def decode(*given):
        raise AssertionError("a picture was decoded")

    monkeypatch.setattr(images, "decode", decode)
    monkeypatch.setattr(images, "read_header", decode)


def entries(place):
    return sorted(path.parent.name for path in place.glob("*/facts.json"))


def test_the_second_start_decodes_nothing_and_finds_the_same(folder, kept, monkeypatch):
    with monkeypatch.context() as off:
        off.setenv("SFUMATO_CACHE", "off")
        plain = data.open(folder)
        assert not kept.exists()
    first = data.open(folder)
    no_decoding(monkeypatch)
    second = data.open(folder)
    assert len(plain) == COUNT - 1 and [name for name, _ in plain.skipped] == ["a/04.png"]
    assert same(plain, first) and same(plain, second)
    assert plain.x.dtype == torch.uint8 and len(entries(kept)) == 1
    assert any("Decoded once into the cache" in note for note in first.notes)
    assert any("in the cache" in note for note in second.notes)
    assert data.DataSpec.fit(plain).to_dict() == data.DataSpec.fit(first).to_dict()
    monkeypatch.setattr("sfumato.data.spec.statistics", None)  # nor does it take the figures again
    assert data.DataSpec.fit(second).to_dict() == data.DataSpec.fit(first).to_dict()
    with pytest.raises(TypeError):
        data.inspect(second)  # figures of all samples, which nobody has asked for yet
    assert not list(kept.glob("*.tmp"))


def test_what_changed_is_decoded_again(folder, kept):
    before = data.open(folder)
    path = folder / "b" / "01.png"
    size, times = path.stat().st_size, path.stat()
    packed = bytearray(path.read_bytes())
    Image.fromarray(np.zeros((10, 12, 3), np.uint8)).save(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size != size and not same(before, data.open(folder))
    path.write_bytes(bytes(packed))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # the same name, size and time again: once more
    assert same(before, data.open(folder)) and len(entries(kept)) == 3
    assert not same(data.open(folder), data.open(folder, size=8)) and len(entries(kept)) == 4


def test_changes_of_a_tensor_do_not_reach_the_cache(folder, kept):
    data.open(folder)
    source = data.open(folder)
    wanted = source.x.clone()
    source.x.zero_()
    assert torch.equal(data.open(folder).x, wanted)


def test_a_half_written_entry_is_never_used_and_goes(folder, kept):
    data.open(folder)
    (name,) = entries(kept)
    new, old = kept / f"{name}.new.tmp", kept / f"{name}.old.tmp"
    (kept / name).rename(new)
    (new / "facts.json").unlink()
    shutil.copytree(new, old)
    for path in (old / "x.npy", old):
        os.utime(path, (0, 0))
    source = data.open(folder)
    assert len(source) == COUNT - 1 and entries(kept) == [name] and new.exists() and not old.exists()


def test_an_entry_that_another_process_has_finished_meanwhile_is_taken(folder, kept):
    first = data.open(folder)
    (name,) = entries(kept)
    with cache.drafted(name, 8) as draft:
        cache.allocate(draft, (1, 1), "uint8")
        entry = cache.keep(draft, name, {"dropped": [], "notes": [], "bytes": 1})
    assert entry.facts["bytes"] == first.x.nbytes and same(first, data.open(folder))


def test_processes_that_start_at_once_agree(folder, tmp_path):
    """Both decode the same folder; they see the same, and one entry is left."""
    code = (
        "import sys, hashlib; from sfumato.data import images, open; images.WORTH_COUNT = 1; "
        "x = open(sys.argv[1]).x; print(x.shape, hashlib.sha256(x.numpy().tobytes()).hexdigest())"
    )
    env = {**os.environ, "SFUMATO_CACHE": str(tmp_path / "shared")}
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(folder)], env=env, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = {process.communicate(timeout=200)[0] for process in running}
    assert all(process.returncode == 0 for process in running) and len(said) == 1 and "29" in said.pop()
    assert len(entries(tmp_path / "shared")) == 1 and len(list((tmp_path / "shared").iterdir())) == 1


def test_a_full_disk_is_one_sentence_and_the_run_goes_on(folder, kept):
    wanted = data.open(folder, size=9)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # no file may grow beyond it, which writing is told
    try:
        source = data.open(folder, size=8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(source) == len(wanted) and isinstance(source.x, torch.Tensor)
    (note,) = [note for note in source.notes if "cache" in note]
    assert "not kept in the cache" in note and "cannot be written" in note and "\n" not in note
    assert len(entries(kept)) == 1 and not list(kept.glob("*.tmp"))


def test_a_folder_that_cannot_be_the_cache_is_one_sentence(folder, kept, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "file"))
    source = data.open(folder)
    assert len(source) == COUNT - 1 and any("not kept in the cache" in note for note in source.notes)


def test_a_cache_that_may_only_be_read_is_used(folder, kept, monkeypatch):
    wanted = data.open(folder)

    def utime(path):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    monkeypatch.setattr(os, "utime", utime)  # as a file system that is mounted read-only, which root alone could mount
    no_decoding(monkeypatch)
    assert same(data.open(folder), wanted)


def test_the_cache_keeps_to_its_limit(folder, kept, monkeypatch):
    one = (COUNT - 1) * 3 * 9 * 9
    monkeypatch.setenv("SFUMATO_CACHE_GB", str(2.3 * one / 2**30))
    names = []
    for size in (9, 8, 9, 7):  # 8 was not used for longest
        data.open(folder, size=size)
        names.append(set(entries(kept)))
    assert len(names[0]) == 1 and len(names[1]) == len(names[2]) == 2
    assert len(names[3]) == 2 and names[0] < names[3]
    source = data.open(folder, size=40)
    assert any("more than the cache may hold" in note for note in source.notes) and set(entries(kept)) == names[3]
    monkeypatch.setenv("SFUMATO_CACHE_GB", "much")
    with pytest.raises(SfumatoError, match="SFUMATO_CACHE_GB must be a number of GiB, not 'much'"):
        data.open(folder, size=6)


def test_what_memory_cannot_hold_trains_to_the_same_bits(folder, kept, monkeypatch, tmp_path):
    how = {"steps": 4, "batch": 8, "net": "tiny", "precision": "float32", "snapshots": 0, "console": Silent()}
    usual = sf.train(folder, out=str(tmp_path / "usual"), **how)
    monkeypatch.setattr("sfumato.machine.available", lambda: 1000.0)
    for rows in (Mapped, images.Pictures):
        if rows is images.Pictures:
            monkeypatch.setenv("SFUMATO_CACHE", "off")
        assert isinstance(data.open(folder).x, rows)
        other = sf.train(folder, out=str(tmp_path / rows.__name__), workers=3, **how)
        weights = [run.denoiser.net.state_dict().values() for run in (usual, other)]
        assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True)), rows
        assert usual.denoiser.spec.to_dict() == other.denoiser.spec.to_dict(), rows


def test_a_picture_that_goes_while_it_trains_is_one_sentence(folder, monkeypatch):
    monkeypatch.setattr("sfumato.machine.available", lambda: 1000.0)
    source = data.open(folder)
    (folder / "b" / "07.png").write_bytes(b"nonsense")
    with pytest.raises(SfumatoError, match="b/07.png of .*photos has changed: it is not an image"):
        source.x[:]
    (folder / "b" / "07.png").unlink()
    with pytest.raises(SfumatoError, match="07.png can no longer be read: no such file"):
        source.x[:]


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("SFUMATO_CACHE", "off")
    assert cache.root() is None
    monkeypatch.delenv("SFUMATO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.root() == tmp_path / "sfumato"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.root() == tmp_path / "home" / ".cache" / "sfumato"
