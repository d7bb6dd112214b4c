"""Autoencoders: shapes of every rank, what a code can see, and the way back from `config`."""

import pytest
import torch

from sfumato import SfumatoError, nets
from sfumato.nets import Autoencoder, GaussianCode, QuantisedCode

SHAPES = {
    "vector": ((7,), (16, 8), (3,)),
    "linear": ((7,), (), (3,)),
    "sequence": ((2, 13), (8, 8), (3, 7)),
    "image": ((1, 28, 28), (8, 8, 16), (3, 7, 7)),
    "odd image": ((3, 9, 14), (8, 8, 8), (3, 3, 4)),
    "volume": ((1, 6, 5, 8), (8, 8), (3, 3, 3, 4)),
}


@pytest.mark.parametrize("bottleneck", ["kl", "vq"])
@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name: str, bottleneck: str) -> None:
    shape, channels, latent = SHAPES[name]
    net, x = Autoencoder(shape, 3, channels, bottleneck=bottleneck, codes=5), torch.randn(2, *shape)
    code = net.encode(x)
    assert net.latent_shape == latent and net(x).shape == x.shape
    if bottleneck == "kl":
        assert isinstance(code, GaussianCode) and code.mean.shape == code.log_variance.shape == (2, *latent)
    else:
        assert isinstance(code, QuantisedCode) and code.value.shape == (2, *latent)
        assert code.codes.shape == (2, *latent[1:]) and int(code.codes.max()) < 5
        assert torch.allclose(net.quantiser.look_up(code.codes), code.value, atol=1e-6)
    again = nets.from_config(net.config)
    assert again.config == net.config
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(x), net(x))


@pytest.mark.parametrize("name", SHAPES)
def test_every_parameter_learns_and_no_sample_sees_another(name: str) -> None:
    shape, channels, _ = SHAPES[name]
    net = Autoencoder(shape, 3, channels)
    for module in net.modules():
        if isinstance(module, nets.blocks.Block):  # zero at first, which would hide what stands before
            torch.nn.init.normal_(module.conv2.weight, std=0.1)
    x = torch.randn(3, *shape)
    assert torch.allclose(net(x)[1:2], net(x[1:2]), atol=1e-5)
    code = net.encode(x)
    loss = net.decode(code.sample(torch.randn_like(code.mean))).square().sum() + code.kl().sum() + net.log_variance
    loss.backward()
    silent = [name for name, p in net.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    # a single value a group is normalised away
    assert not silent


def test_the_linear_model_is_linear() -> None:
    net = Autoencoder((5,), 2, ())
    x, y = torch.randn(3, 5), torch.randn(3, 5)
    zero = net(torch.zeros(1, 5))
    assert torch.allclose(net(x + y) - zero, net(x) + net(y) - 2 * zero, atol=1e-6)
    assert [tuple(p.shape) for p in net.parameters()] == [(), (4, 5), (4,), (5, 2), (5,)]


def test_the_variance_is_learned_or_given() -> None:
    assert any(p is net.log_variance for net in [Autoencoder((4,), 2, ())] for p in net.parameters())
    given = Autoencoder((4,), 2, (), variance=0.25)
    assert float(given.log_variance.exp()) == pytest.approx(0.25) and "log_variance" in given.state_dict()
    assert all(p is not given.log_variance for p in given.parameters())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"shape": (4,), "bottleneck": "kll"}, "did you mean 'kl'"),
        ({"shape": (1, 8, 8), "channels": ()}, "at least one level"),
        ({"shape": (4,), "latent": 0}, "positive sizes"),
        ({"shape": (4,), "variance": 0.0}, "above 0"),
        ({"shape": (4,), "bottleneck": "vq", "codes": 1}, "at least 2 codes"),
    ],
)
def test_mistakes_are_said(arguments: dict, words: str) -> None:
    with pytest.raises(SfumatoError, match=words):
        Autoencoder(**arguments)


def test_another_shape_is_refused() -> None:
    net = Autoencoder((1, 8, 8), 2, (8,))
    with pytest.raises(SfumatoError, match="built for samples of shape"):
        net.encode(torch.zeros(1, 8, 8, 1))
    with pytest.raises(SfumatoError, match="built for samples of shape"):
        net.decode(torch.zeros(1, 3, 8, 8))
