"""What few draws of a log say is said with their error; what a small step moved is not called still."""

import math

import pytest
import torch

from sfumato.diagnostics.checks.evidence import Evidence, Weights
from sfumato.diagnostics.checks.of_data import logged_power, out_of_range
from sfumato.diagnostics.checks.of_log import lr_high, lr_low
from sfumato.diagnostics.checks.of_weights import unlearned_embedding, unmoved

LOGSNR = [6.7, 4.4, 2.2, 0.0, -2.2, -4.4, -6.7]


def line(power: float, draws: int, seed: int = 0) -> dict[str, list[float]]:
    """What the linear guess loses on data of that mean square: means of `draws` squares a level, with their errors."""
    generator = torch.Generator().manual_seed(seed)
    s = torch.tensor(LOGSNR, dtype=torch.float64).sigmoid()
    deviation = (s.square() + s * (1 - s) * power).sqrt()
    losses = (deviation * torch.randn(draws, len(s), generator=generator, dtype=torch.float64)).square()
    error = losses.std(0) / math.sqrt(draws)
    return {"bins_logsnr": LOGSNR, "bins_loss_trivial": losses.mean(0).tolist(),
            "bins_loss_trivial_stderr": error.tolist()}  # fmt: skip


def test_the_mean_square_is_read_from_the_log_within_its_error():
    for power in (0.01, 1.0, 65025.0):
        found, error = logged_power([line(power, 2000)])
        assert abs(found - power) < 4 * error * max(1, power) and error < 0.1


def test_few_draws_of_data_in_their_units_are_no_alarm_and_of_others_one():
    alarms = sum(out_of_range(Evidence(log=[line(1.0, 5, seed)])) is not None for seed in range(400))
    assert alarms <= 2
    assert all(out_of_range(Evidence(log=[line(65025.0, 5, seed)])) is not None for seed in range(0, 400, 40))
    assert out_of_range(Evidence(log=[line(1e-4, 200)])) is not None


def test_a_log_without_errors_says_nothing():
    old = {name: values for name, values in line(65025.0, 5).items() if not name.endswith("stderr")}
    assert logged_power([old]) is None and out_of_range(Evidence(log=[old])) is None


def test_sources_that_resemble_the_samples_say_nothing_of_their_units():
    log, flow = [line(65025.0, 5)], {"process": 'rectified-flow(source="input")'}
    assert out_of_range(Evidence(log=log, settings=flow)) is None
    assert out_of_range(Evidence(log=log, settings={"process": "bridge"})) is not None


def test_weights_that_a_tiny_rate_moved_are_not_still_and_those_that_only_decayed_are():
    start = {"w": torch.randn(64, 64, generator=torch.Generator().manual_seed(0))}
    turned = start["w"] + 2e-7 * torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    decayed = start["w"].clone()
    for _ in range(100):
        decayed *= 1 - 4e-5
    known = (({"w": turned}, []), ({"w": decayed}, ["w"]), (start, ["w"]))
    for now, names in known:
        assert unmoved(Weights(start, now, None, 100)) == names


def log_of_losses(held, guess=1.26, seed=0):
    """A log of noisy losses of training, with a look at the same held-out draws after each fifty steps."""
    noise = 0.3 * torch.randn(50 * len(held), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    lines = [{"step": k + 1, "loss": 1.7 + float(e), "fraction": (k + 1) / len(noise)} for k, e in enumerate(noise)]
    for k, value in enumerate(held):
        lines[50 * k + 49] |= {"valid_raw": value, "valid_trivial": guess}
    return lines


def test_a_loss_that_stands_is_one_of_the_same_draws_and_noisy_training_is_none():
    found = lr_low(Evidence(log=log_of_losses([2.0951, 2.0950, 2.0951, 2.0952])))
    assert found is not None and "2.095 at step 50 and is 2.095 at step 200" in found.what
    moving = [[2.1, 1.8, 1.6, 1.43], [1.41, 1.5, 1.4, 1.433]]
    assert all(lr_low(Evidence(log=log_of_losses(held, seed=s))) is None for held in moving for s in range(20))
    assert lr_low(Evidence(log=log_of_losses([2.0951] * 4, guess=2.2))) is None, "no worse than the guess"
    assert lr_low(Evidence(log=log_of_losses([2.0951]))) is None, "one look says nothing of a change"


@pytest.mark.parametrize("first, says", [(1.0, True), (0.0, False), (-1.0, False)])
def test_a_burst_is_one_of_a_loss_above_0_alone(first: float, says: bool) -> None:
    """The loss of a policy gradient is 0 at first, and may be below: no ratio of such losses says anything."""
    log = [{"step": i, "loss": first if i < 20 else 9.0} for i in range(40)]
    assert (lr_high(Evidence(log=log)) is not None) == says


def test_what_stands_for_no_value_may_stay_as_it_was() -> None:
    """A source is never dropped, so that of a model of pairs it never learns."""
    start = {
        "others.0.null": torch.ones(2),
        "others.0.fc.weight": torch.ones(2),
        "a": torch.ones(2),
        "b": torch.ones(2),
    }
    now = {name: value + 1 for name, value in start.items()}
    assert unlearned_embedding(Weights(start, now | {"others.0.null": torch.ones(2)}, None, 100)) is None
    name = "others.0.fc.weight"
    assert unlearned_embedding(Weights(start, now | {name: torch.ones(2)}, None, 100)) == name
