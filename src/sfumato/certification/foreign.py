"""Schedulers in the style of diffusers as subjects: `set_timesteps(n)`, `timesteps`, `step(output, t, z).prev_sample`.

Nothing is imported: schedulers are recognised by their attributes. Their noise levels are read from

    sigmas, alpha = 1                           z = x + sigma eps            (Euler, Heun, LMS)
    sigmas, alpha = 1 / sqrt(1 + sigma^2)       z = alpha (x + sigma eps)    (DPM-Solver, UniPC, DEIS, SA-Solver)
    sigmas, alpha = 1 - sigma                   z = (1 - sigma) x + sigma eps   (flow matching)
    alphas_cumprod[t]                           the levels of a table of betas  (DDIM, DDPM, PNDM)
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sfumato.certification.bench import Level, Oracle, SeededNoise, Setup, Stop
from sfumato.certification.subjects import Subject
from sfumato.errors import SfumatoError
from sfumato.noise import seeded

SPACES = ("ve", "vp", "flow", "table")


class Foreign(Subject):
    """A foreign scheduler. make: a scheduler, or a function that returns one (then a new one is used for each run).

    order: the order that its documentation states. space: the parametrisation of its state, 've', 'vp', 'flow' or
    'table'; detected by default. Further arguments go to its `step`. It is compared with the exact flow at the start of
    each step, at its own levels.

    heard='sigmas' calls the model at those levels; heard='timesteps' calls it at the scheduler's timestep, as a network
    is called: the two differ if timesteps are rounded.
    """

    local = False
    floor = 1e-6  # some round their states to float32
    counts = (10, 20, 40, 100, 200, 500)  # divisors of a thousand training steps

    def __init__(
        self,
        make: Any,
        order: int | None = None,
        name: str | None = None,
        space: str | None = None,
        heard: str = "sigmas",
        **extra: Any,
    ) -> None:
        self.make: Callable[[], Any] = make if callable(make) and not hasattr(make, "set_timesteps") else lambda: make
        one = self.make()
        for word in ("set_timesteps", "step"):
            if not callable(getattr(one, word, None)):
                raise SfumatoError(f"A foreign scheduler needs {word}(); {type(one).__name__} has none.")
        if space is not None and space not in SPACES:
            raise SfumatoError(f"space must be one of {', '.join(SPACES)}, not {space!r}.")
        if heard not in ("sigmas", "timesteps"):
            raise SfumatoError(f"heard must be 'sigmas' or 'timesteps', not {heard!r}.")
        self.heard = heard
        self.name, self.order, self.space, self.extra = name or type(one).__name__, order, space, extra

    @property
    def schedules(self) -> dict[str, Any]:
        return {"its own": None}

    def setup(self, schedule: Any, steps: int, interval: tuple[float, float] | None = None) -> Setup:
        levels = levels_of(scheduler := self._ready(steps), self.space)

        def go(oracle: Oracle, z: Tensor, noise: SeededNoise) -> list[Stop]:
            with seeded(noise.seed):
                return self._loop(steps, levels, oracle, z, noise.seed)

        return Setup(levels[0], levels[-1], float(scheduler.timesteps[0]), None, go)

    def _ready(self, steps: int) -> Any:
        """A scheduler with its timesteps set, and any tables in float64, since they limit its accuracy."""
        scheduler = self.make()
        _to_float64(scheduler, "alphas_cumprod")  # first, since sigmas are derived from it
        scheduler.set_timesteps(steps)
        _to_float64(scheduler, "sigmas")
        return scheduler

    def _loop(self, steps: int, levels: list[Level], oracle: Oracle, z: Tensor, seed: int) -> list[Stop]:
        scheduler, stops = self._ready(steps), []
        extra = dict(self.extra)
        if "generator" in inspect.signature(scheduler.step).parameters:
            extra["generator"] = torch.Generator().manual_seed(seed)
        for k, (t, level) in enumerate(zip(scheduler.timesteps, levels, strict=False)):
            if _begins(scheduler, k):
                stops.append((z.clone(), level))
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(z, t)
            output = _output(scheduler, level, *self._ask(scheduler, oracle, z, float(t), level))
            z = scheduler.step(output, t, z, **extra).prev_sample.double()
        return [*stops, (z, levels[-1])]

    def _ask(self, scheduler: Any, oracle: Oracle, z: Tensor, t: float, level: Level) -> tuple[Tensor, Tensor]:
        if self.heard == "sigmas":
            return oracle.read(z, t, level)
        _, eps = oracle.read(z / math.hypot(*level), t, _trained(scheduler, t))
        return (z - level[1] * eps) / level[0], eps


def _to_float64(scheduler: Any, table: str) -> None:
    if isinstance(getattr(scheduler, table, None), Tensor):
        setattr(scheduler, table, getattr(scheduler, table).double())


def _begins(scheduler: Any, k: int) -> bool:
    """Whether call k is at a node, rather than at a stage within a step."""
    orders = getattr(scheduler, "order_list", None)  # of the singlestep solvers
    return orders[k] == 1 if orders else bool(getattr(scheduler, "state_in_first_order", True))


def _trained(scheduler: Any, t: float) -> Level:
    """The level of a timestep for a network trained on the scheduler's table; log-linear between entries."""
    squares = scheduler.alphas_cumprod.double()
    low = min(int(t), len(squares) - 2)
    ends = torch.log((1 - squares[low : low + 2]) / squares[low : low + 2]) / 2
    return _level("vp", math.exp(float(ends[0] + (t - low) * (ends[1] - ends[0]))))


def _config(scheduler: Any, name: str, default: Any) -> Any:
    return getattr(getattr(scheduler, "config", None), name, default)


def _output(scheduler: Any, level: Level, x: Tensor, eps: Tensor) -> Tensor:
    """The output of the network, in the parametrisation that the scheduler expects."""
    alpha, sigma = level
    flows = "flow_prediction" if _space(scheduler) == "flow" else "epsilon"
    kind = _config(scheduler, "prediction_type", flows)
    outputs = {
        "epsilon": lambda: eps,
        "sample": lambda: x,
        # for a state x + sigma eps, v is defined for the state scaled to unit variance
        "v_prediction": lambda: (alpha * eps - sigma * x) / math.hypot(alpha, sigma),
        "flow_prediction": lambda: eps - x,
    }
    if kind not in outputs:
        raise SfumatoError(f"The prediction type {kind!r} of {type(scheduler).__name__} is not supported.")
    return outputs[kind]()


def _space(scheduler: Any) -> str:
    """Which of the four parametrisations at the top of this file applies."""
    if getattr(scheduler, "sigmas", None) is None:
        return "table"
    flow = "FlowMatch" in type(scheduler).__name__ or _config(scheduler, "use_flow_sigmas", False)
    if flow:
        return "flow"
    return "vp" if hasattr(scheduler, "_sigma_to_alpha_sigma_t") else "ve"


def levels_of(scheduler: Any, space: str | None = None) -> list[Level]:
    """(alpha, sigma) at each call of a scheduler whose timesteps are set, and at the end."""
    space = space or _space(scheduler)
    if space == "table":
        squares = scheduler.alphas_cumprod.double()
        at = [float(squares[int(t)]) for t in scheduler.timesteps]
        at.append(float(getattr(scheduler, "final_alpha_cumprod", 1.0)))
        return [(math.sqrt(a), math.sqrt(1 - a)) for a in at]
    sigmas = [float(s) for s in scheduler.sigmas][: len(scheduler.timesteps) + 1]
    if len(sigmas) == len(scheduler.timesteps):
        sigmas.append(0.0)
    return [_level(space, sigma) for sigma in sigmas]


def _level(space: str, sigma: float) -> Level:
    if space == "flow":
        return 1 - sigma, sigma
    alpha = 1 / math.sqrt(1 + sigma**2) if space == "vp" else 1.0
    return alpha, sigma * alpha
