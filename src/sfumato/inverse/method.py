"""What a method is: a belief given the measurement (model -> model), or a step of a walk."""

from __future__ import annotations

import abc
import dataclasses
from itertools import pairwise
from typing import Any, ClassVar, final

from torch import Tensor

from sfumato.belief import Estimate
from sfumato.compose import Wrapped
from sfumato.errors import SfumatoError
from sfumato.inverse.measurement import Local, Measurement, local
from sfumato.schedule import Time
from sfumato.solvers import Solver, grids
from sfumato.solvers.build import Builder
from sfumato.solvers.lines import Corrector
from sfumato.solvers.plan import Plan


class Method:
    """A way to sample p(x | y).

    nonlinear: whether any differentiable operator will do. noisy: whether the noise has to be above 0.
    usual_steps: how many, if the caller does not say.
    """

    nonlinear: ClassVar[bool] = True
    noisy: ClassVar[bool] = False
    usual_steps: ClassVar[int] = 20

    def check(self, measurement: Measurement) -> None:
        """Raise SfumatoError if this method cannot take the measurement."""
        name = type(self).__name__
        if not (measurement.linear or self.nonlinear):
            raise SfumatoError(f"{name} needs a linear operator (and data in affine units): use smc or dps here.")
        if self.noisy and not bool((measurement.noise > 0).all()):
            raise SfumatoError(
                f"{name} needs noise above 0: pass the standard deviation of the measurement, or use mmps, ddnm or "
                "repaint."
            )


class BeliefMethod(Method, abc.ABC):
    """A method that changes E[x|z] into E[x|z, y], about which every solver and likelihood asks.

    usual_solver: None for that of the model; a change of E[x|z] that is far off needs the noise of a stochastic one.
    """

    usual_solver: ClassVar[str | None] = None

    @abc.abstractmethod
    def clean(self, at: Local) -> Tensor:
        """E[x | z, y], like z."""


class StepMethod(Method, abc.ABC):
    """A method that changes the step itself, from t to s < t (s = 0: the clean signal)."""

    usual_steps: ClassVar[int] = 100

    def calls(self, s: float) -> int:
        """How often the step to s calls the model."""
        return 1

    @abc.abstractmethod
    def step(self, model: Any, measurement: Measurement, z: Tensor, t: float, s: float, noise: Any) -> Tensor:
        """The state at s. noise: a `Noise`, which has a stream for each name that is folded into it."""


@final
class Conditioned(Wrapped):
    """The model given a measurement, by a method that is a belief."""

    plans: ClassVar[dict[str, Any]] = {}  # those of the model are fitted to it without the measurement

    def __init__(self, inner: Any, method: BeliefMethod, measurement: Measurement) -> None:
        super().__init__(inner)
        method.check(measurement)
        self.method, self.measurement = method, measurement

    def __call__(self, z: Tensor, t: Time, /, **cond: Any) -> Estimate:
        x = self.method.clean(local(self.inner, self.measurement, z, t, **cond))
        return Estimate(z, t, self.process.schedule, x=x, sigma_data=self.process.sigma_data)


@final
@dataclasses.dataclass(frozen=True)
class Steps(Solver):
    """The solver whose every interval is a step of the method."""

    method: StepMethod
    measurement: Measurement
    grid: grids.Grid = dataclasses.field(default_factory=grids.auto)

    def build(self, b: Builder) -> Plan:
        self.method.check(self.measurement)
        for t, s in pairwise(b.nodes):
            b.call(t)
            b.jump(Step(self.method, self.measurement, self.method.calls(s)))
        return b.plan(str(self.method), 1)


@final
@dataclasses.dataclass
class Step(Corrector):
    """One interval of `Steps`."""

    method: StepMethod
    measurement: Measurement
    calls: int

    def __call__(self, model: Any, z: Tensor, t: float, s: float, state: Any, noise: Any) -> tuple[Tensor, None]:
        return self.method.step(model, self.measurement, z, t, s, noise).to(z.dtype), None
