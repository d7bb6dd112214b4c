"""Learning the variance of a step: settings, goal, file and sampler, on data whose best variance is known."""

import math

import pytest
import torch

import sfumato as sf
from sfumato.diagnostics.validation import validator_for
from sfumato.errors import SfumatoError
from sfumato.objectives import times
from sfumato.objectives.history import LossHistory
from sfumato.objectives.hybrid import Defensive
from sfumato.objectives.losses import Hybrid, VariationalBound
from sfumato.schedules import Flow
from sfumato.training import State, fit
from sfumato.training.config import TrainConfig
from sfumato.training.parts import loss_of

F64 = torch.float64


def test_a_run_learns_a_variance_and_its_file_samples(tmp_path):
    """`variance="learned"`, from settings to samples, and on from a checkpoint."""
    x = sf.exact.GaussianMixture([0.5, 0.5], [[-1.0, 0.5], [0.8, 0.0]], 0.05).sample(300, seed=1).float().numpy()
    settings = {"variance": "learned", "net": "tiny", "batch": 16, "sample_every": 0}
    run = sf.train(x, out=tmp_path / "run", steps=30, **settings)
    assert run.denoiser.variance == "learned" and run.denoiser.net.outputs == 2
    assert sf.load(tmp_path / "run").variance == "learned"
    drawn = sf.sample(run.denoiser, 5, 4, sf.solvers.LearnedDDPM())
    assert drawn.shape == (5, 2) and bool(drawn.isfinite().all())
    bound = sf.vlb(run.denoiser, x[:20], steps=10)
    fixed = sf.vlb(run.denoiser, x[:20], steps=10, variance="posterior")
    assert bool((bound.total != fixed.total).all())
    sf.train(x, out=tmp_path / "half", steps=15, decay=0.0, warmup=0, **settings)
    again = sf.resume(tmp_path / "half", data=x, steps=30)
    assert again.denoiser.variance == "learned"


def test_the_goal_is_named_by_the_settings():
    goal = loss_of(TrainConfig(variance="learned", times="logit-normal"))
    assert isinstance(goal, Hybrid) and not isinstance(loss_of(TrainConfig()), Hybrid)
    for changes, words in (
        ({"variance": "learn"}, "did you mean 'learned'"),
        ({"variance": "learned", "times": "adaptive", "weight": "elbo"}, "fixed time density"),
        ({"variance": "learned", "energy": True}, "energy"),
    ):
        with pytest.raises(SfumatoError, match=words):
            loss_of(TrainConfig(**changes))


def test_a_quarter_of_the_levels_is_uniform():
    """The mixture's quantile and density belong together: E 1 / p dlogsnr is the length of the range."""
    curve, law, n = Flow(), Defensive(times.logit_normal(0.5, 0.4)), 40_000
    u = (torch.arange(n, dtype=F64) + 0.5) / n
    logsnr = law.logsnr(u, curve)
    assert float((1 / law.density(logsnr, curve)).mean()) == pytest.approx(30, rel=2e-3)
    t = curve.time(logsnr)
    assert float((t < 0.1).double().mean()) == pytest.approx(0.25 * 0.1, abs=2e-3)
    middle = curve.time(law.base.logsnr(u, curve))
    wanted = 0.25 * 0.5 + 0.75 * float(middle.mean())
    assert float(t.mean()) == pytest.approx(wanted, abs=1e-3)


def test_the_learned_variance_is_the_best_of_its_family():
    """On N(0, c) with the exact mean, the hybrid loss finds v of posterior + gain^2 Var[x|z], level by level."""
    c, steps, process = 0.25, 8, sf.Gaussian(sf.schedules.Cosine())

    class Net(torch.nn.Module):
        """The exact v-prediction of N(0, c), and one free number a level."""

        outputs = 2

        def __init__(self):
            super().__init__()
            self.share = torch.nn.Parameter(torch.zeros(steps + 1, dtype=F64))

        def forward(self, z, level):
            t = process.schedule.time(-8 * level.double())
            alpha, sigma = (v[:, None] for v in process.schedule(t))
            state = z * torch.sqrt(alpha**2 + sigma**2)
            x = alpha * c / (alpha**2 * c + sigma**2) * state
            eps = sigma / (alpha**2 * c + sigma**2) * state
            return torch.cat((alpha * eps - sigma * x, self.share[(t * steps).round().long()][:, None]), 1)

    torch.manual_seed(0)
    denoiser = sf.Denoiser(Net(), process, variance="learned")
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=0.1)
    for k in range(150):
        index = torch.arange(4096) + 4096 * k
        x = math.sqrt(c) * sf.exact.GaussianMixture([1.0], [[0.0]], 1.0).sample(4096, seed=2, first=4096 * k)
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - k / 150)
        optimizer.zero_grad()
        sf.hybrid_loss(denoiser, x, index=index, steps=steps, share=1.0).mean().backward()
        optimizer.step()
    found = (1 + denoiser.net.share.detach()) / 2
    for k in range(2, steps):
        t, s = k / steps, (k - 1) / steps
        law, (a_t, s_t), (a_s, s_s) = process.posterior(s, t), process.schedule(t), process.schedule(s)
        variance = c * s_t**2 / (a_t**2 * c + s_t**2)
        tilde, beta = law.std**2, s_t**2 - (a_t / a_s * s_s) ** 2
        best = ((tilde + law.x**2 * variance) / tilde).log() / (beta / tilde).log()
        assert float(found[k]) == pytest.approx(float(best), abs=0.03)


def test_training_by_the_bound_lowers_it_and_follows_its_losses():
    """L_vlb with importance sampling by loss history; a state that is loaded goes on with the same levels."""
    law, steps = sf.exact.GaussianMixture([0.5, 0.5], [[-1.0, 0.5], [0.8, 0.0]], 0.1), 10
    torch.manual_seed(0)
    denoiser = sf.Denoiser(sf.nets.MLP(2, width=32, depth=1, outputs=2), sf.Gaussian(Flow()), variance="learned")
    x, held = law.sample(2000).float(), law.sample(500, seed=5)
    config = TrainConfig(steps=150, batch=64, lr=3e-3, optimizer="adamw")
    goal = VariationalBound(steps, history=LossHistory(steps, length=4))
    state = State(denoiser, config, goal)
    before = float(sf.vlb(denoiser, held, steps).total.mean())
    last = list(fit(denoiser, x, config, holdout=(held.float(), None), state=state))[-1]
    assert last.validation is not None and math.isfinite(last.validation.best)
    denoiser.eval()
    after = sf.vlb(denoiser, held, steps)
    assert float(after.total.mean()) < before - 0.3
    found = validator_for(goal, denoiser, held.float(), {}, 4000, 500).measure(denoiser, None)
    assert found.best * 2 == pytest.approx(float((after.total - after.prior).mean()), abs=0.15)
    assert goal.history.full and float(goal.history.mass.max()) > 2 / steps
    other = State(denoiser, config, VariationalBound(steps, history=LossHistory(steps, length=4)))
    other.load({name: value.clone() for name, value in state.tensors().items()}, state.counters())
    torch.testing.assert_close(other.loss.history.mass, goal.history.mass)
