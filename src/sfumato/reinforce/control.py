"""Small environments in which a policy p(action | state) is trained from rewards, and episodes of a policy in them.

    state_0 ~ start,   a_t ~ p(a | state_t),   (state_{t+1}, r_t) = step(state_t, a_t),   t < horizon
    n_t = r_t / beta - log p_old(a_t | state_t) / p_ref(a_t | state_t)
    A_t = sum_{j >= t} n_j - b_t(state_t)

A policy is a model of actions with the condition `state`. With n in the return the gradient is that of
E[sum r] / beta - KL of the paths, whose optimum is p_ref(path) e^(sum r / beta) / Z where the steps are deterministic.
b is the quadratic in the state that fits the returns of each time by least squares: it takes variance away.
All episodes run at once. Sources: Williams 1992; Todorov 2009 (control by KL); 2507.21053 (flow policies).
"""

from __future__ import annotations

import abc
import math
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from sfumato import noise
from sfumato.conditions import Conditions, resolve
from sfumato.errors import SfumatoError, whole
from sfumato.machine import default_cpu
from sfumato.reinforce.feedback import Rollouts
from sfumato.sampling import sample

STATE = "state"  # the condition that a policy hears


class Environment(abc.ABC):
    """Episodes of `horizon` steps, all at once. size: of a state; symbols: how many actions there are to choose from,
    None for actions that are numbers; shape: of an action."""

    horizon: int = 1
    size: int = 1
    shape: tuple[int, ...] = (1,)
    symbols: int | None = None

    @property
    def name(self) -> str:
        """How messages call it."""
        return type(self).__name__

    @abc.abstractmethod
    def start(self, seed: int, index: Tensor) -> Tensor:
        """The first states of the episodes with these numbers, (E, size), by (seed, number) alone."""

    @abc.abstractmethod
    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """(the next states (E, size), rewards (E,)) of actions (E, *shape) in states (E, size)."""

    def act(self, policy: Any, state: Tensor, seed: int, index: Tensor, steps: int | None = None) -> Tensor:
        """Actions of a policy in states (E, size), (E, *shape) in its units; index: their numbers."""
        actions: Tensor = sample(policy, len(state), steps, seed=seed, index=index, cond={STATE: state})
        return actions


@final
class TwoTargets(Environment):
    """A bandit with a context: r = -min(|a - c|, |a + c|)^2 / (2 width^2), c = 1 + state / 2, state uniform in (-1, 1).

    Two actions are equally good. A policy that can hold both has the tilted law with two modes; a Gaussian has one.
    """

    def __init__(self, width: float = 0.3) -> None:
        self.width = width

    def start(self, seed: int, index: Tensor) -> Tensor:
        return 2 * noise.uniform(seed, index, (1,), noise.DATA) - 1

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        off = (action[:, 0].abs() - (1 + state[:, 0] / 2)) / self.width
        return state, -off.square() / 2


@final
class PointMass(Environment):
    """A mass on a line that a force brings to rest at 0: state (x, v), action f.

        v' = v + f dt,   x' = x + v' dt,   r = -(x'^2 + v'^2 / 10 + f^2 / 10) dt

    A linear system with a quadratic cost, whose best law of control is linear: `value` has its return.
    """

    horizon, size = 16, 2

    def __init__(self, dt: float = 0.25) -> None:
        self.dt = dt

    def start(self, seed: int, index: Tensor) -> Tensor:
        return 2 * noise.uniform(seed, index, (2,), noise.DATA) - 1

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        force = action[:, 0].to(state)
        speed = state[:, 1] + force * self.dt
        place = state[:, 0] + speed * self.dt
        cost = place.square() + speed.square() / 10 + force.square() / 10
        return torch.stack((place, speed), 1), -cost * self.dt

    def value(self, state: Tensor) -> Tensor:
        """The largest return from states (E, 2), (E,), by the Riccati recursion of the linear-quadratic problem."""
        dt = self.dt
        moved = torch.tensor([[1.0, dt], [0.0, 1.0]], dtype=torch.float64)
        pushed = torch.tensor([[dt * dt], [dt]], dtype=torch.float64)
        cost, own = torch.diag(torch.tensor([1.0, 0.1], dtype=torch.float64)) * dt, 0.1 * dt
        left = torch.zeros(2, 2, dtype=torch.float64)  # the cost to go is s^T left s
        for _ in range(self.horizon):
            after = cost + left
            gain = pushed.T @ after @ moved / (own + pushed.T @ after @ pushed)
            closed = moved - pushed @ gain
            left = closed.T @ after @ closed + own * gain.T @ gain
        return -torch.einsum("ei,ij,ej->e", state.double(), left, state.double())


@final
class Grid(Environment):
    """A square of `side` rows: state (row, column), one of four moves; -1 a step until the middle is reached.

    The largest return is minus the number of rows and columns between start and middle.
    """

    size, symbols = 2, 4

    def __init__(self, side: int = 5) -> None:
        if side % 2 == 0:
            raise SfumatoError(f"A grid has a middle where its side is odd, not {side}.")
        self.side, self.horizon = side, 2 * side

    @property
    def middle(self) -> int:
        return self.side // 2

    def start(self, seed: int, index: Tensor) -> Tensor:
        return (noise.uniform(seed, index, (2,), noise.DATA) * self.side).floor()

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        moves = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])
        there = (state == self.middle).all(1)
        after = (state + moves[action[:, 0].long()]).clamp(0, self.side - 1)
        return torch.where(there[:, None], state, after), torch.where(there, 0.0, -1.0)


class Played(NamedTuple):
    """Episodes: actions (H E, *shape) in user units and states (H E, size), by time, and rewards float64 (H, E)."""

    actions: Tensor
    states: Tensor
    rewards: Tensor

    @property
    def returns(self) -> Tensor:
        """The sum of the rewards of each episode, (E,)."""
        return self.rewards.sum(0)


@default_cpu()
def play(policy: Any, environment: Environment, episodes: int, seed: int = 0, first: int = 0) -> Played:
    """Episodes number first, first + 1, .. of a policy, or of random actions if it is None."""
    index, horizon = torch.arange(first, first + episodes), environment.horizon
    state = environment.start(seed, index)
    actions, states, rewards = [], [], []
    for t in range(horizon):
        number = index * horizon + t
        if policy is not None:
            action = environment.act(policy, state, seed, number)
        elif environment.symbols is None:
            action = noise.normal(seed, number, environment.shape, noise.PRIOR)
        else:
            action = (noise.uniform(seed, number, environment.shape, noise.PRIOR) * environment.symbols).long()
        actions.append(action)
        states.append(state)
        state, reward = environment.step(state, action)
        if not bool(reward.isfinite().all()):
            raise SfumatoError(f"{environment.name} gives a reward that is not finite at step {t}.")
        rewards.append(reward.double())
    return Played(torch.cat(actions), torch.cat(states), torch.stack(rewards))


@default_cpu()
def explore(environment: Environment, episodes: int = 512, seed: int = 0) -> dict[str, Tensor]:
    """Data of random actions, {"x": actions, "state": states}, from which a policy to start with is trained:
    sf.train(explore(PointMass()), net="tiny", steps=300)."""
    played = play(None, environment, episodes, seed)
    return {"x": played.actions, STATE: played.states}


class Episodes(Rollouts):
    """Actions of a policy in an environment, about `count` of them, with their rewards, in the order of time."""

    states: Tensor

    def __init__(self, policy: Any, environment: Environment, count: int, seed: int = 0) -> None:
        self.episodes = whole("samples, the number of actions in a round,", count) // environment.horizon
        if self.episodes < 2:
            raise SfumatoError(f"A round needs two episodes of {environment.name}: take more samples than {count}.")
        if STATE not in (getattr(policy, "spec", None) and policy.spec.conditions or ()):
            raise SfumatoError(f"A policy in {environment.name} has the condition {STATE!r}: train it on such data.")
        self.environment = environment
        super().__init__(policy, None, self.episodes * environment.horizon, seed)
        self.spec = policy.spec

    def _drawn(self, policy: Any, age: int) -> tuple[Tensor, Tensor]:
        played = play(policy, self.environment, self.episodes, self.seed, age * self.episodes)
        z = policy.spec.normalise(played.actions)
        self.register_buffer("states", played.states)
        return (z.float() if z.is_floating_point() else z), played.rewards.flatten()

    def conditions(self, rows: Tensor) -> Conditions:
        return resolve(self.spec, {STATE: self.states[rows].cpu()}, len(rows)).to(self.x.device)

    def relative(self, net: Tensor) -> Tensor:
        """A of n, float64 (N,): what follows, less what a quadratic of the state says of it."""
        horizon = self.environment.horizon
        after = net.reshape(horizon, -1).flip(0).cumsum(0).flip(0)
        features = quadratic(self.states.double().reshape(horizon, self.episodes, -1)).to(after)
        ridge = 1e-6 * torch.eye(features.shape[2], dtype=after.dtype, device=after.device)
        normal = features.transpose(1, 2) @ features / self.episodes + ridge
        fit = torch.linalg.solve(normal, features.transpose(1, 2) @ after[..., None] / self.episodes)
        return (after - (features @ fit)[..., 0]).flatten()


def quadratic(state: Tensor) -> Tensor:
    """1, the elements of a state (.., S) and their products, (.., 1 + S + S (S + 1) / 2), each scaled to size 1."""
    row, column = torch.triu_indices(state.shape[-1], state.shape[-1])
    scale = state.square().mean(-2, keepdim=True).sqrt().clamp_min(math.sqrt(1e-12))
    s = state / scale
    return torch.cat((torch.ones_like(s[..., :1]), s, s[..., row] * s[..., column]), -1)
