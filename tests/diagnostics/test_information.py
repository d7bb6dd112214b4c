"""How much a condition says, in nats: the integral of two losses against quadrature."""

import json
import math

import numpy as np
import pytest
import torch

import sfumato as sf
from sfumato.conditions import Given
from sfumato.diagnostics.information import information
from sfumato.errors import SfumatoError
from sfumato.exact import GaussianMixture
from sfumato.training.console import Silent


def mutual(means: list[float], widths: list[float], weights: list[float]) -> float:
    """I(x; label) of a mixture in one dimension, by the trapezoidal rule: sum_k w_k KL(p_k, p)."""
    x = torch.linspace(-20, 20, 200_001, dtype=torch.float64)
    m, s, w = (torch.tensor(v, dtype=torch.float64)[:, None] for v in (means, widths, weights))
    log_p = -0.5 * ((x - m) / s) ** 2 - s.log() - 0.5 * math.log(2 * math.pi)
    joint = log_p + w.log()
    terms = w * log_p.exp() * (log_p - joint.logsumexp(0))
    return float(torch.trapezoid(terms.sum(0), x))


def test_three_classes_of_a_mixture():
    means, widths, weights = [-2.5, 0.0, 2.5], [1.0] * 3, [1 / 3] * 3
    exact = mutual(means, widths, weights)
    assert exact == pytest.approx(0.7628, abs=1e-4)
    law = GaussianMixture(weights, [[m] for m in means], [s**2 for s in widths])
    for schedule in (sf.schedules.Cosine(), sf.schedules.VE()):
        model = law.denoiser(sf.Gaussian(schedule))
        x, label = law.labelled(8000, seed=1)
        found = information(model, x, 40_000, label=label)
        (name, said), together = next(iter(found.each.items())), found.together
        assert name == "label" and said == together
        assert said.low <= exact <= said.high, (schedule, said)
        assert said.high - said.low < 0.12, schedule
    again = information(model, x, 40_000, label=label, batch=999)
    assert again.together.value == pytest.approx(found.together.value, abs=1e-9)


def test_classes_that_are_alike_and_labels_at_random_say_nothing():
    law = GaussianMixture([0.5, 0.5], [[0.0], [0.0]], [1.0, 1.0])
    model = law.denoiser(sf.Gaussian(sf.schedules.Cosine()))
    x, label = law.labelled(500, seed=1)
    assert abs(information(model, x, 2000, label=label).together.value) < 1e-9
    apart = GaussianMixture([0.5, 0.5], [[-2.0], [2.0]], [1.0, 1.0])
    model, (x, label) = apart.denoiser(sf.Gaussian(sf.schedules.Cosine())), apart.labelled(500, seed=1)
    wrong = label[torch.randperm(500, generator=torch.Generator().manual_seed(0))]
    assert information(model, x, 2000, label=wrong).together.high < 0, "worse than none: they mislead"


class Sum:
    """x = a + b + noise, both known apart: E[x | z] under any of the two, in closed form."""

    VARIANCE, A, B = 0.25, 1.0, 0.5

    def __init__(self):
        self.process, self.shape = sf.Gaussian(sf.schedules.Cosine()), (1,)

    def __call__(self, z, t, /, a=None, b=None):
        alpha, sigma = (v.reshape(-1, 1) for v in self.process.schedule(t))
        mean, variance = torch.zeros_like(z), torch.full_like(z, self.VARIANCE)
        for given, square in ((a, self.A), (b, self.B)):
            known = Given.of(given) if given is not None else None
            here = torch.zeros(len(z), 1, dtype=torch.bool) if known is None else known.present[:, None]
            mean = mean + (0 if known is None else torch.where(here, known.values[:, None], 0.0))
            variance = variance + torch.where(here, 0.0, square)
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        return sf.Estimate(z, t, self.process.schedule, x=mean + gain * (z - alpha * mean))


def test_each_of_two_beside_the_other():
    """I(x; a | b) = 1/2 log((s^2 + A) / s^2), and together 1/2 log((s^2 + A + B) / s^2)."""
    generator = torch.Generator().manual_seed(0)
    a, b, eps = (torch.randn(6000, generator=generator, dtype=torch.float64) for _ in range(3))
    a, b, s2 = Sum.A**0.5 * a, Sum.B**0.5 * b, Sum.VARIANCE
    found = information(Sum(), (a + b + s2**0.5 * eps)[:, None], 30_000, a=a, b=b)
    wanted = {"a": 0.5 * math.log((s2 + Sum.A) / s2), "b": 0.5 * math.log((s2 + Sum.B) / s2)}
    for name, exact in wanted.items():
        said = found.each[name]
        assert said.low <= exact <= said.high and said.half < 0.06, (name, said, exact)
    exact = 0.5 * math.log((s2 + Sum.A + Sum.B) / s2)
    assert found.together.low <= exact <= found.together.high
    assert "a: " in str(found) and "all together" in str(found)
    assert found.to_dict()["each"]["a"]["value"] == found.each["a"].value


def test_mistakes_are_said():
    law = GaussianMixture([0.5, 0.5], [[0.0], [1.0]], [1.0, 1.0])
    model = law.denoiser(sf.Gaussian(sf.schedules.Cosine()))
    with pytest.raises(SfumatoError, match="needs a condition"):
        information(model, torch.zeros(4, 1))


def test_of_whatever_data_open_takes(tmp_path):
    x = np.random.default_rng(0).normal(size=(80, 2))
    given = {"x": x, "temperature": x[:, 0] + 300, "kind": np.array(["a", "b"] * 40)}
    run = sf.train(given, tmp_path / "run", steps=2, batch=8, net="tiny", precision="float32", snapshots=0,
                   console=Silent())  # fmt: skip
    facts = json.loads((run.path / "report.json").read_text())
    asked = f"the run was too short (sf.information(sf.load({str(run.path)!r}), data) measures it in Python)"
    assert facts["conditions"] is None and facts["conditions_missing"] == asked
    assert (
        "The information of the conditions was not measured: the run was too short"
        in (run.path / "report.html").read_text()
    )
    model = sf.load(run.path)
    np.savez(tmp_path / "d.npz", **given)
    for data in (given, tmp_path / "d.npz", sf.data.open(given)):
        found = information(model, data, 64)
        assert set(found.each) == {"temperature", "kind"}
    held = sf.data.open(given).split(0.05)[1]  # of the training data what was held out
    by_hand = information(model, x[held], 64, temperature=x[held, 0] + 300, kind=given["kind"][held])
    assert information(model, given, 64).together.value == pytest.approx(by_hand.together.value, abs=1e-9)
    with pytest.raises(SfumatoError, match="is not data|does not exist"):
        information(model, "nowhere")
