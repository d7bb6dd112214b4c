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
from bandits import Law, policy
from sfumato.belief import Beliefs
from sfumato.reinforce import contraction, log_ratio, path_kl


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


FIRST, SECOND = torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.2, 0.2, 0.6]).log()


def symbol(log_prob: torch.Tensor) -> Any:
    """A model of one masked symbol."""
    law = Law(3)
    law.logits.data.copy_(log_prob)
    return sf.Denoiser(law, sf.Masked("cosine", 3))


def test_symbols_by_their_bound() -> None:
    """Two laws of one masked symbol: the bound is tight, and so is the ratio."""
    x = torch.arange(3)[:, None]
    model, reference = (symbol(law) for law in (FIRST, SECOND))
    found = log_ratio(model, reference, x, draws=16, levels=64)
    assert ((found.value - (FIRST - SECOND)).abs() < 4 * found.stderr + 0.02).all(), (found.value, found.stderr)


@pytest.mark.parametrize("mean, variance", [([0.5, 0.0], 1.0), ([0.0, 0.3], 0.6), ([0.0, 0.0], 2.0)])
def test_the_path_kl_is_the_kl_of_gaussians(mean: list[float], variance: float) -> None:
    true = (sum(m * m for m in mean) + 2 * (variance - 1 - math.log(variance))) / 2
    x = torch.randn(512, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.tensor(mean) + variance**0.5 * (x - x.mean(0)) / x.std(0)
    found = path_kl(gaussian(mean, variance), gaussian([0.0, 0.0]), x)
    assert (found > 0).all() and float(found.mean()) == pytest.approx(true, rel=0.05)
    alone = path_kl(gaussian(mean, variance), gaussian([0.0, 0.0]), x[3:5], index=[3, 4])
    assert torch.allclose(alone, found[3:5])


def test_the_path_kl_of_symbols_and_of_parts() -> None:
    """With 100 p(k) samples of each symbol k; of a product it is the sum."""
    x = torch.repeat_interleave(torch.arange(3), torch.tensor([500, 300, 200]))[:, None]
    found = path_kl(symbol(FIRST), symbol(SECOND), x)
    assert float(found.mean()) == pytest.approx(float((FIRST.exp() * (FIRST - SECOND)).sum()), abs=0.03)

    class Both:
        """A number and a symbol that do not hear of each other."""

        process = sf.Product({"a": sf.Gaussian("cosine"), "b": sf.Masked("cosine", 3)})

        def __init__(self, mean: float, law: torch.Tensor) -> None:
            self.models = {"a": gaussian([mean]), "b": symbol(law)}

        def __call__(self, z: dict[str, torch.Tensor], t: Any) -> Beliefs:
            return Beliefs({name: model(z[name], t) for name, model in self.models.items()})

    number = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    both = path_kl(Both(0.5, FIRST), Both(0.0, SECOND), {"a": 0.5 + number, "b": x})
    assert float(both.mean()) == pytest.approx(float((FIRST.exp() * (FIRST - SECOND)).sum()) + 0.125, abs=0.04)


def test_a_model_that_is_no_denoiser_of_its_samples_has_no_kl_below_zero() -> None:
    """E[x | z] with a wobble: nearly the samples of N(0, 1), and worse bounds on them, whose difference is below 0."""

    class Wobbly(torch.nn.Module):
        shape = (1,)

        def forward(self, z: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
            return policy([0.0]).net(z, level) + 0.3 * torch.sin(9 * z)

    model, reference = sf.Denoiser(Wobbly(), policy([0.0]).process), policy([0.0])
    x = sf.sample(model, 256, 20, seed=0)
    assert float(log_ratio(model, reference, x).value.detach().mean()) < -0.05
    assert (path_kl(model, reference, x) >= 0).all() and float(path_kl(model, reference, x).mean()) > 0.05


def test_mistakes() -> None:
    model = gaussian([0.0, 0.0])
    with pytest.raises(sf.SfumatoError, match="schedule"):
        log_ratio(model, sf.Rescheduled(model, "flow"), POINTS)
    with pytest.raises(sf.SfumatoError, match="draws"):
        log_ratio(model, model, POINTS, draws=1)
    with pytest.raises(sf.SfumatoError, match="positive"):
        contraction("elbo", 0)
