"""Numbers as Fourier features of what their noise leaves, and one level of all samples."""

import pytest
import torch

from sfumato.errors import SfumatoError
from sfumato.nets import MLP, from_config
from sfumato.nets.embedding import NUMBER_FREQUENCIES, number_features

LEVELS = {"levels": {"kind": "field", "shape": [2]}}


def filled(net):
    """The network with weights that are nowhere zero."""
    for i, p in enumerate(net.parameters()):
        p.data = 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i), dtype=p.dtype)
    return net.double()


def test_features_are_the_means_over_what_the_noise_hides():
    u, ratio = torch.tensor([[0.4, -1.1]], dtype=torch.float64), torch.tensor([[0.03, 0.2]], dtype=torch.float64)
    nodes = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    density = torch.exp(-0.5 * nodes**2)
    x = u[..., None] * (1 + ratio[..., None] ** 2).sqrt() + ratio[..., None] * nodes  # given z / alpha, any x alike
    w = torch.tensor(NUMBER_FREQUENCIES, dtype=torch.float64)[:, None]
    means = [(f(w * x[..., None, :]) * density).sum(-1) / density.sum() for f in (torch.sin, torch.cos)]
    found = number_features(u, ratio.log() / 4)
    assert torch.allclose(found, torch.stack(means, -1).flatten(1), atol=1e-12)


def test_pure_noise_has_no_features_and_a_known_number_has_all():
    u = torch.tensor([[0.7], [1.9]])
    assert number_features(u, torch.full((2, 1), 40.0)).abs().max() == 0
    known = number_features(u, torch.full((2, 1), -40.0)).unflatten(1, (-1, 2))
    assert torch.allclose(known.square().sum(-1), torch.ones(2, len(NUMBER_FREQUENCIES)))


def test_numbers_have_the_levels_that_are_told():
    net = filled(MLP(3, 16, 2, conditions=LEVELS, numbers=2))
    x, level = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.zeros(4)
    own = torch.tensor([[-0.5, 0.2]], dtype=torch.float64).expand(4, 2)
    told = net(x, level, levels=own, present={"levels": torch.tensor([True, True, False, False])})
    assert torch.allclose(told[2:], net(x, level)[2:]) and not torch.allclose(told[:2], net(x, level)[:2])
    other = net(x, level, levels=own.flip(1), present={"levels": torch.ones(4, dtype=torch.bool)})
    assert not torch.allclose(other[:2], told[:2])


def test_one_level_of_all_samples_is_that_of_each():
    net = filled(MLP(3, 16, 2, numbers=2))
    x, level = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.tensor(0.3)
    each = net(x, level.repeat(5))
    assert torch.allclose(net(x, level.expand(5)), each, atol=1e-12) and each.abs().max() > 0.1
    labelled = filled(MLP(3, 16, 2, classes=2))
    label = torch.tensor([0, 1, -1, 0, 1])
    assert torch.allclose(labelled(x, level.expand(5), label), labelled(x, level.repeat(5), label), atol=1e-12)


def test_a_network_of_numbers_comes_back_from_its_config():
    net = MLP(4, 8, 1, numbers=3)
    again = from_config(net.config)
    assert again.config == net.config and again.input.weight.shape == (8, 4 + 2 * 3 * len(NUMBER_FREQUENCIES))
    with pytest.raises(SfumatoError, match="4 entries cannot have 5 numbers"):
        MLP(4, numbers=5)
