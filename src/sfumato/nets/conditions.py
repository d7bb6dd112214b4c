"""How conditions enter a network: as a vector that modulates its blocks, as extra channels, or as tokens.

A network is built from a description of its conditions, name -> spec:

    {"label": {"kind": "label", "classes": 3}, "mass": {"kind": "scalar"}, "map": {"kind": "field", "shape": [1, 8, 8]}}

    label       {"classes": K}: a row of a table, row 0 for no label      vector  E[label + 1]
    multilabel  {"classes": K}: the sum of the rows of all labels set     vector  W s
    scalar      Fourier features of a value of variance 1, then an MLP    vector
    vector      {"size": d}: an MLP                                       vector
    field       {"shape": [C, *spatial]}: resized, plus its mask          C + 1 channels next to the input
    missing     {"shape": [C, *spatial]}: 1 where a value of x is missing  C channels next to the input
    tokens      {"size": d}: (B, L, d), a linear map                      L tokens to attend to

A missing condition is a learned vector or token, or for a field zeros with mask 0. Without a mask no value is missing.
The mask of a condition is bool (B,); of tokens also (B, L), so that sequences of several lengths are one tensor: a
token that is not present is never attended to, as if the sequence were shorter, and a row without any is absent.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import SfumatoError, suggest
from .attention import Tokens
from .embedding import noise_features, sines

Described = dict[str, dict[str, Any]]
VECTORS = ("label", "multilabel", "scalar", "vector")
BESIDE = ("field", "missing")  # kinds that are channels next to the input
KEYS = {
    "label": "classes", "multilabel": "classes", "scalar": None, "vector": "size", "field": "shape", "missing": "shape",
    "tokens": "size",
}  # fmt: skip
FORWARD_ARGUMENTS = (
    "self",
    "present",
    "where",
    "carry",
    "carried",
)  # arguments of a network's forward that are no conditions
FEATURES = 64  # Fourier features of a scalar


def described(classes: int, conditions: Mapping[str, Mapping[str, Any]] | None) -> Described:
    """Condition specs by name, sorted; `classes` alone means one label, "label". SfumatoError for an invalid spec."""
    if classes < 0:
        raise SfumatoError(f"a network cannot have {classes} classes: use 0 for none")
    specs = {str(name): dict(conditions[name]) for name in sorted(conditions or {})} if conditions else {}
    for name, spec in specs.items():
        if name in FORWARD_ARGUMENTS:
            raise SfumatoError(f"a condition cannot be called {name!r}: rename it")
        kind = spec.get("kind")
        if kind not in KEYS:
            raise SfumatoError(f"the condition {name!r} has the unknown kind {kind!r}: {suggest(str(kind), KEYS)}")
        key = KEYS[kind]
        if set(spec) != {"kind", key} - {None}:
            raise SfumatoError(f"the condition {name!r} needs its kind and {key or 'nothing else'}; got {spec}")
        sizes = spec.get(key or "", 1)
        if min(sizes if isinstance(sizes, Sequence) else [sizes], default=0) < 1:
            raise SfumatoError(f"the condition {name!r} needs positive sizes, not {sizes}")
    alone = {"kind": "label", "classes": classes}
    if classes and specs.setdefault("label", alone) != alone:
        raise SfumatoError(f"the condition 'label' is {specs['label']}, but classes={classes}: pass one of the two")
    return specs


def arguments(given: Described) -> dict[str, Any]:
    """The `classes` and, where needed, `conditions` arguments for a network's config."""
    if given and (set(given) != {"label"} or given["label"]["kind"] != "label"):
        return {"classes": 0, "conditions": given}
    return {"classes": given["label"]["classes"] if given else 0}


def of_kind(given: Described, *kinds: str) -> Described:
    return {name: each for name, each in given.items() if each["kind"] in kinds}


def named(label: Tensor | None, cond: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """All conditions of a call by name, including the label."""
    return cond if label is None else {"label": label, **cond}


def refuse(given: Described, kind: str, reason: str) -> None:
    """Raise SfumatoError if there is a condition of a kind that the network does not support."""
    wrong = of_kind(given, kind)
    if wrong:
        raise SfumatoError(f"the condition {next(iter(wrong))!r} is of kind {kind!r}: {reason}")


def presence(name: str, value: Tensor, present: Mapping[str, Tensor] | None) -> Tensor:
    """Where a condition is known, bool (B,), or (B, L) for each token: its mask, or whole numbers from 0 and floats."""
    if present is not None and name in present:
        return present[name]
    if value.ndim == 1 and not value.is_floating_point():
        return value >= 0
    return torch.ones(len(value), dtype=torch.bool, device=value.device)


class Embedded(nn.Module):
    """Embed labels (B, K), a number (B,) or a vector (B, d) as a vector (B, dim); the learned `null` where absent."""

    def __init__(self, spec: Mapping[str, Any], dim: int) -> None:
        super().__init__()
        self.kind = spec["kind"]
        self.null = nn.Parameter(torch.zeros(dim))
        inputs = FEATURES if self.kind == "scalar" else spec[str(KEYS[self.kind])]
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

    Row 0 of E is the null class, for label -1 and for no label at all; each further vector-valued condition adds its
    own embedding. The noise features and the MLPs run in the precision of the weights, outside autocast, because
    rounding to bfloat16 would change the noise level.
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
        first, *others = self.parts(noise_level, batch, cond, present)
        return F.silu(sum(others, first))

    def parts(
        self, noise_level: Tensor, batch: int, cond: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None
    ) -> list[Tensor]:
        """The vectors (B, dim) of the noise level, the label and each further condition."""
        if noise_level.ndim > 1 or noise_level.numel() not in (1, batch):
            raise SfumatoError(f"noise_level has shape {tuple(noise_level.shape)}; expected ({batch},)")
        self._check_names(cond, batch)
        with torch.autocast(noise_level.device.type, enabled=False):
            features = noise_features(noise_level.reshape(-1).expand(batch), self.features)
            vectors = [self.second(F.silu(self.first(features.to(self.first.weight.dtype))))]
            if self.label is not None:
                vectors.append(self._row("label", self.label, cond.get("label"), batch))
            for name, embedder in zip(self.names, self.others, strict=True):
                if isinstance(embedder, nn.Embedding):
                    vectors.append(self._row(name, embedder, cond.get(name), batch))
                else:
                    vectors.append(self._embedded(name, embedder, cond.get(name), present, batch))
            return vectors

    def _row(self, name: str, table: nn.Embedding, label: Tensor | None, batch: int) -> Tensor:
        if label is None:
            row = torch.zeros(batch, dtype=torch.long, device=table.weight.device)
        else:
            _check_label(name, label, batch, table.num_embeddings - 1)
            row = label.long() + 1
        vector: Tensor = table(row)
        return vector

    def _embedded(
        self, name: str, embedder: nn.Module, value: Tensor | None, present: Mapping[str, Tensor] | None, batch: int
    ) -> Tensor:
        if value is None:
            return cast(Tensor, embedder.null).expand(batch, -1)
        key = KEYS[self.given[name]["kind"]]
        expected = (batch, self.given[name][key]) if key else (batch,)
        if tuple(value.shape) != expected:
            raise SfumatoError(f"the condition {name!r} has shape {tuple(value.shape)}; expected {expected}")
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
    # Reading values back would stall an accelerator and break a compiled graph.
    if label.device.type != "cpu" or torch.compiler.is_compiling() or label.numel() == 0:
        return
    low, high = int(label.min()), int(label.max())
    if low < -1 or high >= classes:
        known = f"0 to {classes - 1}, or -1 for none" if classes else "only -1: it has no classes"
        raise SfumatoError(f"{name} {low if low < -1 else high} is not a class of this network, which accepts {known}")


def width_beside(given: Described, shape: tuple[int, ...]) -> int:
    """The number of channels that fields and masks add to a sample (C, *spatial), or of elements to a vector (D,)."""
    fields = of_kind(given, *BESIDE)
    for name, each in fields.items():
        if len(shape) > 1 and len(each["shape"]) != len(shape):
            raise SfumatoError(
                f"the condition {name!r} is a field of shape {tuple(each['shape'])}, but must have as many axes as "
                f"the samples, which have shape {shape}"
            )
    return len(places_beside(given, shape)) - shape[0]


def places_beside(given: Described, shape: tuple[int, ...]) -> list[tuple[str, int]]:
    """(condition, number in it) of each channel, or element of a vector, of `beside`; "" for those of x itself."""
    places = [("", i) for i in range(shape[0])]
    for name, each in of_kind(given, *BESIDE).items():
        count = int(torch.Size(each["shape"]).numel()) if len(shape) == 1 else int(each["shape"][0])
        places += [(name, i) for i in range(count + (each["kind"] == "field"))]  # the mask is the last
    return places


def beside(
    x: Tensor, given: Described, cond: Mapping[str, Tensor], present: Mapping[str, Tensor] | None
) -> Tensor:  # fmt: skip
    """Append each field condition, resized to x, and its mask to x (B, C, *spatial) as channels, and the mask of
    missing values; for vectors x (B, D) append the flattened fields."""
    parts = [x]
    for name, each in of_kind(given, *BESIDE).items():
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
        parts.append(value * known)
        if each["kind"] == "field":
            parts.append(known.expand(-1, 1, *x.shape[2:]))
    return torch.cat(parts, dim=1) if len(parts) > 1 else x


def resized(field: Tensor, spatial: tuple[int, ...]) -> Tensor:
    """Resize a field (B, C, *n): cell averages along axes that shrink, linear interpolation along axes that grow."""
    smaller = tuple(min(n, m) for n, m in zip(field.shape[2:], spatial, strict=True))
    if smaller != tuple(field.shape[2:]):
        field = F.interpolate(field, size=smaller, mode="area")
    if smaller != spatial:
        field = F.interpolate(field, size=spatial, mode=("linear", "bilinear", "trilinear")[len(spatial) - 1])
    return field


class Context(nn.Module):
    """The concatenated `Tokens` (B, L, width) of all sequence conditions: of each a learned token that stands for none,
    attended to where the condition is absent alone, and then its own tokens, of which those that are present are."""

    def __init__(self, given: Described, width: int) -> None:
        super().__init__()
        self.given = of_kind(given, "tokens")
        self.maps = nn.ModuleList(nn.Linear(each["size"], width) for each in self.given.values())
        self.nulls = nn.Parameter(0.02 * torch.randn(len(self.given), width))

    def forward(self, batch: int, cond: Mapping[str, Tensor], present: Mapping[str, Tensor] | None) -> Tokens:
        values: list[Tensor] = []
        known: list[Tensor] = []
        for (name, each), project, null in zip(self.given.items(), self.maps, self.nulls, strict=True):
            value = cond.get(name)
            value = null.new_zeros(batch, 0, each["size"]) if value is None else value
            if value.ndim != 3 or len(value) != batch or value.shape[2] != each["size"]:
                raise SfumatoError(
                    f"the condition {name!r} has shape {tuple(value.shape)}; expected ({batch}, L, {each['size']})"
                )
            own = presence(name, value, present)
            own = own[:, None].expand(value.shape[:2]) if own.ndim == 1 else own
            if own.shape != value.shape[:2]:
                raise SfumatoError(
                    f"the mask of the condition {name!r} has shape {tuple(own.shape)}; expected "
                    f"{tuple(value.shape[:2])}, one for each token, or ({batch},)"
                )
            placed = project(value.to(null)) + positions(value.shape[1], len(null)).to(null)
            values += [null.expand(batch, 1, -1), placed]
            known += [~own.any(dim=1, keepdim=True), own]
        return Tokens(torch.cat(values, dim=1), torch.cat(known, dim=1))


def positions(length: int, width: int) -> Tensor:
    """[sin(w_k i), cos(w_k i)] for each position i of a sequence, (length, width)."""
    count = -(-width // 2)
    frequency = 10000.0 ** (-torch.arange(count, dtype=torch.float64) / count)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)[:, :width].float()
