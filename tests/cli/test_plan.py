"""`plan`: a page, JSON, and mistakes; nothing is left."""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from sfumato import nets, progress
from sfumato.cli.plan import between, duration, page, size, verdict
from sfumato.errors import SfumatoWarning
from sfumato.training.config import TrainConfig
from sfumato.training.forecast import Forecast, Range

SMALL = ("--net", "tiny", "--batch", 8, "--precision", "float32", "--sample-every", 0)
KEYS = {"config", "facts", "steps", "epochs", "step", "total", "parts", "memory", "disk", "sampling", "fits"}
KEYS |= {"before"}


def test_a_page_and_json_and_nothing_left(call, workplace):
    np.save("x.npy", np.random.default_rng(0).normal(size=(60, 2)))
    Path("own.yaml").write_text("batch: 4\nsteps: 7\n")
    before = sorted(Path().rglob("*"))
    status, out, err = call("plan", "x.npy", "--config", "own.yaml", "--net", "tiny", "--json")
    assert status == 0, err
    facts = json.loads(out)
    assert set(facts) == KEYS and facts["config"]["batch"] == 4 and facts["steps"]["value"] == 7
    assert sorted(Path().rglob("*")) == before
    for part in ("time", "memory", "disk", "sampling", "It fits."):
        assert part in err


def test_both_stages_of_a_latent_model_are_in_one_table(call, workplace, monkeypatch):
    monkeypatch.setattr(sys.modules["sfumato.training.forecast"], "_LEAST", 0.0)  # not the function
    np.save("x.npy", np.random.default_rng(0).normal(size=(60, 1, 8, 8)).astype(np.float32))
    net = "Autoencoder(latent=2, channels=(8, 16))"
    status, out, err = call("plan", "x.npy", "--autoencoder", net, *SMALL, "--steps", 10, "--json")
    assert status == 0, err
    facts, encoder = json.loads(out), nets.Autoencoder((1, 8, 8), latent=2, channels=(8, 16))
    (first,), last = facts["before"], facts
    assert first["facts"]["parameters"] >= sum(p.numel() for p in encoder.parameters())
    assert first["facts"]["flops"] == nets.flops(encoder) > 0 < last["facts"]["flops"]
    assert (first["steps"]["value"], last["steps"]["value"]) == (4, 6) and last["facts"]["network"] != "Autoencoder"
    assert last["facts"]["shape"] == [1, 8, 8] and facts["fits"] and sorted(Path().iterdir()) == [Path("x.npy")]
    page = {line[:18].strip(): line[18:].split() for line in err.splitlines()}
    assert page["parameters"] == [f"{each['facts']['parameters']:,}" for each in (first, last)]
    assert page["steps"] == ["4", "6"] and len(page["memory"]) == 6, "each with its unit, and the larger one"


def test_what_it_does_is_said_while_a_folder_is_decoded(call, workplace, monkeypatch):
    monkeypatch.setattr(progress, "SILENT_SECONDS", 0.0)
    Path("photos").mkdir()
    for i in range(30):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(f"photos/{i}.png")
    status, out, err = call("plan", "photos", *SMALL, "--steps", 5, "--json")
    assert status == 0, err
    said = err.splitlines()
    assert said[0].startswith("Opening the data") and any("30 of 30" in line for line in said[1:])
    steps = next(i for i, line in enumerate(said) if line.startswith("Timing steps: 24 of 24"))
    assert "Timing a validation, samples and the end of the run." in said[steps + 1 : steps + 3], said
    assert json.loads(out)["facts"]["samples"] == 30


def test_mistakes_are_those_of_train(refused, workplace):
    assert "needs DATA" in refused("plan")
    assert "did you mean --steps" in refused("plan", "digits", "--stepz", 3)
    assert "did you mean" in refused("plan", "digits", "--net", "smal")


def test_data_that_cannot_be_read_is_one_sentence(call, workplace):
    np.save("bad.npy", np.array([[1.0, np.nan]] * 30))
    for words, what in (
        (("plan", "digit"), "did you mean the built-in set 'digits'"),
        (("plan", "bad.npy"), "all are missing"),
    ):
        status, out, err = call(*words, *SMALL)
        assert status == 2 and out == "" and "Traceback" not in err
        assert what.lower() in err.splitlines()[-1].lower()


def forecast(**changes) -> Forecast:
    known = {
        "config": TrainConfig(steps=1000),
        "facts": {
            "data": "photos", "samples": 900, "train": 850, "holdout": 50, "shape": [3, 32, 32], "dtype": "uint8",
            "classes": 2, "notes": ["Some."], "network": "UNet", "parameters": 1234567,
            "trained": 1234567, "flops": 2_345_000_000,
            "device": "cpu", "precision": "bfloat16", "threads": 2, "micro": 64,
        },
        "steps": Range(1000, 1000, 1000), "epochs": 75.3, "step": Range(0.05, 0.04, 0.06),
        "total": Range(125.0, 105.0, 3725.0),
        "parts": {"start": 10.0, "steps": 105.0, "validation": 5.0, "checkpoints": 0.0, "end": 5.0},
        "memory": {"train": 2_000_000_000, "free": 8_000_000_000},
        "disk": {"checkpoints": 900_000, "log": 100, "total": 900_100, "free": 10**12},
        "sampling": {"number": 20, "steps": 20, "seconds": 1.5},
    }  # fmt: skip
    return Forecast(**{**known, **changes})


def test_the_words_of_a_page():
    text = "\n".join(page(forecast()))
    for part in (
        "900 samples of 3 x 32 x 32, uint8, 2 classes; 850 to train on, 50 held out",
        "1,234,567 parameters, 2.35 GFLOP a sample and call, computed in",
        "bfloat16 on the CPU with 2 threads, 64 samples per step.", "Note: Some.", "2:05 (1:45 to 1:02:05) in all\n",
        "of it start 8.0%, steps 84.0%, validation 4.0%, end 4.0%\n",
        "50 ms (40 ms to 60 ms) a step, 1,280 samples a second", "2 GB at most in this process; 8 GB are free for it",
        "900 kB in the run folder (checkpoints 900 kB)", "20 samples in 20 steps: 1.5 s", "It fits.",
    ):  # fmt: skip
        assert part in text, (part, text)
    assert max(map(len, text.splitlines())) < 140


def test_the_budget_that_was_given_is_said():
    text = "\n".join(page(forecast(config=TrainConfig(minutes=2.0))))
    assert "2:05 (1:45 to 1:02:05) in all for a budget of 2:00\n" in text


def test_that_it_compiles_is_said():
    assert "compiled" not in "\n".join(page(forecast()))
    assert "compiled in the first step" in "\n".join(page(forecast(config=TrainConfig(steps=1000, compile=True))))


def test_what_does_not_fit_is_said_with_what_helps():
    known = forecast()
    small = {**known.memory, "free": 10**9}
    assert "--micro" in verdict(forecast(memory=small)) and "not fit" in verdict(forecast(memory=small))
    assert "disk" in verdict(forecast(disk={**known.disk, "free": 5}))
    assert "add --micro 16" in verdict(forecast(facts={**known.facts, "micro": 16}))
    shown = "\n".join(page(forecast(memory={**known.memory, "device_train": 1, "device_free": 3})))
    assert "on device" in shown


def test_figures_in_words():
    assert [duration(s) for s in (0.0412, 0.52, 8.14, 59.96, 125, 3725)] == [
        "41 ms", "0.52 s", "8.1 s", "1:00", "2:05", "1:02:05"
    ]  # fmt: skip
    assert between(Range(2.0, 2.01, 2.02)) == "2.0 s" and between(Range(2.0, 3.0, 1.0)) == "2.0 s (1.0 s to 3.0 s)"
    assert [size(n) for n in (12, 1500, 2_500_000, 10**9)] == [
        "12 bytes", "1.5 kB", "2.5 MB", "1 GB"
    ]  # fmt: skip


def test_nothing_is_said_of_the_samples_of_a_rehearsal(call, monkeypatch):
    told = "41 % of the sampled values lie outside the data: lower the guidance."

    def rehearsed(*_, **__):
        warnings.warn(told, SfumatoWarning, stacklevel=2)
        warnings.warn("Something else.", SfumatoWarning, stacklevel=2)
        return forecast()

    monkeypatch.setattr("sfumato.cli.plan.forecast", rehearsed)
    err = call("plan", "digits", "--steps", 3)[2]
    assert told not in err and "Something else." in err
