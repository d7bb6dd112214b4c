"""A denoiser: network + process + target + input scaling; a belief comes out.

    y = net(c_in z, noise_level)
    c_in = 1 / sqrt(sigma^2 + alpha^2 sigma_data^2),   noise_level = -logsnr / 8 = ln(sigma/alpha) / 4

The network sees the noise level through logsnr alone, so that a trained network works under any schedule
(`compose.Rescheduled`). A network of twice the outputs says, beside y, how the variance of an ancestral step lies
between its two limits: Sigma = exp(v log beta + (1 - v) log beta_tilde), v = (1 + output) / 2.
Sources: Karras et al. 2022 (2206.00364), Eq. 7 and Table 1, stated for any (alpha, sigma); Nichol and Dhariwal 2021
(2102.09672), Eq. 15.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from sfumato import target as targets
from sfumato.belief import Estimate, broadcast
from sfumato.conditions import hears_presence, network_inputs
from sfumato.errors import SfumatoError, suggest
from sfumato.process import Gaussian
from sfumato.registry import register
from sfumato.schedule import Time

LOGSNR_LIMIT = 40.0  # beyond, the state is clean or pure noise in double precision
KEPT_TIMES = 4096  # of which a denoiser keeps the scaling and the reading
VARIANCES = ("fixed", "learned")

_Made = TypeVar("_Made", bound=tuple[Any, ...])


@runtime_checkable
class Model(Protocol):
    """Anything that turns a state into a belief."""

    @property
    def process(self) -> Gaussian: ...

    def __call__(self, z: Tensor, t: Time, **cond: Any) -> Estimate: ...


def noise_level(logsnr: Tensor) -> Tensor:
    """-logsnr / 8 = ln(sigma/alpha) / 4, finite at both ends."""
    return (-logsnr / 8).clamp(-LOGSNR_LIMIT / 8, LOGSNR_LIMIT / 8).float()


def compute_dtype(model: Model) -> torch.dtype:
    """What a model takes states in: the type of its parameters, float64 without any."""
    parameters = getattr(model, "parameters", None)
    return next((p.dtype for p in parameters()), torch.float64) if parameters else torch.float64


@register("model", "Denoiser")
class Denoiser(nn.Module):
    """denoiser(z, t, **cond) -> Estimate.

    net: called as net(z_scaled, noise_level (B,), **values), returns the shape of z; present={name: bool (B,)}, where a
    condition is known, goes to a network whose forward takes `present`.
    target: what the network predicts, one of x, eps, score, v, velocity, F. sigma_data: the standard deviation of the
    normalised data. spec: the data's contract (`data.DataSpec`), which carries user units; None works in plain tensors.
    variance: "learned" for a network of `outputs=2` (twice the channels, or numbers of a vector), whose second half
    becomes `belief.variance_share`; "fixed" for one that predicts the target alone.
    compute_dtype: torch.bfloat16 runs the network under autocast; scaling and belief stay in float32 or better.
    """

    def __init__(
        self,
        net: nn.Module,
        process: Gaussian,
        target: str = "v",
        sigma_data: float = 1.0,
        spec: Any = None,
        plans: dict[str, Any] | None = None,
        variance: str = "fixed",
    ) -> None:
        super().__init__()
        targets.check(target, process.schedule)
        _check_variance(variance, net)
        self.variance = variance
        self.net, self.process, self.target, self.sigma_data, self.spec = net, process, target, float(sigma_data), spec
        self.plans = dict(plans or {})
        self.compute_dtype: torch.dtype | None = None
        self.provenance: dict[str, Any] = {}
        self._owner: tuple[Any, ...] = ()
        self._kept: dict[tuple[str, float, torch.device], Any] = {}

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of one sample, where the model knows it."""
        shape = getattr(self.spec, "shape", None) or getattr(self.net, "shape", None)
        return None if shape is None else tuple(shape)

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.net.parameters()), torch.device("cpu"))

    def _at(self, kind: str, t: Time, device: torch.device, make: Callable[[], _Made]) -> _Made:
        """What depends on the time alone; that of a number is kept, since a sampler comes back to its times."""
        if not isinstance(t, float | int) or torch.compiler.is_compiling():
            return make()
        owner = (self.process, self.target, self.sigma_data)
        if self._owner != owner:
            self._owner, self._kept = owner, {}
        key = (kind, t, device)
        if key not in self._kept:
            with torch.inference_mode(False), torch.no_grad():
                made = make()
            if len(self._kept) >= KEPT_TIMES:
                self._kept.clear()
            self._kept[key] = made
        return self._kept[key]

    def scaling(self, t: Time, device: torch.device) -> tuple[Tensor, Tensor]:
        """c_in and the noise level: the network hears (c_in z, noise level)."""
        alpha, sigma = self.process.schedule(t)
        c_in = 1 / torch.sqrt(sigma**2 + (alpha * self.sigma_data) ** 2)
        return c_in, noise_level(self.process.schedule.logsnr(t)).to(device)

    def predict(self, z: Tensor, t: Time, **cond: Any) -> Tensor:
        """The network's raw output in the terms of `target`, in the dtype of z (float32 at least)."""
        return self.outputs(z, t, **cond)[0]

    def outputs(self, z: Tensor, t: Time, **cond: Any) -> tuple[Tensor, Tensor | None]:
        """(what `predict` gives, v of a step's variance where it is learned), both like z."""
        y = self._raw(z, t, **cond)
        if self.variance == "fixed":
            return y, None
        if y.shape[1] != 2 * z.shape[1]:
            raise SfumatoError(
                f"A learned variance needs a network of twice the outputs: {2 * z.shape[1]} along the first axis, not "
                f"{y.shape[1]}. Build it with outputs=2."
            )
        y, share = y.chunk(2, dim=1)
        return y, (1 + share) / 2

    def _raw(self, z: Tensor, t: Time, **cond: Any) -> Tensor:
        c_in, level = self._at("input", t, z.device, lambda: self.scaling(t, z.device))
        scaled, level = broadcast(c_in, z) * z, level.expand(len(z))
        low, heard = self.compute_dtype, network_inputs(cond, hears_presence(self.net))
        if low is None and not torch.is_autocast_enabled(z.device.type):
            return self.net(scaled, level, **heard).to(z.dtype)
        with torch.autocast(z.device.type, low or torch.bfloat16, enabled=low is not None):
            y = self.net(scaled, level, **heard)
        return y.to(z.dtype)

    def forward(self, z: Tensor, t: Time, **cond: Any) -> Estimate:
        y, share = self.outputs(z, t, **cond)
        known = self._at("reading", t, z.device, lambda: self.process.reading(self.target, t, self.sigma_data))
        belief = self.process.read(y, self.target, z, t, self.sigma_data, known)
        belief.variance_share = share
        return belief


def _check_variance(variance: str, net: nn.Module) -> None:
    """Refuse a word that is not known, and a network of the wrong number of outputs."""
    if variance not in VARIANCES:
        raise SfumatoError(f"The variance of a denoiser cannot be {variance!r}: {suggest(variance, VARIANCES)}")
    has, wanted = getattr(net, "outputs", None), 1 if variance == "fixed" else 2
    if isinstance(has, int) and has != wanted:
        raise SfumatoError(f"A denoiser with variance={variance!r} needs a network of outputs={wanted}, not {has}.")
