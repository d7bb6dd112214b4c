"""Features of the FID's Inception network, from a file of its weights that the user supplies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.data.file_formats.torch_file import unpickled
from sfumato.errors import SfumatoError
from sfumato.features import bounds_of_pictures
from sfumato.files import first_line, require_plain
from sfumato.nets import inception
from sfumato.registry import register

SIDE, CLASSES = 299, 1008  # of its pictures; of those that the FID's network was trained on
_BATCH = 32  # pictures at once, which take some 100 MB
_COUNTS = "num_batches_tracked"  # of the norms: of no use, and not in every file


@register("features", "inception")
class Inception(nn.Module):
    """Pictures (n, C, H, W), grey or RGB, in the units of the data -> (n, 2048).

        features = net(2 resized((x - low) / (high - low)) - 1),   resized: to 299 x 299, bilinear, no antialiasing

    weights: the file of a state dict, .safetensors, or .pt or .pth, of which nothing but tensors is loaded. shape: of a
    sample; bounds: (low, high) of the data. This is how pytorch-fid computes the FID (`nets.inception` has the
    network). Raises SfumatoError for files of other networks, and for data that are no such pictures.
    """

    called = "Inception-v3"
    preprocessing = "bilinear to 299 x 299"

    def __init__(self, weights: str, shape: Sequence[int], bounds: Sequence[float] | None) -> None:
        super().__init__()
        self.low, self.high = bounds_of_pictures("Inception features are those of", shape, bounds)
        with torch.device("meta"):
            self.net = inception.Inception()
        self.net.load_state_dict(fitted(self.net, weights), assign=True)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.net(self._prepared(part)) for part in x.split(_BATCH)])

    def _prepared(self, x: Tensor) -> Tensor:
        shares = (x - self.low) / (self.high - self.low)
        return 2 * F.interpolate(shares.expand(-1, 3, -1, -1), (SIDE, SIDE), mode="bilinear") - 1


def fitted(net: nn.Module, path: str) -> dict[str, Tensor]:
    """The tensors of a network in a file, float32. Raises SfumatoError if one is missing, or has another shape."""
    found, state = tensors(path), {}
    last = found.get("fc.weight")
    if last is not None and len(last) != CLASSES:
        raise SfumatoError(
            f"{path} holds weights that tell {len(last):,} classes apart, but those of the FID tell {CLASSES:,}: give "
            "the published ones (pt_inception-2015-12-05)."
        )
    for name, own in net.state_dict().items():
        given = torch.zeros((), dtype=torch.int64) if name.endswith(_COUNTS) else found.get(name)
        if given is None or given.shape != own.shape:
            what = "is missing" if given is None else f"has the shape {tuple(given.shape)}"
            raise SfumatoError(f"{path} holds no Inception-v3 as that of the FID: {name} {what}.")
        state[name] = given.to(own.dtype)
    return state


def tensors(path: str) -> dict[str, Tensor]:
    """The tensors of a state dict by name. Nothing in the file is run."""
    place = Path(path).expanduser()
    if not place.is_file():
        raise SfumatoError(f"{path} does not exist, or is a folder: give the file of the weights.")
    require_plain(place)
    try:
        found: Any = _safe(place) if place.suffix == ".safetensors" else unpickled(place)
    except SfumatoError:
        raise
    except Exception as error:  # torch raises many kinds
        raise SfumatoError(f"{path} cannot be read as a state dict: {first_line(error)}") from None
    if not isinstance(found, dict):
        raise SfumatoError(f"{path} holds no state dict, names and tensors: save network.state_dict().")
    return {str(name): each for name, each in found.items() if isinstance(each, Tensor)}


def _safe(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)
