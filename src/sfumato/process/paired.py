"""Processes that lead from one law of data to another: pairs (x, x'), where x' is a condition of x, by its name.

    z = alpha x + beta x' + gamma zeta,   (alpha, beta) = schedule(t),   gamma = noise sqrt(alpha beta),  zeta ~ N(0, I)

    RectifiedFlow   gamma = 0, x' is not heard: the Gaussian process with x' in the place of eps. Rectified flow, InDI,
                    iterative alpha-(de)blending and flow matching between data are its ODE
    Bridge          gamma > 0, the network hears x': given x', (z - beta x') / sqrt(alpha^2 + gamma^2) is a state of an
                    ordinary Gaussian process, so that every solver, likelihood and plan serves p(x | x'). Unheard, an
                    option, it is the Markov bridge of I2SB
    Interpolant     gamma > 0, x' is not heard: one model of E[x|z], E[x'|z] and E[zeta|z], an ODE and every SDE

A network that does not hear x' learns a flow from the law of x' to that of x, which keeps both laws but not the pairs.
Sources: Liu et al. 2022 (2209.03003); Albergo et al. 2023 (2303.08797); Delbracio and Milanfar 2023 (2303.11435);
Heitz et al. 2023 (2305.03486); Zhou et al. 2023 (2309.16948) and Liu et al. 2023 (2302.05872) for bridges.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, NoReturn, Self, final

import torch
from torch import Tensor

from sfumato.belief import Between, Estimate, broadcast
from sfumato.conditions import Given
from sfumato.data import DataSpec
from sfumato.errors import SfumatoError, an
from sfumato.noise import Noise
from sfumato.process.gaussian import Gaussian
from sfumato.process.protocol import Density, noise_level
from sfumato.registry import register
from sfumato.schedule import Schedule, Time, schedule_of
from sfumato.state import State, numbers_like


class Paired:
    """What the processes of pairs share: the source x' of each sample, which is its condition `source`.

    pair: x' of a batch, as `given` takes it from the conditions; hears_source: whether the network hears it.
    """

    source: str
    pair: Tensor | None
    hears_source: bool

    def given(self, cond: Mapping[str, Any]) -> Self:
        """The process of samples with these conditions, which knows their sources."""
        value = cond.get(self.source)
        if value is None:
            return self
        known = Given.of(value)
        if not bool(known.present.all()):
            raise SfumatoError(f"Each sample of a {type(self).__name__} needs a source: some have no {self.source!r}.")
        told = copy.copy(self)  # already checked: a step of training asks for it twice
        object.__setattr__(told, "pair", known.values)
        return told

    def pair_like(self, state: Tensor) -> Tensor:
        """x' in the dtype and on the device of a state."""
        if self.pair is None:
            raise SfumatoError(
                f"A {type(self).__name__} starts from the source of each sample, the condition {self.source!r}, which "
                "is missing here: pass it, or the data that hold it (--from)."
            )
        if self.pair.shape != state.shape:
            raise SfumatoError(
                f"The condition {self.source!r} has the shape {tuple(self.pair.shape[1:])} and a sample "
                f"{tuple(state.shape[1:])}: both ends of a {type(self).__name__} need the same."
            )
        return self.pair.to(state)


def given(process: Any, cond: Mapping[str, Any]) -> Any:
    """The process of samples with these conditions: one of pairs takes their sources from them."""
    return process.given(cond) if isinstance(process, Paired) else process


def added(process: Any, noise: Noise | State, x: State) -> State:
    """What a process adds to clean states x: the sources of a rectified flow, or else the noise."""
    return process.pair_like(x) if isinstance(process, RectifiedFlow) else numbers_like(noise, x)


def heard(process: Any, cond: Mapping[str, Any]) -> dict[str, Any]:
    """The conditions, by name, that a network of the process is given."""
    hidden = process.source if isinstance(process, Paired) and not process.hears_source else None
    return {name: value for name, value in cond.items() if name != hidden}


def source_of(process: Any) -> str | None:
    """The name of the condition that a process of pairs starts from; None for other processes."""
    return process.source if isinstance(process, Paired) else None


def require_heard_source(model: Any, what: str) -> None:
    """Raise SfumatoError for a model of pairs that does not hear the source: its state is not x with normal noise."""
    process = model.process
    if isinstance(process, Paired) and not process.hears_source:
        raise SfumatoError(
            f"{what} is of x with normal noise, and the state of this {type(process).__name__} also holds a source, "
            "which its network does not hear: judge its samples instead, by sf.metrics.evaluate (sfumato evaluate)."
        )


def require_alone(model: Any, what: str) -> None:
    """Raise SfumatoError for a model of pairs: `what` compares beliefs with and without conditions, and a source is
    part of the state itself."""
    if isinstance(model.process, Paired):
        raise SfumatoError(
            f"{what} is not defined for {an(type(model.process).__name__)}, which is nothing without its source."
        )


def require_flow(process: Any, eta: float | None = None) -> None:
    """Raise SfumatoError for a bridge that does not hear its source, unless the noise of a step is eta = 1."""
    if isinstance(process, Bridge) and not process.hears_source and eta != 1:
        raise SfumatoError(
            "A Bridge whose network does not hear its source has the reverse chain alone, no ODE and no likelihood: "
            "sample it by ancestral or ddim(eta=1), or train with hears_source=true."
        )


def _require_ends(process: Any) -> None:
    """Raise SfumatoError unless the path leads from x itself to x' itself."""
    ends = [float(c) for t in (0.0, 1.0) for c in process.schedule(t)]
    if ends != [1, 0, 0, 1]:
        raise SfumatoError(
            f"A {type(process).__name__} leads from x to its source, so (alpha, sigma) must go from (1, 0) to (0, 1), "
            f"and those of {type(process.schedule).__name__} do not: take flow or cosine."
        )


def _require_noise(process: Any) -> None:
    if not 0 < process.noise < math.inf:
        raise SfumatoError(
            f"The noise of {type(process).__name__} must be above 0 and finite, not {process.noise!r:.60}: without "
            "noise take RectifiedFlow (a network that hears its source would only learn the mean E[x | source])."
        )


@register("process", "rectified-flow")
@final
@dataclasses.dataclass(frozen=True)
class RectifiedFlow(Paired, Gaussian):
    """z = alpha x + sigma x' under a schedule from (1, 0) to (0, 1): a flow from the law of the sources to that of x.

    x' is the condition `source` of a sample. eps of the Gaussian process is x', so that every solver of an ODE moves a
    source to a sample, and one source has one sample. Pairs are a coupling to start from, which the flow does not keep:
    use `Bridge` to sample p(x | x'). scaled: whether the network hears z in units in which independent ends would vary
    as much at all times, as it does in files of before; those of a good coupling, which are alike, do so as they are.
    """

    source: str = "input"
    pair: Tensor | None = dataclasses.field(default=None, compare=False, repr=False)
    scaled: bool = False
    hears_source = False

    def __post_init__(self) -> None:
        Gaussian.__post_init__(self)
        _require_ends(self)

    def prior(self, noise: Tensor) -> Tensor:
        """z_1 = x'."""
        return self.pair_like(noise)

    def scaling(self, t: Time, device: torch.device) -> tuple[Tensor, Tensor]:
        """(1, or that of independent ends if `scaled`; noise level)."""
        c_in, level = super().scaling(t, device)
        return (c_in if self.scaled else torch.ones_like(c_in)), level

    def corrupt(self, x: Tensor, t: Time, noise: Noise | Tensor) -> Tensor:
        """z_t = alpha x + sigma x'; the noise does not matter."""
        return super().corrupt(x, t, self.pair_like(x))

    def loss(
        self,
        belief: Estimate,
        x: Tensor,
        noise: Noise | Tensor,
        weight: Callable[[Tensor], Tensor] | None,
        times: Density,
        here: Tensor | None = None,
    ) -> Tensor:
        """That of the Gaussian process with eps = x', (B,)."""
        return super().loss(belief, x, self.pair_like(x), weight, times, here)

    def prior_kl(self, x: Tensor, std: float | None = None) -> NoReturn:
        """SfumatoError: the density of the sources is unknown."""
        raise SfumatoError(
            "A RectifiedFlow has no likelihood, since the density of its sources is unknown: that of p(x | x') is had "
            "from a Bridge."
        )

    def config(self) -> dict[str, Any]:
        args = super().config()["args"]
        return {"name": "RectifiedFlow", "args": args | {"source": self.source, "scaled": self.scaled}}


def filled(tree: Any) -> Any:
    """The tree of a model, in which a rectified flow of before, which does not say so, hears a scaled state."""
    if isinstance(tree, list):
        return [filled(each) for each in tree]
    if not isinstance(tree, Mapping):
        return tree
    made = {name: filled(value) for name, value in tree.items()}
    if made.get("name") == "RectifiedFlow" and isinstance(made.get("args"), Mapping):
        made["args"] = {"scaled": True, **made["args"]}
    return made


class Coefficients(NamedTuple):
    """z = alpha x + beta x' + gamma zeta, at one time or (B,), float64."""

    alpha: Tensor
    beta: Tensor
    gamma: Tensor


@register("process", "bridge")
@final
@dataclasses.dataclass(frozen=True)
class Bridge(Paired, Gaussian):
    """From the condition `source` to x by way of noise, for a network that hears x': samples of p(x | x').

        z = alpha x + beta x' + gamma zeta,   alpha = sigmoid(logsnr + 2 log noise),   beta = 1 - alpha,
        gamma = noise sqrt(alpha beta)

    logsnr is that of the schedule, and the states of solvers are those of its Gaussian process, w = a x + s zeta, which
    tell the same of x as z where x' is known: z = sqrt((alpha^2 + gamma^2) / (a^2 + s^2)) w + beta x'. The network
    hears z, and x' as a condition. noise: the deviation of a Brownian bridge from x' to x; every bridge of a schedule
    with the end (alpha_1, sigma_1) (DDBM, I2SB) has noise sigma_1 / sqrt(alpha_1), up to its clock and its scale.
    hears_source: False is I2SB: the network hears z alone and says E[x|z] (target x). q(z_s | z_t, x) has no x' in it,
    so that the reverse chain (eta = 1) runs without, and keeps both laws but not the pairs: normal numbers get the
    correlation exp(-noise^2 / 2 int_0^1 du / Var z_u), u = alpha, which is their own only in the coupling of the
    Schroedinger bridge of this noise.
    """

    source: str = "input"
    noise: float = 1.0
    pair: Tensor | None = dataclasses.field(default=None, compare=False, repr=False)
    hears_source: bool = True

    def __post_init__(self) -> None:
        Gaussian.__post_init__(self)
        _require_noise(self)
        if not self.hears_source and self.target != "x":
            raise SfumatoError(
                "The state of a Bridge whose network does not hear its source says nothing of noise: give target=x."
            )

    @property
    def default_solver(self) -> str:  # type: ignore[override]
        """That of the Gaussian process, or of the reverse chain."""
        return Gaussian.default_solver if self.hears_source else "ancestral"

    def path(self, t: Time) -> Coefficients:
        """(alpha, beta, gamma) of z at times t."""
        level = self.schedule.logsnr(t) + 2 * math.log(self.noise)
        alpha, beta = torch.sigmoid(level), torch.sigmoid(-level)
        return Coefficients(alpha, beta, self.noise * torch.sqrt(alpha * beta))

    def position(self, w: Tensor, t: Time) -> Tensor:
        """z, between x' and x, of a state w of a solver at time t."""
        (a, s), (alpha, beta, gamma) = self.schedule(t), self.path(t)
        scale = torch.sqrt((alpha**2 + gamma**2) / (a**2 + s**2))
        return broadcast(scale, w) * w + broadcast(beta, w) * self.pair_like(w)

    def inputs(self, z: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """(z between x' and x at unit variance, noise level)."""
        alpha, beta, gamma = self.path(t)
        c_in = 1 / torch.sqrt((alpha * self.sigma_data) ** 2 + beta**2 + gamma**2)
        return broadcast(c_in, z) * self.position(z, t), self.noise_level(t).to(z.device)

    def scaling(self, t: Time, device: torch.device) -> NoReturn:
        """SfumatoError: the inputs are not c_in z."""
        raise SfumatoError("What the network of a Bridge hears depends on the source, and is no multiple of its state.")

    def config(self) -> dict[str, Any]:
        args = super().config()["args"] | {"source": self.source, "noise": self.noise}
        return {"name": "Bridge", "args": args if self.hears_source else args | {"hears_source": False}}


@register("process", "interpolant")
@final
@dataclasses.dataclass(frozen=True)
class Interpolant(Paired):
    """z = alpha x + beta x' + gamma zeta, gamma = noise sqrt(alpha beta): a stochastic interpolant of two laws of data.

    The network has two outputs, E[x - x' | z] and E[zeta | z], which together with z say E[x|z], E[x'|z] and the score
    (`belief.Between`). Sample it by `ancestral` with any eta: 0 is the ODE, and eta the SDE with the diffusion
    eta noise, all with the same laws; 1 on a Schroedinger coupling is the Schroedinger bridge.
    """

    schedule: Schedule
    source: str = "input"
    noise: float = 1.0
    pair: Tensor | None = dataclasses.field(default=None, compare=False, repr=False)
    hears_source = False
    outputs: ClassVar[int] = 2
    default_solver: ClassVar[str] = "ancestral"

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedule", schedule_of(self.schedule))
        _require_ends(self)
        _require_noise(self)

    @property
    def clock(self) -> Schedule:
        """The schedule of alpha and beta."""
        return self.schedule

    def level(self, t: Time) -> Tensor:
        """log(alpha^2 / beta^2), float64."""
        return self.schedule.logsnr(t)

    def path(self, t: Time) -> Coefficients:
        """(alpha, beta, gamma) at times t."""
        alpha, beta = self.schedule(t)
        return Coefficients(alpha, beta, self.noise * torch.sqrt(alpha * beta))

    def rates(self, t: Time) -> Coefficients:
        """d(alpha, beta, gamma)/dt; that of gamma is infinite at both ends."""
        (alpha, beta), (da, db) = self.schedule(t), self.schedule.rates(t)
        return Coefficients(da, db, self.noise * (da * beta + alpha * db) / (2 * torch.sqrt(alpha * beta)))

    def prior(self, noise: Tensor) -> Tensor:
        """z_1 = x'."""
        return self.pair_like(noise)

    def corrupt(self, x: Tensor, t: Time, noise: Noise | Tensor) -> Tensor:
        """z_t = alpha x + beta x' + gamma zeta; noise: zeta like x, or a `Noise` source."""
        parts = zip(self.path(t), (x, self.pair_like(x), numbers_like(noise, x)), strict=True)
        return sum((broadcast(c, part) * part for c, part in parts), torch.zeros_like(x))

    def noise_level(self, t: Time) -> Tensor:
        """-log(alpha^2 / beta^2) / 8."""
        return noise_level(self.schedule.logsnr(t))

    def inputs(self, z: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """(z / sqrt(alpha^2 + beta^2 + gamma^2), noise level)."""
        size = torch.stack(self.path(t)).square().sum(0).sqrt()
        return z / broadcast(size, z), self.noise_level(t).to(z.device)

    def prediction(self, y: Tensor, z: Tensor) -> Tensor:
        """Both outputs of the network, (B, 2 C, ..)."""
        return y

    def read(self, y: Tensor, z: Tensor, t: Time) -> Between:
        """The belief from a network's E[x - x' | z] and E[zeta | z], its first and second half."""
        if y.shape[1] != 2 * z.shape[1]:
            raise SfumatoError(
                f"The network of an Interpolant has {2 * z.shape[1]} outputs along the first axis, not {y.shape[1]}: "
                "build it with outputs=2."
            )
        change, zeta = y.chunk(2, dim=1)
        return Between.of_change(change, zeta, z, t, self)

    def loss(
        self,
        belief: Between,
        x: Tensor,
        noise: Noise | Tensor,
        weight: Callable[[Tensor], Tensor] | None,
        times: Density,
    ) -> Tensor:
        """1/2 |x - x' - E[x - x'|z]|^2 + 1/2 |zeta - E[zeta|z]|^2, (B,)."""
        if weight is not None:
            raise SfumatoError("An Interpolant is trained by its plain squared error: leave the weight out.")
        errors = belief.x - belief.source - (x - self.pair_like(x)), belief.zeta - numbers_like(noise, x)
        return sum((0.5 * error.flatten(1).square().sum(1) for error in errors), torch.zeros(()).to(x))

    def prior_kl(self, x: Tensor) -> NoReturn:
        """SfumatoError: the density of the sources is unknown."""
        raise SfumatoError(
            "An Interpolant has no likelihood, since the density of its sources is unknown: that of p(x | x') is had "
            "from a Bridge."
        )

    def check_net(self, net: Any) -> None:
        """Raise SfumatoError unless the network has two outputs."""
        outputs = getattr(net, "outputs", None)
        if isinstance(outputs, int) and outputs != 2:
            raise SfumatoError(f"An Interpolant needs a network with outputs=2, not {outputs}.")

    def state_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a state: that of a sample."""
        return tuple(shape)

    net_shape = sample_shape = state_shape

    def contract(self, spec: DataSpec) -> DataSpec:
        """The spec unchanged."""
        return spec

    def data(self, x: Tensor) -> Tensor:
        """x itself."""
        return x

    table = data

    def config(self) -> dict[str, Any]:
        args = {"schedule": self.schedule.config(), "source": self.source, "noise": self.noise}
        return {"name": "Interpolant", "args": args}
