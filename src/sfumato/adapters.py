"""Adapted models: a base and few trained weights beside it (`nets.Adapted`), merged, or put together from two files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sfumato import trees
from sfumato.errors import SfumatoError
from sfumato.files import seal
from sfumato.machine import default_cpu
from sfumato.model import with_net
from sfumato.nets import Adapted
from sfumato.nets.growth import core, grown
from sfumato.noise import seeded


@default_cpu()
def merge(model: Any) -> Any:
    """The model with its adapters merged into its weights, W = W_0 + (alpha / r) U D: a plain one of the same output.

    model: of `sf.train(.., init=.., lora=8)`; one without adapters is returned as it is. Its network is a new one, and
    what else the model has is shared with the argument.
    """
    net = getattr(model, "net", None)
    return with_net(model, net.merged()) if isinstance(net, Adapted) else model


def fingerprint(net: nn.Module) -> str:
    """The hash of a network's description and weights, by which a file of adapters knows its base."""
    return seal(net.state_dict(), {"net": trees.tree(net)})


def completed(net: Adapted, base: Any, path: Path) -> dict[str, Tensor]:
    """The tensors of an adapted network that a file of the adapters alone lacks, from the model that it was made of.

    Raises SfumatoError, with both fingerprints, for another base.
    """
    plain = merge(base).net
    found = fingerprint(plain)
    if found != net.base:
        raise SfumatoError(
            f"{path} holds adapters of a network with the fingerprint {net.base[:16]}, and that of the base is "
            f"{found[:16]}: give the model that it was trained from."
        )
    inner = core(net)
    with seeded(0):  # all that is drawn is overwritten
        larger = plain if inner is None else grown(plain, inner.given).net  # type: ignore[arg-type]
        args = {name: value for name, value in net.config["args"].items() if name != "net"}
        whole = Adapted(larger, **args)
    own = whole.own()
    return {name: value for name, value in whole.state_dict().items() if name not in own}
