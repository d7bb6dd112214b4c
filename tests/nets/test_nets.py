"""What every network promises: zero at first, any shape, one sample at a time, any precision, plain configuration."""

import copy
import json

import pytest
import torch
from torch import Tensor, nn

from sfumato.errors import SfumatoError
from sfumato.nets import MLP, RIN, DiT, UNet, UViT, build, from_config
from sfumato.nets.conditions import Conditioning, described
from sfumato.nets.embedding import noise_features

SHAPES = [(1, 128), (3, 97), (1, 28, 28), (12, 33, 50), (1, 24, 20, 28), (1, 1, 5), (3, 1), (2, 7, 1, 2)]
SMALL = {
    "mlp": lambda classes=3: MLP(5, 32, 2, classes),
    "unet1": lambda classes=3: UNet((3, 17), (16, 32), 1, [1], head_dim=16, classes=classes),
    "unet2": lambda classes=3: UNet((2, 9, 14), (16, 32), [2, 1], [0, 1], head_dim=16, patch=2, classes=classes),
    "unet3": lambda classes=3: UNet((1, 5, 4, 6), (16, 32), 1, [1], head_dim=16, classes=classes, middle=0),
    "dit1": lambda classes=3: DiT((3, 17), 4, 32, 2, 2, classes, positions="learned"),
    "dit2": lambda classes=3: DiT((2, 9, 14), (2, 3), 32, 2, 2, classes),
    "dit3": lambda classes=3: DiT((1, 5, 4, 6), 2, 36, 2, 1, classes),
    "adm": lambda classes=3: UNet(
        (2, 9, 14),
        (16, 32),
        1,
        [1],
        head_dim=16,
        classes=classes,
        resample="block",
        taps=(1, 3, 3, 1),
        residual_scale=0.7071,
    ),
    "efficient": lambda classes=3: UNet((3, 17), (16, 24, 32), (0, 1, 2), classes=classes, skip_scale=0.7071),
    "ddpm": lambda classes=3: UNet((1, 5, 4, 6), (16, 32), 1, classes=classes, scale_shift=False),
    "modern": lambda classes=3: DiT(
        (2, 9, 14),
        2,
        32,
        2,
        2,
        classes,
        positions="rotary",
        norm="rms",
        qk_norm=True,
        registers=2,
    ),
    "streams": lambda classes=3: DiT((1, 5, 4, 6), 2, 32, 3, 2, classes, streams=2, qk_norm=True),
    "uvit1": lambda classes=3: UViT((3, 17), 4, 32, 3, 2, classes),
    "uvit2": lambda classes=3: UViT((2, 9, 14), 2, 32, 4, 2, classes),
    "rin2": lambda classes=3: RIN((2, 9, 14), 2, 32, 5, 48, 2, 1, classes),
}
every = pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)


def perturbed(net: nn.Module) -> nn.Module:
    """The network as if it had learned: no parameter, and so no output, is zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
    return net.eval()


def batch(net: nn.Module, count: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, *net.shape, generator=generator)
    return x, torch.linspace(-4, 4, count), torch.arange(count) % 4 - 1


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape_gives_an_output_like_the_input_and_zero_at_first(shape: tuple[int, ...]) -> None:
    made = (build(shape, classes=2, size="tiny"), DiT(shape, 4, 32, 1, classes=2), UViT(shape, 4, 32, 1, classes=2))
    for net in (*made, RIN(shape, 4, 32, 4, 32, 1, 1, classes=2)):
        x, noise, _ = batch(net, 2)
        assert torch.equal(net(x, noise), torch.zeros_like(x))
        y = perturbed(net)(x, noise, torch.tensor([0, 1]))
        assert y.shape == x.shape and y.dtype == x.dtype and y.isfinite().all() and y.std() > 0


@pytest.mark.parametrize("size", ["auto", "tiny", "small", "base"])
def test_build_takes_vectors_and_every_size(size: str) -> None:
    for shape, kind in (((2,), MLP), ((1, 16), UNet), ((1, 28, 28), UNet)):
        net = build(shape, size=size)
        x = torch.randn(2, *shape)
        assert isinstance(net, kind) and net(x, torch.zeros(2)).shape == x.shape


def test_build_widens_with_size_and_heeds_few_samples() -> None:
    def count(**kwargs: object) -> int:
        return sum(p.numel() for p in build((1, 28, 28), **kwargs).parameters())  # type: ignore[arg-type]

    assert count(size="tiny") < count(size="small") < count(size="base")
    assert count(samples=100) < count(samples=60_000) == count()


@every
def test_output_of_a_sample_does_not_depend_on_its_batch(make) -> None:
    net = perturbed(make()).double()
    x, noise, label = batch(net)
    x = x.double()
    whole = net(x, noise, label)
    for i in range(len(x)):
        alone = net(x[i : i + 1], noise[i : i + 1], label[i : i + 1])[0]
        torch.testing.assert_close(alone, whole[i], rtol=0, atol=1e-11)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(net(x[order], noise[order], label[order]), whole[order], rtol=0, atol=1e-11)


@every
def test_every_input_is_heard(make) -> None:
    net = perturbed(make())
    x, noise, label = batch(net)
    y = net(x, noise, label)
    assert ((y - net(x, noise + 0.1, label)).flatten(1).abs().amax(1) > 1e-4).all()
    assert ((y - net(x, noise, (label + 2) % 4 - 1)).flatten(1).abs().amax(1) > 1e-4).all()
    assert ((y - net(x.flip(0), noise, label)).flatten(1).abs().amax(1) > 1e-4).all()


@every
def test_no_label_and_minus_one_are_the_null_class(make) -> None:
    net = perturbed(make())
    x, noise, _ = batch(net)
    null = torch.full((len(x),), -1)
    assert torch.equal(net(x, noise), net(x, noise, null))
    bare = perturbed(make(classes=0))
    assert torch.equal(bare(x, noise), bare(x, noise, null))


@every
def test_gradient_reaches_every_parameter(make) -> None:
    net = perturbed(make())
    x, noise, label = batch(net)
    more = {"carried": torch.randn(len(x), *net.latents.shape)} if isinstance(net, RIN) else {}
    net(x, noise, label, **more).square().sum().backward()
    dead = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []


@every
def test_only_the_output_layer_learns_at_first_and_it_does(make) -> None:
    net = make()
    x, noise, label = batch(net)
    (net(x, noise, label) - x).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in net.output.parameters())
    assert all(p.grad is None or not p.grad.any() for n, p in net.named_parameters() if not n.startswith("output."))


@every
def test_double_precision_and_autocast_agree_with_single(make) -> None:
    net = perturbed(make())
    x, noise, label = batch(net)
    y = net(x, noise, label)
    exact = copy.deepcopy(net).double()(x.double(), noise, label)
    assert exact.dtype == torch.float64
    scale = exact.abs().max()
    assert (y - exact).abs().max() < 1e-4 * scale
    with torch.autocast("cpu", torch.bfloat16):
        half = net(x, noise, label)
    assert half.dtype == torch.float32 and 0 < (half - exact).abs().max() < 0.1 * scale
    assert net(x.double(), noise, label).dtype == torch.float64  # the network's precision inside, the user's outside


@every
def test_parameters_and_input_may_lie_in_any_memory_format(make) -> None:
    net = perturbed(make())
    if len(net.shape) < 3:
        pytest.skip("vectors and sequences have one layout")
    layout = torch.channels_last if len(net.shape) == 3 else torch.channels_last_3d
    x, noise, label = batch(net)
    y = net(x, noise, label)
    other = copy.deepcopy(net).to(memory_format=layout)(x.contiguous(memory_format=layout), noise, label)
    torch.testing.assert_close(other, y, rtol=1e-4, atol=1e-4 * float(y.detach().abs().max()))


@every
def test_config_is_plain_json_and_rebuilds_the_network(make) -> None:
    net = perturbed(make())
    config = json.loads(json.dumps(net.config))
    again = from_config(config)
    assert type(again) is type(net) and again.config == net.config == config
    again.load_state_dict(net.state_dict())
    x, noise, label = batch(net)
    assert torch.equal(again.eval()(x, noise, label), net(x, noise, label))


def test_dropout_acts_in_training_only() -> None:
    for net in (MLP(4, 16, 1, dropout=0.5), UNet((1, 8, 8), (16,), 1, dropout=0.5), DiT((1, 8), 2, 16, 1, dropout=0.5)):
        x, noise, _ = batch(perturbed(net))
        assert torch.equal(net(x, noise), net(x, noise))
        net.train()
        assert not torch.equal(net(x, noise), net(x, noise))


def test_noise_features_are_single_precision_whatever_the_network_and_tell_levels_apart() -> None:
    level = torch.linspace(-5, 5, 401)
    expected = noise_features(level, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(noise_features(level, 64), expected) and expected.dtype == torch.float32
        conditioning = Conditioning(32, described(3, None))
        inside = conditioning(level, 401, {})
    assert torch.equal(inside, conditioning(level, 401, {})) and inside.dtype == torch.float32
    distance = torch.cdist(expected.double(), expected.double()) + 100 * torch.eye(401)
    assert distance.min() > 0.1
    # sin^2 + cos^2 = 1 at each frequency
    torch.testing.assert_close(expected[:, :32] ** 2 + expected[:, 32:] ** 2, torch.ones(401, 32))


@every
def test_bfloat16_weights_hear_a_noise_level_that_bfloat16_would_lose(make) -> None:
    net = perturbed(make()).bfloat16()
    level = torch.tensor([4.001])
    assert level.bfloat16() == torch.tensor([4.0]).bfloat16()
    features = noise_features(level, 64) - noise_features(torch.tensor([4.0]), 64)
    assert features.abs().max() > 5e-3
    x, noise, label = batch(net)
    assert net(x, noise, label).isfinite().all()


@pytest.mark.parametrize(
    ("mistake", "says"),
    [
        (lambda: build((1, 2, 3, 4, 5)), "no network for samples of shape"),
        (lambda: build((4,), size="smal"), "did you mean 'small'"),
        (lambda: UNet((5,)), "UNet needs a shape"),
        (lambda: UNet((1, 8, 8), (32, 64), attention=[2]), "levels 0 to 1"),
        (lambda: UNet((1, 8, 8), (32, 64), blocks=[1]), "2 levels of channels but 1"),
        (lambda: UNet((1, 8, 8), (96,), attention=[0]), "96 channels do not divide"),
        (lambda: UNet((1, 8, 8), patch=[2]), "does not fit 2 spatial axes"),
        (lambda: UNet((1, 8, 8), classes=-1), "-1 classes"),
        (lambda: DiT((1, 8), positions="none"), "positions"),
        (lambda: DiT((1, 8), width=64, heads=3), "heads that divide width"),
        (lambda: MLP(0), "positive sizes"),
        (lambda: from_config({"name": "Unet", "args": {}}), "did you mean 'UNet'"),
        (lambda: from_config({"name": "UNet", "args": {"shape": [1, 8], "chanels": [8]}}), "did you mean 'channels'"),
        (lambda: from_config({"name": "UNet", "args": {}}), "needs the argument 'shape'"),
        (lambda: from_config({"name": "UNet"}), "a network is .*got the keys"),
        (lambda: MLP(4)(torch.zeros(2, 5), torch.zeros(2)), "built for samples of shape"),
        (lambda: MLP(4)(torch.zeros(2, 4), torch.zeros(3)), "noise_level has shape"),
        (lambda: MLP(4, classes=3)(torch.zeros(2, 4), torch.zeros(2), torch.tensor([0, 3])), "label 3"),
        (lambda: MLP(4, classes=3)(torch.zeros(2, 4), torch.zeros(2), torch.tensor([0, -2])), "label -2"),
        (lambda: MLP(4)(torch.zeros(2, 4), torch.zeros(2), torch.tensor([0, 0])), "has no classes"),
        (lambda: MLP(4, classes=3)(torch.zeros(2, 4), torch.zeros(2), torch.tensor([0])), "label has shape"),
    ],
)
def test_mistakes_are_told_in_one_sentence(mistake, says: str) -> None:
    with pytest.raises(SfumatoError, match=says):
        mistake()
