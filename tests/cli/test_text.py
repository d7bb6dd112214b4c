"""Text from a file to samples, by the command line."""

import json
import shutil

import pytest
import torch

import sfumato as sf
from sfumato.data.text import Tokeniser
from sfumato.text_samples import _known

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
    assert "process: masked" in settings and "loss: auto" in settings
    report, facts = (run / "report.html").read_text(), json.loads((run / "report.json").read_text())["text"]
    assert "Bits per character of held-out text" in report and "Bits per character" in err
    assert 0 < facts["model"]["low"] < facts["model"]["value"] < 6 and facts["model"]["stderr"] > 0
    assert facts["windows"] >= 5 and facts["xz"] > 0 and 3.5 < facts["order0"] < 5
    last = (run / "samples" / "step_00000030.txt").read_text()
    assert set(last) <= set(POEM) | {"-"} and last.splitlines()[0][:9] in report.replace("&#39;", "'")
    assert f"sfumato sample {run} -n 4 " in out and "-o samples.txt" in out and "memorization" not in out
    status, out, err = call("likelihood", run, book, "-n", "8", "--steps", "8", "--json")
    assert status == 0 and 0 < json.loads(out)["bits_per_dim"] < 8, err
    status, out, err = call("resume", run, "--steps", "32")
    assert status == 0, err
    status, out, err = call("info", run)
    assert f"windows of 24 symbols, {len(set(POEM))} characters" in out
    status, out, err = call("memorization", run)
    assert status == 2 and "distances between texts say little" in err
    status, out, err = call("doctor", run)
    assert "checks could be made" in out, err


@pytest.mark.parametrize(
    "words",
    [
        ["--process", "embedded"],
        ["--process", "embedded", "--process.codebook", "learned", "--loss", "cross-entropy", "--times", "warped"],
    ],
)
def test_a_book_is_learned_as_vectors(call, book, tmp_path, words):
    run = tmp_path / "run"
    status, out, err = call("train", book, "-o", run, "--length", "24", "--steps", "30", *SMALL, *words)
    assert status == 0, err
    model = sf.load(run)
    assert type(model.process).__name__ == "Embedded" and model.shape == (1, 24)
    facts = json.loads((run / "report.json").read_text())["text"]
    assert 0 < facts["model"]["value"] < 8 and facts["model"]["stderr"] > 0
    status, out, err = call("sample", run, "-n", "3", "--length", "20", "--steps", "6", "-o", tmp_path / "x.jsonl")
    texts = [json.loads(line)["text"] for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert status == 0 and [len(text) for text in texts] == [20] * 3 and set("".join(texts)) <= set(POEM)
    status, out, err = call("likelihood", run, book, "-n", "8", "--steps", "16", "--json")
    assert status == 0 and 0 < json.loads(out)["bits_per_dim"] < 8, err
    status, out, err = call("resume", run, "--steps", "32")
    assert status == 0, err
    asked = ("--prompt", "Shall", "--length", "40", "--steps", "4")  # longer than a window of 24
    status, out, err = call("sample", run, "-n", "2", *asked, "-o", tmp_path / "y.jsonl")
    texts = [json.loads(line)["text"] for line in (tmp_path / "y.jsonl").read_text().splitlines()]
    assert status == 0 and all(len(text) == 40 and text.startswith("Shall") for text in texts), err
    text = sf.sample_text(model, infill="S____ I", steps=3, index=[1])[0]
    assert (text[0], text[5:], len(text)) == ("S", " I", 7)
    assert sf.sample_text(model, 3, infill="S____ I", steps=3, batch=2)[1] == text


def test_byte_pairs_from_training_to_infilling(call, book, tmp_path):
    pytest.importorskip("tokenizers")
    run = tmp_path / "run"
    words = ("--tokens", "bpe(300)", "--length", "16", "--steps", "4", "--net", "tiny")
    status, out, err = call("train", book, "-o", run, *words)
    assert status == 0 and "byte pairs" in err, err
    model = sf.load(run)
    assert model.net.symbols == model.spec.text.size and model.net.neighbours.rows == 8192
    found = sf.sample_text(model, 2, length=30, prompt="Shall I", steps=4)  # longer than a window
    assert all(text.startswith("Shall I") for text in found)
    filled = sf.sample_text(model, infill="Shall __ compare", steps=2)[0]
    assert filled.startswith("Shall ") and filled.endswith(" compare")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--process", "embedded", "--process.codebook", "learned"], "loss='cross-entropy'"),
        (["--process", "embedded", "--loss", "autoregressive"], "mask='full'"),
        (["--process", "embedded", "--process.codebook", "word2vec"], "Unknown codebook"),
    ],
)
def test_what_vectors_cannot_do_is_said_before_the_first_step(call, book, tmp_path, words, said):
    status, out, err = call("train", book, "-o", tmp_path / "run", "--length", "24", "--steps", "2", *SMALL, *words)
    assert status == 2 and said in err


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
    words = ("--init", tmp_path / "run", "-o", tmp_path / "next", "--length", "16", "--steps", "2")
    status, out, err = call("train", tmp_path / "other.txt", *words)
    assert status == 2 and "'0' is not among the" in err


@pytest.fixture(scope="module")
def alternating(tmp_path_factory):
    """A model of "abab..", trained until it knows."""
    run = tmp_path_factory.mktemp("text") / "run"
    net = sf.nets.Transformer((2, 13), 32, 2, heads=2)
    sf.train(["ab" * 600 + "a"], run, net=net, length=13, steps=300, batch=32, precision="float32")
    return run


def test_a_prompt_is_continued_beyond_the_window(call, alternating, tmp_path):
    words = ("--length", "50", "--prompt", "ba", "--order", "confidence", "-o", "out.jsonl")
    status, out, err = call("sample", alternating, "-n", "2", *words)
    assert status == 0, err
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == ["ba" * 25] * 2
    assert lines[1]["index"] == 1 and len(lines[0]["model_hash"]) == 64 and "ba" * 25 in out


def test_an_infilled_text_keeps_what_is_known(call, alternating, tmp_path):
    status, out, err = call("sample", alternating, "-n", "3", "--infill", "a__b____ab", "-o", "texts/", "--json")
    assert status == 0, err
    assert json.loads(out)["texts"] == ["ababababab"] * 3
    assert (tmp_path / "texts" / "00002.txt").read_text() == "ababababab"
    wrong = sf.sample_text(sf.load(alternating), infill="aa_b", seed=3)[0]
    assert wrong[:2] == "aa" and wrong[3] == "b"


def test_an_underscore_of_the_text_can_be_known():
    text = Tokeniser("characters", tuple("_ab\\"))
    assert _known(text, r"a_\_b_", True).tolist() == [1, -1, 0, 2, -1]
    assert _known(text, r"a_\_", False).tolist() == [1, 0, 3, 0]


def test_texts_depend_on_seed_and_number_alone(alternating, tmp_path):
    model = sf.load(alternating)
    texts = sf.sample_text(model, 24, length=30, seed=1)
    assert texts[22:] == sf.sample_text(model, index=[22, 23], length=30, seed=1, batch=1)
    assert all(len(text) == 30 for text in texts) and {text[0] for text in texts} == {"a", "b"}
    assert texts != sf.sample_text(model, 24, length=30, seed=2)


def test_order_temperature_and_steps_are_heard(call, alternating, tmp_path):
    words = ("--order", "confidence", "--temperature", "0.5", "--top-p", "0.9", "--steps", "13", "-o", "out.jsonl")
    status, out, err = call("sample", alternating, "-n", "2", *words)
    assert status == 0 and "reveal, 13 steps" in out, err
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert all(line["text"] in ("ab" * 6 + "a", "ba" * 6 + "b") for line in lines)
    facts = {"solver": "reveal", "steps": 13, "order": "confidence", "temperature": 0.5, "top_p": 0.9}
    assert facts.items() <= lines[0].items()


def test_tuned_sizes_are_stored_and_used(call, alternating, tmp_path):
    shutil.copytree(alternating, tmp_path / "run")
    status, out, err = call("tune", "run", "--steps", "5", "--points", "16")
    assert status == 0 and "nats a sample" in out and "--steps 5" in out, err
    model = sf.load(tmp_path / "run")
    assert model.plans["5"].lines[0].solver.sizes[0] == 13
    texts = sf.sample_text(model, 3, steps=5)
    assert texts == sf.sample_text(model, 3, solver=model.plans["5"]) != sf.sample_text(model, 3, steps=6)
    assert "nats from the model" in call("info", "run")[1]
    filled = sf.sample_text(model, 1, steps=5, infill="a__b_______a")[0]
    assert filled[0] == filled[11] == "a" and filled[3] == "b" and "_" not in filled


def test_wrong_types_of_words_are_one_sentence(alternating):
    model = sf.load(alternating)
    for words in ({"prompt": 5}, {"prompt": ["a"]}, {"infill": ["a_"]}):
        with pytest.raises(sf.SfumatoError, match="must be one text"):
            sf.sample_text(model, **words)
    with pytest.raises(sf.SfumatoError, match="a temperature above 0 .* not hot and 1"):
        sf.sample_text(model, temperature="hot")
    same = torch.zeros(1, *model.spec.shape, dtype=torch.int64)  # one letter over and over, which may be
    assert bool(sf.log_prob(model, same, "order").value < 0)
    assert len(sf.sample_text(model, prompt="ab" * 10)[0]) == 20 + 13 // 2


def test_the_default_file_and_the_words_printed(call, alternating, tmp_path):
    status, out, err = call("sample", alternating)
    assert status == 0 and "4 samples" in out, err
    assert (tmp_path / "samples.txt").read_text().count("-" * 40) == 3
    assert call("sample", alternating, "-n", "1")[0] == 0 and (tmp_path / "samples-2.txt").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompt", "xyz"], "'x' is not among the 2 characters"),
        (["--infill", "abab"], "infill has nothing to find"),
        (["--prompt", "a", "--infill", "_"], "give one of the two"),
        (["--length", "0"], "length must be at least 1"),
        (["--order", "backwards"], "cannot be revealed in the order 'backwards'"),
        (["--temperature", "0"], "temperature above 0"),
        (["--prompt", "abab", "--length", "3"], "a length of 3 leaves none to find"),
        (["--top-p", "2"], "top_p in (0, 1]"),
        (["--order", "random", "--solver", "ancestral"], "leave them or the solver out"),
        (["-o", "out.png"], "end it in .txt, .jsonl"),
        (["--class", "a"], "no classes"),
        (["--condition", "a=1"], "the model has none"),
        (["--guidance", "2"], "a model of text has no guidance: leave --guidance out"),
        (["--negative", "2"], "leave --negative out"),
    ],
)
def test_what_cannot_be_sampled_is_one_sentence(call, alternating, words, said):
    status, out, err = call("sample", alternating, *words)
    assert status == 2 and said in err and len(err.strip().splitlines()) == 1, err


def test_flags_of_text_are_refused_of_other_models(call, models):
    status, out, err = call("sample", models["images"], "--prompt", "cat")
    assert status == 2 and "--prompt is for models of text" in err
    with pytest.raises(sf.SfumatoError, match=r"use sf\.sample"):
        sf.sample_text(sf.load(models["images"]))


def test_the_demo_prints_verse_and_judges_its_words(call, tmp_path):
    status, out, err = call("demo", "--text", "--minutes", "0.05", "-o", tmp_path / "verse")
    assert status == 0, err
    assert "of these words occur in the works that were held out, as 88% of Shakespeare's in the others do" in out
    assert "drawn one after the other, at a temperature of 0.7" in out
    texts = (tmp_path / "verse" / "verse.txt").read_text().removesuffix("\n").split("\n" + "-" * 40 + "\n")
    assert [len(text) for text in texts] == [128] * 4
    assert (tmp_path / "verse" / "report.html").exists()
