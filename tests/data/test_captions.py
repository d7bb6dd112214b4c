"""Captions of pictures: in files beside them, in metadata, in archives and tables; what is missing is absent."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from sfumato import data
from sfumato.errors import SfumatoError

COUNT = 12


def png(i):
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), 20 * i, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def folder(root, captions, name="{:02d}", ending=".txt"):
    root.mkdir(parents=True, exist_ok=True)
    for i, caption in enumerate(captions):
        (root / (name.format(i) + ".png")).write_bytes(png(i))
        if caption is not None:
            (root / (name.format(i) + ending)).write_bytes(caption if isinstance(caption, bytes) else caption.encode())
    return root


def texts(source):
    found = source.conditions["caption"]
    assert found.kind == "text"
    return [value if here else None for value, here in zip(found.values, found.present, strict=True)]


def test_a_file_beside_a_picture_is_its_caption(tmp_path):
    captions = [f"a  boat\n number {i} " for i in range(COUNT)]
    captions[3], captions[5] = None, "   \n"
    source = data.open(folder(tmp_path / "a", captions))
    assert texts(source) == [None if i in (3, 5) else f"a boat number {i}" for i in range(COUNT)]
    assert "10 captions found, 2 missing, mean 4 words." in source.notes and not source.skipped
    assert data.inspect(tmp_path / "a")["conditions"]["caption"]["missing"] == 2


def test_the_ending_caption_comes_first_and_other_texts_are_left(tmp_path):
    root = folder(tmp_path / "a" / "cats", [f"cat {i}" for i in range(COUNT)], ending=".txt")
    folder(tmp_path / "a" / "dogs", [f"dog {i}" for i in range(COUNT)], name="x.{:02d}", ending=".CAPTION")
    (root / "03.caption").write_text("a tabby")
    (root / "readme.txt").write_text("by nobody")
    source = data.open(tmp_path / "a")
    assert texts(source)[:5] == ["cat 0", "cat 1", "cat 2", "a tabby", "cat 4"]
    assert texts(source)[COUNT:] == [f"dog {i}" for i in range(COUNT)] and source.classes == ["cats", "dogs"]
    assert [path for path, _ in source.skipped] == ["cats/readme.txt"]


def test_what_is_no_caption_is_named(tmp_path):
    captions = [f"boat {i}" for i in range(COUNT)]
    captions[1], captions[2] = b"\xff\xfe\x00", "long " * 20_000
    source = data.open(folder(tmp_path / "a", captions))
    assert texts(source)[:4] == ["boat 0", None, None, "boat 3"]
    reasons = dict(source.skipped)
    assert "UTF-8" in reasons["01.txt"] and "too long" in reasons["02.txt"]


def test_metadata_come_before_files_beside(tmp_path):
    root = folder(tmp_path / "a", ["beside"] * COUNT)
    rows = [{"file_name": f"{i:02d}.png", "caption": f"row {i}" if i else None} for i in range(COUNT)]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert texts(data.open(root)) == [None, *(f"row {i}" for i in range(1, COUNT))]


def test_members_of_an_archive_are_captions(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for i in range(COUNT):
            members = {f"{i:03d}.png": png(i), f"{i:03d}.json": json.dumps({"caption": f"of json {i}"}).encode()}
            if i % 2:
                members[f"{i:03d}.txt"] = f"own {i}".encode()
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    source = data.open(tmp_path / "a.tar")
    assert texts(source) == [f"own {i}" if i % 2 else f"of json {i}" for i in range(COUNT)]
    assert not source.skipped


def test_columns_are_texts_by_name_or_where_that_is_asked():
    x = np.zeros((COUNT, 2))
    given = {"x": x, "prompt": ["same words"] * 6 + ["others"] * 6, "note": [f"note {i}" for i in range(COUNT)]}
    source = data.open(given)
    assert {name: each.kind for name, each in source.conditions.items()} == {"prompt": "text"}
    source = data.open(given, conditions={"note": "text", "prompt": "label"})
    assert {name: each.kind for name, each in source.conditions.items()} == {"prompt": "label", "note": "text"}
    several = data.open({"x": x, "captions": [[f"first {i}", "second"] if i else [] for i in range(COUNT)]})
    found = several.conditions["captions"]
    assert found.kind == "text" and found.values[1] == "first 1" and not found.present[0]
    labels = data.open({"x": x, "label": ["cat", "dog"] * 6}, conditions={"label": "text"})
    assert labels.conditions["label"].values.tolist() == ["cat", "dog"] * 6
    with pytest.raises(SfumatoError, match=r"the condition 'mass' cannot be a text: it holds no text, but values"):
        data.open({"x": x, "mass": np.arange(COUNT) / 3}, conditions={"mass": "text"})


def test_the_names_of_emoji_are_captions_where_they_are_asked_for():
    assert set(data.open("emoji").conditions) == {"label"}
    source = data.open("emoji", conditions={"caption": "text"})
    names = texts(source)
    assert len(source) == len(names) == 3121 and {"dog face", "waving hand sign, medium dark skin"} <= set(names)
    train, held = (set(rows.tolist()) for rows in source.split(0.2))
    bases = [name.partition(",")[0] if "skin" in name else name for name in names]
    assert not {bases[i] for i in train if "skin" in names[i]} & {bases[i] for i in held if "skin" in names[i]}
