"""CFG++: classifier-free guidance with a scale that depends on the steps of a plan."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.guidance.guided import GuidedNumbers
from sfumato.model import Model
from sfumato.registry import register
from sfumato.solvers import Plan


@register("model", "CFGPlusPlus")
class CFGPlusPlus(GuidedNumbers):
    """scale_k = strength / (1 - e^-h_k),   h_k = half the step in logsnr after call k: a DDIM step of the guided x with
    the noise of the base, z' = alpha' x_guided + sigma' eps_base.

    The scale belongs to the plan, which has to be the one that samples: `sf.sample(model, solver=plan)`. It grows as
    strength / h with more steps, so that there is no limit of many. Space: any row. Law on Gaussians: that of `Guided`
    with these scales. Source: Chung et al. 2024 (2406.08070), Algorithm 2, of which `strength` (0 to 1) is the lambda.
    """

    def __init__(
        self, inner: Model, strength: float, plan: Plan, interval: tuple[float, float] | None = None,
        negative: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(inner, strength, interval, negative)
        if not isinstance(plan, Plan) or not plan.path or any(a <= b for a, b in pairwise((*plan.times, plan.stop))):
            raise SfumatoError(
                "CFGPlusPlus needs a plan of one call per step, such as sf.solvers.DDIM().plan(model.process, 20)."
            )
        self.strength, self.plan = float(strength), plan
        alpha, sigma = torch.tensor(plan.path, dtype=torch.float64).T
        self._per_call = self.strength / (1 - alpha[:-1] * sigma[1:] / (sigma[:-1] * alpha[1:]))

    def _scales(self, t: Tensor) -> Tensor:
        gaps = (self.plan.moments[:-1] - t.double().cpu().reshape(-1, 1)).abs()
        gap, call = gaps.min(1)
        if bool((gap > 1e-6).any()):  # times may come in float32
            raise SfumatoError(
                f"CFGPlusPlus has a scale for the calls of its plan alone, and is called at t = {float(t.max()):.6g}: "
                "sample with solver=plan."
            )
        return torch.where(self._inside(t), self._per_call[call].reshape(t.shape).to(t), 1.0)
