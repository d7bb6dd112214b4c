"""Classifier guidance, by any differentiable likelihood of a noisy state, and a classifier that can be trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.belief import Estimate, broadcast
from sfumato.compose import Wrapped
from sfumato.conditions import PREVIOUS, Given
from sfumato.errors import SfumatoError
from sfumato.machine import outside_inference
from sfumato.model import Model, running_in, usable
from sfumato.process import Gaussian
from sfumato.process.gaussian import require_numbers
from sfumato.registry import register
from sfumato.schedule import Time, as_time
from sfumato.schedules import Cosine

_FAINTEST = -12.0  # logsnr: below, the gradient of a likelihood is less than its rounding error


@register("model", "NoisyClassifier")
class NoisyClassifier(nn.Module):
    """classifier(z, t, label=..) -> log p(label | z_t), (B,), 0 where the label is absent (-1).

    net: called as net(z, noise level (B,)) with z scaled to unit variance, returns logits (B, classes)
    (`nets.ClassifierNet`). z and t are of its own cosine schedule; what calls it under another converts them, since
    equal logsnr is equal information. `sf.train(data, loss="classification")` trains one.
    """

    def __init__(self, net: nn.Module, spec: Any = None) -> None:
        super().__init__()
        self.net, self.spec = net, spec
        self.space = Gaussian(Cosine())
        self.compute_dtype: torch.dtype | None = None
        self.provenance: dict[str, Any] = {}

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    def log_probs(self, z: Tensor, t: Time) -> Tensor:
        """log p(class | z_t) of all classes, (B, classes)."""
        given, level = self.space.inputs(z, t)
        with running_in(self.compute_dtype, z.device):
            logits: Tensor = self.net(given, level.expand(len(z)))
        return logits.to(torch.promote_types(z.dtype, torch.float32)).log_softmax(1)

    def forward(self, z: Tensor, t: Time, /, label: Tensor) -> Tensor:
        found = self.log_probs(z, t).gather(1, label.clamp_min(0)[:, None])[:, 0]
        return torch.where(label < 0, 0.0, found)


@register("model", "ClassifierGuided")
class ClassifierGuided(Wrapped):
    """eps = eps_inner - scale sigma grad_z log p(y | z_t): the law p(x) p(y | x)^scale is what it is meant to sample.

    classifier(z, t, **cond) -> log p(y | z_t), (B,): a `NoisyClassifier`, or any function that torch can differentiate,
    with z and t of this model's schedule. It is given the conditions of a call; the inner model is given them only if
    `conditional`. With an exact classifier it is `Guided(scale)`, or `Guided(1 + scale)` if conditional. Space: any
    row. Law on Gaussians: that of `Guided`. Source: Dhariwal and Nichol 2021 (2105.05233), Algorithm 2.
    """

    def __init__(
        self, inner: Model, classifier: Callable[..., Tensor], scale: float = 1.0, conditional: bool = False
    ) -> None:
        super().__init__(usable(inner, "Classifier guidance"))
        require_numbers(inner, "Classifier guidance", "guide it with sf.guide")
        if not callable(classifier):
            raise SfumatoError("Classifier guidance needs a function classifier(z, t, **conditions) -> log p(y | z).")
        self.classifier, self.scale, self.conditional = classifier, float(scale), conditional

    def __call__(self, z: Tensor, t: Time, /, **cond: Any) -> Estimate:
        t = as_time(t)
        own = cond if self.conditional else {name: value for name, value in cond.items() if name == PREVIOUS}
        belief = self.inner(z, t, **own)
        labels = {n: v.values if _is_label(v) else v for n, v in cond.items() if n != PREVIOUS}
        return belief.moved(belief.x + self.scale * self._shift(z, t, labels).to(belief.x))

    @outside_inference
    def _shift(self, z: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
        """sigma^2 / alpha grad_z log p(y | z_t) = E[x | z, y] - E[x | z]; near pure noise that of a little less
        noise."""
        own = self.process
        near = own.schedule.time(own.schedule.logsnr(t).clamp_min(_FAINTEST))
        z = _matched(own, z, t, near)

        def total(z: Tensor) -> Tensor:
            space = getattr(self.classifier, "space", own)
            at = (z, near) if space is own else own.same_level(z, near, space)
            return self.classifier(*at, **cond).sum()

        alpha, sigma = own.schedule(near)
        return broadcast(sigma**2 / alpha, z) * torch.func.grad(total)(z)


def _matched(process: Any, z: Tensor, t: Tensor, near: Tensor) -> Tensor:
    """z at t scaled to the size of states at `near`."""
    (a, s), (b, r) = process.schedule(t), process.schedule(near)
    return broadcast(torch.sqrt((b**2 + r**2) / (a**2 + s**2)), z) * z


def _is_label(value: Any) -> bool:
    return isinstance(value, Given) and value.is_label
