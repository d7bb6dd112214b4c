"""States that are tensors or dicts of them, and sources of noise that name what they are for."""

import torch

from sfumato import noise
from sfumato.noise import Noise
from sfumato.state import cat_states, first_leaf, map_state, numbers, numbers_like, rows_of, shape_of

INDEX = torch.tensor([3, 0, 7])


def test_a_source_gives_the_numbers_of_its_name() -> None:
    source = Noise(5, INDEX, noise.STEP, 2)
    assert torch.equal(source.normal((4,)), noise.normal(5, INDEX, (4,), noise.STEP, 2))
    assert torch.equal(source.uniform((4,)), noise.uniform(5, INDEX, (4,), noise.STEP, 2))
    assert torch.equal(source.at(9).normal((4,)), noise.normal(5, INDEX, (4,), noise.STEP, 9))
    rows = torch.tensor([2, 2, 0])
    assert torch.equal(source.rows(rows).normal((4,)), source.normal((4,))[rows])


def test_rows_may_stand_at_steps_of_their_own() -> None:
    source = Noise(5, INDEX, noise.STEP, torch.tensor([4, 1, 4]))
    for dtype in (torch.float32, torch.float64):
        found = source.normal((3,), dtype=dtype)
        for row, step in enumerate((4, 1, 4)):
            assert torch.equal(found[row], Noise(5, INDEX, noise.STEP, step).normal((3,), dtype=dtype)[row]), row
    swapped = source.rows(torch.tensor([1, 0]))
    assert torch.equal(swapped.normal((3,)), source.normal((3,))[[1, 0]])


def test_parts_have_streams_of_their_own() -> None:
    source = Noise(5, torch.arange(2000), noise.PRIOR)
    first, second = source.fold("a").normal(), source.fold("b").normal()
    assert torch.equal(first, source.fold("a").normal())
    for one, other in ((first, second), (first, source.normal())):
        assert abs(float((one * other).mean())) < 4 / 2000**0.5
    drawn = numbers(source, {"a": (2,), "b": ()})
    assert drawn["a"].shape == (2000, 2) and torch.equal(drawn["b"], second)


def test_states_are_cut_and_joined_alike() -> None:
    plain, x = torch.arange(6.0).reshape(3, 2), {"a": torch.arange(3), "b": {"c": torch.ones(3, 4)}}
    assert torch.equal(rows_of(plain, torch.tensor([2, 0])), plain[[2, 0]])
    assert torch.equal(rows_of(x, slice(1, 3))["a"], torch.tensor([1, 2]))
    joined = cat_states([x, rows_of(x, slice(0, 1))])
    assert first_leaf(joined).tolist() == [0, 1, 2, 0] and joined["b"]["c"].shape == (4, 4)
    assert shape_of(x) == {"a": (), "b": {"c": (4,)}}
    assert torch.equal(map_state(lambda a, b: a + b, x, x)["a"], torch.tensor([0, 2, 4]))
    like = numbers_like(Noise(1, torch.arange(3)), x)
    assert like["a"].dtype == torch.float32 and like["b"]["c"].shape == (3, 4)
