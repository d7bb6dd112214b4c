"""Metrics of sequences and sets of several lengths, and of samples with missing values: floors, known laws, orders."""

import numpy as np
import pytest
import torch

import sfumato as sf
from sequence_cases import RHO, SHARES, STEPS, exact, walks
from sfumato.cli import main
from sfumato.data import DataSpec, open
from sfumato.errors import SfumatoError
from sfumato.metrics import Autocorrelation, LawOfLengths, StepMarginals, evaluate
from sfumato.metrics.channels import kolmogorov
from sfumato.metrics.reference import Reference

USUAL = ["lengths", "sliced-wasserstein", "mmd", "energy", "marginals", "step-marginals", "autocorrelation"]


def at_floor(metric):
    return metric.interval.low <= metric.floor.high


def test_an_exact_model_of_sequences_reaches_the_floor():
    _, model = exact(60)
    found = evaluate(model, walks(1200, seed=5), n=400, steps=16)
    assert list(found) == USUAL and all(map(at_floor, found.values())), {n: str(m) for n, m in found.items()}
    assert "NaN beyond each end (numbers: 0, with the mask)" in found["mmd"].protocol["preprocessing"]
    assert found["lengths"].value < 0.1


def test_each_metric_sees_its_own_difference():
    """Steps without correlation, other lengths, another scale at later steps: those metrics that look there say so,
    and the others are at their floor."""
    pytest.importorskip("sklearn")
    real, draw = walks(1200, seed=5), np.random.default_rng(1)
    loose = [draw.normal(size=(n, 1)).astype(np.float32) for n in draw.choice(STEPS, 400, p=SHARES)]
    found = evaluate(loose, real, [*USUAL, "c2st(trees=20)"], 400)
    apart = {name for name, metric in found.items() if not at_floor(metric)}
    assert apart == {"sliced-wasserstein", "mmd", "energy", "autocorrelation", "c2st(trees=20)"}, apart
    longest = [one for one in walks(1200, seed=6) if len(one) == STEPS[-1]][:400]
    found = evaluate(longest, real, USUAL, 400)
    assert found["lengths"].value == pytest.approx(1 - SHARES[-1], abs=0.05) and at_floor(found["step-marginals"])
    assert not at_floor(found["mmd"]) and at_floor(found["autocorrelation"])
    wide = [np.where(np.arange(len(one))[:, None] > 1, 3 * one, one) for one in walks(400, seed=7)]
    assert not at_floor(evaluate(wide, real, "step-marginals", 400)["step-marginals"])


def test_figures_of_padded_samples():
    x, y = (torch.randn(200, 2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    x[:100, :, 3:], y[:50, :, 4:] = torch.nan, torch.nan
    assert LawOfLengths()(x, y).value == pytest.approx(0.5)  # half have 3 of 6 steps, and none of the others
    steps = [kolmogorov(x[:n, c, k][None], y[:m, c, k][None]) for c in range(2) for k in range(6)
             for n, m in [(200, 200)]]  # fmt: skip
    weight = torch.tensor([200.0, 200, 200, 100, 100, 100] * 2)
    assert StepMarginals()(x, y).value == pytest.approx(float((torch.cat(steps) * weight).sum() / weight.sum()))
    alone = kolmogorov(x[100:, 0, 5][None], y[50:, 0, 5][None])
    assert kolmogorov(x[:, 0, 5][None], y[:, 0, 5][None]) == pytest.approx(float(alone))
    walk = torch.from_numpy(np.stack([one.T for one in walks(4000) if len(one) == 9])).double()
    ends = walk.clone()
    ends[::2, :, 4:] = torch.nan
    noise = torch.randn(len(walk), 1, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = np.sqrt(np.mean([RHO ** (2 * lag) for lag in range(1, 5)]))
    assert Autocorrelation()(ends, noise).value == pytest.approx(float(expected), abs=0.05)


def test_lengths_are_not_those_of_vectors():
    x = torch.zeros(8, 3)
    with pytest.raises(SfumatoError, match="no steps"):
        LawOfLengths()(x, x)


def sets(count, seed=0):
    draw = np.random.default_rng(seed)
    return [draw.normal(size=(size, 2)).round(3) for size in draw.integers(3, 7, count)]


def test_metrics_of_sets_do_not_see_the_order_of_points():
    real, made, draw = sets(300), sets(100, 1), np.random.default_rng(2)
    turned = [one[draw.permutation(len(one))] for one in made]
    plain = evaluate(made, real, n=100, unordered=True)
    again = evaluate(turned, [one[draw.permutation(len(one))] for one in real], n=100, unordered=True)
    assert list(plain) == USUAL[:5]
    for name, metric in plain.items():
        assert metric.value == pytest.approx(again[name].value, abs=1e-9), name
        assert "points ordered by their coordinates" in metric.protocol["preprocessing"]
    ordered = [one[np.argsort(one[:, 0])] for one in made]  # the same sets
    seen, blind = (evaluate(ordered, real, "mmd", 100, unordered=each)["mmd"] for each in (False, True))
    assert not at_floor(seen) and at_floor(blind) and seen.hash != blind.hash
    clouds = torch.stack([torch.from_numpy(one[:3].T) for one in real])  # sets of one size
    assert at_floor(evaluate(clouds[:100].flip(2), clouds[100:], "mmd", 100, unordered=True)["mmd"])
    with pytest.raises(SfumatoError, match="no sets of points"):
        evaluate(torch.zeros(40, 3), torch.zeros(40, 3), "mmd", 20, unordered=True)


def test_a_network_without_positions_is_one_of_sets(tmp_path, capsys):
    how = {"net": "SetTransformer(width=16, depth=1)", "steps": 2, "batch": 16, "precision": "float32"}
    np.savez(tmp_path / "clouds.npz", *sets(200))
    run = sf.train(tmp_path / "clouds.npz", tmp_path / "run", sample_every=0, **how)
    found = evaluate(run.denoiser, tmp_path / "clouds.npz", n=40, steps=2)
    assert list(found) == USUAL[:5] and "ordered" in found["mmd"].protocol["preprocessing"]
    assert main(["evaluate", str(tmp_path / "run"), "-n", "40", "--steps", "2", "--metric", "lengths"]) == 0
    capsys.readouterr()
    drawn = str(tmp_path / "drawn.npz")
    assert main(["sample", str(tmp_path / "run"), "-n", "40", "--steps", "2", "--length", "4", "-o", drawn]) == 0
    words = ["evaluate", drawn, "--reference", str(tmp_path / "clouds.npz"), "--metric", "lengths", "-n", "40"]
    assert main([*words, "--unordered"]) == 0
    assert "lengths" in capsys.readouterr().out
    for metric, words in (("spectrum", "of one length"), ("fd(shrink=1)", "")):
        if words:
            with pytest.raises(SfumatoError, match=words):
                evaluate(drawn, tmp_path / "clouds.npz", metric, 40)
    with pytest.raises(SfumatoError, match="2 channels"):
        evaluate([one[:, :1] for one in sets(40)], tmp_path / "clouds.npz", "mmd", 20)
    longer = [np.zeros((12, 2)) + i for i in range(40)]
    assert evaluate(longer, tmp_path / "clouds.npz", "lengths", 40)["lengths"].value == 1


def test_copies_of_sequences_are_found():
    """Half of the samples are training sequences: copies, and equal bit for bit; new ones are not."""
    train, unseen, new = walks(600, 2), walks(200, 2, 1), walks(200, 2, 2)
    model = type("Model", (), {"spec": DataSpec.fit(open(train)), "process": None, "provenance": {}})()
    fresh = sf.memorization(model, train, unseen, generated=new)
    assert fresh.verdict == "none" and fresh.exact == 0
    found = sf.memorization(model, train, unseen, generated=[*train[:100], *new[:100]])
    assert found.verdict == "memorised" and found.exact == 100


def test_samples_are_judged_by_the_values_that_real_ones_have():
    draw = np.random.default_rng(0)
    whole = draw.multivariate_normal([0, 3], [[1, 0.95], [0.95, 1]], 2400)
    real = np.where(draw.random(whole.shape) < 0.3, np.nan, whole)[:1600]
    right, wrong = torch.from_numpy(whole[1600:]), torch.from_numpy(draw.normal([0, 3], 1, (800, 2)))
    names = ["marginals", "mmd", "energy", "sliced-wasserstein"]
    found = evaluate(right, real, names, 800)
    assert all(map(at_floor, found.values())), {n: str(m) for n, m in found.items()}
    assert "missing as in real samples" in found["mmd"].protocol["preprocessing"]
    apart = {name for name, metric in evaluate(wrong, real, names, 800).items() if not at_floor(metric)}
    assert apart == {"mmd", "energy", "sliced-wasserstein"}
    filled = torch.from_numpy(np.where(np.isnan(real), np.nanmean(real, 0), real))
    assert not at_floor(evaluate(filled[:400], real[400:], "marginals", 400)["marginals"])
    gaps = torch.from_numpy(real)  # beside each other as they are
    assert at_floor(evaluate(gaps[:400], gaps[400:], "mmd", 400)["mmd"])
    with pytest.raises(SfumatoError, match="NaN or infinite"):
        evaluate(gaps[:400], torch.from_numpy(whole), "mmd", 400)
    broken = [np.where(np.arange(len(one))[:, None] == 1, np.nan, one) for one in walks(60)]
    with pytest.raises(SfumatoError, match="sequences with missing steps"):
        Reference(open(broken), torch.arange(60), 20)
