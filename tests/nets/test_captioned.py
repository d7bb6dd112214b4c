"""Captions in front of a network: read as words or given as vectors, the same for any padding, order and batch."""

import json

import pytest
import torch
from torch import nn

from sfumato.errors import SfumatoError
from sfumato.flow_map import hearing
from sfumato.nets import MLP, Captioned, DiT, UNet, build, from_config, named
from sfumato.nets.captioned import WordEncoder, canvas_shape

CONDITIONS = {
    "caption": {"kind": "words", "vocabulary": 9}, "story": {"kind": "text", "size": 5}, "mass": {"kind": "scalar"},
    "label": {"kind": "label", "classes": 3},
}  # fmt: skip
IDS = torch.tensor([[1, 2, 3, -1], [4, -1, -1, -1], [0, 9, 2, 1]])


def networks():
    torch.manual_seed(0)
    words = ("tiny", "DiT(width=32, depth=2, heads=2)", "UNet(channels=(16, 32), blocks=1, attention=(1,))")
    made = {word: named(word, (3, 8, 8), conditions=CONDITIONS) for word in words}
    made["vectors"] = named("tiny", (4,), conditions=CONDITIONS)
    for net in made.values():  # so that what is heard comes out
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.15)
    return {word: net.eval() for word, net in made.items()}


def inputs(net, batch=3):
    generator = torch.Generator().manual_seed(1)
    story = torch.randn(batch, 4, 5, generator=generator)
    story[1, 3] = 0  # padding
    x = torch.randn(batch, *net.shape, generator=generator)
    cond = {"caption": IDS, "story": story, "mass": torch.randn(batch, generator=generator), "label": torch.arange(3)}
    return x, torch.linspace(-1, 1, batch), cond


def test_a_network_is_built_zero_and_again_from_its_config():
    for word in ("tiny", "DiT(width=32, depth=1, heads=2)"):
        net = named(word, (3, 8, 8), conditions=CONDITIONS)
        assert isinstance(net, Captioned) and net.shape == (3, 8, 8) and net.outputs == 1
        x, level, cond = inputs(net)
        assert (net(x, level, **cond) == 0).all()
        again = from_config(json.loads(json.dumps(net.config)))
        assert again.config == net.config
        again.load_state_dict(net.state_dict())
    assert isinstance(build((3, 8, 8), conditions=CONDITIONS, size="tiny"), Captioned)
    assert isinstance(named("tiny", (4,), conditions=CONDITIONS).net, MLP)
    assert isinstance(
        named("DiT", (3, 8, 8), conditions={"mass": {"kind": "scalar"}}), DiT
    )  # without captions as it was


@torch.no_grad()
def test_padding_order_and_batch_change_nothing():
    for word, net in networks().items():
        x, level, cond = inputs(net)
        y = net(x, level, **cond)
        longer = torch.nn.functional.pad(IDS, (0, 3), value=-1)
        padded = torch.nn.functional.pad(cond["story"], (0, 0, 0, 2))
        assert torch.allclose(net(x, level, **{**cond, "caption": longer, "story": padded}), y, atol=1e-5), word
        order = torch.tensor([2, 0, 1])
        moved = net(x[order], level[order], **{name: value[order] for name, value in cond.items()})
        assert torch.allclose(moved, y[order], atol=1e-5), word
        alone = net(x[1:2], level[1:2], **{name: value[1:2] for name, value in cond.items()})
        assert torch.allclose(alone, y[1:2], atol=1e-5), word
        short = net(
            x[1:2], level[1:2], **{name: value[1:2] for name, value in cond.items()} | {"caption": IDS[1:2, :1]}
        )
        assert torch.allclose(short, y[1:2], atol=1e-5), word


@torch.no_grad()
def test_words_are_heard_by_their_own_sample_and_absence_is_the_null():
    for word, net in networks().items():
        x, level, cond = inputs(net)
        y = net(x, level, **cond)
        for name in ("caption", "story"):
            other = {**cond, name: cond[name].clone()}
            other[name][0, :2] = 7 if name == "caption" else 1.0
            change = (net(x, level, **other) - y).flatten(1).abs().amax(1)
            assert change[0] > 1e-4 and change[1:].max() < 1e-5, (word, name)
            without = {key: value for key, value in cond.items() if key != name}
            null = net(x, level, **without)
            hidden = {name: torch.zeros(3, dtype=torch.bool)}
            assert torch.allclose(net(x, level, present=hidden, **cond), null, atol=1e-6), (word, name)
            assert (null - y).abs().max() > 1e-4
        null = net(x, level, **{name: value for name, value in cond.items() if name != "caption"})
        gone = net(x, level, **{**cond, "caption": torch.full_like(IDS, -1)})
        assert torch.allclose(gone, null, atol=1e-5), word
        mixed = net(x, level, present={"caption": torch.tensor([True, False, True])}, **cond)
        assert torch.allclose(mixed[1], null[1], atol=1e-5) and torch.allclose(mixed[[0, 2]], y[[0, 2]], atol=1e-5)


@torch.no_grad()
def test_the_order_of_words_matters_where_they_are_attended_to():
    encoder = WordEncoder(9).eval()
    vector, tokens, known = encoder(torch.tensor([[1, 2, 3], [3, 2, 1]]))
    assert known.all() and (tokens[0] - tokens[1].flip(0)).abs().max() > 1e-3
    assert (vector[0] - vector[1]).abs().max() > 1e-4
    lone = encoder(torch.tensor([[5, -1]]))
    assert torch.allclose(lone[0], lone[1][:, 0]) and lone[2].tolist() == [[True, False]]


def test_gradients_reach_every_weight_of_the_encoder():
    net = networks()["tiny"].train()
    x, level, cond = inputs(net)
    net(x, level, **cond).square().sum().backward()
    silent = [name for name, p in net.encoders.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


def test_words_are_forgotten_in_training_alone():
    encoder = WordEncoder(9)
    ids = torch.arange(1, 10).repeat(200, 1)
    torch.manual_seed(0)
    assert torch.equal(encoder.eval()(ids)[0], encoder(ids)[0])
    encoder.train()
    changed = (encoder(ids)[0] != encoder(ids)[0]).any(1).float().mean()
    assert 0.4 < changed < 0.95  # of captions of nine words 37% forget none


@torch.no_grad()
def test_a_flow_map_hears_its_second_time_behind_the_captions():
    for net in networks().values():
        x, level, cond = inputs(net)
        made = hearing(net)
        assert isinstance(made, Captioned) and not made.training
        y = net(x, level, **cond)
        assert torch.allclose(made(x, level, until=torch.zeros(3), **cond), y, atol=1e-6)
        assert from_config(json.loads(json.dumps(made.config))).config == made.config


def test_what_does_not_fit_is_said():
    net = named("tiny", (3, 8, 8), conditions=CONDITIONS)
    x, level, cond = inputs(net)
    for name, value, wanted in (
        ("caption", torch.zeros(3, 4), r"\(3, L\) whole numbers"), ("caption", IDS[:2], r"\(3, L\) whole numbers"),
        ("story", torch.zeros(3, 4, 6), r"\(3, 1 \+ L, 5\)"), ("story", torch.zeros(3, 5), r"\(3, 1 \+ L, 5\)"),
    ):  # fmt: skip
        with pytest.raises(SfumatoError, match=f"the condition '{name}' has shape .*; expected {wanted}"):
            net(x, level, **{**cond, name: value})
    with pytest.raises(SfumatoError, match="needs its kind and a positive vocabulary"):
        named("tiny", (3, 8, 8), conditions={"caption": {"kind": "words", "vocabulary": 0}})
    with pytest.raises(SfumatoError, match="cannot be called 'caption_pooled'"):
        named("tiny", (3, 8, 8), conditions={**CONDITIONS, "caption_pooled": {"kind": "scalar"}})
    with pytest.raises(SfumatoError, match="name its levels in `attention`"):
        named("UNet(channels=(16, 32))", (3, 8, 8), conditions=CONDITIONS)
    assert UNet((3, 8, 8), (16,), 1).given == {}


@torch.no_grad()
def test_a_canvas_is_painted_from_the_caption_alone():
    assert canvas_shape((3, 32, 32)) == (3, 32, 32) and canvas_shape((3, 100, 70)) == (3, 25, 18)
    assert canvas_shape((2, 9000)) == (2, 1125) and canvas_shape((5000, 4)) == (5000, 1)
    net = networks()["tiny"]
    x, level, cond = inputs(net)
    heard = {}
    net.net.register_forward_pre_hook(lambda _, args, kwargs: heard.update(kwargs), with_kwargs=True)
    net(x, level, **cond)
    first = heard["caption_canvas"]
    assert first.shape == (3, 3, 8, 8) and heard["present"]["caption_canvas"].all()
    net(x + 1, level - 1, **{**cond, "mass": cond["mass"] + 1})
    assert torch.equal(heard["caption_canvas"], first)  # not of the state, its level or other conditions
    other = {**cond, "caption": torch.tensor([[1, 2, 3, -1], [4, -1, -1, -1], [-1, -1, -1, -1]])}
    net(x, level, **other)
    assert torch.equal(heard["caption_canvas"][:2], first[:2]) and not torch.equal(heard["caption_canvas"][2], first[2])
    assert heard["present"]["caption_canvas"].tolist() == [True, True, False]


def test_a_network_of_before_has_no_canvas():
    config = json.loads(json.dumps(named("tiny", (3, 8, 8), conditions=CONDITIONS).config))
    del config["args"]["painted"]
    for name in ("caption", "story"):
        del config["args"]["net"]["args"]["conditions"][f"{name}_canvas"]
    net = from_config(config)
    assert not net.painters and net.config == config
