"""Text from a file to samples, by the command line."""

import json

import pytest

import sfumato as sf

POEM = "Shall I compare thee to a summer's day?\nThou art more lovely and more temperate:\n" * 30
SMALL = ["--net", "Transformer(width=16, depth=1, heads=1)", "--batch", "16", "--precision", "float32"]


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(POEM, encoding="utf-8")
    return path


def test_a_book_is_trained_measured_and_resumed(call, book, tmp_path):
    run = tmp_path / "run"
    status, out, err = call("train", book, "-o", run, "--length", "24", "--steps", "30", *SMALL)
    assert status == 0, err
    model = sf.load(run)
    assert model.spec.text.size == len(set(POEM)) == model.process.states
    assert type(model.process).__name__ == "Masked" and model.shape == (1, 24)
    settings = (run / "config.yaml").read_text()
    assert "process: masked" in settings and "times: uniform" in settings
    status, out, err = call("likelihood", run, book, "-n", "8", "--steps", "8", "--json")
    assert status == 0 and 0 < json.loads(out)["bits_per_dim"] < 8, err
    status, out, err = call("resume", run, "--steps", "32")
    assert status == 0, err
    status, out, err = call("info", run)
    assert f"windows of 24 symbols, {len(set(POEM))} characters" in out
    status, out, err = call("doctor", run)
    assert "checks could be made" in out, err


def test_auto_is_a_transformer(call, book, tmp_path):
    status, out, err = call("train", book, "-o", tmp_path / "run", "--length", "16", "--steps", "2", "--net", "tiny")
    assert status == 0, err
    assert "Training a Transformer" in err and sf.load(tmp_path / "run").net.config["args"]["width"] == 64


def test_inspect_says_what_text_is_taken_for(call, book):
    status, out, err = call("inspect", book, "--length", "40")
    assert status == 0 and f"{len(set(POEM))} characters" in out and "  Shall I compare thee" in out
    assert "(--tokens)" in out and "(--length)" in out and "classes" not in out
    status, out, err = call("inspect", book, "-o", "look.png")
    assert status == 2 and "no picture" in err


def test_another_alphabet_is_refused_for_further_training(call, book, tmp_path):
    call("train", book, "-o", tmp_path / "run", "--length", "16", "--steps", "2", *SMALL)
    (tmp_path / "other.txt").write_text("0123456789" * 90)
    words = ("--model", tmp_path / "run", "-o", tmp_path / "next", "--length", "16", "--steps", "2")
    status, out, err = call("train", tmp_path / "other.txt", *words)
    assert status == 2 and "other tokens" in err
