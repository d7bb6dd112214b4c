"""The stop report: what it says of runs that went well, ill, or were stopped, and what evaluation costs of a run."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import sfumato as sf
from consoles import Heard
from sfumato import nets, noise, serialization
from sfumato.diagnostics import summary
from sfumato.diagnostics.sentences import marginals_words
from sfumato.diagnostics.triples import Triples
from sfumato.folder import read
from sfumato.metrics import evaluate
from sfumato.training import Run
from sfumato.training.console import Silent
from sfumato.training.run import Interrupted

X = noise.normal(3, range(500), (4,), noise.DATA).numpy()
HOW = {"net": "tiny", "precision": "float32", "snapshots": 2, "holdout": 0.2}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Run, list[str]]:
    console = Heard()
    run = sf.train(X, tmp_path_factory.mktemp("runs") / "whole", console=console, steps=120, batch=256, **HOW)
    return run, console.said


def test_the_report_of_a_finished_run(whole):
    run, said = whole
    facts = json.loads((run.path / "report.json").read_text())
    assert facts["done"] and facts["step"] == 120 and facts["samples"] == 120 * 256 and facts["incidents"] == 0
    loss, last = facts["holdout"]["loss"], run.metrics[-1]
    assert loss["value"] == pytest.approx(last["valid_ema"], abs=1e-4) and loss["low"] < loss["value"] < loss["high"]
    assert loss["low"] == pytest.approx(last["valid_low"], abs=1e-4)
    assert [band["name"] for band in facts["holdout"]["bands"]] == ["low noise", "middle", "high noise"]
    assert facts["holdout"]["quarter"]["since"] == pytest.approx(0.75, abs=0.01)
    assert facts["memorisation"]["verdict"] != "memorised" and facts["memorisation"]["samples"] >= 16
    assert 0 < facts["time"]["evaluation"] < 1 and "data wait" in facts["time"]["shares"]
    assert any(line.startswith("Hold-out loss") for line in said) and any("closer" in line for line in said)
    assert facts["next"][0].startswith(f"sfumato sample {run.path}")


def test_its_metrics_are_those_of_evaluate(whole):
    """The same value under the same protocol, of the samples that the search for copies drew."""
    run, said = whole
    facts = json.loads((run.path / "report.json").read_text())
    ours = facts["metrics"]["sliced-wasserstein"]
    n = ours["protocol"]["samples"]
    assert 64 <= n <= facts["memorisation"]["samples"] and ours["protocol"]["part"] == "train"
    again = evaluate(run.path, X, "sliced-wasserstein", n, steps=ours["protocol"]["steps"])["sliced-wasserstein"]
    assert again.hash == ours["hash"] and again.floor.to_dict() == ours["floor"]
    assert {name: ours[name] for name in ("value", "low", "high")} == pytest.approx(
        {name: getattr(again.interval, name) for name in ("value", "low", "high")}, rel=1e-5
    )
    assert any(f"Of {n} samples in {ours['protocol']['calls']} calls: sliced-wasserstein" in line for line in said)


def test_the_page_shows_it(whole):
    page = (whole[0].path / "report.html").read_text(encoding="utf-8")
    for text in (
        "How it went",
        "Loss on unseen samples, by noise",
        "gap to training samples",
        "Nearest to the training",
        "Samples beside real data",
    ):
        assert text in page


def test_a_stopped_run_says_how_far_it_came(tmp_path):
    console = Heard(stop=70)
    with pytest.raises(Interrupted):
        sf.train((X, np.arange(500) % 2), tmp_path / "run", console=console, steps=120, batch=256, **HOW)
    facts = json.loads((tmp_path / "run" / "report.json").read_text())
    assert not facts["done"] and facts["next"][0] == f"sfumato resume {tmp_path / 'run'}"
    assert any("Stopped after 5" in line and "70 steps" in line for line in console.said)
    assert "the run was stopped" in facts["memorisation_missing"]
    assert facts["conditions_missing"].startswith("the run was stopped (sf.information(sf.load(")
    sf.resume(tmp_path / "run", data=(X, np.arange(500) % 2), console=Silent())
    again = json.loads((tmp_path / "run" / "report.json").read_text())
    assert again["conditions_missing"].startswith("the run was too short")
    assert again["done"] and again["time"]["shares"]["checkpoints"] > 0


def test_a_run_without_a_hold_out(tmp_path):
    console = Heard()
    sf.train(X, tmp_path / "run", console=console, steps=3, batch=8, **{**HOW, "holdout": 0.0})
    facts = json.loads((tmp_path / "run" / "report.json").read_text())
    assert facts["holdout"] is None and facts["memorisation_missing"] == "nothing was held out"
    assert any("no loss on unseen samples" in line for line in console.said)


@pytest.mark.first(1)
@pytest.mark.parametrize("classes", [0, 3])
def test_evaluation_costs_five_per_cent_of_a_run_at_most(tmp_path, monkeypatch, classes):
    """Validations, gradients, both grids and the search for copies, counted in samples that pass the network."""
    work = {"training": 0.0, "evaluation": 0.0}
    forward = nets.MLP.forward

    def counted(self, x, noise_level, label=None):
        if self.training:
            work["training"] += len(x)
        else:
            work["evaluation"] += len(x) / (1 if torch.is_grad_enabled() else 3)
        return forward(self, x, noise_level, label)

    monkeypatch.setattr(nets.MLP, "forward", counted)
    labels = {"labels": np.arange(500) % classes} if classes else {}
    run = sf.train(X, tmp_path / "run", console=Silent(), steps=150, batch=256, **HOW, **labels)
    assert work["training"] == 150 * 256
    assert 0.02 * work["training"] < work["evaluation"] <= 0.05 * work["training"]
    assert (run.path / "samples" / "nearest.png").exists() and len(list((run.path / "samples").iterdir())) == 3


def lines_of(losses: list[float], train: float | None = None, spread: float = 0.3, samples: int = 126) -> list[dict]:
    """Logs of validations with these mean losses, one at each quarter."""
    generator = torch.Generator().manual_seed(0)
    own = spread * torch.randn(126, generator=generator, dtype=torch.float64)
    made = []
    for k, loss in enumerate(losses):
        jitter = 0.01 * torch.randn(126, generator=generator, dtype=torch.float64)
        found = {"raw": loss + own + jitter}
        if train is not None:
            found["train"] = train + own + 0.1 * torch.randn(126, generator=generator, dtype=torch.float64)
        triples = Triples(torch.arange(126) % samples, torch.arange(126) % 9, 9, found)
        line = {"step": 10 * (k + 1), "samples": 1000 * (k + 1), "elapsed": 60.0 * (k + 1), "valid_trivial": 2.0}
        made.append({**line, "bins_edges": list(range(9, -1, -1)), **triples.to_dict()})
    return made


def told(lines: list[dict]) -> str:
    return " ".join(summary.holdout_words(summary._holdout(lines)))


def test_what_is_said_of_more_time():
    falling = summary._holdout(lines_of([1.0, 0.8, 0.7, 0.65]))
    twice = math.log(2) / math.log(4 / 3)
    assert falling["quarter"]["trend"] == "improving"
    assert falling["quarter"]["twice"]["value"] == pytest.approx(-0.05 * twice, abs=0.02)
    assert "still improving" in told(lines_of([1.0, 0.8, 0.7, 0.65]))
    assert "no change: more time alone would hardly help" in told(lines_of([1.0, 0.7, 0.65, 0.65]))
    worse = told(lines_of([1.0, 0.6, 0.7, 0.9]))
    assert "getting worse" in worse and "lowest at step 20" in worse
    assert "since" not in told(lines_of([1.0]))


def test_what_is_said_of_the_gap():
    assert "knows its training samples better" in told(lines_of([0.6, 0.6, 0.6, 0.6], train=0.5))
    assert ": not significant." in told(lines_of([0.6, 0.6, 0.6, 0.6], train=0.6))
    facts = summary._holdout(lines_of([0.6, 0.6], train=0.5))
    assert facts["gap"]["value"] == pytest.approx(0.1, abs=0.03) and facts["gap"]["low"] > 0
    one = told(lines_of([0.6, 0.6], train=0.5, samples=1))
    assert "(no interval): too few samples are held out to judge it" in one


def test_a_folder_is_read_again(whole):
    """From the log alone, without the run."""
    run = whole[0]
    kept = summary.load(run.path)
    found = summary._holdout(read(run.path / "metrics.jsonl"))
    assert found == kept["holdout"]
    (run.path / "report.json").rename(run.path / "kept.json")
    assert summary.load(run.path) is None
    (run.path / "report.json").write_text("{")
    with pytest.raises(sf.SfumatoError, match="report.json is not valid JSON"):
        summary.load(run.path)
    (run.path / "kept.json").rename(run.path / "report.json")


def test_an_autoencoder_is_not_sampled(tmp_path):
    run = sf.train(X, tmp_path / "run", console=Silent(), steps=3, batch=8, loss="autoencoding", **HOW)
    facts = json.loads((run.path / "report.json").read_text())
    assert "model.encode(x)" in facts["next"][0] and facts["next"][1:] == [f"sfumato info {run.path}"]
    assert "sf.sample" not in (run.path / "report.html").read_text(encoding="utf-8")


def test_after_pairs_a_translation_is_proposed(whole):
    run, *_ = whole
    model, settings = serialization.read_contract(run.path), run.config.to_dict()
    for sources, given in (("photos/", "photos/"), ("a b.npy", "'a b.npy'"), ("x.npz", "INPUT")):
        first, *_ = summary.commands(Path("runs/p"), model, {**settings, "sources": sources}, done=True)
        assert first == f"sfumato translate runs/p {given}"


def test_weights_that_few_held_out_rows_cannot_judge_say_so():
    found = {"draws": 1024, "seconds": 1.0, "accepted": 0.5}
    for rows, few in ((0, "0 held-out rows are"), (1, "1 held-out row is"), (90, "90 held-out rows are")):
        words = marginals_words({**found, "rows": rows})
        assert words.endswith(f"; {few} too few to judge their KS by (raise --holdout)."), words
    words = marginals_words({**found, "rows": 90, "numbers": 0, "trees": 3})
    assert words.startswith("Rows are nearer") and words.endswith("of the rows drawn."), "a table without numbers"
