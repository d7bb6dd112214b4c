"""Names with numbers: what they make, and what is said of those that make nothing."""

import math

import pytest
import torch

from sfumato.errors import SfumatoError
from sfumato.objectives import times, weights
from sfumato.training.config import TrainConfig
from sfumato.training.objective import times_of, weight_of

F64 = torch.float64
LAM = torch.linspace(-8, 8, 17, dtype=F64)


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("sigmoid", weights.sigmoid(0.0)),
        ("sigmoid(bias=-2)", weights.sigmoid(-2.0)),
        ("sigmoid(-2.5)", weights.sigmoid(-2.5)),
        (" p2 ( 0.5 , k = 2e0 ) ", weights.p2(0.5, 2.0)),
        ("edm", weights.edm(1.0, -1.2 + math.log(2))),
        ("edm(std=1)", weights.edm(1.0, -1.2 + math.log(2), 1.0)),
        ("elbo()", weights.elbo()),
    ],
)
def test_a_weight_with_numbers(word, wanted):
    torch.testing.assert_close(weights.named(word)(LAM), wanted(LAM), rtol=0, atol=0)


@pytest.mark.parametrize("name", weights.NAMED)
def test_a_bare_name_is_the_weight_of_that_name(name):
    torch.testing.assert_close(weights.named(name)(LAM), weights.NAMED[name]()(LAM), rtol=0, atol=0)


def test_a_density_with_numbers():
    assert times.named("mode(s=0.8)") == times.Mode(0.8)
    assert times.named("logit-normal(0.5, 0.8)") == times.logit_normal(0.5, 0.8)
    assert times.named("logit-normal(std=2)") == times.logit_normal(0.0, 2.0)
    assert times.named("adaptive(half_life=500)").half_life == 500
    assert type(times.named("uniform")) is times.UniformTime


def test_settings_take_them():
    config = TrainConfig(data="x.npy", times="mode(s=0.8)", weight="sigmoid(bias=-2)")
    assert times_of(config.times) == times.Mode(0.8)
    torch.testing.assert_close(weight_of(config.weight)(LAM), weights.sigmoid(-2.0)(LAM))
    with pytest.raises(SfumatoError, match="needs a weight"):
        TrainConfig(times="adaptive(half_life=500)")
    for wrong in ({"weight": "sigmod(2)"}, {"weight": "sigmoid("}, {"times": "nope(1)"}, {"target": "v(1)"}):
        with pytest.raises(SfumatoError, match="cannot be"):
            TrainConfig(**wrong)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("sigmod", "did you mean 'sigmoid'"),
        ("sigmoid(bais=2)", r"sigmoid takes bias, as in sigmoid\(bias=0\)"),
        ("sigmoid(two)", "'two' is not a number"),
        ("sigmoid(bias=)", "'' is not a number"),
        ("p2(1, 2, 3)", "p2 takes gamma, k"),
        ("p2(0.5, gamma=1)", "p2 takes gamma, k"),
        ("elbo(3)", "elbo takes no numbers"),
        ("p2(k=-1)", "positive number"),
        ("sigmoid(", "There is no weight"),
        ("", "There is no weight"),
    ],
)
def test_mistakes_are_one_sentence(word, said):
    with pytest.raises(SfumatoError, match=said) as caught:
        weights.named(word)
    assert "\n" not in str(caught.value) and str(caught.value).endswith((".", "?"))
