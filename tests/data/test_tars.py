"""Archives of pictures: shards with labels, odd members, damage, and the same run as from a folder."""

import gzip
import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato as sf
import sfumato.data as data
from sfumato.data import images, tars
from sfumato.errors import SfumatoError
from sfumato.training.console import Silent

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 255, (24, 8, 8, 3), dtype=np.uint8)


def png(array) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def pack(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def shards(folder, count=3, label="cls"):
    """24 pictures in shards, of classes i mod 4."""
    for shard in range(count):
        members = []
        for i in range(shard, 24, count):
            value = str(i % 4) if label == "cls" else json.dumps({"caption": "?", "label": "abcd"[i % 4]})
            members += [(f"{i:06d}.png", png(PIXELS[i])), (f"{i:06d}.{label}", value.encode())]
        pack(folder / f"set-{shard:03d}.tar", members)
    return folder


def in_order(count=3):
    return [i for shard in range(count) for i in range(shard, 24, count)]


@pytest.mark.parametrize("label", ["cls", "json"])
@pytest.mark.parametrize("how", ["{}", "{}/set-{{000..002}}.tar", "{}/set-*.tar"])
def test_shards_are_pictures_with_labels(tmp_path, how, label):
    source = data.open(how.format(shards(tmp_path, label=label)))
    order = in_order()
    assert torch.equal(source.x, torch.from_numpy(PIXELS[order]).movedim(-1, 1))
    assert source.ids[:2] == ["000000.png", "000003.png"] and source.kind == "image"
    assert source.labels.tolist() == [i % 4 for i in order]
    assert source.classes == (list("0123") if label == "cls" else list("abcd")) and not source.skipped


def test_the_split_follows_the_name_and_not_the_shard(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    held = []
    for source in (data.open(shards(tmp_path / "a", 3)), data.open(shards(tmp_path / "b", 5))):
        held.append({source.ids[i] for i in source.split(0.3)[1].tolist()})
    assert held[0] == held[1] and len(held[0]) > 1


def test_shards_that_each_count_from_zero_have_ids_of_their_own(tmp_path):
    for name in "ab":
        pack(tmp_path / f"{name}.tar", [("0.png", png(PIXELS[0])), ("1.png", png(PIXELS[1]))])
    assert data.open(tmp_path).ids == ["a.tar/0.png", "a.tar/1.png", "b.tar/0.png", "b.tar/1.png"]


def test_folders_in_an_archive_are_classes(tmp_path):
    path = pack(tmp_path / "x.tar", [(f"{'ab'[i % 2]}/my.photo.{i}.png", png(PIXELS[i])) for i in range(6)])
    source = data.open(path)
    assert source.classes == ["a", "b"] and source.labels.tolist() == [0, 1] * 3 and source.name == "x"


def test_odd_members_are_skipped_with_their_reason(tmp_path):
    members = [(f"{i:02d}.png", png(PIXELS[i])) for i in range(5)]
    members += [(f"{i:02d}.cls", b"1") for i in range(4)]
    members += [("03.seg.png", png(PIXELS[9])), ("07.cls", b"2"), ("readme.md", b"hello"), ("._00.png", b"junk")]
    members += [("08.png", b"not a picture"), ("09.json", b"{broken")]
    path = pack(tmp_path / "x.tar", members)
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "00.png"
        archive.addfile(link)
    source = data.open(path)
    assert source.ids == [f"{i:02d}.png" for i in range(5)] and source.labels is None
    assert any("2 of 6 pictures have no label" in note for note in source.notes)
    why = dict(source.skipped)
    assert set(why) == {"08.png", *(f"x.tar/{n}" for n in ("03.seg.png", "07", "readme.md", "09.json", "link.png"))}
    assert why["08.png"] == "it is not an image, or of a kind that cannot be read"
    assert "another picture of the sample 03.png" in why["x.tar/03.seg.png"] and any(
        "6 members were skipped (" in n for n in source.notes
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda whole: whole[: len(whole) // 2], "is no whole .tar archive"),
        (lambda whole: b"nonsense" * 200, "is no whole .tar archive"),
        (gzip.compress, "is compressed, .*: unpack it to a plain .tar"),
        (lambda whole: b"", "is no whole .tar archive"),
    ],
)
def test_what_is_no_archive_is_one_sentence(tmp_path, content, words):
    whole = shards(tmp_path, 1) / "set-000.tar"
    whole.write_bytes(content(whole.read_bytes()))
    with pytest.raises(SfumatoError, match=words) as caught:
        data.open(whole)
    assert "\n" not in str(caught.value)


def test_mistakes_are_one_sentence(tmp_path):
    for text, words in {
        "missing-{000..003}.tar": "missing-000.tar, of .*, does not exist",
        "missing-*.tar": "no file is named",
        "missing.tar": "does not exist",
    }.items():
        with pytest.raises(SfumatoError, match=words):
            data.open(str(tmp_path / text))
    with pytest.raises(SfumatoError, match="holds no pictures .*readme: neither a picture nor its label"):
        data.open(pack(tmp_path / "none.tar", [("readme", b"hello")]))
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", np.zeros((3, 2)))
    with pytest.raises(SfumatoError, match="only .tar archives, .parquet tables and texts may be several"):
        data.open(str(tmp_path / "{a,b}.npy"))


def test_an_archive_is_walked_once(tmp_path, monkeypatch):
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "cache"))
    path = shards(tmp_path, 1) / "set-000.tar"
    first = data.open(path)
    monkeypatch.setattr(tars, "_walk", None)
    second = data.open(path)
    assert torch.equal(first.x, second.x) and torch.equal(first.labels, second.labels) and first.ids == second.ids


def test_a_stream_trains_as_the_folder_does(tmp_path, monkeypatch):
    """Bit by bit the same from the cache and decoded on access, also when it is stopped and goes on."""
    how = {"steps": 6, "batch": 8, "net": "tiny", "precision": "float32", "snapshots": 0}
    (tmp_path / "folder").mkdir(), (tmp_path / "tars").mkdir()
    for i in range(24):
        path = tmp_path / "folder" / str(i % 4) / f"{i:06d}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(PIXELS[i]))
    names = sorted((tmp_path / "folder").rglob("*.png"))
    pack(tmp_path / "tars" / "x.tar", [(p.relative_to(tmp_path / "folder").as_posix(), p.read_bytes()) for p in names])
    usual = sf.train(tmp_path / "folder", out=str(tmp_path / "usual"), console=Silent(), **how)
    monkeypatch.setattr("sfumato.machine.available", lambda: 100.0)
    monkeypatch.setattr(images, "WORTH_COUNT", 1)

    class Stops(Silent):
        def __call__(self, progress) -> None:
            if progress.step == 3:
                raise KeyboardInterrupt

    for cache in ("off", str(tmp_path / "cache")):
        monkeypatch.setenv("SFUMATO_CACHE", cache)
        out = tmp_path / ("decoded" if cache == "off" else "mapped")
        with pytest.raises(KeyboardInterrupt):
            sf.train(tmp_path / "tars", out=str(out), console=Stops(), workers=2, **how)
        stream = sf.resume(out, console=Silent())
        weights = [run.denoiser.net.state_dict().values() for run in (usual, stream)]
        assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True)), cache
        assert usual.denoiser.spec.to_dict() | {"name": ""} == stream.denoiser.spec.to_dict() | {"name": ""}, cache


def test_an_archive_that_is_cut_while_it_trains_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("sfumato.machine.available", lambda: 100.0)
    path = shards(tmp_path, 1) / "set-000.tar"
    source = data.open(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(SfumatoError, match="was cut short since it was opened"):
        source.x[:]


def test_fields_of_a_json_member_are_conditions(tmp_path):
    fields = [
        {"mass": i / 3, "colour": "rg"[i % 2], "tags": ["a", "b"][: i % 3], "caption": f"words {i}"} for i in range(6)
    ]
    fields[2] = {"mass": None, "class": "cat"}
    members = [(f"{i}.png", png(PIXELS[i])) for i in range(7)]
    members += [(f"{i}.json", json.dumps(record).encode()) for i, record in enumerate(fields)]
    members += [("0.cls", b"dog"), ("1.cls", b"cat")]
    source = data.open(pack(tmp_path / "x.tar", members))
    assert source.classes == ["cat", "dog"] and source.labels.tolist() == [1, 0, 0, -1, -1, -1, -1]
    found = source.conditions
    assert {name: each.kind for name, each in found.items()} == {
        "label": "label", "mass": "scalar", "colour": "label", "tags": "multilabel", "caption": "text",
    }  # fmt: skip
    assert found["mass"].present.tolist() == [True, True, False, True, True, True, False]
    assert any("4 of 7 pictures have no label" in note for note in source.notes)
    assert found["caption"].present.tolist() == [True, True, False, True, True, True, False]
