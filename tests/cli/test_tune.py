"""`tune`: the plan is in the file, `sample` uses it and says so, `info` lists it."""

import json
import shutil

import numpy as np
import pytest
import torch

import sfumato as sf

FEW = ("--points", 24, "--rounds", 3, "--steps", 3)


def classes(folder):
    """An untrained model of points of three classes."""
    source = sf.data.open(np.random.default_rng(0).normal(size=(60, 2)), labels=np.arange(60) % 3)
    spec = sf.data.DataSpec.fit(source)
    net = sf.nets.build(spec.shape, 3, "tiny")
    path = folder / "classes.safetensors"
    sf.save(sf.Denoiser(net, sf.Gaussian(sf.schedules.Flow()), "velocity", 1.0, spec), path)
    return path


@pytest.fixture
def own(models, workplace):
    """Models with weights that are not zero, so that there is something to fit: points, and points of three classes."""
    for path in (models["points"], classes(workplace)):
        model = sf.load(path)
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in model.net.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        sf.save(model, workplace / f"{path.stem}.safetensors")
    return workplace


def test_a_plan_is_stored_used_and_listed(call, own):
    before = json.loads(call("info", "points.safetensors", "--json")[1])
    status, out, err = call("tune", "points.safetensors", *FEW)
    assert status == 0 and "tuned    rms" in out and "sfumato sample points.safetensors --steps 3" in out
    assert err.startswith("fine solve\nuntuned plans\n")
    after = json.loads(call("info", "points.safetensors", "--json")[1])
    assert after["hash"] != before["hash"] and list(after["plans"]) == ["3"]
    assert "Solver plan '3'" in call("info", "points.safetensors")[1]
    draw = ("sample", "points.safetensors", "-n", 4, "--precision", "float32")
    status, out, err = call(*draw, "-o", "x.npz", "--steps", 3)
    assert status == 0 and "own plan of 3 steps" in err
    with np.load("x.npz") as data:
        x, facts = data["x"], json.loads(str(data["manifest"]))
    expected = sf.sample(sf.load("points.safetensors"), 4, steps=3)
    assert np.array_equal(x, expected.numpy()) and facts["solver"].startswith("tuned") and facts["calls"] == 3
    for words in (["--steps", 4], ["--steps", 3, "--solver", "multistep"]):
        assert "plan" not in call(*draw, "-o", "y.npz", *words)[2]
    with np.load("y.npz") as data:
        assert not np.array_equal(data["x"], expected.numpy())


def test_a_stochastic_plan_is_stored_used_and_named(call, own):
    status, out, err = call("tune", "points.safetensors", "--noise", 1, *FEW)
    assert status == 0 and "along the same path of noise" in out and "between the laws" in out
    plan = sf.load("points.safetensors").plans["3"]
    assert plan.stochastic and plan.tuned["noise"] == 1.0
    status, out, err = call(
        "sample", "points.safetensors", "-n", 4, "--precision", "float32", "-o", "x.npz", "--steps", 3
    )
    assert status == 0 and "own plan of 3 steps" in err
    with np.load("x.npz") as data:
        assert np.array_equal(data["x"], sf.sample(sf.load("points.safetensors"), 4, steps=3).numpy())
    assert "noise" in call("tune", "points.safetensors", "--noise", -1, *FEW)[2]


def test_guidance_belongs_to_the_plan(call, own):
    status, out, err = call("tune", "classes.safetensors", "--guidance", 2.5, "--json", *FEW)
    facts = json.loads(out)
    assert status == 0 and facts["plan"] == "3 guidance 2.5" and facts["guidance"] == 2.5
    assert facts["error"]["median"] <= facts["untuned"]["median"]
    used = ["sample", "classes.safetensors", "-n", 3, "-o", "x.npz", "--steps", 3]
    assert "own plan of 3 steps" in call(*used, "--guidance", 2.5)[2]
    said = call(*used, "--guidance", 2)[2]
    assert "The model's plan of 3 steps is not used: `sfumato tune` fitted it for another guidance." in said


def test_a_run_folder_stands_for_its_model(call, own):
    (own / "run").mkdir()
    shutil.copy("points.safetensors", "run/model.safetensors")
    assert call("tune", "run", *FEW)[0] == 0
    assert list(sf.load("run").plans) == ["3"]


def test_mistakes_change_nothing(refused, own):
    whole = (own / "points.safetensors").read_bytes()
    assert "no classes" in refused("tune", "points.safetensors", "--guidance", 2)
    assert "at least 1" in refused("tune", "points.safetensors", "--steps", 0)
    assert "at least 8" in refused("tune", "points.safetensors", "--points", 2)
    assert "does not exist" in refused("tune", "none.safetensors")
    assert (own / "points.safetensors").read_bytes() == whole
