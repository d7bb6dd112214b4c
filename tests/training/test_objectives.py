"""Every named weight and density through the loop: some steps each, finite, and refused before a folder is made."""

import math

import pytest
import torch

import sfumato as sf
from sfumato.errors import SfumatoError
from sfumato.objectives import times, weights
from sfumato.training.config import TrainConfig
from sfumato.training.loop import fit

CASES = [
    *(("logit-normal", name) for name in ("plain", *weights.NAMED)),
    *((name, "sigmoid(bias=-2)") for name in times.NAMED),
    ("mode(s=0.8)", "p2(0.5)"),
]


@pytest.mark.parametrize(("density", "weight"), CASES)
def test_it_trains(density, weight):
    x = sf.exact.GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], [0.2, 0.1]).sample(64).float()
    config = TrainConfig(steps=3, batch=32, times=density, weight=weight, precision="float32", snapshots=0)
    torch.manual_seed(0)
    denoiser = sf.Denoiser(sf.nets.MLP(2, 16, 1), sf.Gaussian(sf.schedules.Flow()), "velocity")
    before = [p.detach().clone() for p in denoiser.net.parameters()]
    *_, last = fit(denoiser, x, config)
    assert last.done and last.loss is not None and 0 < last.loss < 1e6 and math.isfinite(last.grad_norm)
    assert any(not torch.equal(a, b) for a, b in zip(before, denoiser.net.parameters(), strict=True))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"target": "eps", "weight": "min-snr"}, "zero signal"),
        ({"target": "velocity", "schedule": "sigmoid"}, "infinite at t = 1"),
        ({"weight": "sigmoid(bais=2)"}, "did you mean 'bias'"),
        ({"times": "mode(s=3)"}, "-1 <= s"),
        ({"times": "logit-normal(mean=500)"}, "no mass between"),
        ({"times": "adaptive"}, "needs a weight"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_a_run_begins(tmp_path, settings, words):
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).numpy()
    with pytest.raises(SfumatoError, match=words):
        sf.train(x, tmp_path / "run", steps=2, batch=8, net="tiny", precision="float32", **settings)
    assert not (tmp_path / "run").exists()
