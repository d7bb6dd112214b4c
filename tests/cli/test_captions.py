"""Captions from the command line: --caption, lines of a file, negatives, grids that show what was asked for."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato as sf

QUICK = ("--steps", 2, "--precision", "float32")
COLOURS = ["red", "green", "blue"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An untrained model of pictures with captions, which hears them."""
    x = np.random.default_rng(0).integers(0, 256, (30, 3, 8, 8), dtype=np.uint8)
    source = sf.data.open({"x": x, "caption": [f"a {COLOURS[i % 3]} boat {i}" for i in range(30)]})
    spec = sf.data.DataSpec.fit(source)
    torch.manual_seed(0)
    net = sf.nets.build(spec.shape, size="tiny", conditions={"caption": spec.conditions["caption"].network()})
    for parameter in net.parameters():  # else the last layer is zero, and hears nothing
        torch.nn.init.normal_(parameter, std=0.1)
    path = tmp_path_factory.mktemp("models") / "captions.safetensors"
    return sf.save(sf.Denoiser(net, sf.Gaussian(sf.schedules.Flow()), "velocity", 1.0, spec), path)


def drawn(path):
    with np.load(path) as archive:
        return dict(archive)


def test_captions_are_drawn_in_turn_and_as_in_python(call, model):
    asked = ("--caption", "a red boat", "--caption", "green boat, 4")
    status, out, err = call("sample", model, *asked, *QUICK, "--guidance", 1, "-o", "a.npz", "-n", 5)
    assert status == 0, err
    made, loaded = drawn("a.npz"), sf.load(model)
    captions = ["a red boat", "green boat, 4"]
    assert made["caption"].tolist() == [captions[i % 2] for i in range(5)]
    x = sf.sample(loaded, 5, steps=2, caption=made["caption"].tolist())
    assert np.array_equal(made["x"], x.numpy())
    assert json.loads(str(made["manifest"]))["conditions"] == {"caption": "\n".join(captions)}
    Path("said.txt").write_text("a red boat\n\ngreen boat, 4\n")
    asked = ("--condition", "caption=said.txt", "-n", 5)
    assert call("sample", model, *asked, *QUICK, "--guidance", 1, "-o", "b.npz")[0] == 0
    assert np.array_equal(drawn("b.npz")["x"], made["x"])


def test_captions_that_were_not_trained_are_said_or_retrieved(call, model):
    trained = sf.load(model).spec.conditions["caption"].trained
    assert "a red boat 0" in trained and len(trained) == 29  # one was held out
    asked = ("--caption", "a red boat 0", "--caption", "red boats 0", *QUICK, "--guidance", 1, "-n", 4)
    status, out, err = call("sample", model, *asked, "-o", "plain.npz")
    assert status == 0 and "Not among the 29 captions of training: 'red boats 0'; --retrieval draws the" in err, err
    status, out, err = call("sample", model, *asked, "--retrieval", "-o", "near.npz")
    assert status == 0 and "Drawn as the nearest captions of training: 'red boats 0' as 'a red boat 0'." in err, err
    plain, near = drawn("plain.npz"), drawn("near.npz")
    assert near["caption"].tolist() == ["a red boat 0"] * 4
    assert np.array_equal(near["x"][::2], plain["x"][::2]) and (near["x"][1] != plain["x"][1]).any()
    assert np.array_equal(near["x"], sf.sample(sf.load(model), 4, steps=2, caption="a red boat 0").numpy())
    status, out, err = call("sample", model, "--caption", "a red boat 0", *QUICK, "-o", "known.npz")
    assert status == 0 and "captions of training" not in err


def test_a_file_of_captions_that_is_not_there_is_no_caption(refused, call, model, workplace):
    (workplace / "said.csv").write_text("a red boat\n")
    for place, what in (
        ("none.txt", "is not there"),
        ("some/captions", "is not there"),
        ("said.csv", "not a .txt file"),
    ):
        assert what in refused("sample", model, "--condition", f"caption={place}", *QUICK, "-n", 2)
    status, _, err = call("sample", model, "--condition", "caption=red / green boats", *QUICK, "-n", 2, "-o", "a.npz")
    assert status == 0, err


def test_a_caption_like_no_other_is_said_to_be_drawn_as_it_is(call, model):
    words = ("--caption", "zzz", "--caption", "red boats 0", "--retrieval", *QUICK, "-n", 2, "-o", "a.npz")
    status, _, err = call("sample", model, *words)
    assert status == 0 and "Drawn as they are, as no caption of training resembles them: 'zzz'." in err, err
    assert "'red boats 0' as 'a red boat 0'" in err and drawn("a.npz")["caption"].tolist() == ["zzz", "a red boat 0"]


def test_guidance_leads_away_from_a_negative_caption(call, model):
    asked = ("--caption", "a red boat", "-n", 2, *QUICK, "--guidance", 3)
    assert call("sample", model, *asked, "-o", "a.npz")[0] == 0
    assert call("sample", model, *asked, "--negative", "blue boat", "-o", "b.npz")[0] == 0
    assert call("sample", model, *asked, "--negative", "caption=blue boat", "-o", "c.npz")[0] == 0
    a, b, c = (drawn(name)["x"] for name in ("a.npz", "b.npz", "c.npz"))
    assert np.array_equal(b, c) and (a != b).any()
    guided = sf.guide(sf.load(model), 3.0, negative={"caption": "blue boat"})
    assert np.array_equal(b, sf.sample(guided, 2, steps=2, caption="a red boat").numpy())


def test_grids_show_the_captions(call, model):
    call("sample", model, "--caption", "a red boat", "--caption", "a blue boat", *QUICK, "-o", "rows.png")
    call("sample", model, "--caption", "a red boat", "--caption", "a blue boat", "-n", 2, *QUICK, "-o", "below.png")
    with Image.open("rows.png") as rows, Image.open("below.png") as below:
        assert rows.height == 2 + 2 * (64 + 2) and rows.width > 4 * 66  # a row of four for each, names at the left
        assert below.width == 2 + 2 * (96 + 2) and below.height > 96 + 10
        text = np.asarray(below.convert("L"))[100:]
        assert (text < 128).any()


@pytest.mark.parametrize(
    "words, said",
    [
        (["--caption", "a boat", "--condition", "caption=a boat"], "are the same: leave out one of them"),
        (["--caption", "a", "--caption", "b", "--caption", "c", "-n", 2], "has 3 values for 2 samples"),
        (["--retrieval"], "--retrieval looks up captions, and none is given: also give --caption"),
        (["--condition", "caption=empty.txt"], "empty.txt holds no captions: write one a line"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(call, model, words, said, workplace):
    (workplace / "empty.txt").write_text("\n")
    status, out, err = call("sample", model, *words, *QUICK)
    assert status == 2 and said in err and len(err.strip().splitlines()) == 1, err


def test_a_model_without_captions_says_so(call, models):
    status, out, err = call("sample", models["images"], "--caption", "a boat", *QUICK)
    assert status == 2 and "this model was trained without captions, only label: leave --caption out" in err


@pytest.mark.slow
def test_the_demo_draws_captions(call, workplace):
    status, out, err = call("demo", "--text-to-image", "--minutes", 0.1, "-o", "emoji")
    assert status == 0, err
    assert "3,121 captions found, 0 missing" in err and "emoji/grid.png" in out and "--caption" not in err
    with Image.open("emoji/grid.png") as image:
        assert image.width == 2 + 4 * 98
    status, out, err = call("demo", "--text-to-image", "--text")
    assert status == 2 and "are two demos: give one of them" in err
