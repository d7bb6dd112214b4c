"""The denoising loss with a weight for each frequency: sum_f u_f (Q (y - y_hat))_f^2, u = 1 being `Denoising`.

Any u > 0 leaves E[x | z] the optimum, and moves only how gradients are shared between frequencies.
"""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from sfumato import noise
from sfumato import target as targets
from sfumato.belief import broadcast
from sfumato.errors import SfumatoError
from sfumato.objectives.loss import Levels, Loss
from sfumato.objectives.times import TimeDensity
from sfumato.objectives.weights import Weight
from sfumato.process.bases import Basis
from sfumato.process.gaussian import factor, require_numbers
from sfumato.registry import register
from sfumato.state import numbers_like


@register("loss", "spectral")
@final
class Spectral(Loss):
    """w(logsnr) / p(logsnr) sum_f u_f |eps - eps_hat|_f^2 / D, u_f ~ (f + 1 / largest side)^power of mean 1.

    For w None the target's error instead of that of eps. basis: dct or hartley (the real FFT), over the axes of a
    sample. power: 0 is the plain loss, 1 weighs fine detail more, below 0 less.
    """

    def __init__(
        self, times: TimeDensity, weight: Weight | None, seed: int, power: float = 1.0, basis: str = "dct"
    ) -> None:
        super().__init__()
        if times.moves:
            raise SfumatoError("The spectral loss needs a fixed time density, such as times='uniform'.")
        Basis((1, 1), basis)  # a name that is not known is said now
        self.times, self.weight, self.seed, self.power, self.basis = times, weight, seed, power, basis

    def losses(self, model: Any, batch: Any) -> Tensor:
        process, x, t = model.process, batch.x, self._times(model, batch.u)
        eps = numbers_like(noise.Noise(self.seed, batch.index, noise.TRAIN_NOISE), x)
        belief = model(process.corrupt(x, t, eps), t, **batch.cond)
        row = targets.row(process.target, process.schedule, t, process.sigma_data)
        y = broadcast(row.a, x) * x + broadcast(row.b, x) * eps
        basis = Basis(tuple(x.shape[1:]), self.basis)
        error = basis.analyse(belief.target(process.target) - y).square()
        found = (self.shares(basis).to(error) * error).flatten(1).mean(1)
        if self.weight is None:
            return found
        return factor(process.schedule, row, t, self.times, self.weight).to(found) * found

    def _times(self, model: Any, u: Tensor) -> Tensor:
        schedule = model.process.schedule
        return schedule.time(self.times.logsnr(u, schedule))

    def shares(self, basis: Basis) -> Tensor:
        """u_f, (1, *shape), of mean 1."""
        u = (basis.frequency + 1 / max(basis.shape)) ** self.power
        return u / u.mean()

    def levels(self) -> Levels:
        return Levels(self.times, self.weight, self.times)

    def suits(self, model: Any) -> None:
        require_numbers(model, "The spectral loss", "take loss='denoising', which a spectral process has by frequency")
