"""Time densities that follow the loss: p(logsnr) is learned from the loss at each noise level.

    proportional       p ~ m(logsnr),         m = E[l | logsnr],   l = w |eps - eps_hat|^2: equal mean loss per draw
    variance-optimal   p ~ m_2(logsnr)^(1/2), m_2 = E[l^2 | logsnr]: the smallest E_p (l / p)^2 of all densities
    warped             p ~ -dm/dlogsnr: the mean loss is linear in the share of draws with a higher logsnr

m and m_2 are averages over bins of logsnr with a half-life of `half_life` samples. The loss divides by the p that its
sample was drawn from, which depends only on earlier batches: the estimate stays unbiased while p changes.
Sources: Kingma and Gao 2023 (2303.00848), App. F; the second is importance sampling (Kahn and Marshall 1953); the third
is CDCD's time warping (Dieleman et al. 2022, 2211.15089, Sect. 4.2), whose CDF is fitted to the loss.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.objectives.density import TimeDensity, limits
from sfumato.registry import register
from sfumato.schedule import DRAWN_LIMIT, Schedule


class AdaptiveDensity(TimeDensity):
    """p = (1 - floor) h / int h + floor / (hi - lo) on the schedule's range (lo, hi), with h constant in each bin.

    moment: 1, p proportional to the mean loss; 2, the variance-optimal density. bins: of equal width between logsnr
    +-15. half_life: the number of samples after which a sample counts half. floor: the share of the draws that stay
    uniform in logsnr, so that p > 0 everywhere and l / p <= l (hi - lo) / floor. smooth: the standard deviation, in
    bins, of the smoothing over neighbouring bins.
    Before any sample p is uniform in logsnr. State: `sums` (3, bins), the decayed sums of 1, l and l^2. It needs a loss
    with a weight: the plain error of a target is not divided by p, and would change with it.
    """

    def __init__(
        self, moment: int = 1, bins: int = 100, half_life: float = 10_000.0, floor: float = 0.05, smooth: float = 1.0
    ) -> None:
        if moment not in (1, 2):
            raise SfumatoError(f"An adaptive density follows moment 1 or 2 of the loss, not {moment!r}.")
        if bins < 1 or not half_life > 0 or not 0 < floor <= 1 or not smooth > 0:
            raise SfumatoError(
                "An adaptive density needs bins >= 1, half_life > 0, 0 < floor <= 1 and smooth > 0; "
                f"got {bins}, {half_life:g}, {floor:g} and {smooth:g}."
            )
        self.moment, self.bins, self.half_life, self.floor = moment, bins, half_life, floor
        self.edges = torch.linspace(
            DRAWN_LIMIT, -DRAWN_LIMIT, bins + 1, dtype=torch.float64
        )  # decreasing, as logsnr decreases in u
        offset = torch.arange(bins, dtype=torch.float64)[:, None] - torch.arange(bins)
        # the constant gives bins without observed neighbours the mean of all bins
        self._kernel = torch.exp(-0.5 * (offset / smooth) ** 2) + 1e-6
        self.sums = torch.zeros(3, bins, dtype=torch.float64)
        self._span: tuple[float, float] | None = None

    @property
    def heights(self) -> Tensor:
        """E[l | bin], or sqrt(E[l^2 | bin]), float64 (bins,), highest logsnr first; ones before any sample."""
        count = self._kernel @ self.sums[0]
        mean = self._kernel @ self.sums[self.moment] / torch.where(count == 0, 1.0, count)
        heights = mean ** (1 / self.moment)
        return heights if bool((heights > 0).any()) else torch.ones_like(heights)

    def _law(self, span: tuple[float, float]) -> tuple[Tensor, Tensor]:
        """The edges (bins + 1,), from hi to lo, and the probability of each bin (bins,)."""
        edges = self.edges.clamp(*span)
        width = edges[:-1] - edges[1:]
        mass = self.heights * width
        return edges, (1 - self.floor) * mass / mass.sum() + self.floor * width / width.sum()

    def logsnr(self, u: Tensor, schedule: Schedule) -> Tensor:
        self._span = limits(schedule)
        edges, mass = (v.to(u.device) for v in self._law(self._span))
        above = torch.cat((mass.new_zeros(1), mass.cumsum(0)))
        i = torch.searchsorted(above, u.contiguous() * above[-1], right=True).sub(1).clamp(0, self.bins - 1)
        part = ((u * above[-1] - above[i]) / mass[i].clamp_min(1e-300)).clamp(0, 1)
        return edges[i] + part * (edges[i + 1] - edges[i])

    def density(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        return self._density(logsnr, limits(schedule))

    def _density(self, logsnr: Tensor, span: tuple[float, float]) -> Tensor:
        edges, mass = (v.to(logsnr.device) for v in self._law(span))
        width = edges[:-1] - edges[1:]
        inside = torch.nonzero(width)[:, 0]  # rounding at an end must not select a bin outside the schedule's range
        i = self._bin(logsnr).clamp(inside[0], inside[-1])
        return mass[i] / width[i]

    def _bin(self, logsnr: Tensor) -> Tensor:
        place = (DRAWN_LIMIT - logsnr) * (self.bins / (2 * DRAWN_LIMIT))
        return place.floor().long().clamp(0, self.bins - 1)

    # -- learning ------------------------------------------------------------------------------------------------

    def observe(self, logsnr: Tensor, losses: Tensor) -> None:
        """Learn from a batch: its levels (B,) and losses l / p (B,), drawn since the last call; in any unit."""
        self.absorb(self.collect(logsnr, losses))

    def collect(self, logsnr: Tensor, losses: Tensor) -> Tensor:
        """The sums of 1, l and l^2 in each bin over a part of a batch, float64 (3, bins); add them up over parts.

        Call it before the density changes: it multiplies the losses by the p that they were divided by.
        """
        if self._span is None:
            raise SfumatoError("An adaptive density must draw the noise levels itself before it learns from them.")
        lam, loss = (v.detach().to("cpu", torch.float64) for v in (logsnr, losses))
        value = loss * self._density(lam, self._span)
        place = self._bin(lam)
        return torch.stack([torch.bincount(place, value**k, self.bins) for k in range(3)])

    def absorb(self, sums: Tensor) -> None:
        """Learn from the sums of a whole batch, added up over micro-batches and processes."""
        self.sums = self.sums * 0.5 ** (float(sums[0].sum()) / self.half_life) + sums

    @property
    def moves(self) -> bool:
        return True

    def tensors(self) -> dict[str, Tensor]:
        return {"sums": self.sums}

    def load(self, tensors: dict[str, Tensor]) -> None:
        sums = tensors["sums"]
        if sums.shape != self.sums.shape:
            raise SfumatoError(f"The density has {self.bins} bins, but its checkpoint has {sums.shape[-1]}.")
        self.sums = sums.detach().to("cpu", torch.float64, copy=True)


class WarpedDensity(AdaptiveDensity):
    """p proportional to the fall of the mean loss with logsnr, for a loss that falls, such as the cross-entropy.

    The means of the bins that were drawn are made monotone (halfway between their running maximum from above and their
    running minimum from below), and are constant beyond them.
    """

    @property
    def heights(self) -> Tensor:
        """The fall of the mean loss over each bin, float64 (bins,), highest logsnr first; ones before two bins."""
        drawn = torch.nonzero(self.sums[0])[:, 0]
        kernel, (count, total) = self._kernel[drawn][:, drawn], self.sums[:2, drawn]
        if len(drawn) < 2:
            return torch.ones(self.bins, dtype=torch.float64)
        mean = (kernel @ total) / (kernel @ count)
        mean = (mean.cummax(0).values + mean.flip(0).cummin(0).values.flip(0)) / 2
        whole = np.interp(np.arange(self.bins), drawn.numpy(), mean.numpy())
        rise = torch.from_numpy(np.gradient(whole))
        return rise if bool((rise > 0).any()) else torch.ones_like(rise)


@register("density", "adaptive")
def adaptive(half_life: float = 10_000.0, floor: float = 0.05) -> AdaptiveDensity:
    """p proportional to the mean of w |eps - eps_hat|^2 at each logsnr (2303.00848, App. F)."""
    return AdaptiveDensity(1, half_life=half_life, floor=floor)


@register("density", "variance-optimal")
def variance_optimal(half_life: float = 10_000.0, floor: float = 0.05) -> AdaptiveDensity:
    """p proportional to the root mean square of w |eps - eps_hat|^2 at each logsnr: the smallest variance."""
    return AdaptiveDensity(2, half_life=half_life, floor=floor)


@register("density", "warped")
def warped(half_life: float = 100_000.0, floor: float = 0.05) -> WarpedDensity:
    """p proportional to the fall of the mean loss with logsnr, for loss="cross-entropy" (2211.15089, Sect. 4.2)."""
    return WarpedDensity(1, half_life=half_life, floor=floor)
