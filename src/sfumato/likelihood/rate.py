"""How many bits of a sample are in the codes of a latent model, and how many its decoder adds.

    semantic     E_q [log q(y|x) - log p(y)] / log 2        what the denoiser models
    perceptual   E_q [-log p(x|y)] / log 2                  what is left to the decoder's normal distribution

Their sum is a length of code, as bits that choose y are had back (Hinton and van Camp 1993). The rate falls and the
distortion rises with a stronger compression: the two parts of Rombach et al. 2022 (2112.10752), Fig. 2.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from sfumato.errors import SfumatoError, whole
from sfumato.latent_diffusion import latent_of
from sfumato.likelihood.flow import DEFAULT_STEPS
from sfumato.likelihood.latent_bound import latent_bound
from sfumato.likelihood.methods import log_prob
from sfumato.machine import default_cpu
from sfumato.state import numbered, samples


@final
@dataclasses.dataclass(frozen=True)
class RateSplit:
    """The bits of B samples, float64 (B,) each: semantic of the codes, perceptual of the decoder.

    Of whole numbers they are those of a lossless code; of real ones `perceptual` is a density's, and may be negative.
    rms: the root mean square error of the reconstruction from the mean of the code, in the user's units.
    """

    semantic: Tensor
    perceptual: Tensor
    rms: Tensor

    @property
    def total(self) -> Tensor:
        """All bits of a sample, (B,)."""
        return self.semantic + self.perceptual

    def __str__(self) -> str:
        parts = (float(v.mean()) for v in (self.semantic, self.perceptual, self.rms))
        return "{:.4g} semantic and {:.4g} perceptual bits a sample, an error of {:.3g}".format(*parts)


@default_cpu()
def rate_split(
    model: Any,
    x: Any,
    steps: int | None = None,
    probes: int = 8,
    seed: int = 0,
    index: Sequence[int] | Tensor | None = None,
    **cond: Any,
) -> RateSplit:
    """The semantic and the perceptual bits of x (B, *shape) in user units, by the bound of a latent model.

    steps, probes, seed, index and conditions are those of `log_prob`. SfumatoError for any other model.
    """
    latent = latent_of(model)
    if latent is None:
        raise SfumatoError("Only a latent model, which has codes, splits its bits: pass one (sf.train(latent=True)).")
    rows = samples(x, "rate_split")
    numbers = torch.arange(len(rows)) if index is None else numbered(index, of="numbers of samples")
    steps = whole("steps", DEFAULT_STEPS if steps is None else steps)

    def density(inner: Any, y: Tensor) -> Any:
        return log_prob(inner, y, "elbo", steps, probes=probes, seed=seed, index=numbers, **cond)

    found = latent_bound(model, rows, density, seed, numbers)
    normaliser = latent.spec.normaliser
    with torch.no_grad():
        back = normaliser.denormalise(normaliser.normalise(rows))
    error = (back.cpu() - rows.double().cpu()).flatten(1).square().mean(1).sqrt()
    return RateSplit(found.rate / math.log(2), -found.fit / math.log(2), error)
