"""Intervals on pictures: between halves of Fashion, by principal components, they hold what equal laws score."""

import pytest
import torch

import sfumato as sf
from sfumato.metrics import C2ST, Coverage, Density, Precision, Recall

pytestmark = pytest.mark.slow
TRIALS, HALF, COMPONENTS = 100, 250, 20


@pytest.fixture(scope="module")
def components() -> torch.Tensor:
    """The first principal components of 10,000 pictures, each with deviation 1."""
    source = sf.data.open("fashion")
    x = source.x[torch.arange(10_000)].double().flatten(1)
    x = x - x.mean(0)
    z = x @ torch.linalg.eigh(x.T @ x).eigenvectors[:, -COMPONENTS:]
    return z / z.std(0)


def measured(measure, z: torch.Tensor) -> list:
    """The measure of two halves of as many draws without replacement as there are trials."""
    found = []
    for trial in range(TRIALS):
        rows = torch.randperm(len(z), generator=torch.Generator().manual_seed(trial))[: 2 * HALF]
        found.append(measure(z[rows[:HALF]], z[rows[HALF:]]))
    return found


@pytest.mark.parametrize("measure", [Precision(), Recall(), Density(), Coverage()], ids=lambda m: type(m).__name__)
def test_balls_cover_what_halves_score_in_90_of_100(measure, components):
    found = measured(measure, components)
    expected = sum(each.value for each in found) / TRIALS  # 1 for density; of the others no closed form is known
    assert sum(each.low <= expected <= each.high for each in found) >= 90
    deviation = float(torch.tensor([each.value for each in found]).std())
    assert sum(each.stderr for each in found) / TRIALS < 2.5 * deviation  # and not by being wide


def test_c2st_covers_a_half_in_90_of_100(components):
    pytest.importorskip("sklearn")
    found = measured(C2ST(trees=20), components)
    assert sum(each.low <= 0.5 <= each.high for each in found) >= 90
    deviation = float(torch.tensor([each.value for each in found]).std())
    assert sum(each.half for each in found) / TRIALS < 2.5 * 1.96 * deviation
