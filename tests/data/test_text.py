"""Text as data: tokenisers, windows, hold-out, files from anywhere."""

import json

import numpy as np
import pytest
import torch

import sfumato as sf
from sfumato.data import DataSpec
from sfumato.data.text import BYTES, END, Tokeniser, printable

POEM = "Shall I compare thee to a summer's day?\nThou art more lovely and more temperate:\n" * 20


def text_of(source, rows=slice(None)):
    return source.text.decode(source.x[rows].flatten().tolist())


@pytest.mark.parametrize("asked", [None, "characters", "bytes"])
def test_windows_in_order_are_the_text(asked):
    source = sf.data.open([POEM], length=50, tokens=asked)
    assert source.shape == (1, 50) and source.kind == "text" and source.x.dtype == torch.uint8
    assert text_of(source) == POEM[: len(source) * 50]
    assert len(POEM) - len(source) * 50 < 50


def test_few_characters_are_characters_and_many_are_bytes():
    assert sf.data.open([POEM], length=10).text.kind == "characters"
    wide = "".join(chr(0x4E00 + i) for i in range(300)) * 4
    source = sf.data.open([wide], length=60)
    assert source.text.kind == "bytes" and text_of(source) == wide
    assert sf.data.open([wide], length=60, tokens="characters").x.dtype == torch.int32


@pytest.mark.parametrize(("kind", "text"), [("characters", "naïve ☃ 🎈\n"), ("bytes", "naïve ☃ 🎈\n")])
def test_text_comes_back(kind, text):
    tokeniser = Tokeniser.fit([text], kind)
    assert tokeniser.decode(tokeniser.encode(text)) == text
    assert Tokeniser.from_dict(json.loads(json.dumps(tokeniser.to_dict()))) == tokeniser


def test_byte_pairs_are_fewer_and_come_back():
    pytest.importorskip("tokenizers")
    source = sf.data.open([POEM, "Déjà vu ☃" * 30], length=16, tokens="bpe(300)")
    assert source.text.size == 300 and source.text.merges
    assert len(source.text.encode(POEM)) < len(POEM) / 2
    assert source.text.decode(source.text.encode("Wörter, die es nie gab")) == "Wörter, die es nie gab"
    assert Tokeniser.from_dict(json.loads(json.dumps(source.text.to_dict()))) == source.text


def test_a_book_holds_out_its_last_part():
    source = sf.data.open([POEM], length=20)
    train, held = source.split(0.1)
    assert train.tolist() == list(range(len(train))) and len(held) == -(-len(source) // 10)


def test_documents_are_held_out_whole():
    draw = np.random.default_rng(0)
    documents = [chr(97 + i) * int(n) for i, n in enumerate(draw.integers(100, 200, 20))]
    source = sf.data.open(documents, length=16)
    train, held = source.split(0.3)
    assert 0.15 < len(held) / len(source) < 0.45
    known = set(text_of(source, train)) - {END}
    unseen = text_of(source, held)
    spared = [each for each in set(unseen) - {END} if each not in known]
    # one document at most, the last of the held-out ones, ends in a window that is trained on
    assert len(set(unseen) - {END}) - len(spared) <= 1 and spared
    again = sf.data.open(list(reversed(documents)), length=16)
    assert torch.equal(again.x, source.x)


def test_copies_of_a_document_are_on_one_side():
    documents = [chr(97 + i) * 40 for i in range(10)] + ["zy" * 20] * 4
    source = sf.data.open(documents, length=8)
    for fraction in (0.1, 0.3, 0.5, 0.7):
        sides = [text_of(source, rows).count("zy") for rows in source.split(fraction)]
        assert sum(sides) > 60 and min(sides) <= 4  # of the last copy a window's end


def test_one_large_document_among_small_ones_is_not_held_out_whole():
    source = sf.data.open(["a b" * 900] + [chr(100 + i) * 9 for i in range(9)], length=10)
    assert len(source.split(0.1)[1]) == -(-len(source) // 10)


def test_a_folder_of_texts_lines_of_json_and_columns(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    from pyarrow import table

    texts = [f"Line {i} of many lines.\r\n" * 3 for i in range(12)]
    (tmp_path / "many").mkdir()
    for i, text in enumerate(texts):
        (tmp_path / "many" / f"{i}.txt").write_text("\ufeff" + text, encoding="utf-8", newline="")
    lines = "\n".join(json.dumps({"id": i, "text": text}) for i, text in enumerate(texts))
    (tmp_path / "many.jsonl").write_text(lines + "\n\n", encoding="utf-8")
    parquet.write_table(table({"text": [*texts, None], "label": [*range(13)]}), tmp_path / "many.parquet")
    parquet.write_table(table({"body": texts, "n": [*range(12)]}), tmp_path / "body.parquet")
    wanted = sf.data.open(texts, length=24)
    assert "\r" not in wanted.text.symbols and "\ufeff" not in wanted.text.symbols
    for name, key in (("many", None), ("many.jsonl", None), ("many.parquet", None), ("body.parquet", "body")):
        assert torch.equal(sf.data.open(tmp_path / name, length=24, key=key).x, wanted.x), name


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("caf\u00e9 au lait".encode("latin-1") * 9, "not UTF-8 (byte 0xe9 at 3)"),
        (b"a\0b" * 90, "NUL"),
        (b"", "holds no text"),
        (b"\xef\xbb\xbf", "holds no text"),
        (b"a" * 500, "one character over and over"),
        (b"ab" * 10, "fewer than one window of 60"),
        (b"end\x03" * 90, "end-of-text"),
        (b"\xff\xfeh\0i\0" * 40, "not UTF-8"),
    ],
)
def test_hostile_files_are_one_sentence(tmp_path, content, said):
    path = tmp_path / "book.txt"
    path.write_bytes(content)
    with pytest.raises(sf.SfumatoError, match="book.txt|character") as error:
        sf.data.open(path, length=60)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('{"text": "a"}\n{"text"', "line 2 is not JSON"),
        ("[" * 100_000, "line 1 is not JSON"),
        ('{"body": "a"}', "name it by --key"),
        ('{"text": "\\ud800 half"}', "half a character"),
        ('{"text": 3}', "no text under 'text'"),
    ],
)
def test_lines_that_are_no_text_are_named(tmp_path, lines, said):
    path = tmp_path / "lines.jsonl"
    path.write_text(lines, encoding="utf-8")
    with pytest.raises(sf.SfumatoError, match=r"lines\.jsonl") as error:
        sf.data.open(path)
    assert said in str(error.value)


def test_flags_of_text_are_for_text(tmp_path):
    with pytest.raises(sf.SfumatoError, match="no text: leave --length"):
        sf.data.open("digits", length=8)
    with pytest.raises(sf.SfumatoError, match="no text: leave --length"):
        sf.data.open(np.zeros((4, 3)), tokens="bytes")
    with pytest.raises(sf.SfumatoError, match="no samples to label"):
        sf.data.open([POEM], labels=[1, 2], length=20)
    with pytest.raises(sf.SfumatoError, match="auto, characters"):
        sf.data.open([POEM], tokens="words")


def test_texts_do_not_displace_what_a_folder_held_before(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((4, 3)))
    (tmp_path / "readme.txt").write_text("These are numbers. " * 9)
    with pytest.raises(sf.SfumatoError, match="give its file"):
        sf.data.open(tmp_path)


def test_the_tokeniser_is_in_the_spec_and_reads_other_text_by_it():
    source = sf.data.open([POEM], length=20)
    spec = DataSpec.from_dict(json.loads(json.dumps(DataSpec.fit(source).to_dict())))
    assert spec == DataSpec.fit(source) and spec.text == source.text
    other = sf.data.open(["more summer"], conditions=spec, length=5)
    assert other.text == spec.text and text_of(other) == "more summe"
    with pytest.raises(sf.SfumatoError, match="'ß' is not among"):
        sf.data.open(["Straße" * 9], conditions=spec)
    with pytest.raises(sf.SfumatoError, match="no text, which the model"):
        sf.data.open("digits", conditions=spec)


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "words", "symbols": ["a", "b"], "merges": []},
        {"kind": "characters", "symbols": ["a", "a"], "merges": []},
        {"kind": "characters", "symbols": ["ab", "c"], "merges": []},
        {"kind": "characters", "symbols": "x", "merges": []},
        {"kind": "bpe", "symbols": ["a", "b"], "merges": []},
        {"kind": "bpe", "symbols": [*BYTES, "xy"], "merges": [["x", "z"]]},
        {"kind": "bpe", "symbols": [*BYTES], "merges": [["x"]]},
        {"kind": "bytes"},
        {"kind": "bytes", "symbols": [], "merges": [], "code": "import os"},
    ],
)
def test_a_file_whose_tokeniser_is_none_is_refused(wrong):
    with pytest.raises(sf.SfumatoError):
        Tokeniser.from_dict(wrong)


def test_shakespeare_is_built_in():
    source = sf.data.open("shakespeare")
    train, held = source.split()
    assert source.text.size == 85 and source.shape == (1, 256) and "42 texts" in source.notes[1]
    assert 0.02 < len(held) / len(source) < 0.08
    assert "by William Shakespeare" in text_of(source, slice(0, 2))


def test_what_a_terminal_obeys_is_escaped():
    assert printable("a\x1b[2J\nb\x03é☃\x9b") == "a\\x1b[2J\nb\\x03é☃\\x9b"
