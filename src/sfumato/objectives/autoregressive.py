"""The cross entropy of each symbol given those before it, for `sf.train(loss="autoregressive")`."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor, nn

from sfumato.autoregressive import Autoregressive
from sfumato.errors import SfumatoError, an
from sfumato.objectives.loss import Loss
from sfumato.registry import register


@register("loss", "autoregressive")
@final
class NextSymbol(Loss):
    """-log p(x) / L, nats per symbol; trains an `Autoregressive` model."""

    mask = "causal"

    def model(self, net: nn.Module, spec: Any) -> Any:
        return Autoregressive(net, spec)

    def suits(self, model: Any) -> None:
        if not isinstance(model, Autoregressive):
            raise SfumatoError(
                f"The autoregressive loss trains an Autoregressive model, and this is {an(type(model).__name__)}: "
                "leave "
                "model out, or take loss='denoising'."
            )

    def losses(self, model: Any, batch: Any) -> Tensor:
        nats: Tensor = model.log_prob(batch.x, **batch.cond)
        return -nats / batch.x[0].numel()
