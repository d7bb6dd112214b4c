"""The parts: patches are exactly invertible, blocks are the identity at first (J2), grids waste no padding."""

import math

import pytest
import torch
from torch import nn

from sfumato.nets import DiT, UNet
from sfumato.nets.blocks import Attention, Block, conv, halved
from sfumato.nets.dit import sincos_positions
from sfumato.nets.fields import depth_to_space, per_axis_patch, space_to_depth

FIELDS = [((3, 97), 4), ((2, 9, 14), (2, 3)), ((1, 5, 4, 7), 2), ((1, 28, 28), 2), ((1, 1, 5), 4), ((4, 6), 1)]


@pytest.mark.parametrize(("shape", "patch"), FIELDS, ids=str)
def test_unpatchify_inverts_patchify_exactly(shape: tuple[int, ...], patch: int | tuple[int, ...]) -> None:
    x = torch.randn(2, *shape)
    net = DiT(shape, patch, 32, 1)
    tokens = net.patchify(x)
    assert tokens.shape == (2, math.prod(net.grid), shape[0] * math.prod(net.patch))
    assert torch.equal(net.unpatchify(tokens), x)
    sizes = per_axis_patch(patch, shape[1:])
    assert torch.equal(depth_to_space(space_to_depth(x, sizes), sizes, shape), x)


def test_a_patch_holds_neighbouring_values_and_zeros_beyond_the_border() -> None:
    x = torch.arange(1.0, 16.0).reshape(1, 1, 3, 5)
    tokens = space_to_depth(x, (2, 2))
    assert tokens.shape == (1, 2, 3, 4)
    assert tokens[0, 0, 0].tolist() == [1, 2, 6, 7]
    assert tokens[0, 1, 2].tolist() == [15, 0, 0, 0]
    channels = space_to_depth(torch.cat([x, -x], 1), (2, 2))
    assert channels[0, 0, 1].tolist() == [3, 4, 8, 9, -3, -4, -8, -9]


def test_patches_agree_with_torch_pixel_unshuffle() -> None:
    x = torch.randn(2, 3, 6, 8)
    assert torch.equal(space_to_depth(x, (2, 2)).movedim(-1, 1), nn.functional.pixel_unshuffle(x, 2))


def test_transformer_blocks_are_the_identity_at_first_and_not_after() -> None:
    net = DiT((1, 8, 8), 2, 32, 3, 2)
    h, vector = torch.randn(4, 16, 32), torch.randn(4, 32)
    for block in net.blocks:
        assert torch.equal(block(h, vector), h)
        nn.init.normal_(block.modulation.bias)
        assert not torch.allclose(block(h, vector), h)


@pytest.mark.parametrize("grid", [(6, 5), (4, 3, 5)], ids=str)
def test_residual_blocks_and_attention_are_the_identity_at_first(grid: tuple[int, ...]) -> None:
    x = torch.randn(2, 32, *grid)
    block, attention = Block(32, 32, grid, 0.0), Attention(32, 16)
    assert torch.equal(block(x, torch.randn(2, 64)), x) and torch.equal(attention(x), x)
    nn.init.normal_(block.conv2.weight)
    nn.init.normal_(attention.out.weight)
    assert not torch.allclose(block(x, torch.randn(2, 64)), x) and not torch.allclose(attention(x), x)


def test_attention_is_the_written_formula() -> None:
    attention = Attention(32, 16).double()
    nn.init.normal_(attention.out.weight)
    x = torch.randn(2, 32, 3, 4, dtype=torch.float64)
    tokens = attention.norm(x).flatten(2).transpose(1, 2)
    q, k, v = (attention.qkv(tokens)[..., 32 * i : 32 * i + 32].reshape(2, 12, 2, 16).transpose(1, 2) for i in range(3))
    mixed = torch.softmax(q @ k.mT / 4, dim=-1) @ v
    expected = x + attention.out(mixed.transpose(1, 2).reshape(2, 12, 32)).mT.reshape(x.shape)
    torch.testing.assert_close(attention(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("grid", [(1, 9), (7, 7), (8, 6), (2, 12), (5, 4, 9), (3, 1, 16)], ids=str)
def test_down_sampling_gives_the_announced_grid(grid: tuple[int, ...]) -> None:
    coarse = halved(grid)
    assert conv(2, 4, grid, coarse)(torch.randn(1, 2, *grid)).shape == (1, 4, *coarse)
    assert conv(2, 4, grid)(torch.randn(1, 2, *grid)).shape == (1, 4, *grid)
    assert all(m == n if n < 4 else m == -(-n // 2) for n, m in zip(grid, coarse, strict=True))


def test_a_sequence_is_an_image_of_height_one() -> None:
    torch.manual_seed(0)
    line, image = UNet((2, 19), (16, 32), 1), UNet((2, 1, 19), (16, 32), 1)
    for p in line.parameters():
        nn.init.normal_(p, std=0.2)
    image.load_state_dict(line.state_dict())
    x, noise = torch.randn(3, 2, 19), torch.zeros(3)
    torch.testing.assert_close(line(x, noise), image(x[:, :, None], noise)[:, :, 0])


def test_unet_without_patches_commutes_with_shifts_away_from_the_border() -> None:
    """One level of convolutions, and norms over the whole field: shifting a compact pattern shifts the output."""
    torch.manual_seed(0)
    net = UNet((1, 40, 40), (16,), 1, middle=0).double()
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    x = torch.zeros(1, 1, 40, 40, dtype=torch.float64)
    x[..., 15:20, 15:20] = torch.randn(5, 5, dtype=torch.float64)
    noise = torch.zeros(1)
    moved = net(x.roll((3, 2), (2, 3)), noise).roll((-3, -2), (2, 3))
    torch.testing.assert_close(moved[..., 10:25, 10:25], net(x, noise)[..., 10:25, 10:25], rtol=0, atol=1e-9)


@pytest.mark.parametrize("grid", [(7,), (4, 5), (3, 2, 4)], ids=str)
def test_fixed_positions_are_distinct_and_bounded(grid: tuple[int, ...]) -> None:
    table = sincos_positions(grid, 50)
    assert table.shape == (math.prod(grid), 50) and table.abs().max() <= 1
    distance = torch.cdist(table, table) + 10 * torch.eye(len(table))
    assert distance.min() > 0.3


def test_images_stay_channels_last_inside() -> None:
    image = UNet((1, 12, 12), (16, 32), 1, [1], 16, 2, middle=2)
    for net in (image, UNet((1, 8, 8, 8), (16, 32), 1), UNet((1, 16), (16, 32), 1, middle=3)):
        seen: list[bool] = []
        layout = torch.channels_last_3d if len(net.shape) == 4 else torch.channels_last
        for module in net.modules():
            if isinstance(module, Block):
                module.register_forward_hook(
                    lambda _m, _i, out, layout=layout, seen=seen: seen.append(out.is_contiguous(memory_format=layout))
                )
        net(torch.randn(2, *net.shape), torch.zeros(2))
        assert len(seen) == 4 + net.config["args"]["middle"] and all(seen)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_kernels_of_volumes_have_their_gradient_in_bfloat16(depth: int) -> None:
    """On a CPU that of 3 taps over a depth of 2 was memory that nobody had written."""
    layer, x = conv(16, 16, (depth, 6, 6)), torch.randn(8, 16, depth, 6, 6)
    found = []
    for low in (False, True):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            layer(x).float().square().sum().backward()
        found.append(layer.weight.grad.clone())
    assert float((found[1] - found[0]).norm()) < 0.02 * float(found[0].norm())
