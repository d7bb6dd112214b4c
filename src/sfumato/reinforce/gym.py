"""Environments of the package gymnasium, in which a policy is trained as in those of `control`."""

from __future__ import annotations

from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from sfumato import noise
from sfumato.errors import SfumatoError, whole
from sfumato.reinforce.control import Environment


@final
class Gymnasium(Environment):
    """An environment by its name: Gymnasium("Pendulum-v1"), Gymnasium("FrozenLake-v1", is_slippery=False).

    States are its observations, flattened to numbers; actions the numbers of a Box, clipped to its bounds, or the
    symbols of a Discrete space. An episode that ends keeps its last state, and is given no further reward. horizon: the
    steps of an episode, by default the environment's own limit. Each episode is seeded by (seed, number), so that it
    does not depend on the others; all step in one vector environment, and `step` moves those of the last `start`.
    Raises SfumatoError without the extra gymnasium, and for other spaces of actions.
    """

    def __init__(self, name: str, horizon: int | None = None, **arguments: Any) -> None:
        try:
            import gymnasium
        except ImportError as error:
            raise SfumatoError(
                "This environment needs gymnasium, which is not installed: pip install 'sfumato[gymnasium]'."
            ) from error
        self._name, self._arguments = name, arguments
        try:
            self._vector = self._made(1)
        except gymnasium.error.Error as error:
            raise SfumatoError(f"gymnasium has no environment {name!r}: {error}") from error
        space, limit = self._vector.single_action_space, gymnasium.spec(name).max_episode_steps
        if horizon is None and limit is None:
            raise SfumatoError(f"{name} has no limit of steps: pass horizon, the steps of an episode.")
        self.horizon, self.size = whole("horizon", horizon or limit), self._vector.single_observation_space.shape[0]
        if isinstance(space, gymnasium.spaces.Discrete):
            self.symbols, self._first = int(space.n), int(space.start)
        elif isinstance(space, gymnasium.spaces.Box):
            self.shape, self._low, self._high = space.shape, space.low, space.high
        else:
            raise SfumatoError(f"The actions of {name} are {space}, and a policy has those of a Box or Discrete space.")

    @property
    def name(self) -> str:
        return self._name

    def _made(self, episodes: int) -> Any:
        """The vector environment of so many episodes."""
        import gymnasium

        wrappers = [gymnasium.wrappers.FlattenObservation]
        return gymnasium.make_vec(self._name, episodes, "sync", wrappers=wrappers, **self._arguments)

    def start(self, seed: int, index: Tensor) -> Tensor:
        if self._vector.num_envs != len(index):
            self._vector.close()
            self._vector = self._made(len(index))
        seeds = (noise.uniform(seed, index, (), noise.DATA, dtype=torch.float64) * 2**31).long().tolist()
        state, _ = self._vector.reset(seed=seeds)
        self._ended = np.zeros(len(index), dtype=bool)
        return torch.from_numpy(state).float()

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        moves = action.detach().cpu().numpy()
        moves = np.clip(moves, self._low, self._high) if self.symbols is None else moves[:, 0] + self._first
        after, rewards, ended, cut, _ = self._vector.step(moves)
        going = torch.from_numpy(~self._ended)
        self._ended = self._ended | ended | cut
        found = torch.where(going, torch.from_numpy(rewards), 0.0)
        return torch.where(going[:, None], torch.from_numpy(after).float(), state), found
