"""Settings: suggestions, limits, and a round trip through YAML."""

import dataclasses
import re
import subprocess
import sys

import pytest
import yaml

from sfumato import registry
from sfumato.errors import SfumatoError
from sfumato.training.config import NAMING, TrainConfig, budget, choices, docs, from_dict, from_yaml
from sfumato.training.parts import loss_of


@pytest.mark.parametrize(
    "values, words",
    [
        ({"minute": 3}, "did you mean 'minutes'"),
        ({"batchsize": 3}, "did you mean 'batch'"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"times": "logit_normal"}, "did you mean 'logit-normal'"),
        ({"optimizer": "sgd"}, "known are muon, adamw"),
        ({"lr": 0}, "lr must be a number"),
        ({"lr": float("nan")}, "lr must be a number"),
        ({"steps": 2.5}, "steps must be a whole number"),
        ({"steps": 0}, "at least 1"),
        ({"drop": 1.5}, "from 0 to 1"),
        ({"batch": True}, "batch must be a number"),
        ({"batch": "64"}, "batch must be a number"),
        ({"steps": 5, "minutes": 1}, "not both"),
    ],
)
def test_mistakes_are_named(values, words):
    with pytest.raises(SfumatoError, match=words):
        from_dict(values)


def test_yaml_round_trip(tmp_path):
    config = TrainConfig(data="1:30", split="01:30", key="1:30.5", steps=7, labels=None, schedule="cosine", ema=0.1)
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert from_yaml(str(path)) == config
    assert yaml.safe_load(path.read_text()) == config.to_dict()


BAD_YAML = [
    ("a: [", "not valid YAML"),
    ("- 1", "must hold settings"),
    ("stepz: 3", "steps"),
    ("batch: 4\nbatch: 8", "batch' twice"),
    ("minutes: 1:30", "1:30 is no plain number"),
    ("minutes: -1:30.5", "-1:30.5 is no plain number"),
]


@pytest.mark.parametrize("text, words", BAD_YAML)
def test_bad_yaml_is_one_sentence(tmp_path, text, words):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(SfumatoError, match=words) as caught:
        from_yaml(str(path))
    assert "\n" not in str(caught.value)


def test_choices_and_words_are_what_is_registered():
    for setting, kind in NAMING.items():
        assert set(choices(setting)) >= set(registry.names(kind)), setting
        assert all(re.search(rf"(^|\W){re.escape(name)}(?!\w)", docs()[setting]) for name in choices(setting)), setting


def test_adapters_have_a_learning_rate_of_their_own(tmp_path):
    """Unless one is given; a file of settings says the same."""
    assert from_dict({"init": "run", "lora": 8}).lr == 0.02
    assert from_dict({"init": "run"}).lr == TrainConfig().lr == 4e-3
    assert from_dict({"init": "run", "lora": 8, "lr": 1e-3}).lr == 1e-3
    path = tmp_path / "settings.yaml"
    path.write_text("init: run\nlora: 8\n")
    assert from_yaml(str(path)).lr == 0.02
    path.write_text(from_dict({"init": "run", "lora": 8, "lr": 4e-3}).to_yaml())
    assert from_yaml(str(path)).lr == 4e-3


def test_a_density_that_moves_needs_a_weight():
    moving = [name for name, make in registry.Named("density").items() if make().moves]
    assert moving == ["adaptive", "variance-optimal", "warped", "learned"]
    for name in moving:
        with pytest.raises(SfumatoError, match="needs a weight"):
            loss_of(TrainConfig(times=name))
        assert loss_of(TrainConfig(times=name, weight="elbo")).times.moves
        assert loss_of(TrainConfig(times=name, loss="cross-entropy")).times.moves  # which nothing is divided by


def test_every_setting_has_its_words():
    assert docs().keys() == {field.name for field in dataclasses.fields(TrainConfig)}
    assert all(len(words) > 10 and "\n" not in words for words in docs().values())


def test_budget_grows_with_the_data_within_limits():
    assert budget(10, 2) == 2 and budget(10**9, 10**4) == 60
    assert 2 < budget(50_000, 3 * 32 * 32) < 60


def test_settings_load_no_torch():
    code = "import sys; from sfumato.training.config import TrainConfig; TrainConfig(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
