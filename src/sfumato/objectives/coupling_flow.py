"""The exact likelihood of a coupling flow, for `sf.train(loss="coupling-flow")`."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor, nn

from sfumato.coupling_flow import CouplingFlow
from sfumato.errors import SfumatoError, an
from sfumato.objectives.loss import Loss
from sfumato.registry import register


@register("loss", "coupling-flow")
@final
class ExactLikelihood(Loss):
    """-log p(x) / D, nats per number of normalised data; trains a `CouplingFlow` of vectors."""

    network = "Couplings"
    watched = "the negative log-likelihood"

    def model(self, net: nn.Module, spec: Any) -> Any:
        return CouplingFlow(net, spec)

    def suits(self, model: Any) -> None:
        if not isinstance(model, CouplingFlow):
            raise SfumatoError(
                f"The loss of a coupling flow trains a CouplingFlow, and this is {an(type(model).__name__)}: leave "
                "model out, or take loss='denoising'."
            )

    def losses(self, model: Any, batch: Any) -> Tensor:
        nats: Tensor = model.log_prob(batch.x, **batch.cond)
        return -nats / batch.x[0].numel()
