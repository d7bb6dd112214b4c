"""Options of networks against what they are said to be: filters, rotary positions, norms, streams, memory, work."""

import copy
import math
import weakref
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import sfumato as sf
from sfumato.errors import SfumatoError
from sfumato.nets import MLP, RIN, DiT, Energy, Transformer, UNet, UViT, build, flops
from sfumato.nets.blocks import Attention, Block
from sfumato.nets.dit import sincos_positions
from sfumato.nets.resample import Resample
from sfumato.nets.rotary import axial_rotary, beyond, rotated
from sfumato.nets.streams import JointBlock, TransformerBlock

WORDS = {"words": {"kind": "tokens", "size": 6}}
F64 = torch.float64


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def active(net: nn.Module, std: float = 0.1) -> nn.Module:
    """The network as if it had learned: no parameter is zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p += std * torch.randn(p.shape, generator=generator).to(p)
    return net.eval()


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


# -- U-Net ---------------------------------------------------------------------------------------------------------


def test_the_filter_of_two_is_the_mean_of_pairs_and_the_nearest_place():
    x = normal(2, 3, 8, 6)
    down, up = (Resample((8, 6), (4, 3), (1, 1), up).double() for up in (False, True))
    torch.testing.assert_close(down(x), nn.functional.avg_pool2d(x, 2))
    torch.testing.assert_close(up(x[:, :, :4, :3]), nn.functional.interpolate(x[:, :, :4, :3], scale_factor=2))


@pytest.mark.parametrize(("grid", "coarse"), [((7, 9), (4, 5)), ((3, 8), (3, 4)), ((5, 2, 6), (3, 2, 3))], ids=str)
def test_filters_keep_constants_and_lines_at_any_size(grid, coarse):
    """Bilinear taps: a constant stays, and inside a ramp of slope 1 is one of slope 2 below, and of 1/2 above."""
    down, up = (Resample(grid, coarse, (1, 3, 3, 1), up).double() for up in (False, True))
    ones = torch.ones(1, 2, *grid, dtype=F64)
    torch.testing.assert_close(down(ones), torch.ones(1, 2, *coarse, dtype=F64))
    torch.testing.assert_close(up(down(ones)), ones)
    size, half = grid[-1], coarse[-1]
    ramp = torch.arange(size, dtype=F64).expand(1, 2, *grid)
    expected = 2 * torch.arange(half, dtype=F64) + 0.5
    torch.testing.assert_close(down(ramp)[..., 1:-1], expected.expand(1, 2, *coarse)[..., 1:-1])
    rise = torch.arange(half, dtype=F64).expand(1, 2, *coarse)
    expected = torch.arange(size, dtype=F64) / 2 - 0.25
    torch.testing.assert_close(up(rise)[..., 1:-2], expected.expand(1, 2, *grid)[..., 1:-2])


def test_a_block_that_resamples_takes_both_of_its_ways_to_the_other_grid():
    """ADM: conv(up(silu(norm(x)))) beside up(x); at first, with W2 = 0, the block is the filter alone, times c."""
    x = normal(2, 16, 4, 4)
    block = Block(16, 16, (8, 8), 0.0, residual_scale=0.5, resample=Resample((8, 8), (4, 4), (1, 1), True)).double()
    torch.testing.assert_close(block(x), 0.5 * nn.functional.interpolate(x, scale_factor=2))
    nn.init.normal_(block.conv2.weight)
    h = block.conv1(nn.functional.interpolate(nn.functional.silu(block.norm1(x)), scale_factor=2))
    h = block.conv2(nn.functional.silu(block.norm2(h)))
    torch.testing.assert_close(block(x), 0.5 * (nn.functional.interpolate(x, scale_factor=2) + h))


def test_residual_sums_of_independent_parts_keep_their_variance():
    """c = 1/sqrt(2): x and a part of the same variance sum to it again (2011.13456, App. H)."""
    x, attention = normal(64, 32, 6, 6), Attention(32, 16, residual_scale=math.sqrt(0.5)).double()
    assert torch.equal(attention(x), math.sqrt(0.5) * x)
    added = normal(64, 32, 6, 6, seed=2)
    assert float((math.sqrt(0.5) * (x + added)).var()) == pytest.approx(1, abs=0.02)


def test_a_modulation_without_scale_is_added_before_the_norm():
    block = active(Block(16, 16, (4, 4), 0.0, scale_shift=False).double())
    x, b = normal(2, 16, 4, 4), normal(2, 16)
    assert block.modulated == 16
    h = block.norm2(block.conv1(nn.functional.silu(block.norm1(x))) + b[:, :, None, None])
    torch.testing.assert_close(block(x, b), x + block.conv2(nn.functional.silu(h)))


def test_the_efficient_unet_computes_at_low_resolution():
    """No block sees the finest grid, the skips are scaled, and the work is less than with blocks there."""
    args = {"shape": (3, 32, 32), "channels": (32, 64, 128), "attention": [2], "skip_scale": math.sqrt(0.5)}
    net, plain = UNet(blocks=(0, 2, 4), **args), UNet(blocks=(2, 2, 4), **args)
    seen = []
    for module in net.modules():
        if isinstance(module, Block):
            module.register_forward_hook(lambda m, x, y: seen.append(tuple(y.shape[2:])))
    active(net)(torch.randn(1, 3, 32, 32), torch.zeros(1))
    assert set(seen) == {(16, 16), (8, 8)} and len(seen) == 13
    assert flops(net) < 0.85 * flops(plain)
    other = UNet(blocks=(0, 2, 4), **{**args, "skip_scale": 1.0})
    other.load_state_dict(net.state_dict())
    x = torch.randn(1, 3, 32, 32)
    assert not torch.allclose(other.eval()(x, torch.zeros(1)), net(x, torch.zeros(1)))


# -- transformers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(9,), (5, 7), (3, 4, 5)], ids=str)
def test_rotary_scores_depend_on_the_distance_of_places_alone(grid):
    """<R_i q, R_j k> is the same for all pairs (i, j) with the same j - i along every axis, and for no other."""
    width = 12 * len(grid)
    turn = axial_rotary(grid, width).double()
    assert turn.shape == (2, math.prod(grid), width // 2)
    q, k = normal(width), normal(width, seed=2)
    scores = rotated(q.expand(turn.shape[1], width), turn) @ rotated(k.expand(turn.shape[1], width), turn).T
    place = torch.cartesian_prod(*[torch.arange(n) for n in grid]).reshape(-1, len(grid))
    distance = [tuple(d) for d in (place[None] - place[:, None]).flatten(0, 1).tolist()]
    by_distance = {}
    for d, score in zip(distance, scores.flatten().tolist(), strict=True):
        by_distance.setdefault(d, []).append(score)
    spread = max(max(each) - min(each) for each in by_distance.values())
    means = torch.tensor([each[0] for each in by_distance.values()])
    assert spread < 1e-6 and float(means.sort().values.diff().max()) > 1e-3
    still = rotated(normal(2, turn.shape[1] + 2, width), beyond(turn, 2))[:, -2:]
    torch.testing.assert_close(still, normal(2, turn.shape[1] + 2, width)[:, -2:])


def test_rotary_patches_hear_a_shift_by_the_border_alone():
    """One block of rotary attention over patches: scores of a shifted picture are the shifted scores."""
    block = active(TransformerBlock(32, 2, 8, 2.0, 0.0).double())
    vector, turn = normal(1, 8), axial_rotary((6, 6), 16).double()
    h = normal(1, 6, 6, 32)
    q, k, _ = block.read(h.flatten(1, 2), block.modulated(vector), turn)
    shifted = h.roll((1, 2), (1, 2))
    moved_q, moved_k, _ = block.read(shifted.flatten(1, 2), block.modulated(vector), turn)
    inside = [6 * i + j for i in range(5) for j in range(4)]  # places that are still inside after the shift
    beyond_them = [n + 6 + 2 for n in inside]
    scores, moved = (
        (q @ k.mT)[..., inside, :][..., inside],
        (moved_q @ moved_k.mT)[..., beyond_them, :][..., beyond_them],
    )
    torch.testing.assert_close(moved, scores, rtol=0, atol=1e-6)


def test_normed_queries_and_keys_have_bounded_scores():
    """|q k| / sqrt(d) <= sqrt(d) max|g_q| max|g_k| however large the input; without the norm it grows with it."""
    for qk_norm in (True, False):
        block = active(TransformerBlock(32, 2, 8, 2.0, 0.0, qk_norm=qk_norm)).double()
        with torch.no_grad():
            block.qkv.weight *= 100
        q, k, _ = block.read(normal(2, 9, 32), block.modulated(normal(2, 8)), None)
        largest = float((q @ k.mT).detach().abs().max()) / 4
        if qk_norm:
            bound = 4 * float(block.queries.weight.detach().abs().max() * block.keys.weight.detach().abs().max())
            assert 0.3 * bound < largest <= bound
        else:
            assert largest > 1000


def test_rms_norm_divides_by_the_root_mean_square():
    block, h = TransformerBlock(16, 1, 8, 2.0, 0.0, norm="rms").double(), 3 + normal(2, 5, 16)
    expected = h / (h.square().mean(2, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(block.norm(h), expected)
    assert float(block.norm(h).mean()) > 0.5  # where LayerNorm has 0


def test_two_streams_with_equal_weights_are_one():
    joint = JointBlock(*(active(TransformerBlock(32, 2, 8, 2.0, 0.0, qk_norm=True).double()) for _ in range(2)))
    joint.others.load_state_dict(joint.patches.state_dict())
    h, vector, mask = normal(3, 11, 32), normal(3, 8), torch.ones(3, 11, dtype=torch.bool)
    mask[1, 9:] = False
    torch.testing.assert_close(joint(h, vector, mask, None, 8), joint.patches(h, vector, mask))
    nn.init.normal_(joint.others.qkv.weight)
    assert not torch.allclose(joint(h, vector, mask, None, 8), joint.patches(h, vector, mask))


def test_two_streams_work_without_any_condition():
    net = active(DiT((2, 8, 8), 2, 32, 3, 2, streams=2))
    x = torch.randn(3, 2, 8, 8)
    assert net.registers.shape == (1, 32) and net(x, torch.zeros(3)).shape == x.shape
    told = active(DiT((2, 8, 8), 2, 32, 3, 2, streams=2, conditions=WORDS))
    assert told.registers is None
    words = {"words": torch.randn(3, 4, 6)}
    absent = {"words": torch.zeros(3, 4, dtype=torch.bool)}
    torch.testing.assert_close(told(x, torch.zeros(3), **words, present=absent), told(x, torch.zeros(3)))
    assert not torch.allclose(told(x, torch.zeros(3), **words), told(x, torch.zeros(3)))


def test_cross_attention_is_the_identity_at_first_and_registers_are_no_patches():
    net = DiT((1, 8, 8), 2, 32, 2, 2, conditions=WORDS, context="cross", registers=3)
    h, vector = torch.randn(2, 19, 32), torch.randn(2, 32)
    tokens = net.context(2, {"words": torch.randn(2, 4, 6)}, None)
    for block in net.blocks:
        assert torch.equal(block(h, vector, tokens=tokens), h)
    assert net(torch.randn(2, 1, 8, 8), torch.zeros(2)).shape == (2, 1, 8, 8)


@pytest.mark.parametrize("positions", ["fixed", "learned", "rotary"])
def test_a_network_of_any_size_takes_other_resolutions_and_aspects(positions):
    net = active(DiT((2, 16, 16), 4, 32, 2, 2, positions=positions, any_size=True))
    plain = DiT((2, 16, 16), 4, 32, 2, 2, positions=positions).eval()
    plain.load_state_dict(net.state_dict())
    x = torch.randn(2, 2, 16, 16)
    assert torch.equal(net(x, torch.zeros(2)), plain(x, torch.zeros(2)))
    for size in ((24, 8), (16, 18), (40, 40)):
        y = net(torch.randn(2, 2, *size), torch.zeros(2))
        assert y.shape == (2, 2, *size) and y.abs().max() > 1e-3
    with pytest.raises(SfumatoError, match="built for samples of shape"):
        plain(torch.randn(2, 2, 24, 8), torch.zeros(2))
    with pytest.raises(SfumatoError, match="built for samples of shape"):
        net(torch.randn(2, 3, 24, 8), torch.zeros(2))


def test_a_walk_of_another_size_samples_it():
    model = sf.Denoiser(active(DiT((1, 8, 8), 2, 32, 1, 2, positions="rotary", any_size=True), 0.02), sf.Gaussian(
        sf.schedules.Flow(), "velocity"))  # fmt: skip
    z = torch.randn(2, 1, 12, 6, generator=torch.Generator().manual_seed(0))
    found = sf.sample(model, solver="ddim", steps=3, z=z)
    assert found.shape == (2, 1, 12, 6) and found.isfinite().all()


def test_positions_of_another_grid_have_the_same_extent():
    """Twice as many places lie at quarters and three quarters between the old ones: their mean is the old place."""
    index = (torch.arange(8, dtype=F64) + 0.5) / 2 - 0.5
    table = sincos_positions((8,), 32, (4,))
    frequency = 10000.0 ** (-torch.arange(16, dtype=F64) / 16)
    expected = torch.cat([(index[:, None] * frequency).sin(), (index[:, None] * frequency).cos()], 1).float()
    torch.testing.assert_close(table, expected)
    assert torch.equal(sincos_positions((4, 3), 32), sincos_positions((4, 3), 32, (4, 3)))


def test_long_skips_join_mirror_images():
    """With W = [0, 1] for the last skip, the last block of a U-ViT gets the output of the first."""
    net = active(UViT((1, 8, 8), 2, 32, 5, 2))
    with torch.no_grad():
        net.skips[-1].weight.copy_(torch.cat([torch.zeros(32, 32), torch.eye(32)], 1))
        net.skips[-1].bias.zero_()
    seen = {}
    net.blocks[0].register_forward_hook(lambda m, x, y: seen.update(first=y))
    net.blocks[-1].register_forward_hook(lambda m, x, y: seen.update(last=x[0]))
    net(torch.randn(2, 1, 8, 8), torch.zeros(2))
    assert torch.equal(seen["first"], seen["last"]) and len(net.skips) == 2
    assert seen["first"].shape[1] == 16 + 1  # the noise level is a token


# -- memory, work, mistakes ----------------------------------------------------------------------------------------

CHECKPOINTED = {
    "mlp": lambda **how: MLP(5, 32, 3, 2, **how),
    "unet": lambda **how: UNet((2, 8, 8), (16, 32), 1, [1], head_dim=16, resample="block", conditions=WORDS, **how),
    "dit": lambda **how: DiT((2, 8, 8), 2, 32, 3, 2, conditions=WORDS, **how),
    "streams": lambda **how: DiT((2, 8, 8), 2, 32, 3, 2, conditions=WORDS, streams=2, positions="rotary", **how),
    "cross": lambda **how: DiT((2, 8, 8), 2, 32, 3, 2, conditions=WORDS, context="cross", **how),
    "uvit": lambda **how: UViT((2, 8, 8), 2, 32, 3, 2, conditions=WORDS, **how),
    "rin": lambda **how: RIN((2, 8, 8), 2, 32, 4, 32, 2, 1, conditions=WORDS, **how),
    "transformer": lambda **how: Transformer((5, 6), 32, 3, 2, conditions=WORDS, **how),
    "built": lambda **how: build((2, 8, 8), size="tiny", **how),
}


@pytest.mark.parametrize("make", CHECKPOINTED.values(), ids=CHECKPOINTED)
def test_recomputed_activations_give_equal_gradients(make):
    """Also with dropout, whose masks are drawn again, where a network has some."""
    plain = active(make())
    again = make(checkpoint=True)
    again.load_state_dict(plain.state_dict())
    assert again.config["args"].pop("checkpoint") and not plain.config["args"].pop("checkpoint")
    assert again.config == plain.config
    symbols = getattr(plain, "takes_symbols", False)
    x = torch.randint(0, 5, (3, 1, 6)) if symbols else torch.randn(3, *plain.shape)
    told = {"words": torch.randn(3, 4, 6)} if getattr(plain, "context", None) is not None else {}
    gradients = []
    for net in (plain, again.eval()):
        net(x, torch.linspace(-1, 1, 3), **told).square().sum().backward()
        gradients.append({name: p.grad for name, p in net.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 10
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-6, atol=1e-6, msg=name)


def test_recomputed_activations_are_not_kept():
    """Of a network of 12 blocks, what the blocks compute inside is alive between the passes only if stored."""
    alive = {}
    for checkpoint in (False, True):
        net = active(DiT((1, 8, 8), 2, 32, 12, 2, checkpoint=checkpoint))
        inside: list[weakref.ref] = []
        keep = partial(lambda into, module, x, y: into.append(weakref.ref(y)), inside)
        for block in net.blocks:
            block.first.register_forward_hook(keep)
        y = net(torch.randn(2, 1, 8, 8), torch.zeros(2))
        alive[checkpoint] = sum(each() is not None for each in inside)
        del y
    assert alive == {False: 12, True: 0}


def test_the_dropout_of_recomputed_blocks_is_drawn_again_alike():
    nets = [UNet((1, 8, 8), (16,), 2, dropout=0.5, checkpoint=checkpoint) for checkpoint in (False, True)]
    active(nets[0])
    nets[1].load_state_dict(nets[0].state_dict())
    gradients = []
    for net in nets:
        torch.manual_seed(3)
        net.train()(torch.ones(2, 1, 8, 8), torch.zeros(2)).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-6, atol=1e-6)


def test_work_is_counted_by_hand():
    """2 m n k for each product: an MLP layer by layer, and attention as 4 N^2 d a block."""
    d, w, e, features = 5, 32, 16, 128
    net = MLP(d, w, 2, embed_dim=e)
    conditioning = features * e + e * e
    layers = 2 * (e * 2 * w + 2 * w * w)
    assert flops(net) == 2 * (conditioning + d * w + layers + w * d)
    width, patches = 32, 16
    one, two = (flops(DiT((1, 8, 8), 2, width, depth, 2)) for depth in (1, 2))
    per_patch = width * 3 * width + width * width + 2 * width * 4 * width
    assert two - one == 2 * (patches * per_patch + 2 * patches**2 * width + width * 6 * width)
    assert flops(Energy(copy.deepcopy(net))) > flops(net)
    assert flops(Transformer((5, 6), 32, 1, 2)) > 2 * 6 * (4 * 32 * 32 + 8 * 32 * 32)
    with pytest.raises(SfumatoError, match="no attribute shape"):
        flops(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("mistake", "says"),
    [
        (lambda: UNet((1, 8, 8), (8, 16), (1, 0)), "blocks at the coarsest"),
        (lambda: UNet((1, 8, 8), (8, 16), 1, resample="pool"), '"conv"'),
        (lambda: UNet((1, 8, 8), (8, 16), 1, taps=(1, 3, 3, 1)), "has no filter"),
        (lambda: UNet((1, 8, 8), (8, 16), 1, resample="block", taps=(1, 2, 1)), "even number of taps"),
        (lambda: DiT((1, 8, 8), norm="batch"), "'batch'"),
        (lambda: DiT((1, 8, 8), width=30, heads=2, positions="rotary"), "even width"),
        (lambda: DiT((1, 8, 8), context="beside"), "'beside'"),
        (lambda: DiT((1, 8, 8), streams=3), "1 or 2 streams"),
        (lambda: DiT((1, 8, 8), streams=2, context="cross"), "leave out context"),
        (lambda: UViT((1, 8, 8), width=30, heads=4), "heads that divide width"),
        (lambda: RIN((1, 8, 8), width=130, inner=200), "heads of 64"),
        (lambda: RIN((1, 8, 8))(torch.zeros(1, 1, 8, 8), torch.zeros(1), carried=torch.zeros(1, 2, 3)), "expected"),
    ],
)
def test_mistakes_are_told_in_one_sentence(mistake, says):
    with pytest.raises(SfumatoError, match=says):
        mistake()


@pytest.mark.slow
@pytest.mark.parametrize("make", CHECKPOINTED.values(), ids=CHECKPOINTED)
@pytest.mark.parametrize("checkpoint", [False, True])
def test_networks_compile_as_one_graph(make, checkpoint):
    net = active(make(checkpoint=checkpoint))
    symbols = getattr(net, "takes_symbols", False)
    x = torch.randint(0, 5, (3, 1, 6)) if symbols else torch.randn(3, *net.shape)
    told = {"words": torch.randn(3, 4, 6)} if getattr(net, "context", None) is not None else {}
    if told:
        told["present"] = {"words": torch.arange(4) < torch.tensor([[4], [2], [0]])}
    level = torch.linspace(-1, 1, 3)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, level, **told), net(x, level, **told), rtol=1e-4, atol=1e-4)
