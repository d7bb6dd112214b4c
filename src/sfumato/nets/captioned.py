"""Captions before a network: words or embedded texts -> a vector that modulates, tokens to attend to, and a canvas.

    words   {"vocabulary": V}: ids (B, L), -1 after the last word; read by a `WordEncoder`, trained with the network
    text    {"size": d}: (B, 1 + L, d), the vector of the text, then its tokens, rows of zeros after the last

The network behind hears plain conditions for each: NAME, the tokens (kind "tokens"), NAME_pooled, the vector (kind
"vector"), and NAME_canvas, a picture painted from the vector (kind "field"). Where the caption is absent the first two
are learned null entries, and the canvas is empty.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import SfumatoError
from ..registry import register
from ..trees import tree
from .attention import attend
from .conditions import Described, positions

WIDTH = 128  # of the tokens of a WordEncoder
HEADS, DEPTH = 4, 2
UNKNOWN = 0  # the id of a word outside the vocabulary
FORGET = 0.05  # share of the words taken as unknown in training, so that the entry of unknown words is learned
KINDS = {"words": "vocabulary", "text": "size"}
CANVAS, PAINTER = 4096, 512  # most numbers of a canvas; width of what paints it


def painter(size: int, painted: Sequence[int]) -> nn.Module:
    """W_2 gelu(W_1 v): vectors (B, size) -> a canvas (B, C * prod(spatial)) of the shape `painted`."""
    return nn.Sequential(nn.Linear(size, PAINTER), nn.GELU(), nn.Linear(PAINTER, math.prod(painted)))


def pooled(name: str) -> str:
    """The condition of the network behind that holds the vector of a caption."""
    return f"{name}_pooled"


def canvas(name: str) -> str:
    """The condition of the network behind that holds the canvas of a caption."""
    return f"{name}_canvas"


def canvas_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of a canvas for samples (C, *spatial): sides halved until it has at most 4,096 numbers."""
    channels, *sides = shape
    while channels * math.prod(sides) > CANVAS and max(sides) > 1:
        sides = [-(-side // 2) for side in sides]
    return (channels, *sides)


def captions(conditions: Mapping[str, Mapping[str, Any]] | None) -> Described:
    """Those of the conditions that a `Captioned` reads. Raises SfumatoError for sizes that make no sense."""
    found = {name: dict(each) for name, each in (conditions or {}).items() if each.get("kind") in KINDS}
    for name, each in found.items():
        key = KINDS[each["kind"]]
        if set(each) != {"kind", key} or not isinstance(each[key], int) or each[key] < 1:
            raise SfumatoError(f"the condition {name!r} needs its kind and a positive {key}, not {each}")
        for taken in (pooled(name), canvas(name)):
            if taken in (conditions or {}):
                raise SfumatoError(f"a condition cannot be called {taken!r} beside {name!r}: rename it")
    return found


def behind(
    conditions: Mapping[str, Mapping[str, Any]], tokens: bool, painted: Sequence[int] | None = None
) -> Described:
    """The conditions of the network behind: captions as vectors, as tokens if it attends, and as a canvas of the shape
    `painted`; others unchanged."""
    read = captions(conditions)
    made = {name: dict(each) for name, each in conditions.items() if name not in read}
    for name, each in read.items():
        size = each.get("size", WIDTH)
        made[pooled(name)] = {"kind": "vector", "size": size}
        if tokens:
            made[name] = {"kind": "tokens", "size": size}
        if painted:
            made[canvas(name)] = {"kind": "field", "shape": list(painted)}
    return made


class WordEncoder(nn.Module):
    """ids int64 (B, L), -1 after the last word -> (vector (B, d), tokens (B, L, d), mask bool (B, L)).

        h_i = E[id_i] + p_i;   twice h <- h + Attn(LN h), h <- h + MLP(LN h);   tokens LN h, vector their mean

    p are sines and cosines. Places after the last word are never attended to, so that padding changes nothing.
    """

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary + 1, WIDTH)  # row UNKNOWN for all other words
        self.layers = nn.ModuleList(_Layer() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        known = ids >= 0
        if self.training:
            ids = ids.masked_fill(torch.rand(ids.shape, device=ids.device) < FORGET, UNKNOWN)
        h = self.words(ids.clamp_min(UNKNOWN))
        h = h + positions(ids.shape[1], WIDTH).to(h)
        some = known.clone()
        some[:, 0] |= ~known.any(1)  # an absent caption attends to itself, as a softmax over nothing is NaN
        for layer in self.layers:
            h = layer(h, some)
        tokens = self.norm(h)
        share = known / known.sum(1, keepdim=True).clamp_min(1)
        return (tokens * share[:, :, None].to(tokens.dtype)).sum(1), tokens, known


class _Layer(nn.Module):
    """h <- h + Attn(LN h), then h <- h + MLP(LN h), with attention among the places of a mask (B, L)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.first, self.second = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        h = h + self.out(attend(self.qkv(self.norm1(h)), HEADS, mask=mask))
        return h + self.second(F.gelu(self.first(self.norm2(h))))


class _Given(nn.Module):
    """An embedded text (B, 1 + L, d) -> (vector (B, d), tokens (B, L, d), mask bool (B, L))."""

    def forward(self, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tokens = value[:, 1:]
        return value[:, 0], tokens, (tokens != 0).any(2)


class InFront(nn.Module):
    """What reads conditions in front of a network `net`, whose shape, outputs and conditions it has."""

    net: nn.Module

    @property
    def shape(self) -> tuple[int, ...]:
        return self.net.shape  # type: ignore[return-value]

    @property
    def outputs(self) -> int:
        return getattr(self.net, "outputs", 1)

    @property
    def given(self) -> Described:
        """The conditions of the network behind."""
        return getattr(self.net, "given", {})


@register("network", "Captioned")
class Captioned(InFront):
    """net(x, noise_level, label, caption=..) -> y: the network `net`, called with its captions read.

    Args: `net`, a network that hears the conditions `behind(conditions)`; `conditions`, name -> description of the
    captions ("words" or "text") and perhaps others; `tokens`, whether `net` attends to the words, or hears one vector;
    `painted`, the shape (C, *spatial) of a canvas: an MLP paints it from the vector, and it stands as channels beside
    x, so that what a caption looks like on the whole need not be made from modulated channels alone.
    The encoders of words are part of this network: they are trained with it and kept with its weights.
    Raises SfumatoError for a caption of another shape than described.
    """

    def __init__(
        self,
        net: nn.Module,
        conditions: Mapping[str, Mapping[str, Any]],
        tokens: bool = True,
        painted: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.net, self.read, self.tokens = net, captions(conditions), bool(tokens)
        self.painted = tuple(painted or ())
        self.encoders = nn.ModuleList(
            WordEncoder(each["vocabulary"]) if each["kind"] == "words" else _Given() for each in self.read.values()
        )
        self.painters = nn.ModuleList(
            painter(each.get("size", WIDTH), self.painted) for each in (self.read.values() if self.painted else ())
        )
        with suppress(SfumatoError):  # a network without a config leaves this one without a config too
            args = {"net": tree(net), "conditions": self.read, "tokens": tokens}
            if self.painted:
                args["painted"] = list(self.painted)
            self.config = {"name": "Captioned", "args": args}

    def forward(
        self, x: Tensor, noise_level: Tensor, /, label: Tensor | None = None,
        present: Mapping[str, Tensor] | None = None, **cond: Tensor,
    ) -> Tensor:  # fmt: skip
        known = dict(present or {})
        for i, (name, each) in enumerate(self.read.items()):
            if (value := cond.pop(name, None)) is None:
                continue
            self._check(name, each, value, len(x))
            vector, tokens, mask = self.encoders[i](value)
            here = known.pop(name, mask.any(1))
            cond[pooled(name)], known[pooled(name)] = vector, here
            if self.painted:
                cond[canvas(name)] = self.painters[i](vector).unflatten(1, self.painted)
                known[canvas(name)] = here
            if self.tokens:
                cond[name], known[name] = tokens, mask & here[:, None]
        found: Tensor = self.net(x, noise_level, label, present=known, **cond)
        return found

    @staticmethod
    def _check(name: str, each: Mapping[str, Any], value: Tensor, batch: int) -> None:
        words = each["kind"] == "words"
        right = value.ndim == (2 if words else 3) and value.is_floating_point() != words and len(value) == batch
        if not right or (not words and (value.shape[1] < 2 or value.shape[2] != each["size"])):
            wanted = f"({batch}, L) whole numbers" if words else f"({batch}, 1 + L, {each['size']})"
            raise SfumatoError(f"the condition {name!r} has shape {tuple(value.shape)}; expected {wanted}")
