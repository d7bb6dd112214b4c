"""The log ratio of two densities by trees, from rows of both, against ratios that are known."""

import pytest
import torch

from sfumato.boosting import DEPTH, TREES, boosted


def normal(n, width, seed):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def value(trees, x):
    return sum(tree(x) for tree in trees)


def test_trees_say_the_log_ratio_of_normal_laws():
    """log N(x; m, 1) / N(x; 0, 1) = m x - m^2 / 2 in the first entry; the second has one law, the third is constant."""
    m, real, drawn, x = 0.8, normal(8000, 3, 0), normal(6000, 3, 1), normal(4000, 3, 2)
    for rows in (real, drawn, x):
        rows[:, 2] = 1.0
    real[:, 0] += m
    trees = boosted(real, drawn)
    error = value(trees, x) - (m * x[:, 0] - m * m / 2)
    assert 10 < len(trees) <= TREES and all(len(tree.values) == 2**DEPTH for tree in trees)
    assert error.square().mean().sqrt() < 0.25 * m and 2 not in {place for tree in trees for place in tree.places}
    assert boosted(real, drawn) == trees != boosted(real, drawn, seed=1)


def test_trees_see_what_no_column_says_by_itself():
    """Two entries of one sign in the data, of any signs in the model: a ratio of 1.6 or .4, and equal marginals."""
    real, drawn, x = normal(8000, 2, 0), normal(8000, 2, 1), normal(4000, 2, 2)
    flipped = (real.prod(1) < 0) & (torch.rand(len(real), generator=torch.Generator().manual_seed(3)) < 0.6)
    real[flipped, 1] *= -1
    true = torch.where(x.prod(1) > 0, torch.tensor(1.6).log(), torch.tensor(0.4).log())
    error = (value(boosted(real, drawn), x) - true).square().mean().sqrt()
    assert error < 0.3 < true.std()


def test_one_of_many_columns_is_found():
    """Each tree looks at sixteen columns."""
    real, drawn, x = normal(4000, 60, 0), normal(4000, 60, 1), normal(2000, 60, 2)
    real[:, 41] += 1.0
    found = value(boosted(real, drawn), x)
    assert torch.corrcoef(torch.stack((found, x[:, 41].double())))[0, 1] > 0.8


@pytest.mark.parametrize("n, m", [(4000, 4000), (300, 900), (256, 256)])
def test_rows_of_one_law_have_no_trees(n, m):
    assert not any(boosted(normal(n, 4, seed), normal(m, 4, seed + 10)) for seed in range(4))


def test_rows_that_are_all_alike_have_no_trees():
    assert boosted(torch.ones(300, 2), torch.ones(300, 2)) == ()
    assert boosted(torch.ones(3, 2), torch.zeros(1, 2)) == ()
