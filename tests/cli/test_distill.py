"""`distill`: from a model file to a run whose model samples in few calls, with a table and advice."""

import json

import numpy as np
import pytest

import sfumato as sf


def test_a_student_from_a_file(call, models, workplace):
    words = (
        "distill",
        models["points"],
        "--minutes",
        "0.02",
        "--samples",
        "64",
        "--steps",
        "2,1",
        "-o",
        "few",
        "--json",
    )
    status, out, err = call(*words)
    assert status == 0, err
    done = json.loads(out.splitlines()[-1])
    assert done["event"] == "done" and {rung["calls"] for rung in done["ladder"]} == {1, 2, 4, 8}
    assert {rung["how"] for rung in done["ladder"]} == {"student", "default"}
    assert "Distance to the model's own fine solution" in err
    status, out, err = call("sample", "few", "-n", "3", "-o", "x.npy", "--json")
    assert status == 0, err
    assert json.loads(out.splitlines()[-1])["manifest"]["calls"] == 2
    status, out, err = call("info", "few")
    assert status == 0 and "FlowMap" in out and "2 or 1 calls" in out


def test_a_plan_keeps_nothing(call, models, workplace):
    status, out, err = call("distill", models["points"], "--samples", "32", "--plan", "-o", "few", "--json")
    assert status == 0, err
    assert json.loads(out.splitlines()[-1])["fits"] and not (workplace / "few").exists()


def test_a_range_of_guidance_is_a_flag_of_samples(call, workplace):
    spec = sf.data.DataSpec.fit(sf.data.open(np.random.default_rng(0).normal(size=(80, 2)), labels=["a", "b"] * 40))
    model = sf.Denoiser(sf.nets.MLP(2, 16, 1, classes=2), sf.Gaussian("flow"), spec=spec)
    words = ("--minutes", "0.02", "--samples", "64", "--guidance", "1:4", "-o", "few", "--json")
    status, out, err = call("distill", sf.save(model, workplace / "model.safetensors"), *words)
    assert status == 0 and "Compared at a guidance of 1, 2.5, 4 in turn." in err, err
    status, out, err = call("sample", "few", "-n", "3", "--guidance", "3", "-o", "x.npy", "--json")
    assert status == 0, err
    facts = json.loads(out.splitlines()[-1])["manifest"]
    assert facts["conditions"] == {"guidance_scale": "3"} and "guidance" not in facts


@pytest.mark.parametrize(
    "words, said",
    [
        (("--steps", "0"), "numbers of calls"),
        (("--method", "magic"), "no method"),
        (("--samples", "1"), "samples"),
        (("--guidance", "4:1"), "lowest and highest"),
        (("--guidance", "1:x"), "range of scales, 1:4"),
    ],
)
def test_mistakes_are_one_sentence(call, models, words, said):
    status, _, err = call("distill", models["points"], "--minutes", "0.02", *words)
    assert status == 2 and said in err, err
