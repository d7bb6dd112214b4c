"""The image transformer of CLIP, forward only (Radford et al. 2021, 2103.00020, Sec. 2.4)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import SfumatoError
from .attention import mix, split

PREFIX = "vision_model."


class ClipVision(nn.Module):
    """x (B, 3, side, side), normalised as in its training -> (B, d): what the class token says of each picture.

        h = LN([c, patches W] + P);   h <- h + Attn(LN h), h <- h + W2 gelu(W1 LN h) in each layer;   y = V LN(h_c)

    config: of the vision model in the Hugging Face layout. tensors: names -> weights, with or without those of a text
    model beside them; V is left out where there is none. Raises KeyError or RuntimeError for other names or shapes.
    """

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        width, patch, eps = config["hidden_size"], config["patch_size"], config.get("layer_norm_eps", 1e-5)
        self.side = int(config["image_size"])
        self.start = nn.Parameter(torch.zeros(width))
        self.patches = nn.Conv2d(config.get("num_channels", 3), width, patch, patch, bias=False)
        self.places = nn.Embedding((self.side // patch) ** 2 + 1, width)
        self.before, self.after = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        heads, inner, act = config["num_attention_heads"], config["intermediate_size"], config.get("hidden_act")
        if act not in (None, "quick_gelu", "gelu"):
            raise SfumatoError(f"no CLIP has the activation {act!r}: it is quick_gelu or gelu")
        self.layers = nn.ModuleList(
            _Layer(width, heads, inner, eps, act != "gelu") for _ in range(config["num_hidden_layers"])
        )
        found = {name.removeprefix(PREFIX): value.float() for name, value in tensors.items()}
        out = found.get("visual_projection.weight")
        self.projection = nn.Identity() if out is None else nn.Linear(width, len(out), bias=False)
        self.load_state_dict({name: found[_theirs(name)] for name in self.state_dict()})
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patches(x).flatten(2).mT
        h = self.before(torch.cat([self.start.expand(len(h), 1, -1), h], 1) + self.places.weight)
        for layer in self.layers:
            h = layer(h)
        found: Tensor = self.projection(self.after(h[:, 0]))
        return found


_OUTSIDE = {
    "start": "embeddings.class_embedding", "patches.weight": "embeddings.patch_embedding.weight",
    "places.weight": "embeddings.position_embedding.weight", "projection.weight": "visual_projection.weight",
}  # fmt: skip
_NORMS = {"before": "pre_layrnorm", "after": "post_layernorm"}  # the first is spelt so in all files
_IN_LAYER = {
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "out": "self_attn.out_proj",
    "norm1": "layer_norm1", "norm2": "layer_norm2", "first": "mlp.fc1", "second": "mlp.fc2",
}  # fmt: skip


def _theirs(name: str) -> str:
    """The name of a weight in the Hugging Face layout."""
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    head, _, last = name.rpartition(".")
    if head in _NORMS:
        return f"{_NORMS[head]}.{last}"
    _, number, part = head.split(".")
    return f"encoder.layers.{number}.{_IN_LAYER[part]}.{last}"


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int, eps: float, quick: bool) -> None:
        super().__init__()
        self.heads, self.quick = heads, quick
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.first, self.second = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)

    def forward(self, h: Tensor) -> Tensor:
        y = self.norm1(h)
        q, k, v = (split(part(y), 1, self.heads)[0] for part in (self.q, self.k, self.v))
        h = h + self.out(mix(q, k, v, None))
        y = self.first(self.norm2(h))
        return h + self.second(y * torch.sigmoid(1.702 * y) if self.quick else F.gelu(y))
