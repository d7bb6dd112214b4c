"""`sample` given a sample or a measurement: what is kept, what is written beside, and what a mistake gets."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato as sf
from sfumato import progress
from sfumato.guidance import Thresholded
from sfumato.inverse import operators

QUICK = ("-n", 3, "--steps", 3)


@pytest.fixture
def photo():
    """Pictures as files: x (8, 8) whole, half of it, and a mask that is white on the right half."""
    x = np.random.default_rng(1).integers(0, 256, (8, 8), dtype=np.uint8)
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 4:] = 255
    for name, pixels in {"x": x, "small": x[::2, ::2], "mask": mask, "colour": np.stack([x] * 3, -1)}.items():
        Image.fromarray(pixels).save(f"{name}.png")
    return x


def samples(path="out.npz"):
    with np.load(path) as file:
        return file["x"]


def test_inpainting_keeps_what_is_known_and_writes_mean_and_deviation(call, models, photo):
    words = ("--inpaint", "x.png", "--mask", "mask.png", "--method", "ddnm", "--noise", 0)
    status, out, err = call("sample", models["images"], *words, "-o", "out.npz", *QUICK)
    assert (
        status == 0
        and "3 samples" in out
        and out.endswith(": out.npz\n")
        and "out-mean.npy" in err
        and "out-std.npy" in err
    )
    x = samples()
    assert x.shape == (3, 1, 8, 8) and x.dtype == np.uint8
    assert np.abs(x[:, 0, :, :4].astype(int) - photo[:, :4]).max() <= 1
    assert np.allclose(np.load("out-mean.npy"), x.mean(0)) and np.allclose(np.load("out-std.npy"), x.std(0, ddof=1))
    assert call("sample", models["images"], *words, "-o", "grid.png", *QUICK)[0] == 0
    for name in ("grid.png", "grid-mean.png", "grid-std.png"):
        with Image.open(name) as picture:
            picture.load()
            assert picture.text["edit"] == "inpaint" and "DDNM" in picture.text["method"]


def test_each_edit_is_the_posterior_of_its_operator(call, models, photo):
    model = sf.load(models["images"])
    x, small = photo[None].astype(float), photo[None, ::2, ::2].astype(float)
    whole = np.full((1, 8, 8), np.nan)
    whole[:, 2:6, 2:6] = small
    edits = {
        ("--upscale", "small.png"): (small, operators.Pool(2), 2.55),
        ("--deblur", "x.png", "--blur-width", 1.2): (x, operators.Blur(1.2), 2.55),
        ("--denoise", "x.png", "--noise", 0.1): (x, operators.Mask(np.ones((1, 8, 8))), 25.5),
        ("--extend", "small.png"): (whole, operators.Mask.of(whole), 2.55),
    }
    for words, (y, operator, noise) in edits.items():
        words = (*words, "--method", "mmps", "-o", "out.npz", "--class", "5")
        assert call("sample", models["images"], *words, *QUICK)[0] == 0
        expected = sf.posterior(model, y, operator, noise, "mmps", 3, 3, label="5").samples
        assert np.array_equal(samples(), expected.numpy())


def test_edits_are_guided_as_samples_are(call, models, photo):
    model = sf.load(models["images"])
    torch.manual_seed(0)
    for p in model.net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    sf.save(model, "m.safetensors")
    words = ("--class", "5", "--guidance", 2, "--negative", "3", "--threshold", 0.9)
    status, out, err = call(
        "sample", "m.safetensors", "--inpaint", "x.png", "--mask", "mask.png", *words,
        "-o", "out.npz", "--json", "--method", "ddnm", *QUICK,
    )  # fmt: skip
    assert status == 0, err
    operator = operators.Mask(np.arange(8) * np.ones((1, 8, 1)) < 4)
    guided = Thresholded(sf.guide(model, 2.0, negative={"label": "3"}), 0.9)
    expected, plain = (
        sf.posterior(each, photo[None].astype(float), operator, 2.55, "ddnm", 3, 3, label="5").samples.numpy()
        for each in (guided, model)
    )
    assert np.array_equal(samples(), expected) and not np.array_equal(plain, expected)
    facts = json.loads(out)["manifest"]
    assert facts["guidance"] == 2 and facts["negative"] == "3" and facts["threshold"] == "0.9"


def test_arrays_have_gaps_and_sensors(call, models):
    np.save("gaps.npy", np.array([101.0, np.nan]))
    assert (
        call("sample", models["points"], "--inpaint", "gaps.npy", "-n", 4, "--particles", 32, "-o", "out.npz")[0] == 0
    )
    assert np.allclose(samples()[:, 0], 101, atol=0.1) and samples()[:, 1].std() > 0.05
    np.save("y.npy", np.array([200.0]))
    np.save("A.npy", np.array([[1.0, 1.0]]))
    words = ("--measured", "y.npy", "--sensor", "A.npy", "--particles", 64, "-n", 4, "-o", "sums.npz")
    assert call("sample", models["points"], *words)[0] == 0
    assert np.allclose(samples("sums.npz").sum(1), 200, atol=0.2)


def test_variations_and_the_way_between_two_samples(call, models, photo):
    near = (models["images"], "--from", "x.png", "--strength", 0.02, "-o", "near.npz")
    assert call("sample", *near, *QUICK)[0] == 0
    far = (models["images"], "--from", "x.png", "--strength", 0.9, "-o", "far.npz")
    assert call("sample", *far, *QUICK)[0] == 0
    distance = [np.abs(samples(name)[:, 0].astype(float) - photo).mean() for name in ("near.npz", "far.npz")]
    assert distance[0] < 10 < 30 < distance[1]
    Image.fromarray(photo.T).save("y.png")
    assert call("sample", models["images"], "--interpolate", "x.png", "y.png", "-n", 3, "-o", "way.npz")[0] == 0
    ends = samples("way.npz")[[0, -1], 0].astype(float)
    assert np.abs(ends - np.stack([photo, photo.T])).max() < 30


def test_an_edit_says_how_it_is_drawn_and_what_it_costs_and_counts_its_calls(call, models, photo, monkeypatch):
    monkeypatch.setattr(progress, "SILENT_SECONDS", 0.0)
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    np.save("gaps.npy", np.array([101.0, np.nan]))
    np.save("x.npy", np.array([101.0, 99.0]))
    cheap = ("-n", 4, "-o", "out.npz")
    edits = {
        ("--inpaint", "gaps.npy", "--particles", 32, "--steps", 5): ("twist='mmps'), 2 products", 32, "particles", 5),
        ("--inpaint", "gaps.npy", "--method", "repaint(repeats=2)", "--steps", 3): ("RePaint(rep", 4, "samples", 5),
        ("--denoise", "x.npy", "--method", "ddnm", "--steps", 3, "--solver", "heun"): ("DDNM", 4, "samples", 5),
        ("--from", "x.npy", "--steps", 3): ("From strength 0.6 by", 4, "samples", 3),
        ("--interpolate", "x.npy", "x.npy"): ("by the probability flow", 6, "samples", 256),
    }  # fmt: skip
    for words, (what, number, rows, calls) in edits.items():
        status, _, err = call("sample", models["points"], *words, *cheap)
        first, *others = err.splitlines()
        assert status == 0 and what in first and f"{calls} calls for each of {number} {rows}." in first, err
        last = [line for line in others if line.startswith("Calls of the model")][-1]
        assert f": {number * calls:,} of {number * calls:,} " in last, err


def test_mistakes_are_one_sentence(refused, models, photo):
    np.save("short.npy", np.zeros((1, 8, 7)))
    images, points = models["images"], models["points"]
    assert "no gaps (NaN): add --mask" in refused("sample", images, "--inpaint", "x.png")
    assert "is 1 x 8 x 7, and the model's samples are 1 x 8 x 8" in refused("sample", images, "--denoise", "short.npy")
    assert "has 3 channels, and the model's pictures have 1" in refused("sample", images, "--denoise", "colour.png")
    assert "4 x 4" in refused("sample", images, "--inpaint", "x.png", "--mask", "small.png")
    assert "x.png is no mask" in refused("sample", images, "--inpaint", "x.png", "--mask", "x.png")
    assert "--blur-width 1.5" in refused("sample", images, "--deblur", "x.png")
    assert "two things to do" in refused("sample", images, "--deblur", "x.png", "--upscale", "small.png")
    assert "--mask goes with --inpaint" in refused("sample", images, "--mask", "mask.png")
    assert "no whole factor" in refused("sample", images, "--upscale", "x.png")
    assert "has to be smaller" in refused("sample", images, "--extend", "x.png")
    assert "--sensor A.npy" in refused("sample", points, "--measured", "short.npy")
    assert "SMC needs noise above 0" in refused("sample", images, "--denoise", "x.png", "--noise", 0, "--method", "smc")
    assert "strength" in refused("sample", images, "--from", "x.png", "--strength", 2)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("black.png")
    assert "black.png is black" in refused("sample", images, "--inpaint", "x.png", "--mask", "black.png")
    assert "--negative needs a guidance scale" in refused(
        "sample", images, "--denoise", "x.png", "--class", "5", "--negative", "3"
    )
    assert "no.png" in refused("sample", images, "--denoise", "no.png")
