"""`distill`: from a model file to a run whose model samples in few calls, with a table and advice."""

import json

import pytest


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


@pytest.mark.parametrize(
    "words, said",
    [
        (("--steps", "0"), "numbers of calls"),
        (("--method", "magic"), "no method"),
        (("--samples", "1"), "samples"),
    ],
)
def test_mistakes_are_one_sentence(call, models, words, said):
    status, _, err = call("distill", models["points"], "--minutes", "0.02", *words)
    assert status == 2 and said in err, err
