"""A loop over cases computes all of them and names those that fail."""

import pytest

from loops import every


def test_all_combinations_run_and_those_that_fail_are_named():
    seen = []

    @every(curve={"one": 1, "two": 2}, name=("a", "b"))
    def test(curve, name, folder):
        seen.append((curve, name, folder))
        if name == "b":
            with pytest.raises(ValueError):
                assert curve == 1

    with pytest.raises(AssertionError) as caught:
        test(folder="f")
    assert seen == [(1, "a", "f"), (1, "b", "f"), (2, "a", "f"), (2, "b", "f")]
    told = str(caught.value)
    assert told.startswith("2 cases fail:\none, b: Failed: ") and "\ntwo, b: AssertionError: " in told
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("letter", ["a", "b"])
@every(number=(1, 2))
def test_fixtures_and_parameters_stay(number, letter, tmp_path):
    assert number in (1, 2) and letter in "ab" and tmp_path.is_dir()
