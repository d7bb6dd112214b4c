"""Scores by the loop of the package: energies, score matching as a goal, NCSN's levels, from settings to files."""

import pytest
import torch

import sfumato as sf
from sfumato import noise
from sfumato.errors import SfumatoError
from sfumato.exact import GaussianMixture
from sfumato.objectives import score_matching, weights
from sfumato.objectives.losses import Denoising, Plain
from sfumato.serialization import describe
from sfumato.training.config import TrainConfig
from sfumato.training.console import Silent
from sfumato.training.loop import fit
from sfumato.training.state import State

LAW = GaussianMixture([0.4, 0.6], [[-1.0, 0.4], [0.9, -0.2]], [0.15, 0.1])
CONFIG = TrainConfig(steps=120, batch=256, lr=5e-3, optimizer="adamw", weight_decay=0.0, precision="float32")


def error(denoiser, sigma):
    """sqrt(E|s - grad log p|^2 / E|grad log p|^2) of the law with that noise."""
    noised = LAW.noised(1.0, sigma)
    z = noised.sample(2000, seed=9)
    t = denoiser.process.schedule.time(-2 * torch.tensor(sigma, dtype=torch.float64).log())
    with torch.no_grad():
        off = 2 * score_matching.explicit(denoiser, z.float(), noised.score(z), t).double()
    return float((off.mean() / noised.score(z).square().sum(1).mean()).sqrt())


def denoiser(energy=False):
    torch.manual_seed(0)
    net = sf.nets.MLP(2, 48, 2)
    return sf.Denoiser(sf.nets.Energy(net) if energy else net, sf.Gaussian(sf.schedules.VE(0.1, 5.0)), "F")


def trained(model, goal, samples=30_000):
    state = State(model, CONFIG, goal)
    x = LAW.sample(samples, seed=1).float()
    last = list(fit(model, x, CONFIG, holdout=(LAW.sample(64, seed=2).float(), None), state=state))[-1]
    assert last.done and last.validation is not None and last.validation.best < float("inf")
    return state.best


@pytest.mark.parametrize("energy", [False, True], ids=["free", "energy"])
def test_the_loop_trains_at_counted_levels(energy):
    """NCSN: `Levels` as the times of the default goal with w = 1; the levels and none between are learned."""
    levels = score_matching.Levels.geometric(0.3, 3.0, 3)
    best = trained(denoiser(energy), Denoising(levels, weights.elbo(), seed=0))
    assert error(denoiser(energy), 0.3) > 0.5  # of the linear denoiser that a new network is
    for sigma in levels.sigmas:
        assert error(best, sigma) < 0.3


def test_the_loop_trains_by_sliced_score_matching():
    """No pairs of clean and noisy samples: the noised law at one level is all that is seen."""
    schedule, sigma = denoiser().process.schedule, 0.5
    t = float(schedule.time(-2 * torch.tensor(sigma, dtype=torch.float64).log()))

    def losses(model, batch):
        z = batch.x + sigma * noise.normal(3, batch.index, tuple(batch.x.shape[1:]))
        return score_matching.sliced(model, z, t, seed=4, index=batch.index)

    best = trained(denoiser(), Plain(losses))
    assert error(best, sigma) < 0.3 < error(denoiser(), sigma)


def test_a_run_with_an_energy(tmp_path):
    """From the setting to the file: `energy=True` is the network of the run, and of what is loaded."""
    settings = {"steps": 4, "batch": 8, "precision": "float32", "net": "tiny", "energy": True}
    x = LAW.sample(60, seed=3).float().numpy()
    sf.train(x, tmp_path / "run", console=Silent(), **settings)
    loaded = sf.load(tmp_path / "run")
    z = torch.tensor([[0.3, -0.4], [1.0, 0.2]])
    own = z.clone().requires_grad_()
    (slope,) = torch.autograd.grad(sf.energy(loaded, own, 0.4).sum(), own)
    torch.testing.assert_close(-slope, loaded(z, 0.4).score, rtol=1e-4, atol=1e-5)
    assert any("an energy made of an MLP" in line for line in describe(tmp_path / "run"))
    assert sf.sample(loaded, 2, 3).shape == (2, 2)


def test_the_setting_is_yes_or_no():
    with pytest.raises(SfumatoError, match="energy must be true or false"):
        TrainConfig(energy="yes")
    with pytest.raises(SfumatoError, match="energy or variance"):
        TrainConfig(energy=True, variance="learned")
