"""C6 of a model: its ODE's density against its score."""

import pytest
import torch

import sfumato as sf
from audit_faults import EXACT, FAULTS, LAW, PROCESS, Faulty
from sfumato.conditions import Conditions
from sfumato.likelihood.flow import noised_log_prob


def states(t, count=48):
    return LAW.sample(count, seed=2, process=PROCESS, t=t)


@pytest.mark.parametrize("t", [0.2, 0.5, 0.8])
def test_exact_models_have_none(t):
    z = states(t)
    found = noised_log_prob(EXACT, z, t, Conditions())
    assert torch.allclose(found, LAW.log_prob(z, process=PROCESS, t=t), atol=2e-4)
    assert sf.density_gap(EXACT, z, t).value < 1e-5


def test_a_curl_that_leaves_the_law_is_all_of_the_gap():
    """The score s + R s / 10 has a law whose score is s: E(v.R s / 10)^2 / E(v.(s + R s / 10))^2 = 0.01 / 1.01."""
    process = sf.Gaussian(sf.schedules.LinearBeta())
    z = LAW.sample(96, seed=2, process=process, t=0.4)
    found = sf.density_gap(Faulty(FAULTS["curl"], LAW.denoiser(process)), z, 0.4, steps=32)
    assert abs(found.value - 0.01 / 1.01) < 3 * found.stderr and found.stderr < 0.005


def test_a_shrunk_model_has_a_gap():
    found = sf.density_gap(Faulty(FAULTS["shrink"]), states(0.4), 0.4, steps=32)
    assert found.value > 5e-4


def test_a_network_of_float32_is_measured_without_rounding():
    """A network that answers 0 with target F is exact for standard normal data."""
    net = sf.nets.MLP(2, 8, 1)
    for parameter in net.parameters():
        torch.nn.init.zeros_(parameter)
    model = sf.Denoiser(net, PROCESS, "F")
    assert sf.density_gap(model, torch.randn(16, 2, generator=torch.Generator().manual_seed(0)), 0.5).value < 1e-4
