"""Sixty-four pictures learned by heart: the search for copies says so before the losses are twice apart."""

import pytest
import torch

import sfumato as sf
from sfumato import data
from sfumato.diagnostics.memorization import choose, compare
from sfumato.diagnostics.nearest import Space
from sfumato.training import State, TrainConfig, fit
from sfumato.training.run import prepared
from sfumato.training.validation import judge

TRAIN, STEPS, EVERY, SAMPLES = 64, 160, 20, 128


@pytest.mark.slow
def test_copies_are_flagged_before_the_losses_are_twice_apart():
    """The moving average of a run of the tiny network, looked at as it goes: first `memorised`, then a gap of 2."""
    digits = data.open("digits")
    rows = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))[: 2 * TRAIN]
    source, train, held = data.open(digits.x[rows]), torch.arange(TRAIN), torch.arange(TRAIN, 2 * TRAIN)
    config = TrainConfig(steps=STEPS, batch=64, precision="float32", net="tiny", snapshots=0)
    _, _, model = prepared(source.x[train], None, config, torch.device("cpu"))
    state, space = State(model, config), Space(model.spec, None)
    measure = judge(state, config.replace(steps=20 * STEPS), source.x[held], None, (source.x[train], None))
    flagged = None
    for progress in fit(model, source.x[train], config, None, None, state):
        if progress.step % EVERY:
            continue
        losses = measure.measure(model, state.best).triples.losses
        apart = float(losses["ema"].mean() / losses["train"].mean())
        made = sf.sample(state.best, SAMPLES, 10, seed=1)
        found = compare(made, source, train, (source, held), choose(train, SAMPLES, 0), space)
        assert found.verdict != "memorised" or apart > 1.2  # nothing is learned by heart yet
        if flagged is None and found.verdict == "memorised":
            flagged = apart
        if apart > 2:
            break
    assert apart > 2 and flagged is not None and flagged < 2, (apart, flagged)
    assert found.ratio.high < 1 and found.copies_real < 0.05
