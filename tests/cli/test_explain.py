"""`explain-objective`: of names, of a run, of a model file; the table, the JSON, the picture, and what is refused."""

import json
import os
from pathlib import Path

import pytest

from sfumato.objectives import times, weights
from sfumato.training.config import TrainConfig


def rows(out: str) -> list[list[str]]:
    """The table: [from, to, noise/signal, share, w, factor] of each line."""
    lines = out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("logsnr  ")) + 1
    stop = next(i for i, line in enumerate(lines) if line.startswith("Weight and factor are those at the middle"))
    return [line.replace(" to ", " ").split() for line in lines[start:stop]]


def test_without_words_it_is_what_train_does(call):
    status, out, err = call("explain-objective")
    assert status == 0 and err == ""
    defaults = TrainConfig()
    for dial in ("schedule", "target", "times", "weight"):
        assert f"{dial} {getattr(defaults, dial)}" in out
    assert "weight is that of 'sd3-logit-normal', times 1" in out and "no evidence bound" in out
    assert "from -15 to -3.38" in out
    table = rows(out)
    assert sum(float(row[3].rstrip("%")) for row in table) == pytest.approx(100, abs=0.5)
    assert all(row[5] == "1" for row in table)  # a plain loss


def test_flow_matching_is_v_prediction(call):
    found = [
        json.loads(call("explain-objective", "--times", "uniform", *words, "--json")[1])
        for words in (("--schedule", "flow", "--target", "velocity"), ("--schedule", "trig", "--target", "v"))
    ]
    for facts in found:
        assert facts["nearest"]["name"] == "v" and "flow" in facts["nearest"]["aliases"]
        assert facts["nearest"]["distance"] < 1e-9 and facts["monotone"] and facts["trainable"]
    w = [[level["weight"] for level in facts["levels"]] for facts in found]
    ratio = [a / b for a, b in zip(*w, strict=True)]
    assert max(ratio) / min(ratio) == pytest.approx(1, rel=1e-8)


@pytest.mark.parametrize("name", weights.NAMED)
def test_every_weight_is_told_by_its_name(call, name):
    status, out, _ = call("explain-objective", "--weight", name, "--schedule", "log-linear", "--target", "v")
    assert status == 0 and f"weight {name};" in out
    told = next(line for line in out.splitlines() if line.startswith("The weight is that of"))
    assert f"'{name}'" in told or name in told.partition("also called")[2]
    assert ("evidence bound (ELBO)" in out) != ("no evidence bound" in out)


@pytest.mark.parametrize("name", times.NAMED)
def test_every_density_is_drawn(call, name):
    status, out, _ = call("explain-objective", "--times", name, "--weight", "sigmoid")
    assert status == 0 and sum(float(row[3].rstrip("%")) for row in rows(out)) == pytest.approx(100, abs=0.5)
    # uniform in the middle: half of the noise of w = sigmoid(-logsnr) lies above logsnr 0
    assert "half of it at logsnr above 0.00" in out


def test_a_constant_weight_is_the_bound_of_the_data(call):
    out = call("explain-objective", "--weight", "elbo")[1]
    assert "'elbo' (also called likelihood, ncsn)" in out and "evidence bound (ELBO) of the data themselves" in out


def test_what_cannot_be_trained_is_still_explained(call):
    """iDDPM's loss has a name; no model that reads eps at zero signal can be trained by it here."""
    status, out, _ = call("explain-objective", "--schedule", "trig", "--target", "eps", "--times", "uniform")
    assert (
        status == 0
        and "'eps-simple'" in out
        and "No model can be trained by this objective." in out
        and "zero signal" in out
    )
    facts = json.loads(
        call("explain-objective", "--schedule", "trig", "--target", "eps", "--times", "uniform", "--json")[1]
    )
    assert facts["trainable"] is False and "zero signal" in facts["fault"]


def test_a_run_says_what_it_trains_by(call, workplace):
    run = Path("run")
    run.mkdir()
    config = TrainConfig(data="x.npy", schedule="log-linear", target="x", times="edm", weight="min-snr", steps=1)
    (run / "config.yaml").write_text(config.to_yaml())
    out = call("explain-objective", "run")[1]
    assert "schedule log-linear, target x, times edm, weight min-snr" in out and "'min-snr'" in out
    out = call("explain-objective", "run", "--weight", "elbo")[1]  # what would be with another
    assert "weight elbo" in out and "times edm" in out


def test_a_run_by_a_weight_that_is_not_here(refused, workplace):
    Path("run").mkdir()
    settings = TrainConfig(data="x.npy", steps=1).to_yaml()
    Path("run/config.yaml").write_text(settings.replace("\nweight: plain", "\nweight: tent(width=6)"))
    said = refused("explain-objective", "run")
    assert "run was trained with the weight 'tent', which is not registered here" in said and "--modules FILE" in said


def test_a_model_file_needs_what_it_does_not_hold(call, refused, models):
    assert "--times and --weight" in refused("explain-objective", models["points"])
    assert "--weight" in refused("explain-objective", models["points"], "--times", "uniform")
    out = call("explain-objective", models["points"], "--times", "uniform", "--weight", "plain")[1]
    assert "schedule Flow, target velocity" in out and "'v' (also called flow)" in out


def test_the_picture_is_drawn(call, workplace):
    status, out, _ = call("explain-objective", "--plot", "objective.png")
    assert status == 0 and "Drawn: objective.png" in out
    assert Path("objective.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--weight", "sigmiod"), "did you mean 'sigmoid'"),
        (("--schedule", "cosin"), "did you mean 'cosine'"),
        (("--target", "velocty"), "did you mean 'velocity'"),
        (("--times", "logit_normal"), "did you mean 'logit-normal'"),
        (("--weigth", "v"), "did you mean --weight"),
        (("nowhere",), "nowhere does not exist"),
        (("--times", "adaptive"), "needs a weight"),
    ],
)
def test_mistakes(refused, words, said):
    assert said in refused("explain-objective", *words)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("objective.xyz", "must end in one of"), ("objective", "must end in one of"),
        ("file/objective.png", "file/objective.png cannot be written"), ("pipe.png", "is a pipe or a device"),
    ],
)  # fmt: skip
def test_plots_that_cannot_be_written(refused, workplace, name, said):
    (workplace / "file").write_text("")
    os.mkfifo(workplace / "pipe.png")
    assert said in refused("explain-objective", "--plot", name)


def test_a_model_without_noise_levels_has_no_objective(refused):
    codec = Path(__file__).parents[1] / "fixtures/v1_codec.safetensors"
    assert "holds a model without noise levels" in refused("explain-objective", codec)


def test_symbols_by_names(call, refused):
    status, out, err = call("explain-objective", "--process", "masked(states=27)", "--loss", "masked")
    assert status == 0 and err == "" and "process masked, schedule Flow, loss masked" in out
    assert "the bound on -log p(x)" in out and "MDLM (2406.07524)" in out and "no chance is left in their number" in out
    out = call("explain-objective", "--process", "masked", "--times", "uniform")[1]
    assert "loss denoising" in out and "without limit: take --loss masked" in out
    facts = json.loads(call("explain-objective", "--process", "masked", "--loss", "score-entropy", "--json")[1])
    assert facts["loss"] == "score-entropy"
    facts = json.loads(call("explain-objective", "--process", "masked", "--loss", "mask-predict", "--json")[1])
    assert facts["loss"] == "mask-predict"
    assert facts["levels"][4]["weight"] == pytest.approx(0.4) and not facts["bound"]
    assert "no bound" in call("explain-objective", "--process", "uniform", "--loss", "sundae")[1]
    for words, said in [
        (("--process", "masked", "--target", "v"), "has no --target"),
        (("--process", "uniform", "--loss", "masked"), "need process='masked'"),
        (("--process", "masked", "--loss", "autoregressive"), "no noise levels of symbols"),
        (("--process", "maskd"), "did you mean 'masked'"),
    ]:
        assert said in refused("explain-objective", *words)
