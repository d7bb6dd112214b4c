"""Samples on shared noise: KID of pictures in the features of `evaluate`, MMD of other numbers, nothing where there is
nothing to say."""

import pytest
import torch

import sfumato as sf
from sfumato.metrics import KID, MMD, Convolutions
from sfumato.metrics.shared_noise import OnSharedNoise


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_pictures_are_compared_as_evaluate_sees_them() -> None:
    source = sf.data.open("digits")
    spec = sf.data.DataSpec.fit(source)
    compare, y = OnSharedNoise(spec), spec.normalise(source.x[:60])
    x = y + 0.3 * normal(*y.shape)
    theirs, ours = (Convolutions(spec.shape)(spec.denormalise(each).float()).double() for each in (y, x))
    mean, std = theirs.mean(0), theirs.std(0)
    std = torch.where(std > 0, std, 1.0)
    known = KID().paired((ours - mean) / std, (theirs - mean) / std)
    found = compare(compare.seen(x), compare.seen(y))
    assert compare.name == "kid" and found is not None and found == pytest.approx(known, rel=1e-4)
    same, blurred = compare(compare.seen(y), compare.seen(y)), y.mean((2, 3), keepdim=True).expand_as(y)
    assert same is not None and abs(same.value) < 1e-9
    gone = compare(compare.seen(blurred), compare.seen(y))
    assert gone is not None and gone.low > found.high > found.low > 0


@pytest.mark.parametrize("shape", [(3,), (2, 8)])
def test_other_numbers_are_compared_as_they_are(shape: tuple[int, ...]) -> None:
    y = normal(50, *shape)
    for spec in (sf.data.DataSpec.fit(sf.data.open(y)), None):
        compare = OnSharedNoise(spec)
        found = compare(compare.seen(y + 0.5), compare.seen(y))
        assert compare.name == "mmd" and found == MMD().paired((y + 0.5).flatten(1), y.flatten(1))
        assert found is not None and found.low > 0


def test_where_there_is_nothing_to_say() -> None:
    compare, y = OnSharedNoise(None), normal(20, 2).double()
    assert compare(y[:2], y[:2]) is None
    assert compare(torch.where(y > 1, torch.nan, y), y) is None and compare(y * torch.inf, y) is None
    assert compare(y, torch.zeros_like(y)) is None
