"""The table of draws, against closed forms: white data, a constant network, a mixture with known classes."""

import numpy as np
import pytest
import torch
from torch import nn

import sfumato as sf
from sfumato.diagnostics.draws import _turns
from sfumato.errors import SfumatoError

FLOW = sf.Gaussian(sf.schedules.Flow(), "velocity")
WHITE = sf.exact.GaussianMixture([1.0], [[0.0, 0.0, 0.0]], 0.7)
CLASSES = sf.exact.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [0.1, 0.2])
COLUMNS = ["sample", "bin", "logsnr", "loss", "error", "trivial"]


class Constant(nn.Module):
    """y_hat = b, whatever it hears."""

    def __init__(self, b: float) -> None:
        super().__init__()
        self.b, self.dropout = nn.Parameter(torch.tensor(b, dtype=torch.float64)), nn.Dropout(0.5)

    def forward(self, u, level):
        return self.dropout(torch.ones_like(u)) * self.b


def test_white_data_have_their_closed_form():
    """E loss = v / (v + 1 / snr) at each level; the best linear guess is the exact model; loss = alpha^2 error."""
    table = sf.draws(WHITE.denoiser(FLOW), WHITE, levels=[-4, -1, 1, 4], count=2000)
    assert list(table) == COLUMNS and {len(column) for column in table.values()} == {6000}
    np.testing.assert_allclose(table["trivial"], table["loss"], rtol=1e-9)
    alpha = 1 / (1 + np.exp(-table["logsnr"] / 2))
    np.testing.assert_allclose(table["loss"], alpha**2 * table["error"], rtol=1e-9)
    off = table["loss"] - 0.7 / (0.7 + np.exp(-table["logsnr"]))
    for k, (low, high) in enumerate([(1, 4), (-1, 1), (-4, -1)]):
        mine = table["bin"] == k
        assert mine.sum() == 2000 and (table["logsnr"][mine] > low).all() and (table["logsnr"][mine] < high).all()
        assert abs(off[mine].mean()) < 4 * off[mine].std() / 2000**0.5 < 0.1


def test_gradients_of_a_constant_network():
    """Of alpha^2 (b - y)^2 for one number a sample: 2 alpha sqrt(loss). Dropout is off, the model stays as it was."""
    model = sf.Denoiser(Constant(0.3), FLOW).train()
    x = torch.randn(40, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    table = sf.draws(model, x, 4, count=8, gradients=True, times="logit-normal")
    alpha = 1 / (1 + np.exp(-table["logsnr"] / 2))
    np.testing.assert_allclose(table["gradient"], 2 * alpha * np.sqrt(table["loss"]), rtol=1e-9)
    assert model.training and model.net.b.grad is None
    exact = sf.draws(WHITE.denoiser(FLOW), WHITE.sample(4), 2, count=2, gradients=True)
    assert np.isnan(exact["gradient"]).all()


def test_rows_depend_on_the_seed_alone():
    model, (x, label) = CLASSES.denoiser(FLOW), CLASSES.labelled(50, seed=1)
    one, two = sf.draws(model, x, label=label), sf.draws(model, x, label=label, batch=7)
    assert all(np.allclose(one[name], two[name], rtol=1e-12) for name in COLUMNS)
    assert (np.bincount(one["sample"]) >= 10).all() and not np.allclose(sf.draws(model, x, seed=1)["loss"], one["loss"])
    blind = sf.draws(model, x)  # the same noise without the class
    assert (blind["logsnr"] == one["logsnr"]).all() and blind["loss"].mean() > 1.2 * one["loss"].mean()


def test_data_bring_their_units_and_conditions():
    x, label = CLASSES.labelled(400, seed=2)
    given = {"x": (100 + 5 * x).float().numpy(), "labels": label.numpy()}
    spec = sf.data.DataSpec.fit(sf.data.open(given), torch.arange(400))
    torch.manual_seed(0)
    model = sf.Denoiser(sf.nets.MLP(2, width=8, depth=1, classes=2), FLOW, spec=spec)
    table, by_hand = sf.draws(model, given), sf.draws(model, given["x"], label=given["labels"])
    assert table["loss"].mean() == pytest.approx(by_hand["loss"].mean(), rel=0.05)
    alpha = 1 / (1 + np.exp(-table["logsnr"] / 2))
    # a new network answers 0, so that its velocity is off by eps - x, whose mean square is 2 in normalised units
    assert (table["loss"] / alpha**2).mean() == pytest.approx(2, abs=0.15)


def test_mistakes_are_one_sentence():
    model = WHITE.denoiser(FLOW)
    for options, words in (
        ({"levels": 0}, "bins must be a number"),
        ({"levels": [20.0, 30.0]}, "no mass between"),
        ({"count": 0}, "count, the draws per bin"),
        ({"times": "unifrom"}, "did you mean 'uniform'"),
    ):
        with pytest.raises(SfumatoError, match=words):
            sf.draws(model, WHITE, **options)
    symbols = sf.Masked(sf.schedules.Flow(), 3)
    with pytest.raises(SfumatoError, match="only for a Gaussian process"):
        sf.draws(symbols, torch.zeros(4, 1))


@pytest.mark.parametrize("levels", [1, 2, 9, 12])
def test_every_level_has_all_samples_in_turn(levels):
    """Also where the number of samples divides that of the levels: three of nine had one sample a level."""
    for count in (1, 2, 3, 4, 6, 9, 15, 18, 36):
        turns = _turns(torch.arange(count * levels), count, levels).reshape(count, levels)
        assert all(len(turns[:, level].unique()) == count for level in range(levels)), count
        assert torch.equal(turns.flatten().bincount(), torch.full((count,), levels))
