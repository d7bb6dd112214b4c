"""Environments with known optima, episodes of a policy in them, and policies that rewards train."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import sfumato as sf
from bandits import Mixture, moments, policy, train
from sfumato.reinforce import Grid, PointMass, Reward, TwoTargets, align, explore, play
from sfumato.reinforce.control import STATE, Environment, Episodes, quadratic
from sfumato.reinforce.losses import FlowPolicy
from sfumato.reinforce.walks import StepPolicy
from sfumato.training.console import Silent

QUIET = {"sample_every": 0, "console": Silent()}


class Known(Environment):
    """An environment whose actions are those of a function of the state instead of a policy's."""

    def __init__(self, inner: Environment, law) -> None:
        self.inner, self.law = inner, law
        self.horizon, self.size = inner.horizon, inner.size

    def start(self, seed: int, index: Tensor) -> Tensor:
        return self.inner.start(seed, index)

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner.step(state, self.law(state))


def test_the_value_of_the_point_mass_is_the_best_return() -> None:
    """By gradient descent on all forces at once, which is another way to the same optimum."""
    mass = PointMass()
    first = mass.start(0, torch.arange(8)).double()
    forces = torch.zeros(mass.horizon, 8, 1, dtype=torch.float64, requires_grad=True)

    def total() -> Tensor:
        state, found = first, torch.zeros(8, dtype=torch.float64)
        for force in forces:
            state, reward = mass.step(state, force)
            found = found + reward
        return found

    optimizer = torch.optim.LBFGS([forces], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -total().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert torch.allclose(total().detach(), mass.value(first), atol=1e-6)
    assert bool((mass.value(first) < 0).all())


def test_the_shortest_way_through_the_grid() -> None:
    grid = Grid(5)

    def towards(state: Tensor) -> Tensor:
        up, left = state[:, 0] > 2, state[:, 1] > 2
        return torch.where(state[:, 0] != 2, (~up).long(), 2 + (~left).long())[:, None]

    found = play(None, Known(grid, towards), 64)
    first = grid.start(0, torch.arange(64))
    assert torch.equal(found.returns, -(first - 2).abs().sum(1).double())
    assert {tuple(each) for each in first.tolist()} <= {(i, j) for i in range(5) for j in range(5)}
    with pytest.raises(sf.SfumatoError, match="odd"):
        Grid(4)


def test_an_episode_does_not_depend_on_the_others() -> None:
    for environment in (PointMass(), Grid(), TwoTargets()):
        whole, part = play(None, environment, 6, seed=3), play(None, environment, 2, seed=3, first=4)
        horizon = environment.horizon
        assert torch.equal(whole.rewards[:, 4:], part.rewards)
        assert torch.equal(whole.states.reshape(horizon, 6, -1)[:, 4:], part.states.reshape(horizon, 2, -1))
    assert explore(Grid(), 4)["x"].unique().tolist() == [0, 1, 2, 3]


@pytest.fixture(scope="module")
def mover(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy of random forces on the point mass."""
    out = tmp_path_factory.mktemp("mover") / "run"
    return sf.train(explore(PointMass(), 64), out, net="MLP(width=32, depth=2)", steps=60, batch=64, **QUIET).path


def test_advantages_are_what_follows_less_a_quadratic(mover: Path) -> None:
    """A return that is a quadratic of the state has no advantage; an action is not paid for what came before it."""
    episodes = Episodes(sf.load(mover), PointMass(), 16 * 32)
    state = episodes.states.double().reshape(16, 32, 2)
    to_go = 3 - state[..., 0] ** 2 + state[..., 0] * state[..., 1]
    net = torch.cat((to_go[:-1] - to_go[1:], to_go[-1:]))  # its sums from each step on are to_go
    assert float(episodes.relative(net.flatten()).abs().max()) < 1e-4
    paid = torch.zeros(16, 32, dtype=torch.float64)
    paid[3, 5] = 1.0
    found = episodes.relative(paid.flatten()).reshape(16, 32)
    assert float(found[4:].abs().max()) < 1e-9 and float(found[3, 5]) > 0.3
    assert quadratic(torch.randn(4, 2)).shape == (4, 6)


def test_a_policy_learns_in_an_environment(mover: Path, tmp_path: Path) -> None:
    """From file to file; the report speaks of returns, and conditions are the states that were met."""
    found = align(mover, PointMass(), out=tmp_path / "run", samples=512, steps=2, batch=32, **QUIET)
    assert found.report.before is not None and found.report.before.value < -1
    model = sf.load(tmp_path / "run")
    assert sf.sample(model, 3, state=[0.5, -0.5]).shape == (3, 1)
    loss = FlowPolicy(model, PointMass(), samples=64)
    assert loss.rollouts.conditions(torch.arange(5))[STATE].values.shape == (5, 2)
    for make, said in (
        (lambda: StepPolicy(model, PointMass(), samples=64), "take fpo"),
        (lambda: FlowPolicy(model, PointMass(), samples=16), "two episodes"),
        (lambda: FlowPolicy(policy([0.0]), PointMass()), "condition 'state'"),
    ):
        with pytest.raises(sf.SfumatoError, match=said):
            make()


def test_a_flow_keeps_both_modes_where_a_gaussian_keeps_one() -> None:
    """r = -(|x| - 1)^2 / (2 0.3^2): the tilt of a law that is even has half of its mass on each side."""
    twice = Reward(lambda x: -((x[:, 0].abs() - 1) / 0.3).square() / 2)
    flow = sf.Denoiser(Mixture([-0.5, 0.5], 0.75), sf.Gaussian("cosine", target="x"))
    flow = train(FlowPolicy(sf.Denoiser(Mixture([-0.5, 0.5], 0.75), flow.process), twice, every=10), flow, 200)
    share = torch.softmax(flow.net.logits.detach(), 0)
    assert torch.allclose(share, torch.full((2,), 0.5), atol=0.15)
    assert torch.allclose(flow.net.means.detach(), torch.tensor([-1.0, 1.0]), atol=0.3)
    assert float(flow.net.log_v.detach().exp()) < 0.25
    start = policy([0.5], 0.5)
    mean, variance = moments(train(FlowPolicy(policy([0.5], 0.5), twice, every=10), start, 120))
    assert mean > 0.6 and variance < 0.25


@pytest.mark.slow
def test_the_point_mass_is_brought_to_rest(tmp_path: Path) -> None:
    """Random forces lose 19 on average and the best law 0.26; what is learnt is nearer to the best by five."""
    mass = PointMass()
    settings = {"net": "MLP(width=64, depth=2)", "steps": 200, "batch": 128}
    start = sf.train(explore(mass, 256), tmp_path / "start", **settings, **QUIET)
    settings = {"beta": 0.1, "samples": 1024, "steps": 300, "batch": 256, "lr": 2e-3}
    report = align(start.denoiser, mass, method="fpo(every=10)", out=tmp_path / "run", **settings, **QUIET).report
    best = float(mass.value(mass.start(2, torch.arange(256))).mean())
    assert report.before is not None and report.after is not None
    assert best - report.after.value < (best - report.before.value) / 5
