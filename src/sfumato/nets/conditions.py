"""How conditions enter a network, built from their description: as a vector that modulates, channels, or tokens.

    {"label": {"kind": "label", "classes": 3}, "mass": {"kind": "scalar"}, "map": {"kind": "field", "shape": [1, 8, 8]}}

    label       a row of a table, row 0 the null                          vector  E[label + 1]
    multilabel  {"classes": K}: the sum of the rows that are set          vector  W s
    scalar      Fourier features of a value of variance 1, and an MLP     vector
    vector      {"size": d}: an MLP                                       vector
    field       {"shape": [C, *spatial]}: resized, with its presence      C + 1 channels beside the input
    tokens      {"size": d}: (B, L, d), a linear map                      L tokens to attend to

What is absent is a learned entry: a vector, a token, or what the first layer makes of a presence of 0.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import SfumatoError, suggest
from .embedding import noise_features, sines

Described = dict[str, dict[str, Any]]
VECTORS = ("label", "multilabel", "scalar", "vector")
KEYS = {
    "label": "classes", "multilabel": "classes", "scalar": None, "vector": "size", "field": "shape", "tokens": "size",
}  # fmt: skip
FEATURES = 64  # of a scalar


def described(classes: int, conditions: Mapping[str, Mapping[str, Any]] | None) -> Described:
    """Conditions by name, sorted; `classes` alone is one label called "label". SfumatoError for a wrong description."""
    if classes < 0:
        raise SfumatoError(f"a network cannot have {classes} classes: give 0 for none")
    found = {str(name): dict(conditions[name]) for name in sorted(conditions or {})} if conditions else {}
    for name, given in found.items():
        if name in ("present", "self"):
            raise SfumatoError(f"a condition cannot be called {name!r}: rename it")
        kind = given.get("kind")
        if kind not in KEYS:
            raise SfumatoError(f"a condition {name!r} of kind {kind!r}: {suggest(str(kind), KEYS)}")
        key = KEYS[kind]
        if set(given) != {"kind", key} - {None}:
            raise SfumatoError(f"the condition {name!r} is described by its kind and {key or 'nothing else'}: {given}")
        sizes = given.get(key or "", 1)
        if min(sizes if isinstance(sizes, Sequence) else [sizes], default=0) < 1:
            raise SfumatoError(f"the condition {name!r} needs positive sizes, not {sizes}")
    alone = {"kind": "label", "classes": classes}
    if classes and found.setdefault("label", alone) != alone:
        raise SfumatoError(f"the condition 'label' is {found['label']} and has {classes} classes: give one of the two")
    return found


def arguments(given: Described) -> dict[str, Any]:
    """{"classes": n}, and "conditions" where they are more than that: the arguments that describe a network."""
    if given and (set(given) != {"label"} or given["label"]["kind"] != "label"):
        return {"classes": 0, "conditions": given}
    return {"classes": given["label"]["classes"] if given else 0}


def of_kind(given: Described, *kinds: str) -> Described:
    return {name: each for name, each in given.items() if each["kind"] in kinds}


def named(label: Tensor | None, cond: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """All conditions of a call by name, the label among them."""
    return cond if label is None else {"label": label, **cond}


def refuse(given: Described, kind: str, reason: str) -> None:
    """Refuse conditions of a kind that a network cannot take."""
    wrong = of_kind(given, kind)
    if wrong:
        raise SfumatoError(f"the condition {next(iter(wrong))!r} is of kind {kind!r}: {reason}")


def presence(name: str, value: Tensor, present: Mapping[str, Tensor] | None) -> Tensor:
    """Where a condition is known, bool (B,); without a mask whole numbers are known where not negative, floats all."""
    if present is not None and name in present:
        return present[name]
    if value.ndim == 1 and not value.is_floating_point():
        return value >= 0
    return torch.ones(len(value), dtype=torch.bool, device=value.device)


class Embedded(nn.Module):
    """A vector (B, dim) of a set of labels (B, K), a number (B,) or numbers (B, d); `null`, learned, where absent."""

    def __init__(self, given: Mapping[str, Any], dim: int) -> None:
        super().__init__()
        self.kind = given["kind"]
        self.null = nn.Parameter(torch.zeros(dim))
        inputs = FEATURES if self.kind == "scalar" else given[str(KEYS[self.kind])]
        self.first = nn.Linear(inputs, dim)
        self.second = nn.Linear(dim, dim) if self.kind != "multilabel" else None

    def forward(self, values: Tensor, present: Tensor) -> Tensor:
        weight = self.first.weight
        wide = values.to(torch.promote_types(weight.dtype, torch.float32))
        vector = self.first((sines(wide, FEATURES) if self.kind == "scalar" else wide).to(weight.dtype))
        if self.second is not None:
            vector = self.second(F.silu(vector))
        return torch.where(present[:, None], vector, self.null)


class Conditioning(nn.Module):
    """silu(MLP(features(noise_level)) + E[label + 1] + ...): the vector (B, dim) that modulates every block.

    Row 0 of E is the null class, which stands for label -1 and for no label at all; each further condition that is a
    vector adds its own. The noise features and the MLPs run in the precision of the weights, outside autocast: a noise
    level rounded to bfloat16 is another noise level.
    """

    def __init__(self, dim: int, given: Described, features: int = 128) -> None:
        super().__init__()
        self.given, self.features = given, features
        self.first, self.second = nn.Linear(features, dim), nn.Linear(dim, dim)
        vectors = of_kind(given, *VECTORS)
        label = vectors.pop("label") if vectors.get("label", {}).get("kind") == "label" else None
        self.classes = label["classes"] if label else 0
        self.label = nn.Embedding(self.classes + 1, dim) if label else None
        self.names = tuple(vectors)
        self.others = nn.ModuleList(
            nn.Embedding(each["classes"] + 1, dim) if each["kind"] == "label" else Embedded(each, dim)
            for each in vectors.values()
        )

    def forward(
        self, noise_level: Tensor, batch: int, cond: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        if noise_level.ndim > 1 or noise_level.numel() not in (1, batch):
            raise SfumatoError(f"noise_level has shape {tuple(noise_level.shape)}; expected ({batch},), one a sample")
        self._check_names(cond, batch)
        with torch.autocast(noise_level.device.type, enabled=False):
            features = noise_features(noise_level.reshape(-1).expand(batch), self.features)
            vector = self.second(F.silu(self.first(features.to(self.first.weight.dtype))))
            if self.label is not None:
                vector = vector + self._row("label", self.label, cond.get("label"), batch)
            for name, embedder in zip(self.names, self.others, strict=True):
                if isinstance(embedder, nn.Embedding):
                    vector = vector + self._row(name, embedder, cond.get(name), batch)
                else:
                    vector = vector + self._embedded(name, embedder, cond.get(name), present, batch)
            return F.silu(vector)

    def _row(self, name: str, table: nn.Embedding, label: Tensor | None, batch: int) -> Tensor:
        if label is None:
            row = torch.zeros(batch, dtype=torch.long, device=table.weight.device)
        else:
            _check_label(name, label, batch, table.num_embeddings - 1)
            row = label.long() + 1
        found: Tensor = table(row)
        return found

    def _embedded(
        self, name: str, embedder: nn.Module, value: Tensor | None, present: Mapping[str, Tensor] | None, batch: int
    ) -> Tensor:
        if value is None:
            return cast(Tensor, embedder.null).expand(batch, -1)
        key = KEYS[self.given[name]["kind"]]
        wanted = (batch, self.given[name][key]) if key else (batch,)
        if tuple(value.shape) != wanted:
            raise SfumatoError(f"the condition {name!r} has shape {tuple(value.shape)}; expected {wanted}")
        vector: Tensor = embedder(value, presence(name, value, present))
        return vector

    def _check_names(self, cond: Mapping[str, Tensor], batch: int) -> None:
        for name, value in cond.items():
            if name == "label" and name not in self.given:
                _check_label(name, value, batch, 0)
            elif name not in self.given:
                hint = suggest(name, self.given) if self.given else "it has none."
                raise SfumatoError(f"this network has no condition {name!r}: {hint}")


def _check_label(name: str, label: Tensor, batch: int, classes: int) -> None:
    if label.shape != (batch,) or label.is_floating_point():
        raise SfumatoError(
            f"{name} has shape {tuple(label.shape)} and dtype {label.dtype}; expected ({batch},) integers"
        )
    # Reading values back from an accelerator would stall it, and inside a compiled graph break it.
    if label.device.type != "cpu" or torch.compiler.is_compiling() or label.numel() == 0:
        return
    low, high = int(label.min()), int(label.max())
    if low < -1 or high >= classes:
        known = f"0 to {classes - 1}, or -1 for none" if classes else "only -1: it has no classes"
        raise SfumatoError(f"{name} {low if low < -1 else high} is not a class of this network, which knows {known}")


def width_beside(given: Described, shape: tuple[int, ...]) -> int:
    """How many channels stand beside a sample of `shape` (C, *spatial); numbers beside a vector (D,)."""
    fields = of_kind(given, "field")
    for name, each in fields.items():
        if len(shape) > 1 and len(each["shape"]) != len(shape):
            raise SfumatoError(
                f"the condition {name!r} is a field of shape {tuple(each['shape'])}, which has to have as many axes as "
                f"the samples {shape} that it stands beside"
            )
    if len(shape) == 1:
        return sum(int(torch.Size(each["shape"]).numel()) + 1 for each in fields.values())
    return sum(int(each["shape"][0]) + 1 for each in fields.values())


def beside(
    x: Tensor, given: Described, cond: Mapping[str, Tensor], present: Mapping[str, Tensor] | None
) -> Tensor:  # fmt: skip
    """x (B, C, *spatial) with each field, resized to it, and the field's presence as further channels; of vectors
    (B, D) with the field's numbers."""
    parts = [x]
    for name, each in of_kind(given, "field").items():
        value = cond.get(name)
        if value is None:
            value, known = x.new_zeros(len(x), *each["shape"]), x.new_zeros(len(x))
        else:
            if tuple(value.shape) != (len(x), *each["shape"]):
                expected = (len(x), *each["shape"])
                raise SfumatoError(f"the condition {name!r} has shape {tuple(value.shape)}; expected {expected}")
            known = presence(name, value, present).to(x.dtype)
        known = known.reshape(-1, *(1,) * (x.ndim - 1))
        value = value.to(x.dtype).flatten(1) if x.ndim == 2 else resized(value.to(x.dtype), tuple(x.shape[2:]))
        parts += [value * known, known.expand(-1, 1, *x.shape[2:])]
    return torch.cat(parts, dim=1) if len(parts) > 1 else x


def resized(field: Tensor, spatial: tuple[int, ...]) -> Tensor:
    """A field (B, C, *n) on another grid: means over cells along an axis that shrinks, linear along one that grows."""
    smaller = tuple(min(n, m) for n, m in zip(field.shape[2:], spatial, strict=True))
    if smaller != tuple(field.shape[2:]):
        field = F.interpolate(field, size=smaller, mode="area")
    if smaller != spatial:
        field = F.interpolate(field, size=spatial, mode=("linear", "bilinear", "trilinear")[len(spatial) - 1])
    return field


class Context(nn.Module):
    """Tokens (B, L, width) of all conditions that are sequences, one behind another; one learned token where absent."""

    def __init__(self, given: Described, width: int) -> None:
        super().__init__()
        self.given = of_kind(given, "tokens")
        self.maps = nn.ModuleList(nn.Linear(each["size"], width) for each in self.given.values())
        self.nulls = nn.Parameter(0.02 * torch.randn(len(self.given), width))

    def forward(self, batch: int, cond: Mapping[str, Tensor], present: Mapping[str, Tensor] | None) -> Tensor:
        parts = []
        for (name, each), project, null in zip(self.given.items(), self.maps, self.nulls, strict=True):
            value = cond.get(name)
            if value is None:
                parts.append(null.expand(batch, 1, -1))
                continue
            if value.ndim != 3 or len(value) != batch or value.shape[2] != each["size"]:
                raise SfumatoError(
                    f"the condition {name!r} has shape {tuple(value.shape)}; expected ({batch}, L, {each['size']})"
                )
            tokens = project(value.to(null.dtype)) + positions(value.shape[1], len(null)).to(null)
            parts.append(torch.where(presence(name, value, present)[:, None, None], tokens, null))
        return torch.cat(parts, dim=1)


def positions(length: int, width: int) -> Tensor:
    """[sin(w_k i), cos(w_k i)] of each place of a sequence, (length, width)."""
    count = -(-width // 2)
    frequency = 10000.0 ** (-torch.arange(count, dtype=torch.float64) / count)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)[:, :width].float()
