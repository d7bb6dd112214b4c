"""Vectors that also paint a canvas beside the input of a network of fields."""

import json

import pytest
import torch
from torch import nn

from sfumato.errors import SfumatoError
from sfumato.nets import MLP, DiT, Painted, UNet, from_config, named
from sfumato.nets.captioned import canvas_shape

CONDITIONS = {"embedding": {"kind": "vector", "size": 5}, "mass": {"kind": "scalar"}}
WORDS = ("tiny", "DiT(width=32, depth=1, heads=2)", "UNet(channels=(8, 8), blocks=1, attention=())")


def painted(word: str) -> Painted:
    torch.manual_seed(0)
    net = named(word, (3, 8, 8), conditions=CONDITIONS, vectors=("embedding",))
    assert isinstance(net, Painted)
    return net.eval()


def inputs(batch: int = 3):
    draw = torch.Generator().manual_seed(1)
    x, e = torch.randn(batch, 3, 8, 8, generator=draw), torch.randn(batch, 5, generator=draw)
    return x, torch.linspace(-1, 1, batch), {"embedding": e, "mass": torch.randn(batch, generator=draw)}


@pytest.mark.parametrize("word", WORDS)
def test_it_is_built_zero_and_again_from_its_config(word: str) -> None:
    net = painted(word)
    x, level, cond = inputs()
    assert net.shape == (3, 8, 8) and net.outputs == 1 and net.painted == canvas_shape((3, 8, 8))
    assert (net(x, level, **cond) == 0).all()
    again = from_config(json.loads(json.dumps(net.config)))
    assert again.config == net.config
    again.load_state_dict(net.state_dict())


@torch.no_grad()
@pytest.mark.parametrize("word", WORDS)
def test_each_sample_hears_its_own_vector_and_one_that_is_absent_paints_nothing(word: str) -> None:
    net = painted(word)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.15)
    x, level, cond = inputs()
    y = net(x, level, **cond)
    one = net(x[1:2], level[1:2], **{name: value[1:2] for name, value in cond.items()})
    assert torch.allclose(one, y[1:2], atol=1e-5)
    here = torch.tensor([True, False, True])
    absent = net(x, level, present={"embedding": here}, **cond)
    none = net(x, level, mass=cond["mass"])
    assert torch.allclose(absent[here], y[here], atol=1e-5) and torch.allclose(absent[~here], none[~here], atol=1e-5)
    assert not torch.allclose(absent[~here], y[~here], atol=1e-2)
    net.painters[0][2].bias.add_(1.0)  # the canvas alone
    assert not torch.allclose(net(x, level, **cond), y, atol=1e-2)
    assert torch.allclose(net(x, level, mass=cond["mass"]), none, atol=1e-6)
    with pytest.raises(SfumatoError, match=r"'embedding' has shape \(3, 4\); expected \(3, 5\)"):
        net(x, level, embedding=torch.zeros(3, 4))


def test_only_networks_of_ours_for_fields_have_a_canvas() -> None:
    assert isinstance(named("tiny", (4,), conditions=CONDITIONS, vectors=("embedding",)), MLP)
    assert isinstance(named(WORDS[1], (3, 8, 8), conditions=CONDITIONS), DiT)
    assert isinstance(named(WORDS[2], (3, 8, 8), conditions=CONDITIONS), UNet)
