"""BERT, forward only: the transformer of sentence encoders such as MiniLM (Devlin et al. 2018, 1810.04805)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import mix, split


class Bert(nn.Module):
    """ids int64 (B, L), mask bool (B, L) -> the states of the last layer (B, L, d); masked places are not attended to.

        h = LN(E[id] + P[i] + T[0]);   h <- LN(h + Attn(h)), h <- LN(h + W2 gelu(W1 h)) in each layer

    config: that of the Hugging Face layout; `read` takes its tensors, with or without the prefix "bert.".
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, eps = config["hidden_size"], config.get("layer_norm_eps", 1e-12)
        self.words = nn.Embedding(config["vocab_size"], width)
        self.places = nn.Embedding(config["max_position_embeddings"], width)
        self.types = nn.Embedding(config.get("type_vocab_size", 2), width)
        self.norm = nn.LayerNorm(width, eps)
        self.layers = nn.ModuleList(
            _Layer(width, config["num_attention_heads"], config["intermediate_size"], eps)
            for _ in range(config["num_hidden_layers"])
        )

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        h = self.norm(self.words(ids) + self.places(places) + self.types.weight[0])
        for layer in self.layers:
            h = layer(h, mask)
        return h

    def read(self, tensors: Mapping[str, Tensor]) -> "Bert":
        """Fill in the weights of a file. Raises KeyError or RuntimeError for names or shapes that do not fit."""
        found = {name.removeprefix("bert."): value.float() for name, value in tensors.items()}
        state = {}
        for name in self.state_dict():
            head, _, last = name.rpartition(".")
            theirs = head
            if head.startswith("layers."):
                _, number, part = head.split(".")
                theirs = f"encoder.layer.{number}.{_IN_LAYER[part]}"
            else:
                theirs = f"embeddings.{_OUTSIDE[head]}"
            state[name] = found[f"{theirs}.{last}"]
        self.load_state_dict(state)
        return self.eval().requires_grad_(False)


_OUTSIDE = {
    "words": "word_embeddings", "places": "position_embeddings", "types": "token_type_embeddings", "norm": "LayerNorm",
}  # fmt: skip
_IN_LAYER = {
    "q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
    "out": "attention.output.dense", "norm1": "attention.output.LayerNorm",
    "first": "intermediate.dense", "second": "output.dense", "norm2": "output.LayerNorm",
}  # fmt: skip


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.first, self.second = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (split(part(h), 1, self.heads)[0] for part in (self.q, self.k, self.v))
        h = self.norm1(h + self.out(mix(q, k, v, mask)))
        return self.norm2(h + self.second(F.gelu(self.first(h))))
