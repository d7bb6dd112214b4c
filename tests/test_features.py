"""Named features: the same bits on every machine, their identity, and the user's own."""

from functools import partial

import pytest
import torch
from torch import nn

import sfumato as sf
from sfumato.features import applied, build, identity, usual
from sfumato.metrics import Convolutions


def pictures(n: int = 6, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, channels, 8, 9), dtype=torch.uint8, generator=generator)


def test_convolutions_are_the_same_bits_everywhere():
    made = Convolutions((3, 8, 9))
    assert identity(made, "convolutions") == {"features": "convolutions", "features_hash": "a4fec03eca539372"}
    assert applied(made, pictures()).shape == (6, 4 * (3 + 48))
    assert identity(Convolutions((3, 8, 9), seed=1), "convolutions(seed=1)")["features_hash"] != "a4fec03eca539372"


def test_filters_see_no_constant():
    """Of a flat picture only the colours of its quarters are left, but for the border."""
    made = Convolutions((1, 8, 8))
    assert all(float(w.sum((1, 2, 3)).abs().max()) < 1e-5 for w in made.buffers())
    x = torch.full((1, 1, 8, 8), 7.0)
    assert applied(made, x)[0, :4].tolist() == [7.0] * 4


def test_batches_do_not_matter(monkeypatch):
    made = Convolutions((3, 8, 9))
    whole = applied(made, pictures())
    monkeypatch.setattr("sfumato.features._BATCH", 4)
    assert torch.allclose(applied(made, pictures()), whole, rtol=1e-6)


def test_names_and_functions():
    assert usual("image", (3, 8, 8)) == "convolutions" and usual("image", (1, 2, 2)) == "numbers"
    assert usual("array", (5,)) == "numbers" and build("numbers", (5,)) is None
    with pytest.raises(sf.SfumatoError, match="no set of features 'convolution': did you mean 'convolutions'"):
        build("convolution", (1, 8, 8))


def test_the_weights_of_a_module_are_its_identity():
    torch.manual_seed(0)
    net = nn.Linear(4, 3)
    before = identity(net, net)
    assert before["features"] == "Linear" and identity(net, net) == before
    with torch.no_grad():
        net.bias[0] += 1
    assert identity(net, net)["features_hash"] != before["features_hash"]
    assert identity(None, "numbers") == {"features": "numbers", "features_hash": None}


def test_the_code_of_a_function_is_its_identity():
    """Another body, another number or other weights behind it, under one name, are other features."""

    def made(scale, weights=None):
        def features(x):
            return scale * x.flatten(1) if weights is None else x.flatten(1) @ weights

        return features

    def features(x):
        return x.flatten(1).abs()

    found = [identity(each, "features")["features_hash"] for each in (
        made(1.0), made(2.0), made(1.0, torch.eye(4)), made(1.0, 2 * torch.eye(4)), features,
        partial(features, out=None), pictures,
    )]  # fmt: skip
    assert len(set(found)) == len(found) and None not in found
    assert identity(made(1.0), "features")["features_hash"] == found[0]

    def again(scale):  # a function that holds itself, and a name that is not filled yet
        def features(x, depth=0):
            return later if depth > 9 else features(scale * x, depth + 1)

        return features
        later = None

    once, twice, other = (identity(again(scale), "features")["features_hash"] for scale in (1.0, 1.0, 2.0))
    assert once == twice != other

    class Own(nn.Module):
        def forward(self, x):
            return x.flatten(1)

    first = identity(Own(), "own")["features_hash"]

    class Own(nn.Module):  # noqa: F811
        def forward(self, x):
            return x.flatten(1) + 1

    assert identity(Own(), "own")["features_hash"] != first
    namespace = {}
    exec("def features(x):\n    return x.flatten(1)", namespace)  # without a file
    first = identity(namespace["features"], "features")["features_hash"]
    exec("def features(x):\n    return x.flatten(2)", namespace)
    assert identity(namespace["features"], "features")["features_hash"] != first
