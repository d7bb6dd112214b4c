"""Networks that grow by classes and conditions say at first what they said before."""

import pytest
import torch

import sfumato as sf
from sfumato import nets
from sfumato.nets.growth import difference, grown

LABEL = {"label": {"kind": "label", "classes": 3}}
MORE = {
    "label": {"kind": "label", "classes": 5}, "age": {"kind": "scalar"}, "place": {"kind": "vector", "size": 2},
    "tags": {"kind": "multilabel", "classes": 4},
}  # fmt: skip
CASES = {
    "unet": (lambda: nets.UNet((1, 8, 8), (8, 16), 1, attention=(1,), patch=2, classes=3), (1, 8, 8)),
    "sequence": (lambda: nets.UNet((2, 16), (8, 16), 1, classes=3), (2, 16)),
    "dit": (lambda: nets.DiT((1, 8, 8), 2, 16, 1, classes=3), (1, 8, 8)),
    "mlp": (lambda: nets.MLP(5, 16, 1, classes=3), (5,)),
    "energy": (lambda: nets.Energy(nets.MLP(5, 16, 1, classes=3)), (5,)),
}


def filled(net):
    """The network with weights none of which is 0."""
    for i, parameter in enumerate(net.parameters()):
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(i))
    return net


def inputs(shape):
    draw = torch.Generator().manual_seed(1)
    return torch.randn(4, *shape, generator=draw), torch.randn(4, generator=draw)


@pytest.mark.parametrize("name", CASES)
def test_new_classes_and_conditions_leave_the_output_as_it_was(name):
    make, shape = CASES[name]
    net, (x, level) = filled(make()), inputs(shape)
    larger = grown(net, MORE).net
    label = torch.tensor([0, 1, 2, -1])
    told = {"age": level, "place": torch.randn(4, 2), "tags": torch.ones(4, 4)}
    assert torch.equal(larger(x, level, label, **told), net(x, level, label))
    assert torch.equal(larger(x, level, label), net(x, level, label))
    new = torch.tensor([3, 4, 3, 4])
    assert torch.equal(larger(x, level, new), net(x, level))  # a new class is at first none


@pytest.mark.parametrize("name", CASES)
def test_new_channels_leave_the_output_as_it_was(name):
    make, shape = CASES[name]
    net, (x, level) = filled(make()), inputs(shape)
    size = [2, *(4 for _ in shape[1:])] if len(shape) > 1 else [3]
    once = grown(net, {**LABEL, "map": {"kind": "field", "shape": size}}).net
    twice = grown(
        once, {**LABEL, "map": {"kind": "field", "shape": size}, "edge": {"kind": "field", "shape": size}}
    ).net
    fields = {"map": torch.randn(4, *size), "edge": torch.randn(4, *size)}
    torch.testing.assert_close(twice(x, level, **fields), net(x, level), rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        for parameter in once.parameters():
            parameter.add_(0.1 * torch.ones_like(parameter))
    again = grown(
        once, {**LABEL, "map": {"kind": "field", "shape": size}, "edge": {"kind": "field", "shape": size}}
    ).net
    one = {"map": fields["map"]}  # which now counts, and stands behind the new one
    torch.testing.assert_close(again(x, level, **fields), once(x, level, **one), rtol=1e-5, atol=1e-5)


def test_what_is_new_is_named():
    net = filled(nets.MLP(5, 16, 1, classes=3))
    found = grown(net, {**MORE, "map": {"kind": "field", "shape": [3]}})
    assert found.parts == {"conditioning.label.weight": (0, [4, 5]), "input.weight": (1, [5, 6, 7, 8])}
    assert {name.split(".")[2] for name in found.new} == {"0", "1", "2"}
    assert difference(net, found.net) == (found.new, found.parts)
    # the new parts learn from the first step on
    x, level = inputs((5,))
    told = {"age": level, "place": torch.randn(4, 2), "tags": torch.ones(4, 4), "map": torch.randn(4, 3)}
    found.net(x, level, torch.tensor([3, 4, 3, 4]), **told).square().sum().backward()
    for name in ("age", "place"):
        layer = found.net.conditioning.others[found.net.conditioning.names.index(name)].second
        assert layer.weight.grad.abs().max() > 0
    assert found.net.conditioning.label.weight.grad[4:].abs().max() > 0
    assert found.net.input.weight.grad[:, 5:].abs().max() > 0


def test_what_would_change_the_output_is_refused():
    captioned = {"caption": {"kind": "tokens", "size": 4}}
    with pytest.raises(sf.SfumatoError, match="train a new network"):
        grown(nets.DiT((1, 8, 8), 2, 16, 1), captioned)
    with pytest.raises(sf.SfumatoError, match="Linear cannot be given new conditions"):
        grown(torch.nn.Linear(2, 2), LABEL)
