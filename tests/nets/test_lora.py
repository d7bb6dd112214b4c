"""Adapters: nothing at first, low rank, the best of their rank in closed form, and merged without a difference."""

import pytest
import torch
from torch import nn

import sfumato as sf
from sfumato import nets, trees
from sfumato.nets.lora import LowRank, trained_names

MODULES = {
    "linear": (lambda: nn.Linear(6, 5), (6,)),
    "conv1d": (lambda: nn.Conv1d(3, 5, 3, padding=1), (3, 8)),
    "conv2d": (lambda: nn.Conv2d(3, 5, (3, 1), stride=2), (3, 8, 8)),
    "conv3d": (lambda: nn.Conv3d(2, 5, 3), (2, 4, 4, 4)),
    "depthwise": (lambda: nn.Conv1d(6, 6, 3, groups=6), (6, 8)),
}


def unet():
    net = nets.UNet((1, 8, 8), (8, 16), 1, attention=(1,), classes=3)
    for i, parameter in enumerate(net.parameters()):
        nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(i))
    return net


def moved(net):
    """The adapted network with adapters that count."""
    for i, parameter in enumerate(net.own().values()):
        nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(100 + i))
    return net


@pytest.mark.parametrize("name", MODULES)
def test_a_kernel_down_and_one_tap_up(name):
    """(W_0 + U D) x is W_0 x + up(down(x)), down the module's own kind of r channels, up of one tap."""
    make, shape = MODULES[name]
    module, x = make().double(), torch.randn(2, *shape, dtype=torch.float64)
    plain = module(x)
    adapted = moved(nets.Adapted(nn.Sequential(module), 2, alpha=3.0))
    own = adapted.net[0].parametrizations.weight[0]
    if name == "depthwise":  # each channel has a kernel of its own, in the span of two
        change = (adapted.net[0].weight - adapted.net[0].parametrizations.weight.original).flatten(1)
        assert torch.linalg.matrix_rank(change) == 2
        return
    if name == "linear":
        added = x @ own.down.T @ own.up.T
    else:
        rank, kind = len(own.down), type(module).__mro__[1]
        down = kind(shape[0], rank, module.kernel_size, module.stride, module.padding, bias=False).double()
        down.weight.data = own.down.data
        added = torch.einsum("or,br...->bo...", own.up, down(x))
    torch.testing.assert_close(adapted(x), plain + 3.0 / 2 * added)


def test_at_the_start_and_merged_it_is_the_same_network():
    net, x, level, label = unet(), torch.randn(4, 1, 8, 8), torch.randn(4), torch.tensor([0, 1, 2, -1])
    before = net(x, level, label).detach()
    adapted = nets.Adapted(net, 4)
    assert torch.equal(adapted(x, level, label), before)
    moved(adapted)
    after = adapted(x, level, label)
    assert (after - before).abs().max() > 0.01
    plain = adapted.merged()
    assert type(plain) is nets.UNet and plain.config == unet().config
    torch.testing.assert_close(plain(x, level, label), after, rtol=1e-6, atol=1e-6)
    assert torch.equal(adapted(x, level, label), after)  # the adapted one is as it was
    assert all(torch.equal(value, unet().state_dict()[name]) for name, value in adapted.plain(False).items())
    again = nets.from_config(trees.tree(adapted))
    again.load_state_dict(adapted.state_dict())
    assert torch.equal(again(x, level, label), after)


def test_only_adapters_have_gradients():
    adapted = nets.Adapted(unet(), 2, new=["output.bias"], parts={"conditioning.label.weight": (0, [3])})
    adapted(torch.randn(4, 1, 8, 8), torch.randn(4), torch.tensor([2, 2, 0, -1])).square().sum().backward()
    have = {name for name, p in adapted.named_parameters() if p.grad is not None}
    assert have == trained_names(adapted) == {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert {name.rpartition(".")[2] for name in have} == {"up", "down", "bias", "delta"}
    assert adapted.own()["net.conditioning.label.parametrizations.weight.0.delta"].shape == (1, 32)
    assert sum(p.numel() for p in adapted.own().values()) < 0.5 * sum(p.numel() for p in unet().parameters())


@pytest.mark.parametrize("rank", [1, 3])
def test_the_optimum_of_a_rank_is_a_truncated_svd(rank):
    """min |(W_0 + U D) - W|_F^2 over rank r is the sum of the squares of the other singular values of W - W_0."""
    draw = torch.Generator().manual_seed(0)
    target = torch.randn(6, 5, generator=draw, dtype=torch.float64)
    layer = nn.Linear(5, 6, bias=False).double()
    start = layer.weight.detach().clone()
    adapted = nets.Adapted(nn.Sequential(layer), rank)
    search = torch.optim.LBFGS(
        adapted.own().values(), max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
    )

    def loss():
        search.zero_grad()
        value = (adapted.net[0].weight - target).square().sum()
        value.backward()
        return value

    search.step(loss)
    rest = torch.linalg.svdvals(target - start)[rank:].square().sum()
    assert loss().item() == pytest.approx(float(rest), rel=1e-6)
    assert torch.equal(layer.parametrizations.weight.original, start)


def test_mistakes_are_said():
    with pytest.raises(sf.SfumatoError, match="no parameter 'nowhere'"):
        nets.Adapted(unet(), 2, new=["nowhere"])
    with pytest.raises(sf.SfumatoError, match="a rank of 1 or more"):
        nets.Adapted(unet(), -1)
    assert LowRank(torch.zeros(3, 40), 8, 8.0).down.shape == (3, 40)  # a rank beyond the matrix is of no use
