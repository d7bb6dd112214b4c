"""Networks that hear conditions: a vector that modulates, fields beside the input, tokens to attend to, and none."""

import json

import pytest
import torch
from torch import nn

from sfumato.errors import SfumatoError
from sfumato.nets import MLP, Bottleneck, DiT, Energy, Transformer, UNet, build, from_config

KINDS = {
    "kind": {"kind": "label", "classes": 3},
    "label": {"kind": "label", "classes": 2},
    "tags": {"kind": "multilabel", "classes": 4},
    "mass": {"kind": "scalar"},
    "pose": {"kind": "vector", "size": 5},
}
IMAGE = KINDS | {"map": {"kind": "field", "shape": [2, 4, 8]}}
TOKENS = {"words": {"kind": "tokens", "size": 6}}
SHAPES = {"kind": (), "label": (), "tags": (4,), "mass": (), "pose": (5,), "map": (2, 4, 8), "words": (7, 6)}


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    image = (3, 8, 8)
    made = {
        "MLP": MLP(4, 32, 2, conditions=KINDS | {"map": {"kind": "field", "shape": [2, 4, 8]}}),
        "UNet": UNet(image, (16, 32), 1, (1,), conditions=IMAGE | TOKENS),
        "sequence": UNet(
            (2, 12), (16,), 1, (0,), conditions={"mass": {"kind": "scalar"}, "map": {"kind": "field", "shape": [2, 5]}}
        ),
        "volume": UNet((1, 4, 4, 4), (16,), 1, conditions={"map": {"kind": "field", "shape": [2, 2, 8, 4]}}),
        "DiT": DiT(image, 2, 32, 2, 2, conditions=IMAGE | TOKENS),
        "Energy": Energy(MLP(4, 32, 2, conditions=KINDS)),
        "built": build(image, size="tiny", conditions=IMAGE),
    }
    for net in made.values():  # so that what is heard comes out
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.2)
    return made


def inputs(net: nn.Module, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor, dict]:
    generator = torch.Generator().manual_seed(1)
    given = getattr(net, "given", None) or net.net.given
    cond = {}
    for name, each in given.items():
        shape = tuple(each["shape"]) if each["kind"] == "field" else SHAPES[name]
        if each["kind"] == "label":
            cond[name] = torch.arange(batch) % each["classes"]
        else:
            cond[name] = torch.randn(batch, *shape, generator=generator)
    return torch.randn(batch, *net.shape, generator=generator), torch.linspace(-1, 1, batch), cond


def test_every_condition_is_heard_by_its_own_sample_alone():
    for which, net in networks().items():
        x, level, cond = inputs(net)
        with torch.no_grad():
            y = net(x, level, **cond)
            for name, value in cond.items():
                moved = value.clone()
                moved[1] = (value[1] + 1) % 2 if not value.is_floating_point() else value[1] + 1
                change = (net(x, level, **cond | {name: moved}) - y).flatten(1).abs().amax(1)
                assert change[1] > 1e-3, f"{which} does not hear {name}"
                assert change[[0, 2]].max() < 1e-5, f"{which}: {name} of one sample moves another"


def test_absent_is_one_entry_whatever_the_value():
    for which, net in networks().items():
        x, level, cond = inputs(net)
        with torch.no_grad():
            for name, value in cond.items():
                absent = {name: torch.zeros(3, dtype=torch.bool)}
                rest = {other: each for other, each in cond.items() if other != name}
                if not value.is_floating_point():
                    gone = net(x, level, **rest, **{name: torch.full_like(value, -1)})
                else:
                    gone = net(x, level, **cond, present=absent)
                    assert torch.allclose(gone, net(x, level, **rest, **{name: 0 * value}, present=absent), atol=1e-6)
                left_out = net(x, level, **rest)
                assert torch.allclose(gone, left_out, atol=1e-5), (which, name)
                assert (gone - net(x, level, **cond)).abs().max() > 1e-3, (which, name)


def test_null_entries_learn():
    for which, net in networks().items():
        x, level, _ = inputs(net)
        net(x, level).square().sum().backward()
        for name, parameter in net.named_parameters():
            if name.endswith(("null", "nulls")):
                assert parameter.grad is not None and parameter.grad.abs().max() > 0, (which, name)


def test_one_label_is_the_network_that_it_was():
    """`classes=3` and a label of three classes: the same parameters, drawn alike, and the same description."""
    one = {"label": {"kind": "label", "classes": 3}}
    makes = [
        lambda **how: MLP(4, 16, 2, **how), lambda **how: UNet((1, 8, 8), (16,), 1, **how),
        lambda **how: DiT((1, 8, 8), 2, 16, 1, **how),
    ]  # fmt: skip
    for make in makes:
        torch.manual_seed(3)
        old = make(classes=3)
        torch.manual_seed(3)
        new = make(conditions=one)
        assert old.config == new.config and "conditions" not in old.config["args"]
        assert all(torch.equal(a, b) for a, b in zip(old.state_dict().values(), new.state_dict().values(), strict=True))
        assert list(old.state_dict()) == list(new.state_dict())


def test_the_description_is_json_and_rebuilds_the_network():
    for which, net in networks().items():
        again = from_config(json.loads(json.dumps(net.config)))
        assert again.config == net.config, which
        again.load_state_dict(net.state_dict())
        x, level, cond = inputs(net)
        with torch.no_grad():
            assert torch.equal(again(x, level, **cond), net(x, level, **cond)), which


def test_half_precision():
    net = networks()["UNet"]
    x, level, cond = inputs(net)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low = net(x, level, **cond)
    with torch.no_grad():
        y = net(x, level, **cond)
    assert (low - y).abs().max() < 0.1 * y.abs().max()


def test_a_bottleneck_takes_and_ignores_conditions():
    net = Bottleneck((4,), 2)
    nn.init.normal_(net.decoder.output.weight)
    x = torch.randn(3, 4)
    assert torch.equal(net(x, None, mass=torch.ones(3), present={}), net(x))


def test_mistakes_are_said():
    one = {"mass": {"kind": "scalar"}}
    cases = [
        (lambda: MLP(2, conditions=TOKENS), "has no attention"),
        (lambda: UNet((1, 8, 8), (8,), 1, conditions=TOKENS), "without attention"),
        (lambda: UNet((1, 8, 8), (8,), 1, conditions={"map": {"kind": "field", "shape": [1, 8]}}), "as many axes"),
        (lambda: MLP(2, conditions={"a": {"kind": "colour"}}), "kind 'colour'"),
        (lambda: MLP(2, conditions={"a": {"kind": "vector"}}), "its kind and size"),
        (lambda: MLP(2, conditions={"a": {"kind": "vector", "size": 0}}), "positive sizes"),
        (lambda: MLP(2, classes=3, conditions={"label": {"kind": "label", "classes": 2}}), "one of the two"),
        (lambda: MLP(2, conditions=one)(torch.zeros(1, 2), torch.zeros(1), heat=torch.zeros(1)), "no condition 'heat'"),
        (lambda: MLP(2)(torch.zeros(1, 2), torch.zeros(1), heat=torch.zeros(1)), "it has none"),
        (lambda: MLP(2, conditions=one)(torch.zeros(1, 2), torch.zeros(1), mass=torch.zeros(2)), "expected"),
        (lambda: networks()["DiT"](torch.zeros(1, 3, 8, 8), torch.zeros(1), words=torch.zeros(1, 2, 5)), "expected"),
        (lambda: networks()["DiT"](torch.zeros(1, 3, 8, 8), torch.zeros(1), map=torch.zeros(1, 2, 8, 8)), "expected"),
    ]  # fmt: skip
    for make, words in cases:
        with pytest.raises(SfumatoError, match=words):
            make()


def heard_by(tokens: dict) -> dict[str, nn.Module]:
    """One network of each kind that attends to tokens, all of its parts active."""
    torch.manual_seed(0)
    made = {
        "UNet": UNet((2, 8, 8), (16, 32), 1, (0, 1), head_dim=8, conditions=tokens),
        "DiT": DiT((2, 8, 8), 2, 32, 2, 2, conditions=tokens),
        **{mask: Transformer((5, 6), 32, 2, 2, mask=mask, conditions=tokens) for mask in ("full", "causal", "hollow")},
    }
    for net in made.values():
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.2)
    return made


def state(net: nn.Module, batch: int = 3) -> torch.Tensor:
    if getattr(net, "takes_symbols", False):
        return torch.randint(0, 5, (batch, 1, 6), generator=torch.Generator().manual_seed(1))
    return torch.randn(batch, *net.shape, generator=torch.Generator().manual_seed(1))


def test_a_padded_sequence_is_the_shorter_one():
    words = torch.randn(3, 5, 6)
    known = torch.arange(5) < torch.tensor([[5], [2], [0]])
    for which, net in heard_by(TOKENS).items():
        x, level = state(net), torch.linspace(-1, 1, 3)
        with torch.no_grad():
            y = net(x, level, words=words, present={"words": known})
            other = torch.where(known[..., None], words, 7.0)
            assert torch.equal(net(x, level, words=other, present={"words": known}), y), f"{which} hears its padding"
            for row, count in enumerate([5, 2, 0]):
                alone = net(x[row, None], level[row, None], words=words[row, None, :count])
                torch.testing.assert_close(alone[0], y[row], rtol=1e-4, atol=1e-4, msg=f"{which}, {count} words")
            none = net(x, level)
            torch.testing.assert_close(none[2], y[2], rtol=1e-4, atol=1e-4)
            assert (none[1] - y[1]).abs().max() > 1e-3


def test_every_network_of_tokens_attends_to_them():
    words = torch.randn(3, 5, 6)
    for which, net in heard_by(TOKENS).items():
        x, level, moved = state(net), torch.linspace(-1, 1, 3), words.clone()
        moved[1, 3] += 1
        change = (net(x, level, words=moved) - net(x, level, words=words)).flatten(1).abs().amax(1)
        assert change[1] > 1e-3 and change[[0, 2]].max() < 1e-5, which
        net(x, level, words=words, present={"words": torch.arange(3)[:, None] != 0 * torch.arange(5)}).sum().backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.context.parameters()), which


def test_a_mask_that_does_not_fit_is_told():
    net = heard_by(TOKENS)["DiT"]
    with pytest.raises(SfumatoError, match="mask of the condition 'words'"):
        net(state(net), torch.zeros(3), words=torch.zeros(3, 5, 6), present={"words": torch.ones(3, 4).bool()})
