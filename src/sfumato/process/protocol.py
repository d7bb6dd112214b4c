"""What a process is: how data of one kind is corrupted and read, the loss of a belief about it, and its clock.

Everything that means nothing for another state space (a target row, a data scale, a number of symbols) is an argument
of the process that knows it. Sources: DDPM 2006.11239 and D3PM 2107.03006 for the two kinds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from sfumato.belief import Belief
from sfumato.data import DataSpec
from sfumato.noise import Noise
from sfumato.schedule import INPUT_LIMIT, Schedule, Time
from sfumato.state import Shape, State


def noise_level(logsnr: Tensor) -> Tensor:
    """-logsnr / 8 = ln(sigma/alpha) / 4, finite at both ends: the noise level that every network gets."""
    return (-logsnr / 8).clamp(-INPUT_LIMIT / 8, INPUT_LIMIT / 8).float()


class Density(Protocol):
    """The law that levels are drawn from (`objectives.density.TimeDensity`), as far as a loss divides by it."""

    def density(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        """p(level) under a clock."""


@runtime_checkable
class Process(Protocol):
    """z_t ~ q(z_t | x), t = 0 the data, t = 1 the prior. `noise` is a source of it, or standard normal numbers like x
    (a dict of them for a state that is a dict)."""

    @property
    def clock(self) -> Schedule:
        """The curve whose logsnr is the level: logsnr, or logit of the probability that a symbol is kept."""

    @property
    def default_solver(self) -> str:
        """The name of the solver that samples it where none is asked for."""

    def level(self, t: Time) -> Tensor:
        """The level at times t, in which weights, densities and intervals are stated."""

    def prior(self, noise: State) -> State:
        """z_1 from standard normal numbers, one for each entry of the state."""

    def corrupt(self, x: State, t: Time, noise: Noise | State) -> State:
        """z_t ~ q(z_t | x); t a number or (B,)."""

    def noise_level(self, t: Time) -> Tensor:
        """What the network hears of the time, float32, rising from the data to the prior."""

    def inputs(self, z: State, t: Time) -> tuple[Tensor, Tensor]:
        """The network's inputs: the scaled state (B, ...) and the noise level, a number or (B,)."""

    def prediction(self, y: Tensor, z: State) -> Tensor:
        """The network's prediction, like z and in the terms of the target, or of symbols (B, *shape, K)."""

    def read(self, y: Tensor, z: State, t: Time) -> Belief:
        """The belief about z, from the network's output y."""

    def loss(
        self,
        belief: Any,
        x: State,
        noise: Noise | State,
        weight: Callable[[Tensor], Tensor] | None,
        times: Density,
    ) -> Tensor:
        """One loss a sample, (B,), of a belief about q(z_t | x) made with `noise`: w(level) / p(level) times what the
        belief loses at its level, in nats where the weight is 1 (the ELBO's)."""

    def prior_kl(self, x: State) -> Tensor:
        """KL(q(z_1 | x) || prior) in nats, float64 (B,)."""

    def check_net(self, net: Any) -> None:
        """Refuse, with SfumatoError, a network whose answers cannot be read; None asks of the process alone."""

    def net_shape(self, shape: Shape) -> tuple[int, ...]:
        """The shape of a network's input for samples of `shape`."""

    def sample_shape(self, shape: tuple[int, ...]) -> Shape:
        """The shape of samples for a network of `shape`: the inverse of `net_shape`."""

    def contract(self, spec: DataSpec) -> DataSpec:
        """The data's contract under this process: symbols are not scaled."""

    def data(self, x: Tensor) -> State:
        """Normalised data (B, ...) as the clean state, or SfumatoError where it is none."""

    def table(self, x: State) -> Tensor:
        """A clean state as normalised data: the inverse of `data`."""

    def config(self) -> dict[str, Any]:
        """A JSON-able description that `process.from_config` reads."""
