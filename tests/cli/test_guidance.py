"""The flags of guidance draw what the same model draws in Python; `explain-guidance` says what it samples."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import sfumato as sf
from sfumato.guidance import Autoguided, Rescaled, Thresholded, guide

QUICK = ("--steps", 3, "--precision", "float32", "-n", 4)


@pytest.fixture(scope="module")
def two(models, tmp_path_factory):
    """(a model with weights that answer, another one of the same data, both with raw weights)."""
    made = []
    for name in ("a", "b"):
        model = sf.load(models["images"])
        torch.manual_seed(len(made))
        for p in model.net.parameters():
            torch.nn.init.normal_(p, std=0.2)
        raw = {key: 1.1 * value for key, value in model.net.state_dict().items()}
        made.append(sf.save(model, tmp_path_factory.mktemp(name) / "m.safetensors", raw))
    return made


@pytest.mark.parametrize(
    ("flags", "made"),
    [
        ("--guidance 2 --negative 5", lambda m, o, r: guide(m, 2.0, negative={"label": "5"})),
        ("--guidance 2 --negative label=5", lambda m, o, r: guide(m, 2.0, negative={"label": "5"})),
        ("--guidance 2 --rescale 0.7", lambda m, o, r: Rescaled(m, 2.0, share=0.7)),
        ("--guidance 2 --threshold 0.9", lambda m, o, r: Thresholded(guide(m, 2.0), 0.9)),
        ("--guidance 1 --threshold static", lambda m, o, r: Thresholded(m, None)),
        ("--guidance 2 --autoguide OTHER", lambda m, o, r: Autoguided(m, o, 2.0)),
        ("--guidance 2 --autoguide raw", lambda m, o, r: Autoguided(m, r, 2.0)),
    ],
)
def test_the_flags_draw_what_python_draws(call, two, flags, made):
    words = flags.replace("OTHER", str(two[1])).split()
    status, out, err = call("sample", two[0], "-o", "x.npz", "--class", "9", "--seed", 2, "--json", *QUICK, *words)
    assert status == 0, err
    model = made(sf.load(two[0]), sf.load(two[1]), sf.load(two[0], "raw"))
    wanted = sf.sample(model, 4, steps=3, seed=2, label="9").numpy()
    with np.load("x.npz") as data:
        assert int(np.abs(data["x"].astype(int) - wanted.astype(int)).max()) <= 1
    plain = sf.sample(sf.load(two[0]), 4, steps=3, seed=2, label="9").numpy()
    assert int(np.abs(plain.astype(int) - wanted.astype(int)).max()) > 1
    facts = json.loads(out)["manifest"]
    assert words[2].removeprefix("--") in facts and facts[words[2].removeprefix("--")] in (words[3], float_of(words[3]))


def float_of(word: str) -> float | None:
    return float(word) if word[0].isdigit() else None


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--negative 5 --guidance 2 --autoguide raw", "leave --negative and --rescale out"),
        ("--negative cat --guidance 2", "no class"),
        ("--threshold much --guidance 2", "--threshold is static or a quantile"),
        ("--threshold 2 --guidance 2", "quantile above 0"),
        ("--autoguide nowhere.safetensors --guidance 2", "does not exist"),
    ],
)
def test_a_wrong_wish_is_one_sentence(refused, two, flags, expected):
    assert expected in refused("sample", two[0], "--class", "9", *flags.split())


def test_a_flag_that_needs_a_scale_says_so(refused, models):
    assert "also set --guidance" in refused("sample", models["points"], "--rescale", 0.5)
    assert "bounds" in refused("sample", models["points"], "--threshold", 0.9)


def test_guidance_is_explained(call, refused, two):
    words = ("--class", "9", "--guidance", 2, "-n", 32, "--steps", 3)
    status, out, _ = call("explain-guidance", two[0], *words, "--json")
    facts = json.loads(out)
    assert status == 0 and facts["scale"] == 2 and {"tilted", "ode", "sde"} < set(facts["laws"])
    status, out, _ = call("explain-guidance", two[0], *words)
    assert status == 0 and "tilted" in out and "32 samples" in out
    assert "--class" in refused("explain-guidance", two[0])
    assert not Path("samples.png").exists()
