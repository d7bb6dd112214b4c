"""Symbols as vectors: k -> E_k in R^d, under the Gaussian process, so that all that serves numbers serves symbols.

    state      z_t = alpha E_x + sigma eps, d numbers a symbol
    belief     p(k) ~ h(k) N(z_i; alpha E_k, sigma^2), h(k) = p(x_i = k | z_j for j != i),   x_hat = sum_k p(k) E_k
    score      (alpha x_hat - z) / sigma^2
    loss       w / p |eps - eps_hat|^2 / 2 by x_hat, or the cross-entropy -log p(x_i) (`objectives.cross_entropy`)
    bound      -log p(x) <= KL(q(z_1 | x) || prior) + 1/2 int E|eps - eps_hat|^2 dlogsnr + E[-log p(x | z_0)]

The last term is that of the belief itself, so that this bounds the probability of the symbols, in nats, as the bound of
masks does, and with equality for an exact belief. Self-conditioning, which the first three sources add to the network,
and known symbols that it hears are a matter of the loss (`objectives.cross_entropy`, `SelfConditioned`).
Sources: Chen et al. 2022 (2208.04202), Analog Bits; Strudel et al. 2022 (2211.04236), SED; Dieleman et al. 2022
(2211.15089), CDCD; Mahabadi et al. 2023 (2305.08379), TESS.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, cast, final

import torch
from torch import Tensor

from sfumato import noise as numbers
from sfumato.belief import Codes, Logits, broadcast
from sfumato.data import DataSpec
from sfumato.errors import SfumatoError, suggest, whole
from sfumato.noise import Noise
from sfumato.process import alphabet
from sfumato.process.gaussian import Additive
from sfumato.registry import register
from sfumato.schedule import INPUT_LIMIT, Schedule, Time, as_time, schedule_of

CODEBOOKS = ("bits", "simplex", "random", "learned")
ROWS = ("other", "x")
_DIM = 16  # of random and learned vectors
_MOST = 4096  # symbols of a simplex, whose vectors take 134 MB


@register("process", "embedded")
@final
@dataclasses.dataclass(frozen=True)
class Embedded(Additive):
    """Symbols 0 .. states - 1, int64 (B, C, ..), as vectors: states (B, d C, ..) of real numbers, d = `dim`.

    codebook, all with numbers of mean square scale^2 (E_k of norm scale sqrt(d)):

        bits      the ceil(log2 K) bits of k as -1 and 1; where there are more than K patterns, those of no symbol have
                  probability 0 at every level, so that no sample is one
        simplex   2 onehot(k) - 1, d = K
        random    fixed directions, uniform on the sphere of R^dim
        learned   the rows of a table that the network holds (`nets.Codebook`), normalised; trained by the cross-entropy

    `sample` draws symbols from the belief of its last call, which is exact for a single one at any number of steps.
    dim: 16 by default; bits and simplex have their own. row: what a network says of each symbol, `other` (log h,
    with which p is exact) or `x` (log p itself). learned: the table, (K, d), as `of` takes it from a network.
    """

    schedule: Schedule
    states: int = 2
    codebook: str = "bits"
    dim: int = 0
    scale: float = 1.0
    row: str = "other"
    learned: Tensor | None = dataclasses.field(default=None, compare=False, repr=False)
    target: str = dataclasses.field(default="x", init=False, repr=False)
    sigma_data: float = dataclasses.field(default=1.0, init=False, repr=False)

    def __post_init__(self) -> None:
        for name, known in (("codebook", CODEBOOKS), ("row", ROWS)):
            if getattr(self, name) not in known:
                raise SfumatoError(
                    f"Unknown {name} {getattr(self, name)!r} of embedded symbols: "
                    f"{suggest(str(getattr(self, name)), known)}"
                )
        states = whole("The number of states of an embedded process", self.states, 2)
        if self.codebook == "simplex" and states > _MOST:
            raise SfumatoError(
                f"A simplex of {states:,} symbols has as many numbers for each, too many (up to {_MOST:,}): take "
                "codebook='bits' or 'random'."
            )
        own = {"bits": (states - 1).bit_length(), "simplex": states}.get(self.codebook)
        dim = own or whole("dim of embedded symbols", self.dim or _DIM, 2)
        if own is not None and self.dim not in (0, own):
            raise SfumatoError(f"The {self.codebook} of {states} symbols are {own} numbers: leave dim out.")
        if not 0 < self.scale < math.inf:
            raise SfumatoError(f"The scale of embedded symbols must be above 0 and finite, not {self.scale:g}.")
        given = {"schedule": schedule_of(self.schedule), "states": states, "dim": dim, "sigma_data": float(self.scale)}
        for name, value in given.items():
            object.__setattr__(self, name, value)

    # -- the vectors -------------------------------------------------------------------------------------------------

    @property
    def vectors(self) -> Tensor:
        """E_k, float64 (K, d)."""
        if self.codebook != "learned":
            return self._fixed
        if self.learned is None:
            raise SfumatoError("The vectors of this process are learned: use that of a model, model.process.")
        return self._on_sphere(self.learned.double())

    @functools.cached_property
    def _fixed(self) -> Tensor:
        if self.codebook == "bits":
            code = (torch.arange(self.states)[:, None] >> torch.arange(self.dim)) % 2
        elif self.codebook == "simplex":
            code = torch.eye(self.states, dtype=torch.int64)
        else:
            drawn = numbers.normal(0, torch.arange(self.states), (self.dim,), numbers.DATA, dtype=torch.float64)
            return self._on_sphere(drawn)
        return self.scale * (2.0 * code.double() - 1)

    def _on_sphere(self, table: Tensor) -> Tensor:
        """The rows scaled to the norm scale sqrt(d)."""
        return self.scale * math.sqrt(self.dim) * torch.nn.functional.normalize(table, dim=1)

    def of(self, net: Any) -> Embedded:
        """The process with the vectors that a network has learned; itself where they are fixed."""
        return self if self.codebook != "learned" else dataclasses.replace(self, learned=net.codebook.weight)

    def embedded(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The vectors of symbols int64 (B, C, ..), of float32 by default, (B, d C, ..); vectors are themselves."""
        if x.is_floating_point():
            return x
        vectors = self.vectors.to(x.device, dtype or torch.get_default_dtype())
        return alphabet.as_channels(torch.nn.functional.embedding(x, vectors))

    def symbols(self, x: Tensor) -> Tensor:
        """The symbols of the nearest vectors, int64 (B, C, ..); symbols are themselves."""
        if not x.is_floating_point():
            return x
        return self._match(x, torch.ones((), dtype=torch.float64)).argmax(-1)

    def mean(self, prob: Tensor) -> Tensor:
        """sum_k p(k) E_k, (B, d C, ..), for p (B, C, .., K)."""
        return alphabet.as_channels(prob @ self.vectors.to(prob))

    def _match(self, z: Tensor, alpha: Tensor) -> Tensor:
        """<z_i, E_k> - alpha / 2 |E_k|^2, (B, C, .., K)."""
        vectors = self.vectors.to(z)
        found = alphabet.by_symbol(z, self.dim) @ vectors.mT
        return found - broadcast(alpha / 2, found) * vectors.square().sum(1)

    def evidence(self, z: Tensor, t: Time, dtype: torch.dtype = torch.float64) -> Tensor:
        """log N(z_i; alpha E_k, sigma^2) for every k, up to a constant: 0 for the nearest, (B, C, .., K)."""
        alpha, sigma = self.schedule(as_time(t))
        found = self._match(z, alpha).to(dtype)
        variance = torch.maximum(sigma**2, alpha**2 * math.exp(-INPUT_LIMIT))  # finite at t = 0
        return broadcast(alpha / variance, found) * (found - found.amax(-1, keepdim=True))

    # -- the distribution of z, where it takes symbols ---------------------------------------------------------------

    def corrupt(self, x: Tensor, t: Time, noise: Noise | Tensor) -> Tensor:
        """z_t = alpha E_x + sigma eps, for symbols or for their vectors."""
        return super().corrupt(self.embedded(x), t, noise)

    def prior_kl(self, x: Tensor, std: float | None = None) -> Tensor:
        """KL(q(z_1 | x) || N(0, std^2 I)), float64 (B,), for symbols or for their vectors."""
        return super().prior_kl(self.embedded(x), std)

    # -- the output of a network -------------------------------------------------------------------------------------

    @property
    def outputs(self) -> int:
        """How many times the d C channels of its input a network returns: K C of them are read."""
        return -(-self.states // self.dim)

    def prediction(self, y: Tensor, z: Tensor) -> Tensor:
        """A network's output, (B, C, .., K) or its first K C channels, as (B, C, .., K)."""
        if y.ndim == z.ndim + 1:
            return y
        return alphabet.by_symbol(y, self.dim * self.outputs)[..., : self.states]

    def read(self, y: Tensor, z: Tensor, t: Time) -> Codes:
        """The belief about the symbols from a network's output."""
        y, own = self.prediction(y, z), cast(Any, self)
        return Codes(Logits(y, z, t, own), self) if self.row == "x" else self.belief(y, z, t)

    def belief(self, log_h: Tensor, z: Tensor, t: Time) -> Codes:
        """p(k) ~ h(k) N(z_i; alpha E_k, sigma^2) from log h, (B, C, .., K)."""
        return Codes(Logits(log_h + self.evidence(z, t, log_h.dtype), z, t, cast(Any, self), log_h), self)

    def check_net(self, net: Any) -> None:
        """Raise SfumatoError if the network takes other inputs, returns other outputs, or lacks the learned vectors."""
        if getattr(net, "takes_symbols", False):
            raise SfumatoError(
                f"Embedded symbols are vectors, and this network takes symbols: build it with vocabulary={self.states} "
                "for the shape process.net_shape(shape)."
            )
        shape, outputs = getattr(net, "shape", None), getattr(net, "outputs", None)
        if shape is not None:
            self.sample_shape(tuple(shape))
        if isinstance(outputs, int) and outputs != self.outputs:
            raise SfumatoError(
                f"A network of {self.states} symbols of {self.dim} numbers needs outputs={self.outputs}, not {outputs}."
            )
        table = getattr(getattr(net, "codebook", None), "weight", None)
        if self.codebook == "learned" and (table is None or tuple(table.shape) != (self.states, self.dim)):
            raise SfumatoError(
                f"Learned vectors lie in the network: wrap it, nets.Codebook(net, {self.states}, {self.dim})."
            )

    # -- data and files ----------------------------------------------------------------------------------------------

    def state_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a state for samples (C, ..): (d C, ..)."""
        return (self.dim * shape[0], *shape[1:])

    net_shape = state_shape

    def sample_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of samples for a network of `shape`: the inverse of `net_shape`."""
        if shape[0] % self.dim:
            raise SfumatoError(
                f"A network of shape {tuple(shape)} cannot take vectors of {self.dim} numbers: its first axis must be "
                "a multiple of them; build it for process.net_shape(shape)."
            )
        return (shape[0] // self.dim, *shape[1:])

    def data(self, x: Tensor) -> Tensor:
        """Data as vectors, in their own precision; SfumatoError if they are not integers in 0 .. states - 1."""
        return self.embedded(alphabet.symbols(x, self.states), x.dtype if x.is_floating_point() else None)

    def table(self, x: Tensor) -> Tensor:
        """The symbols of a clean state."""
        return self.symbols(x)

    def contract(self, spec: DataSpec) -> DataSpec:
        """The spec of data that are symbols, with the identity as normaliser."""
        return self.unscaled(spec, range(len(spec.normaliser.mean)))

    def unscaled(self, spec: DataSpec, channels: Sequence[int]) -> DataSpec:
        """The spec with these channels left unscaled; SfumatoError if they do not hold symbols."""
        return alphabet.unscaled(spec, channels, self.states)

    def config(self) -> dict[str, Any]:
        names = ("states", "codebook", "dim", "scale", "row")
        args = {"schedule": self.schedule.config(), **{name: getattr(self, name) for name in names}}
        return {"name": "Embedded", "args": args}
