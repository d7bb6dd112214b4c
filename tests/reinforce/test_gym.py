"""Environments of gymnasium: its own numbers step by step, seeds by episode, and a policy that is trained in one."""

import sys
from pathlib import Path

import pytest
import torch

import sfumato as sf
from sfumato.reinforce import Gymnasium, align, explore, play
from sfumato.training.console import Silent

QUIET = {"sample_every": 0, "console": Silent()}


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(sf.SfumatoError, match=r"pip install 'sfumato\[gymnasium\]'"):
        Gymnasium("Pendulum-v1")


def test_the_steps_are_those_of_gymnasium() -> None:
    """Numbers: a pendulum on its own from the same state, whose forces beyond 2 are clipped."""
    gymnasium = pytest.importorskip("gymnasium")
    pendulum = Gymnasium("Pendulum-v1", horizon=6)
    played = play(None, pendulum, 3, seed=1)
    assert (pendulum.size, pendulum.shape, pendulum.symbols) == (3, (1,), None)
    alone = gymnasium.make("Pendulum-v1")
    alone.reset(seed=0)
    x, y, speed = played.states[1].double()  # of the second episode
    alone.unwrapped.state = [float(torch.atan2(y, x)), float(speed)]
    for t in range(6):
        assert played.states[3 * t + 1].tolist() == pytest.approx(alone.unwrapped._get_obs().tolist(), abs=1e-4)
        _, reward, *_ = alone.step(played.actions[3 * t + 1].numpy())
        assert float(played.rewards[t, 1]) == pytest.approx(reward, abs=1e-4)


def test_an_episode_ends_once_and_does_not_depend_on_the_others() -> None:
    """Symbols: a cart with a pole has a reward of 1 a step until the pole falls, and all fall within 500 steps."""
    pytest.importorskip("gymnasium")
    cart = Gymnasium("CartPole-v1", horizon=120)
    assert (cart.size, cart.symbols) == (4, 2)
    whole = play(None, cart, 6, seed=3)
    going = whole.rewards
    assert bool((going.diff(dim=0) <= 0).all()) and set(going.unique().tolist()) == {0.0, 1.0}
    last = whole.states.reshape(120, 6, 4)[-1]
    assert bool(((last[:, 0].abs() > 2.4) | (last[:, 2].abs() > 0.2))[going[-1] == 0].all())
    part = play(None, cart, 2, seed=3, first=4)
    assert torch.equal(going[:, 4:], part.rewards)
    assert Gymnasium("FrozenLake-v1").size == 16  # one of 16 places as 16 numbers
    with pytest.raises(sf.SfumatoError, match="Nowhere"):
        Gymnasium("Nowhere-v0")


def test_a_policy_learns_in_gymnasium(tmp_path: Path) -> None:
    pytest.importorskip("gymnasium")
    cart = Gymnasium("CartPole-v1", horizon=12)
    net = "MLP(width=16, depth=1)"
    start = sf.train(explore(cart, 16), tmp_path / "start", net=net, steps=10, batch=32, process="masked", **QUIET)
    found = align(start.path, cart, out=tmp_path / "run", samples=96, steps=2, batch=32, **QUIET)
    assert found.report.before is not None and 8 < found.report.before.value <= 12
