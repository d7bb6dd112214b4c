"""The ratio of bounds on common numbers: exact for Gaussians, biased by other weights as computed, with gradients.

For N(m, v) the loss at (x, logsnr l) is quadratic in x - m with the coefficient e^l / (1 + v e^l)^2 / 2, since
eps - eps_hat = eps - (z - alpha m) sigma / (alpha^2 v + sigma^2) has the mean -(x - m) alpha sigma / (alpha^2 v +
sigma^2). Its integral over l is q_w(v); for v equal in both models nothing else differs.
"""

import math
from typing import Any

import pytest
import torch

import sfumato as sf
from sfumato.reinforce import contraction, log_ratio


def gaussian(mean: list[float], variance: float = 1.0) -> Any:
    spread = variance * torch.eye(len(mean), dtype=torch.float64)
    return sf.exact.GaussianMixture([1.0], [mean], spread[None].tolist()).denoiser(sf.Gaussian("cosine"))


def log_normal(x: torch.Tensor, mean: list[float], variance: float) -> torch.Tensor:
    off = x - torch.tensor(mean, dtype=x.dtype)
    return -off.square().sum(1) / (2 * variance) - x.shape[1] / 2 * math.log(variance)


POINTS = torch.tensor([[-1.2, 0.3], [0.4, 0.1], [2.0, -1.0], [0.0, 0.0]], dtype=torch.float64)


@pytest.mark.parametrize("mean, variance", [([0.5, 0.0], 1.0), ([0.0, 0.3], 0.6)])
def test_the_elbo_is_the_exact_ratio_of_gaussians(mean: list[float], variance: float) -> None:
    model, reference = gaussian(mean, variance), gaussian([0.0, 0.0])
    true = log_normal(POINTS, mean, variance) - log_normal(POINTS, [0.0, 0.0], 1.0)
    found = log_ratio(model, reference, POINTS, draws=16, levels=64)
    assert ((found.value - true).abs() < 4 * found.stderr + 1e-3).all(), (found.value - true, found.stderr)
    assert (found.stderr < 0.1).all()
    by_ode = sf.log_prob(model, POINTS).value - sf.log_prob(reference, POINTS).value
    assert torch.allclose(by_ode, true, atol=1e-4)


def test_the_flow_weight_has_its_computed_bias() -> None:
    """q(v) = pi / (4 sqrt v): at v = 1 the exact ratio times pi / 2."""
    mean = [0.5, 0.0]
    found = log_ratio(gaussian(mean), gaussian([0.0, 0.0]), POINTS, draws=16, levels=256, weight="flow")
    true = log_normal(POINTS, mean, 1.0) - log_normal(POINTS, [0.0, 0.0], 1.0)
    assert ((found.value - math.pi / 2 * true).abs() < 4 * found.stderr + 5e-3).all()
    assert ((found.value - true).abs() > 4 * found.stderr + 5e-3)[:3].all()


@pytest.mark.parametrize(
    "weight, k, variance",
    [("elbo", 1, 0.5), ("flow", 1, 0.25), ("flow", 3, 1 / 16), ("eps-simple", 1, 0.484), ("sigmoid(-2)", 1, 0.150),
     ("sd3-logit-normal", 1, 0.311), ("eps-simple", 3, 0.217)],
)  # fmt: skip
def test_where_learning_by_a_weight_ends(weight: str, k: float, variance: float) -> None:
    assert contraction(weight, k) == pytest.approx(variance, abs=6e-4)


def test_common_numbers_are_worth_their_factor() -> None:
    """A shift of 0.1 in 16 dimensions, one pair of draws each: at least 30 times the standard deviation."""
    near, reference = gaussian([0.1] + [0.0] * 15), gaussian([0.0] * 16)
    x = torch.zeros(32, 16, dtype=torch.float64)
    options = {"draws": 2, "levels": 1, "index": range(32)}
    common = log_ratio(near, reference, x, seed=0, **options).value
    apart = log_ratio(near, gaussian([0.0] * 16), x, seed=0, **options).value - (
        log_ratio(reference, gaussian([1.0] + [0.0] * 15), x, seed=1, **options).value
    )
    assert common.std() * 30 < apart.std()


def test_the_corrected_ratio_and_gradients() -> None:
    found = log_ratio(gaussian([0.5, 0.0]), gaussian([0.0, 0.0]), POINTS[3:].expand(400, 2), draws=2, levels=1)
    true = math.exp(-0.125)
    plain, corrected = float(found.value.exp().mean()), float(found.ratio.mean())
    assert abs(corrected - true) < abs(plain - true)
    net = torch.nn.Linear(2, 2)

    class Net(torch.nn.Module):
        shape = (2,)

        def __init__(self) -> None:
            super().__init__()
            self.inner = net

        def forward(self, x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    model = sf.Denoiser(Net(), sf.Gaussian("cosine"))
    x = POINTS.float()
    same = log_ratio(model, model, x)
    assert (same.value == 0).all() and (same.stderr == 0).all() and (same.ratio == 1).all()
    same.value.sum().backward()
    ratio = net.weight.grad.clone()
    net.weight.grad = None
    (-log_ratio(model, gaussian([0.0, 0.0]), x).value.sum()).backward()
    assert torch.allclose(net.weight.grad, -ratio, rtol=1e-5) and ratio.abs().max() > 0


def test_symbols_by_their_bound() -> None:
    """Two laws of one masked symbol: the bound is tight, and so is the ratio."""
    x = torch.arange(3)[:, None]
    first, second = torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.2, 0.2, 0.6]).log()

    class Law(torch.nn.Module):
        takes_symbols = True

        def __init__(self, logits: torch.Tensor) -> None:
            super().__init__()
            self.logits = torch.nn.Parameter(logits)

        def forward(self, z: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
            return self.logits.expand(*z.shape, 3)

    model, reference = (sf.Denoiser(Law(law), sf.Masked("cosine", 3)) for law in (first, second))
    found = log_ratio(model, reference, x, draws=16, levels=64)
    assert ((found.value - (first - second)).abs() < 4 * found.stderr + 0.02).all(), (found.value, found.stderr)


def test_mistakes() -> None:
    model = gaussian([0.0, 0.0])
    with pytest.raises(sf.SfumatoError, match="schedule"):
        log_ratio(model, sf.Rescheduled(model, "flow"), POINTS)
    with pytest.raises(sf.SfumatoError, match="draws"):
        log_ratio(model, model, POINTS, draws=1)
    with pytest.raises(sf.SfumatoError, match="positive"):
        contraction("elbo", 0)
