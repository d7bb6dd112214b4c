"""The prior term L_T of the variational bound: the cost of z_1 still depending on x.

    L_T = KL(q(z_1 | x) || N(0, s^2 I)) = 1/2 [alpha_1^2 |x|^2 / s^2 + d (sigma_1^2 / s^2 - 1 - log(sigma_1^2 / s^2))]

s = 1 is the prior of the variance-preserving papers; this library samples with s = sigma(1) on every schedule
(`Gaussian.prior`), where L_T = 1/2 snr(1) |x|^2. Zero terminal SNR (`schedules.zero_terminal_snr`) makes it 0.
Sources: Ho et al. 2020 (2006.11239), Eq. 5; Lin et al. 2023 (2305.08891), Sec. 2 and 3.1.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sfumato.machine import default_cpu
from sfumato.state import State


@default_cpu()
def prior_kl(process: Any, x: State, std: float | None = None) -> Tensor:
    """KL(q(z_1 | x) || prior) in nats, float64 (B,), for normalised data x (B, ...), or symbols, or a dict of parts.

    std: of a Gaussian prior; by default sigma(1), with which `sample` starts. Raises SfumatoError unless std is
    positive and finite.
    """
    nats: Tensor = process.prior_kl(x) if std is None else process.prior_kl(x, std)
    return nats
