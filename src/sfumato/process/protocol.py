"""The protocol of a process: how one kind of data is corrupted, how a network's output is read, the loss, the clock.

Settings that only make sense for one state space (a prediction target, a data scale, a number of symbols) are arguments
of its process. Sources: DDPM 2006.11239 and D3PM 2107.03006 for the two kinds.
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
    """-logsnr / 8 = ln(sigma/alpha) / 4, clamped to be finite at both ends: the noise level input of every network."""
    return (-logsnr / 8).clamp(-INPUT_LIMIT / 8, INPUT_LIMIT / 8).float()


class Density(Protocol):
    """The density that levels are drawn from (`objectives.density.TimeDensity`), by which a loss divides."""

    def density(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        """p(level) under the clock `schedule`."""


@runtime_checkable
class Process(Protocol):
    """z_t ~ q(z_t | x), from the data at t = 0 to the prior at t = 1. `noise` is a `Noise` source, or standard normal
    numbers like x (a dict of them if the state is a dict)."""

    @property
    def clock(self) -> Schedule:
        """The schedule with logsnr = level: the SNR's own for numbers, logit of the keep probability for symbols."""

    @property
    def default_solver(self) -> str:
        """The name of the default solver for this process."""

    def level(self, t: Time) -> Tensor:
        """The level at times t, the variable of loss weights, time densities and intervals."""

    def prior(self, noise: State) -> State:
        """z_1 from standard normal numbers, one for each entry of the state."""

    def corrupt(self, x: State, t: Time, noise: Noise | State) -> State:
        """z_t ~ q(z_t | x); t a number or (B,)."""

    def noise_level(self, t: Time) -> Tensor:
        """The network's time input, float32, increasing from the data to the prior."""

    def inputs(self, z: State, t: Time) -> tuple[Tensor, Tensor]:
        """The network's inputs: the scaled state (B, ...) and the noise level, a number or (B,)."""

    def prediction(self, y: Tensor, z: State) -> Tensor:
        """The network's prediction: the target, like z, or for symbols the logits (B, *shape, K)."""

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
        """The loss of each sample, (B,), for a belief about z_t made with `noise`: w(level) / p(level) times the loss
        rate at that level; with w = 1 in nats, an estimate of the ELBO."""

    def prior_kl(self, x: State) -> Tensor:
        """KL(q(z_1 | x) || prior) in nats, float64 (B,)."""

    def check_net(self, net: Any) -> None:
        """Raise SfumatoError if the network's output cannot be read; None checks the process alone."""

    def state_shape(self, shape: Shape) -> Shape:
        """The shape of a state for samples of `shape`, of which the prior needs that many numbers."""

    def net_shape(self, shape: Shape) -> tuple[int, ...]:
        """The shape of a network's input for samples of `shape`."""

    def sample_shape(self, shape: tuple[int, ...]) -> Shape:
        """The shape of samples for a network of `shape`: the inverse of `net_shape`."""

    def contract(self, spec: DataSpec) -> DataSpec:
        """The data spec under this process: symbols are not scaled."""

    def data(self, x: Tensor) -> State:
        """Normalised data (B, ...) as a clean state; SfumatoError if they are not valid states."""

    def table(self, x: State) -> Tensor:
        """A clean state as normalised data: the inverse of `data`."""

    def config(self) -> dict[str, Any]:
        """A JSON-able description that `process.from_config` reads."""
