"""`sfumato audit`: a run alone, a model file with data, a choice of audits, and mistakes."""

import json

import numpy as np
import pytest

import sfumato as sf
from sfumato.diagnostics.identities import DEFAULT
from sfumato.training import Run
from sfumato.training.console import Silent


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(200, 2)) * [1, 3])
    return sf.train(folder / "x.npy", folder / "run", console=Silent(), steps=6, batch=16, net="tiny", holdout=0.3)


def test_a_run_folder_is_enough(run, call):
    status, out, err = call("audit", run.path, "-n", 64, "--bins", 3, "-o", "found.json")
    assert status == 0 and "held out" in out, err
    assert all(name in out for name in DEFAULT)
    with open("found.json") as file:
        facts = json.load(file)
    assert set(facts["audits"]) == set(DEFAULT) and len(facts["logsnr"]) == 3
    assert ("slope" in facts["violated"]) == ("To do: multiply" in out)


def test_audits_are_chosen_and_data_are_given(run, call, refused):
    file = run.path / "model.safetensors"
    words = ("audit", file, "--data", run.path.parent / "x.npy", "-n", 16, "--bins", 2, "--json")
    facts = json.loads(call(*words, "--audit", "stein", "--audit", "curl")[1])
    assert set(facts["audits"]) == {"stein", "curl"}
    assert "generator" in json.loads(call(*words, "--audit", "all")[1])["audits"]
    assert "There is no audit 'curls'" in refused(*words[:-1], "--audit", "curls")
    assert "give --data DATA" in refused("audit", file)
    assert "end it in .json" in refused("audit", run.path, "-o", "found.csv")


def test_views_of_a_run_are_a_page_and_its_figures(run, call, refused):
    status, out, err = call("views", run.path, "-n", 24, "-o", "views.html")
    assert status == 0 and "8. conditional expectation" in out and "held out" in out, err
    with open("views.json") as file:
        assert len(json.load(file)["chapters"]) == 8
    with open("views.html") as file:
        assert file.read().count("<svg") == 8
    assert "end it in .html" in refused("views", run.path, "-o", "views.pdf")
