"""log p of a flow map's samples: exact for Gaussian data, a density for any network, refused where there is none."""

import math
from typing import Any

import pytest
import torch

import sfumato as sf
from sfumato.flow_map import FlowMap
from sfumato.process import Basis, Blur, Coloured, RectifiedFlow, Spectral, Subspace, angles

PLANE: dict[str, Any] = {"power": (1.4, 0.5), "mean": (0.3, -0.2)}
IN_PLANE = {
    "numbers": sf.Gaussian("cosine", target="F"),
    "blur": Blur("cosine", (2,), **PLANE),
    "coloured": Coloured("flow", (2,), **PLANE),
    "subspace": Subspace("cosine", (2,), **PLANE),
}
STILL = {"until": {"kind": "scalar"}}


def curved(calls: tuple[int, ...] = (1,), gamma: float = 0.0, std: float = 0.2, of: str = "numbers") -> FlowMap:
    """A map in the plane that is no linear one."""
    torch.manual_seed(0)
    net = sf.nets.MLP(2, 32, 2, conditions=STILL)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return FlowMap(sf.Denoiser(net.eval(), IN_PLANE[of]), calls, gamma)


def test_the_map_of_gaussian_data_has_their_density() -> None:
    """A network of zeros is the exact map of N(0, sd^2), whatever the schedule and the number of calls."""
    torch.manual_seed(0)
    for schedule, sd in (("cosine", 0.6), ("flow", 1.0)):
        net = sf.nets.MLP(3, 16, 1, conditions=STILL).eval()
        model = FlowMap(sf.Denoiser(net, sf.Gaussian(schedule, target="F", sigma_data=sd)))
        x = sd * torch.randn(6, 3, dtype=torch.float64)
        known = -0.5 * ((x / sd).square().sum(1) + 3 * math.log(2 * math.pi * sd**2))
        for calls in (1, 2):
            found = sf.log_prob(model, x, "map", steps=calls)
            assert torch.allclose(found.value, known, atol=1e-4), (schedule, calls)
    assert "1 call of the map" in sf.log_prob(model, x, "map").method


class Linear:
    """What the network of the exact map of N(0, diag(C)) coefficients says in the form of DDIM: z_s = S_s / S_t z_t,
    with S = sqrt(alpha^2 C + sigma^2)."""

    def __init__(self, process: Spectral, variance: torch.Tensor) -> None:
        self.process, self.variance, self.shape = process, variance, process.shape

    def spread(self, t: Any) -> torch.Tensor:
        alpha, sigma = self.process.schedule(t)
        return torch.sqrt(alpha**2 * self.variance + sigma**2)

    def __call__(self, z: Any, t: Any, until: Any, **cond: Any) -> Any:
        process, t = self.process, torch.as_tensor(t, dtype=torch.float64).expand(len(z))
        s = angles.time(process, until.double() / 2)
        d, alpha = angles.turn(process, t) - angles.turn(process, s), process.schedule.alpha(t)
        own = sf.Estimate(z, t, process.schedule, x=alpha * self.variance / self.spread(t) ** 2 * z)
        own.sigma_data = process.sigma_data
        end = angles.unit(process, self.spread(s) / self.spread(t) * z, s)
        far = d.abs() > 1e-6
        answer = (end - d.cos() * angles.unit(process, z, t)) / torch.where(far, d.sin(), 1.0)
        answer = torch.where(far, answer, own.F)
        return sf.Estimate(z, t, process.schedule, y=answer, sigma_data=process.sigma_data, named="F")


@pytest.mark.parametrize("kind", [Blur, Coloured, Subspace])
def test_the_linear_map_of_coefficients_has_the_density_of_a_normal_law(kind: type) -> None:
    """In the space of samples, where its covariance is full, for a power of the process that is not that of the law."""
    shape = (1, 4, 4)
    falling = 1 / (Basis(shape).eigenvalues + 0.3)
    power, mean = (1.3 * falling**0.8).flatten().tolist(), torch.linspace(-1, 1, 16).tolist()
    process = kind("cosine", shape, power=power, mean=mean)
    inner: Any = Linear(process, falling)
    scale = process.prior(torch.ones(1, *shape, dtype=torch.float64)) * (inner.spread(0.0) / inner.spread(1.0))
    columns = process.transform.synthesise(torch.eye(16, dtype=torch.float64).reshape(16, *shape)).flatten(1).T
    law = torch.distributions.MultivariateNormal(
        process.table(torch.zeros(1, *shape, dtype=torch.float64)).flatten(), columns * scale.flatten() ** 2 @ columns.T
    )
    x = law.sample((5,))
    for calls in (1, 3):
        found = sf.log_prob(FlowMap(inner, form="ddim"), x.reshape(5, *shape), "map", steps=calls)
        assert torch.allclose(found.value, law.log_prob(x), atol=1e-5), calls


@pytest.mark.parametrize("of", IN_PLANE)
def test_the_density_of_a_curved_map_is_that_of_its_samples(of: str) -> None:
    """It integrates to 1 over the plane, and means by it are those of samples, for one call and for two."""
    model, side = curved((1, 2), of=of), torch.linspace(-6, 6, 41, dtype=torch.float64)
    x = torch.stack(torch.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
    cell = float(side[1] - side[0]) ** 2
    for calls in (1, 2):
        p = sf.log_prob(model, x, "map", steps=calls).value.exp() * cell
        assert abs(float(p.sum()) - 1) < 1e-4, calls
        samples = sf.sample(model, 4000, calls, seed=1).double()
        for moment in (lambda v: v[:, 0], lambda v: v[:, 1] ** 2, lambda v: (v[:, 0] * v[:, 1]).tanh()):
            of_samples = moment(samples)
            off = float((p * moment(x)).sum()) - float(of_samples.mean())
            assert abs(off) < 4.5 * float(of_samples.std()) / math.sqrt(4000) + 0.01, calls
    mean = (p[:, None] * x).sum(0)
    normal = torch.distributions.MultivariateNormal(mean, (x - mean).T @ (p[:, None] * (x - mean)))
    assert float((p / cell - normal.log_prob(x).exp()).abs().max()) > 0.01, "and the map is not that of a normal law"


def test_maps_without_a_density_say_so() -> None:
    x = torch.zeros(2, 2, dtype=torch.float64)
    with pytest.raises(sf.SfumatoError, match="renews noise"):
        sf.log_prob(curved((2,), gamma=1.0), x, "map")
    sf.log_prob(curved((2,), gamma=1.0), x, "map", steps=1)
    with pytest.raises(sf.SfumatoError, match="this model is none"):
        sf.log_prob(curved().inner, x, "map")
    with pytest.raises(sf.SfumatoError, match="this model is none"):
        sf.log_prob(curved(of="coloured").inner, x, "map")
    pairs = FlowMap(sf.Denoiser(sf.nets.MLP(2, 16, 1, conditions=STILL), RectifiedFlow("flow")))
    with pytest.raises(sf.SfumatoError, match="density of its sources is unknown"):
        sf.log_prob(pairs, x, "map", input=x)
    wide = FlowMap(sf.Denoiser(sf.nets.MLP(80, 16, 1, conditions=STILL), sf.Gaussian("flow")))
    with pytest.raises(sf.SfumatoError, match="up to 64 numbers"):
        sf.log_prob(wide, torch.zeros(1, 80), "map")
