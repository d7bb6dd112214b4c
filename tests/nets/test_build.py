"""The network that suits a shape: what its levels must be able to carry, and what it may cost."""

import math

import pytest

from sfumato.errors import SfumatoError
from sfumato.nets import build, named

SHAPES = [(3, 97), (1, 128), (1, 4096), (1, 28, 28), (3, 64, 64), (3, 256, 256), (12, 33, 50), (100, 28, 28)]


@pytest.mark.parametrize("size", ["tiny", "small"])
@pytest.mark.parametrize("shape", [*SHAPES, (1, 24, 20, 28), (1, 1, 5)], ids=str)
def test_levels_carry_the_data_and_reach_across_it(shape: tuple[int, ...], size: str) -> None:
    net = build(shape, size=size)
    args = net.config["args"]
    channels, places = args["channels"], [math.prod(grid) for grid in net._grids(len(args["channels"]))]
    assert channels[0] >= min(256, shape[0] * math.prod(net.patch))  # a patch is not squeezed at the entrance
    assert channels == sorted(channels) and places == sorted(places, reverse=True)
    assert places[-1] <= 100  # the coarsest level sees the whole field
    assert args["attention"] and all(places[level] <= 512 for level in args["attention"])


@pytest.mark.parametrize("word", ["MLP", "MLP(width=8)", "MLP(dim=64)"])
def test_an_mlp_of_images_is_refused_by_their_shape(word):
    with pytest.raises(SfumatoError, match=r"takes vectors .D,., and the samples have the shape \(1, 8, 8\)"):
        named(word, (1, 8, 8))
