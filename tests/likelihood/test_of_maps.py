"""log p of a flow map's samples: exact for Gaussian data, a density for any network, refused where there is none."""

import math

import pytest
import torch

import sfumato as sf
from sfumato.flow_map import FlowMap

STILL = {"until": {"kind": "scalar"}}


def curved(calls: tuple[int, ...] = (1,), gamma: float = 0.0, std: float = 0.05) -> FlowMap:
    """A map in the plane that is no linear one."""
    torch.manual_seed(0)
    net = sf.nets.MLP(2, 32, 2, conditions=STILL)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return FlowMap(sf.Denoiser(net.eval(), sf.Gaussian("cosine", target="F")), calls, gamma)


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


def test_the_density_of_a_curved_map_is_that_of_its_samples() -> None:
    """It integrates to 1 over the plane, and means by it are those of samples, for one call and for two."""
    model, side = curved((1, 2)), torch.linspace(-6, 6, 41, dtype=torch.float64)
    x = torch.stack(torch.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
    cell = float(side[1] - side[0]) ** 2
    for calls in (1, 2):
        p = sf.log_prob(model, x, "map", steps=calls).value.exp() * cell
        assert abs(float(p.sum()) - 1) < 0.01, calls
        samples = sf.sample(model, 4000, calls, seed=1).double()
        for moment in (lambda v: v[:, 0], lambda v: v[:, 1] ** 2, lambda v: (v[:, 0] * v[:, 1]).tanh()):
            of_samples = moment(samples)
            off = float((p * moment(x)).sum()) - float(of_samples.mean())
            assert abs(off) < 4.5 * float(of_samples.std()) / math.sqrt(4000) + 0.01, calls
    plain = -0.5 * x.square().sum(1) - math.log(2 * math.pi)
    assert float((p / cell - plain.exp()).abs().max()) > 0.02, "and the map is not that of a normal law"


def test_maps_without_a_density_say_so() -> None:
    x = torch.zeros(2, 2, dtype=torch.float64)
    with pytest.raises(sf.SfumatoError, match="renews noise"):
        sf.log_prob(curved((2,), gamma=1.0), x, "map")
    sf.log_prob(curved((2,), gamma=1.0), x, "map", steps=1)
    with pytest.raises(sf.SfumatoError, match="this model is none"):
        sf.log_prob(curved().inner, x, "map")
    wide = FlowMap(sf.Denoiser(sf.nets.MLP(80, 16, 1, conditions=STILL), sf.Gaussian("flow")))
    with pytest.raises(sf.SfumatoError, match="up to 64 numbers"):
        sf.log_prob(wide, torch.zeros(1, 80), "map")
