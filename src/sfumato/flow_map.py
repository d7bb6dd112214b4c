"""A flow map: a model of two times, which moves a state along the probability-flow ODE from t to s in one call.

    X(z, t, s) = S_s [ z / S_t + (theta_t - theta_s) F(z, t, s) ],   theta = arctan(sigma / (alpha sigma_data)),
    S = sqrt(sigma^2 + alpha^2 sigma_data^2)

F(z, t, s) is the mean of the target F = -d(z / S)/dtheta over the path, so X(z, t, t) = z whatever the network, and at
s = t the map is an ordinary denoiser. With w = z / S and d = theta_t - theta_s the network's answer G is

    mean    F = G                                   the step of Euler's method in theta
    ddim    F = (sin d G - (1 - cos d) w) / d       X = S_s [cos d w + sin d G], the step of DDIM

whichever `form` the map has. A network that answers 0 is in the first the exact map of N(0, sigma_data^2) data, and
keeps all noise; in the second it keeps cos d of it, none from noise to data, where G is the sample itself.
Of coefficients (`Spectral`) each moves by its own angle; an interpolant moves as dz/dtheta = -F (`process.angles`), and
its map is the step of its belief, "ddim".
Consistency models (s = 0), shortcut models, MeanFlow and distilled students are such maps.
Sources: Boffi et al. 2024 (2406.07507); Kim et al. 2023 (2310.02279); Geng et al. 2025 (2505.13447), the means; Song et
al. 2020 (2010.02502), Eq. 12, and 2023 (2303.01469), Eq. 5, the skip of the second form.
"""

from __future__ import annotations

import copy
from typing import Any, final

import torch
from torch import Tensor, nn

from sfumato.belief import Between, Estimate, broadcast
from sfumato.compose import Wrapped
from sfumato.errors import SfumatoError, an, suggest
from sfumato.model import Denoiser
from sfumato.nets.growth import core, grown
from sfumato.noise import seeded
from sfumato.process import Gaussian, Interpolant, RectifiedFlow, Spectral, angles, require_flow
from sfumato.registry import register
from sfumato.schedule import Time, as_time

FORMS = ("mean", "ddim")
UNTIL = "until"  # the condition by which the network hears the second time
_HEARD = 2.0  # theta runs from 0 to pi / 2; scalar conditions of networks are of order 1


def heard(end: Tensor, count: int, device: torch.device) -> Tensor:
    """What a network hears of the angle at which a path ends, float32 (count,)."""
    return (_HEARD * end).to(device, torch.float32).expand(count)


@register("model", "FlowMap")
@final
class FlowMap(Wrapped):
    """map(z, t, until=s, **cond) -> the belief whose `to(s)` is X(z, t, s); without `until`, s = t: a denoiser.

    inner: a `Denoiser` of any target whose process has an ODE: Gaussian, of coefficients (blur ..), or of pairs. Its
    network takes a scalar condition `until`, as `FlowMap.student(teacher)` builds it. calls: the numbers of calls that
    it was trained for; the first is the default of `sf.sample`. gamma: the share of the noise that it is meant to renew
    between calls. form: what the network's answer is, "mean" or "ddim" (above). Samples are drawn by the solver "map";
    every other solver uses the model as a denoiser.
    """

    two_times = True

    def __init__(
        self, inner: Denoiser, calls: tuple[int, ...] = (1, 2, 4), gamma: float = 0.0, form: str = "mean"
    ) -> None:  # fmt: skip
        super().__init__(inner)
        if form not in FORMS:
            raise SfumatoError(f"Unknown form {form!r:.60} of a flow map: {suggest(form, FORMS)}")
        process = getattr(inner, "process", None)
        if not isinstance(process, Gaussian | Spectral | Interpolant):
            raise SfumatoError(
                f"A flow map moves real numbers along an ODE, and {type(process).__name__} has none: sample the model "
                "itself, in fewer steps."
            )
        require_flow(process)
        if isinstance(process, Spectral) and bool((process.schedule.sigma(0.0) > 0).any()):
            raise SfumatoError(
                f"The noise of {type(process).__name__} stays to the end and is small, so that what tells samples "
                "apart is hardly heard among blurred data: it has no map of few calls. Take the process blur."
            )
        self.form = "ddim" if isinstance(process, Interpolant) else form
        self.calls = tuple(int(count) for count in calls)
        if not self.calls or min(self.calls) < 1:
            raise SfumatoError(f"calls are numbers of calls, at least 1, not {calls!r:.60}.")
        self.gamma = float(gamma)
        if not 0 <= self.gamma <= 1:
            raise SfumatoError(f"gamma is the share of renewed noise, from 0 to 1, not {gamma!r:.60}.")
        if self.gamma and not renews(process):
            raise SfumatoError(f"A {type(process).__name__} has no noise that a flow map could renew: take gamma=0.")

    @property
    def default_solver(self) -> str:
        return f"map(gamma={self.gamma:g})" if self.gamma else "map"

    @property
    def default_steps(self) -> int:
        return self.calls[0]

    @property
    def spec(self) -> Any:
        """The data's contract."""
        return getattr(self.inner, "spec", None)

    @spec.setter
    def spec(self, spec: Any) -> None:
        inner: Any = self.inner
        inner.spec = spec

    @classmethod
    def student(
        cls, teacher: Any, calls: tuple[int, ...] = (1, 2, 4), gamma: float = 0.0, form: str = "mean"
    ) -> FlowMap:  # fmt: skip
        """A map that starts at the teacher: its network with the second time added, of which the output is zero.

        Each call is then one step of the teacher, by the method of its `form`. Of a guided or wrapped teacher it is the
        denoiser inside that it starts at.
        """
        first = innermost(teacher)
        inner = copy.copy(first)
        inner._modules = {**first._modules, "net": hearing(first.net)}
        inner.plans = {}
        return cls(inner, calls, gamma, form)

    def __call__(self, z: Tensor, t: Time, /, until: Time | None = None, **cond: Any) -> Any:
        process, t = self.process, as_time(t)
        s = t if until is None else as_time(until)
        belief = self._belief(z, t, s, cond)
        if until is None or isinstance(belief, Between):
            return belief
        y: Tensor = belief.F
        if self.form == "mean":
            d = angles.turn(process, t) - angles.ended(process, s)
            slope = torch.where(d == 0, 1.0, d / torch.where(d == 0, 1.0, d.sin()))
            y = broadcast(slope, z) * y + broadcast(torch.tan(d / 2), z) * angles.unit(process, z, t)
        return Estimate(z, t, process.schedule, y=y, sigma_data=process.sigma_data, named="F")

    def _belief(self, z: Tensor, t: Tensor, s: Tensor, cond: dict[str, Any]) -> Any:
        """The inner belief of a network that hears where the path ends."""
        end = heard(angles.ended(self.process, s, angles.angle(self.process, s)), len(z), z.device)
        return self.inner(z, t, **{UNTIL: end}, **cond)

    def predict(self, z: Tensor, t: Time, /, **cond: Any) -> Tensor:
        """The network's prediction of its target at s = t, like z."""
        end = heard(angles.angle(self.process, as_time(t)), len(z), z.device)
        inner: Any = self.inner
        found: Tensor = inner.predict(z, t, **{UNTIL: end}, **cond)
        return found

    def answer(self, z: Tensor, t: Time, s: Time, **cond: Any) -> Tensor:
        """G(z, t, s), what the network says of the path from t to s, like z; of an interpolant the mean of F."""
        t, s = as_time(t), as_time(s)
        belief = self._belief(z, t, s, cond)
        found: Tensor = angles.between(belief, s) if isinstance(belief, Between) else belief.F
        return found

    def mean(self, z: Tensor, t: Time, s: Time, **cond: Any) -> Tensor:
        """F(z, t, s), the mean of F over the path from t to s, like z."""
        answer, process = self.answer(z, t, s, **cond), self.process
        if self.form == "mean" or isinstance(process, Interpolant):
            return answer
        d = angles.turn(process, as_time(t)) - angles.ended(process, as_time(s))
        part = torch.where(d == 0, 1.0, d.sin() / torch.where(d == 0, 1.0, d))
        # sin d tan(d / 2) is 1 - cos d, without its cancellation
        return broadcast(part, z) * answer - broadcast(part * torch.tan(d / 2), z) * angles.unit(process, z, t)


def renews(process: Any) -> bool:
    """Whether the noise of a process is one that a map may renew between its calls."""
    return isinstance(process, Gaussian) and not isinstance(process, RectifiedFlow)


def innermost(model: Any) -> Denoiser:
    """The denoiser within a model."""
    while isinstance(model, Wrapped):
        model = model.inner
    if not isinstance(model, Denoiser):
        raise SfumatoError(f"A flow map starts from a denoiser, such as sf.load gives, not {an(type(model).__name__)}.")
    return model


def hearing(net: nn.Module) -> nn.Module:
    """A copy of a network that also takes the scalar condition `until`, without effect on its output at first."""
    inner: Any = core(net)
    if inner is None or getattr(net, "config", None) is None:
        raise SfumatoError(
            f"{type(net).__name__} cannot be given a second time: give the flow map a denoiser whose network takes "
            f"the keyword {UNTIL} (B,)."
        )
    if UNTIL in inner.given:
        return copy.deepcopy(net)
    with seeded(0):
        return grown(net, {**inner.given, UNTIL: {"kind": "scalar"}}).net
