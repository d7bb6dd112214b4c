"""Evaluation of models and of samples: floors, protocols, files, parts, sweeps, the user's own parts."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato as sf
from sfumato.metrics import KID, Evaluator, compare, evaluate, sweep
from sfumato.metrics.drawing import draw
from sfumato.training import Run
from sfumato.training.console import Silent
from symbol_cases import Independent

LAW = sf.exact.GaussianMixture([0.5, 0.5], [[-2.0, 0.0], [2.0, 0.0]], [0.3, 0.3])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """A run on two classes of points, not quite untrained."""
    folder = tmp_path_factory.mktemp("run")
    x, labels = LAW.labelled(400, 0)
    np.savez(folder / "x.npz", x=x.float().numpy(), labels=labels.numpy())
    how = {"steps": 4, "batch": 16, "net": "tiny", "precision": "float32", "snapshots": 0, "holdout": 0.3}
    return sf.train(folder / "x.npz", folder / "run", console=Silent(), **how)


@pytest.fixture(scope="module")
def exact():
    return LAW.denoiser(sf.Gaussian(sf.schedules.Cosine()))


def pictures(n: int = 60, seed: int = 0, top: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, top, (n, 3, 8, 8), dtype=np.uint8)


def test_an_exact_model_reaches_the_floor(exact):
    found = evaluate(exact, LAW.sample(800, seed=1), n=300, steps=20)
    assert list(found) == ["sliced-wasserstein", "mmd", "energy", "marginals"]
    for metric in found.values():
        assert metric.floor is not None and metric.value < metric.floor.value + 3 * metric.floor.half
    assert found["mmd"].interval.low < 0 < found["mmd"].interval.high


def test_a_wrong_model_does_not():
    wrong = sf.exact.GaussianMixture([1.0], [[0.0, 0.0]], [1.0]).denoiser(sf.Gaussian(sf.schedules.Cosine()))
    for metric in evaluate(wrong, LAW.sample(800, seed=1), n=300, steps=10).values():
        assert metric.interval.low > metric.floor.high


def test_the_protocol_says_all_and_differs_where_sampling_does(exact):
    data = LAW.sample(400, seed=1)
    usual = evaluate(exact, data, "mmd", 100, steps=5, solver="heun")["mmd"]
    protocol = usual.protocol
    assert protocol["metric"] == "MMD(bandwidth=None)" and protocol["samples"] == protocol["real"] == 100
    sampler = {"sampler": "Heun(row=flow)", "steps": 5, "calls": 9, "seed": 0, "guidance": None}
    assert {name: protocol[name] for name in sampler} == sampler
    again = evaluate(exact, data, "mmd", 100, steps=5, solver="heun")["mmd"]
    assert again.hash == usual.hash and (again - usual).value == 0
    others = {
        "samples": {"n": 90}, "steps": {"steps": 6}, "sampler": {"solver": "ddim"}, "seed": {"seed": 1},
        "metric": {"metrics": "mmd(bandwidth=2)"},
    }  # fmt: skip
    for name, change in others.items():
        how = {"metrics": "mmd", "n": 100, "steps": 5, "solver": "heun", **change}
        other = next(iter(evaluate(exact, data, **how).values()))
        assert other.hash != usual.hash
        with pytest.raises(sf.SfumatoError, match=f"since their {name} differs"):
            compare(usual, other)
    other = evaluate(exact, LAW.sample(400, seed=2), "mmd", 100, steps=5, solver="heun")["mmd"]
    with pytest.raises(sf.SfumatoError, match="since their reference_hash differs"):
        compare(usual, other)


def test_png_and_memory_agree(tmp_path):
    """Samples written as PNG and read again score what the same bytes in memory score."""
    samples, real = pictures(40, 1), pictures(120, 2)
    for i, each in enumerate(samples):
        (tmp_path / "png").mkdir(exist_ok=True)
        Image.fromarray(each.transpose(1, 2, 0)).save(tmp_path / "png" / f"{i:03d}.png")
    memory, files = (evaluate(each, real, n=40) for each in (samples, tmp_path / "png"))
    assert set(memory) == {"kid", "precision", "recall", "density", "coverage", "marginals", "spectrum"}
    for name in memory:
        assert files[name].value == pytest.approx(memory[name].value, abs=1e-6)
        assert files[name].hash == memory[name].hash


def test_pictures_of_a_narrow_range_come_back_from_full_scale(tmp_path):
    """`sample -o folder/` writes values 0..16 as 0..255."""
    digits = sf.data.open("digits")
    samples = digits.x[torch.arange(50)]
    for i, each in enumerate(samples):
        Image.fromarray((each[0].double() / 16 * 255).round().to(torch.uint8).numpy()).save(tmp_path / f"{i:03d}.png")
    memory, files = (evaluate(each, digits, ("kid", "mmd"), 50) for each in (samples, tmp_path))
    for name in memory:
        assert files[name].value == pytest.approx(memory[name].value, rel=0.02)


def test_a_run_is_compared_with_its_training_data_under_their_conditions(run):
    data = Path(run.path).parent / "x.npz"
    found = {part: evaluate(run.path, data, "energy", 40, part=part, steps=2)["energy"] for part in (None, "holdout")}
    assert found[None].protocol["part"] == "train" and found["holdout"].protocol["part"] == "holdout"
    assert found[None].protocol["conditions"] == ["label"] and found[None].protocol["weights"] == "ema"
    with pytest.raises(sf.SfumatoError, match="since their .* differs"):
        compare(*found.values())
    evaluator = Evaluator(run.path, data, "energy", 40)
    train = set(evaluator.source.split(0.3)[0].tolist())
    assert {*evaluator.reference.rest.tolist(), *evaluator.reference.real.tolist()} <= train
    assert not {*evaluator.reference.rest.tolist()} & {*evaluator.reference.real.tolist()}
    assert evaluate(run.path, LAW.sample(100), "energy", 20, steps=2)["energy"].protocol["part"] == "all"


def test_a_sweep_draws_every_combination_and_the_floor_once(run, tmp_path):
    evaluator = Evaluator(run.path, Path(run.path).parent / "x.npz", ["energy", "mmd"], 40)
    points = sweep(evaluator, {"steps": [2, 4], "solver": ["heun", "ddim"]}, seed=3)
    assert [point.settings for point in points] == [
        {"steps": steps, "solver": solver} for steps in (2, 4) for solver in ("heun", "ddim")
    ]
    assert [point.metrics["mmd"].protocol["calls"] for point in points] == [3, 2, 7, 4]
    assert len({point.metrics["mmd"].floor for point in points}) == 1
    first, second = (point.metrics["mmd"] for point in points[:2])
    assert compare(first, second, varying=("sampler", "calls")).value == first.value - second.value
    draw(points, tmp_path / "sweep.png")
    assert Image.open(tmp_path / "sweep.png").size[0] > 900
    with pytest.raises(sf.SfumatoError, match="stepz cannot be swept: did you mean 'steps'"):
        sweep(evaluator, {"stepz": [2]})


def test_guidance_is_in_the_protocol(run):
    how = {"reference": Path(run.path).parent / "x.npz", "metrics": "mmd", "n": 30, "steps": 2}
    plain, guided = evaluate(run.path, **how)["mmd"], evaluate(run.path, guidance=3.0, **how)["mmd"]
    assert guided.protocol["guidance"] == 3.0 and guided.value != plain.value
    raw = evaluate(run.path, weights="raw", **how)["mmd"]
    assert (plain.protocol["weights"], raw.protocol["weights"]) == ("ema", "raw") and raw.value != plain.value


def test_features_of_ones_own():
    class Colours(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.eye(3))

        def forward(self, x):
            return x.mean((2, 3)) @ self.weight / 255

    net = Colours()
    found = evaluate(pictures(40, 1), pictures(120, 2), "fd", 40, features=net)["fd"]
    assert found.protocol["features"].endswith("Colours") and 0 <= found.value < 1
    with torch.no_grad():
        net.weight[0, 0] = 2
    other = evaluate(pictures(40, 1), pictures(120, 2), "fd", 40, features=net)["fd"]
    with pytest.raises(sf.SfumatoError, match="since their features_hash differs"):
        compare(found, other)


def test_a_registered_metric_by_its_name(registered):
    @sf.register("metric", "mean-shift")
    @dataclasses.dataclass(frozen=True)
    class MeanShift:
        power: int = 1
        space = "numbers"

        def __call__(self, x, y):
            return KID()(x, y)._replace(value=float((x.mean(0) - y.mean(0)).abs().pow(self.power).sum()))

    found = evaluate(LAW.sample(60, seed=1), LAW.sample(120, seed=2), "mean-shift(power=2)", 60)
    assert found["mean-shift(power=2)"].protocol["metric"].endswith("MeanShift(power=2)")


def test_texts_against_texts():
    words = [f"the {animal} sat on the {thing}. " for animal in ("cat", "dog", "hen") for thing in ("mat", "log")]
    book = "".join(words[int(k)] for k in np.random.default_rng(0).integers(0, 6, 400))
    source = sf.data.open([book], length=64)
    samples = ["the cat sat on the log. the cat sat on the log. the cat sat on."] * 9 + ["zzz qqq the cat sat on the "]
    found = evaluate(samples, source, n=10)
    assert list(found) == ["ngram-overlap", "distinct", "known-words"]
    assert 0.9 < found["known-words"].value < 1 == pytest.approx(found["known-words"].floor.value, abs=0.05)
    assert found["distinct"].value < found["distinct"].floor.value
    with pytest.raises(sf.SfumatoError, match="is a metric of numbers"):
        evaluate(samples, source, "mmd", 10)
    with pytest.raises(sf.SfumatoError, match="measures a model, and samples are none"):
        evaluate(samples, source, "bits-per-character", 10)


def test_a_model_of_text_is_measured_by_its_bits_and_its_texts():
    """Letters that are drawn one by one: the bound is their entropy, and words of the data are met by chance alone."""
    law = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    book = "".join(np.random.default_rng(0).choice(list("abc "), 8000, p=law.numpy()))
    source = sf.data.open([book], length=20)
    spec = sf.data.DataSpec.fit(source)
    in_order = torch.stack([law["abc ".index(symbol)] for symbol in spec.text.symbols])
    model = sf.Denoiser(Independent(in_order), sf.Masked(sf.schedules.Flow(), 4), spec=spec)
    found = evaluate(model, source, n=50, steps=20)
    entropy = -float((law * law.log2()).sum())
    bits = found.pop("bits-per-character")
    assert bits.floor is None and bits.value == pytest.approx(entropy, abs=0.1)
    assert "calls" not in bits.protocol and bits.protocol["reference_hash"]
    assert bits.protocol["likelihood"] == "bound" and bits.protocol["part"] == "all"
    model.provenance = {"data": source.name, "samples": len(source), "holdout": 0.3}
    kept = {}
    for part in (None, "holdout", "train", "all"):
        kept[part] = evaluate(model, source, "bits-per-character", 10, part=part)["bits-per-character"].protocol
    assert kept[None] == kept["holdout"] and len({each["reference_hash"] for each in kept.values()}) == 3
    for metric in found.values():
        chance = 4 * (metric.interval.half + metric.floor.half)  # shares near 1 have intervals of no width
        assert metric.protocol["calls"] == 20 and abs(metric.value - metric.floor.value) <= chance


def test_names_of_metrics_may_have_commas_between():
    x = np.random.default_rng(0).normal(size=(80, 2))
    told = ("mmd(bandwidth=2), energy", ["mmd(bandwidth=2)", "energy"])
    one, other = (evaluate(x[:40], x[40:], metrics, 20, part="all") for metrics in told)
    assert list(one) == list(other) == told[1] and one["energy"].value == other["energy"].value


def test_what_is_usual_depends_on_the_data():
    tiny, tracks = pictures(40)[:, :, :2, :2], torch.randn(40, 2, 12, generator=torch.Generator().manual_seed(0))
    found = evaluate(tiny[:15], tiny)
    assert "kid" in found and "spectrum" not in found  # no frequencies in 2 x 2
    assert found["kid"].protocol["features"] == "numbers"  # nor quarters with neighbours
    assert {"mmd", "spectrum", "autocorrelation"} <= set(evaluate(tracks[:15], tracks))


def test_mistakes(exact, run):
    data = LAW.sample(100)
    with pytest.raises(sf.SfumatoError, match="has 100 samples to compare with, and two halves of 60 need 120"):
        evaluate(exact, data, "mmd", 60)
    with pytest.raises(sf.SfumatoError, match="There is no metric 'kidd': did you mean 'kid'"):
        evaluate(exact, data, "kidd")
    with pytest.raises(sf.SfumatoError, match="needs the data that the model was trained on"):
        evaluate(exact, data, "mmd", part="holdout")
    with pytest.raises(sf.SfumatoError, match="There is no part 'hold'"):
        evaluate(run.path, Path(run.path).parent / "x.npz", "mmd", part="hold")
    with pytest.raises(sf.SfumatoError, match="There are 20 samples, and 30 were asked for"):
        evaluate(data[:20], data, "mmd", 30)
    with pytest.raises(sf.SfumatoError, match=r"have shape \(3,\), but .* \(2,\)"):
        evaluate(torch.zeros(20, 3), data, "mmd")
    with pytest.raises(sf.SfumatoError, match="Distinct is a metric of texts"):
        evaluate(exact, data, "distinct")
    with pytest.raises(sf.SfumatoError, match="share no condition, so there is no guidance"):
        evaluate(exact, data, "mmd", guidance=2.0)
    with pytest.raises(sf.SfumatoError, match="sweep a model"):
        sweep(Evaluator(data[:20], data, "mmd", 20), {"steps": [1]})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_samples_that_are_no_numbers_are_refused(bad):
    x = torch.zeros(60, 3)
    x[7, 1] = bad
    with pytest.raises(sf.SfumatoError, match=r"NaN or infinite, the first at \(7, 1\)"):
        sf.metrics.evaluate(x, torch.randn(60, 3), n=20)
