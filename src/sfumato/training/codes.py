"""What a latent model is trained on: the codes of a data set, computed once and drawn anew in each epoch.

    y_n = mean(x_n) + exp(log_variance(x_n) / 2) eps,   eps new in each epoch
    m = E mean,   s^2 = Var mean + E exp(log_variance)            by channel, of the training samples

`latents.npy` beside the autoencoder's file holds (mean, log_variance) of each sample, and `latents.json` the hash of
the autoencoder and of the data that it was made of. Source: Rombach et al. 2022 (2112.10752), Appendix D.1, where a
scale 1/s is chosen by hand.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from sfumato import serialization
from sfumato.autoencoder import Codec
from sfumato.data import DataSpec, Source
from sfumato.data.rows import Rows, Samples, part
from sfumato.data.statistics import blocks, chunks, statistics
from sfumato.errors import SfumatoError, an
from sfumato.files import atomic, write_text
from sfumato.latent_diffusion import Latent
from sfumato.nets import GaussianCode
from sfumato.noise import Noise
from sfumato.normaliser import Normaliser, Statistics
from sfumato.progress import counting

AUTOENCODER = "autoencoder"  # the folder of the autoencoder within that of a run
FILE = "latents.npy"
SPREAD = 0.05  # by which the deviation of normalised codes may differ from 1
REACH = 4.0  # deviations, about the farthest of ten thousand draws
_LOOKED_AT = 512  # held-out samples whose reconstruction is measured
_KNOWN = 12  # digits of a hash in messages
_PART = 256  # samples encoded at once
_PRINT = 64  # samples by which data in memory are known again


@final
class Codes(Rows):
    """Rows (2 L, *grid) of codes, mean and log-variance, or (L, *grid) of a codebook, of which `drawn` gives codes."""

    def __init__(self, stored: Samples, channels: int) -> None:
        super().__init__(tuple(stored.shape), stored.dtype)
        self.stored, self.channels = stored, channels

    def take(self, rows: np.ndarray) -> Tensor:
        return self.stored[torch.from_numpy(rows)]

    def drawn(self, rows: Tensor, draws: Noise) -> Tensor:
        """y ~ q(y | x), (n, L, *grid), of rows (n, ..)."""
        if rows.shape[1] == self.channels:
            return rows
        mean, log_variance = rows.chunk(2, dim=1)
        eps = draws.fold("code").normal(tuple(mean.shape[1:]), rows.device)
        return GaussianCode(mean, log_variance).sample(eps)


def normalised(of: Samples, x: Tensor, spec: Any, draws: Noise) -> Tensor:
    """Rows x of the samples `of` as a network takes them: codes are drawn; no spec leaves x as it is."""
    if isinstance(of, Codes):
        y = of.drawn(x, draws)
        return y if spec.latent is None else spec.latent.normalise(y)
    found: Tensor = x if spec is None else spec.normalise(x)
    return found


def encoded(autoencoder: Codec, x: Tensor) -> Tensor:
    """x (B, *shape) in user units -> (B, 2 L, *grid), mean and log-variance, or (B, L, *grid), float32, on the CPU."""
    with torch.no_grad():
        code = autoencoder.net.encode(autoencoder.normalise(x))
    found = torch.cat([code.mean, code.log_variance], 1) if isinstance(code, GaussianCode) else code.value
    return found.float().cpu()


def file_hash(place: Any) -> str:
    """The hash of the file of an autoencoder."""
    found: str = serialization.read_contract(place)["hash"]
    return found


def load_autoencoder(place: Any, device: torch.device, hash: str | None = None) -> Codec:
    """The autoencoder of a file or run. hash: that of the one wanted. SfumatoError for another one or another model."""
    found = serialization.load(place, device=device)
    if not isinstance(found, Codec):
        raise SfumatoError(
            f"{place} holds {an(type(found).__name__)}, and the space of a latent model needs an autoencoder: train "
            "one with --loss autoencoding, or leave autoencoder out."
        )
    _require_hash(place, hash, "this run")
    return found


def _require_hash(place: Any, hash: str | None, whose: str) -> None:
    own = file_hash(place)
    if hash is not None and own != hash:
        raise SfumatoError(
            f"{place} is not the file of {whose}: its hash begins with {own[:_KNOWN]}, and was {hash[:_KNOWN]}. "
            "Put the file back, or train in a new folder."
        )


def stored(
    place: Any, source: Source, model: Any, encode: Callable[[Any, Tensor], Tensor] = encoded, file: str = FILE
) -> Tensor:
    """encode(model, x) of all samples, (N, ..), by the model in `place`, mapped from `file` beside it, which is made if
    need be.

    Raises SfumatoError if the model has been replaced since.
    """
    path = serialization.locate(place).with_name(file)
    seal = path.with_suffix(".json")
    facts = {"autoencoder": file_hash(place), "data": _print_of(source)}
    kept = json.loads(seal.read_text(encoding="utf-8")) if seal.exists() else None
    if kept is not None:
        _require_hash(place, kept["autoencoder"], f"the codes in {path}")
    if kept != facts or not path.exists():
        _write(path, source, lambda x: encode(model, x))
        write_text(seal, json.dumps(facts))
    return torch.from_numpy(np.load(path, mmap_mode="c"))  # copy on write: never written to


def _write(path: Path, source: Source, encode: Callable[[Tensor], Tensor]) -> None:
    first = encode(source.x[:1])
    with atomic(path) as draft, counting("Encoding", len(source)) as count:
        made = np.lib.format.open_memmap(draft, "w+", np.float32, (len(source), *first.shape[1:]))
        done = 0
        for block in blocks(source.x):
            for some in block.split(_PART):
                made[done : done + len(some)] = encode(some).numpy()
                done += len(some)
                count(len(some))
        made.flush()


def _print_of(source: Source) -> str:
    """A hash by which the data are known again: their identity, or of data in memory some of the samples."""
    if source.identity is not None:
        return source.identity
    rows = torch.linspace(0, len(source) - 1, min(len(source), _PRINT)).long()
    some = source.x[rows].contiguous().view(torch.uint8).numpy().tobytes()
    return blake2b(repr(tuple(source.x.shape)).encode() + some, digest_size=20).hexdigest()


def spec_of(codes: Tensor, autoencoder: Codec, spec: DataSpec, rows: Tensor) -> DataSpec:
    """The spec of codes with the statistics of the samples at `rows`; conditions and name are those of `spec`."""
    channels = autoencoder.latent_shape[0]
    found = statistics(codes, rows)
    figures = Statistics(**{name: values[:channels] for name, values in vars(found).items()})
    if codes.shape[1] != channels:
        variance = _mean_variance(codes, rows, channels)
        figures = _drawn(figures, variance.tolist())
    return DataSpec(
        shape=autoencoder.latent_shape, dtype="float32", kind="array", bounds=None, normaliser=Normaliser.of(figures),
        statistics=figures, conditions=spec.conditions, name=spec.name,
    )  # fmt: skip


def _drawn(means: Statistics, variance: list[float]) -> Statistics:
    """The statistics of draws N(mean, v) from those of their means, by channel; they reach REACH deviations further."""
    wide = [REACH * math.sqrt(v) for v in variance]
    return dataclasses.replace(
        means,
        std=tuple(math.hypot(s, math.sqrt(v)) for s, v in zip(means.std, variance, strict=True)),
        low=tuple(low - w for low, w in zip(means.low, wide, strict=True)),
        high=tuple(high + w for high, w in zip(means.high, wide, strict=True)),
    )


def _mean_variance(codes: Tensor, rows: Tensor, channels: int) -> Tensor:
    """E exp(log_variance) by channel, float64."""
    total, count = torch.zeros(channels, dtype=torch.float64), 0
    for flat in chunks(codes, rows):
        total += flat[channels:].exp().sum(1)
        count += flat.shape[1]
    return total / count


def check(autoencoder: Codec, codes: Tensor, latent: DataSpec, source: Source, rows: Tensor, floor: float) -> float:
    """The share of the variance of held-out samples `rows` that the autoencoder explains.

    Raises SfumatoError where it is below `floor` (0: none), where the normalised codes of these samples do not spread
    by 1 within `SPREAD` and three standard errors, and for a channel that says nothing.
    """
    dead = [c for c, (low, high) in enumerate(zip(latent.statistics.low, latent.statistics.high, strict=True))
            if low == high]  # fmt: skip
    if dead:
        raise SfumatoError(
            f"Channel {dead[0]} of the codes is the same for all samples: train the autoencoder with a smaller beta, "
            "or with fewer channels (latent)."
        )
    if floor and bool((source.x[rows[:_LOOKED_AT]] == source.x[rows[:1]]).all()):
        raise SfumatoError(
            "The samples by which the autoencoder is judged are all the same, so that it has nothing to explain: give "
            "more samples, or take any autoencoder by --reconstruction 0."
        )
    share, deviation = explained(autoencoder, source.x[rows[:_LOOKED_AT]]), _spread(codes, latent, rows)
    if abs(deviation - 1) > SPREAD + 3 / math.sqrt(2 * len(rows)):
        raise SfumatoError(
            f"The normalised codes of held-out samples have the standard deviation {deviation:.3f} instead of 1: the "
            "autoencoder was trained on other data, or fits its training samples alone. Train it on more of these "
            "data, or make it smaller."
        )
    if floor and share < floor:
        raise SfumatoError(
            f"The autoencoder explains {share:.1%} of the variance of held-out samples, and at least {floor:.1%} is "
            "asked for: train it longer or with more channels (latent), or accept less by --reconstruction."
        )
    return share


def explained(autoencoder: Codec, x: Tensor) -> float:
    """1 - E|x - decode(encode(x))|^2 / E|x - E x|^2 of samples x (B, *shape) in user units, in normalised ones."""
    z = autoencoder.normalise(x)
    with torch.no_grad():
        error = z - autoencoder.net(z)
    return 1 - float(error.square().mean() / (z - z.mean(0)).square().mean())


def _spread(codes: Tensor, latent: DataSpec, rows: Tensor) -> float:
    """The root mean square of the normalised codes of these samples, over their draws."""
    some, channels = codes[rows], latent.shape[0]
    square = latent.normalise(some[:, :channels]).double().square()
    if some.shape[1] != channels:
        std = torch.tensor(latent.normaliser.std, dtype=torch.float64).view(-1, *(1,) * (some.ndim - 2))
        square = square + some[:, channels:].double().exp() / std.square()
    return math.sqrt(float(square.mean()))


def samples_of(model: Any, source: Source, place: str | None, rows: Tensor) -> Samples:
    """What a model is trained on: rows of the data, or of their codes for a latent model whose autoencoder lies in
    `place`."""
    if place is None or not isinstance(model, Latent):
        return part(source.x, rows)
    return Codes(part(stored(place, source, model.autoencoder), rows), model.shape[0])
