"""Posteriors of symbols of which some are known, against the table of their law."""

import pytest
import torch

import sfumato as sf
from sfumato.process import Masked, Uniform
from sfumato.schedules import Flow

F64 = torch.float64
LAW = torch.rand(3, 3, 3, dtype=F64, generator=torch.Generator().manual_seed(0)) ** 2
LAW = LAW / LAW.sum()
MODEL = sf.exact.Table(LAW).denoiser(Masked(Flow(), 3))


def test_symbols_that_are_known_stay_and_the_others_have_their_law():
    known = sf.operators.Mask([True, False, False])
    found = sf.posterior(MODEL, torch.tensor([2, 0, 0]), known, n=4000, seed=1)
    x = found.samples.long()
    assert bool((x[:, 0] == 2).all()) and (found.method, found.steps) == ("reveal", 2)
    share = torch.bincount(3 * x[:, 1] + x[:, 2], minlength=9) / 4000
    wanted = (LAW[2] / LAW[2].sum()).flatten()
    assert float((share - wanted).abs().sum()) / 2 < 0.03
    assert float((wanted - (LAW.sum(0)).flatten()).abs().sum()) / 2 > 0.1  # which is not that without the first
    again = sf.posterior(MODEL, torch.tensor([2]), known, index=[7, 11], seed=1, batch=1).samples
    assert torch.equal(again, found.samples[[7, 11]])


def test_mistakes_are_said():
    first = sf.operators.Mask([True, False, False])
    wrong = {
        "operator for this model is a Mask": lambda: sf.posterior(MODEL, [1.0], sf.operators.Linear(torch.ones(1, 3))),
        "noise 0": lambda: sf.posterior(MODEL, [1], first, 0.1),
        "method of real numbers": lambda: sf.posterior(MODEL, [1], first, method="mmps"),
        "symbols of it": lambda: sf.posterior(MODEL, [0.5], first),
        "the model knows 3": lambda: sf.posterior(MODEL, [3], first),
        "All symbols are known": lambda: sf.posterior(MODEL, [1, 1, 1], sf.operators.Mask([True] * 3)),
        "not for Uniform": lambda: sf.posterior(sf.exact.Table(LAW).denoiser(Uniform(Flow(), 3)), [1], first),
    }
    for words, call in wrong.items():
        with pytest.raises(sf.SfumatoError, match=words):
            call()
