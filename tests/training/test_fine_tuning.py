"""Runs that start from a model: what is kept, added and trained; adapters alone in a file; exact resume."""

import copy
import json

import pytest
import torch

import sfumato as sf
from sfumato import adapters, nets
from sfumato.cli import main
from sfumato.errors import SfumatoError
from sfumato.training.averages import average
from sfumato.training.checkpoint import latest
from sfumato.training.config import TrainConfig, from_yaml
from sfumato.training.console import Silent
from sfumato.training.parts import Objects
from sfumato.training.run import prepared

TRUTH = sf.exact.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.5]], [0.1, 0.2])
X = TRUTH.sample(48, seed=1).float()
Y = ["a", "b"] * 24
NEW = {"x": X + 0.3, "label": ["b", "c"] * 24, "age": torch.linspace(20, 60, 48)}
SHORT = {
    "steps": 4, "batch": 16, "precision": "float32", "sample_every": 0, "snapshots": 2, "console": Silent(),
    "decay": 0, "warmup": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run of two classes, whose network says more than 0."""
    run = tmp_path_factory.mktemp("base") / "run"
    return sf.train(X, run, Y, net="MLP(width=16, depth=1)", schedule="cosine", target="v", **{**SHORT, "steps": 20})


def begun(model, data, labels=None, **settings):
    """The model that a run would train, before its first step."""
    config = TrainConfig(init="given", steps=1, precision="float32", **settings)
    return prepared(data, labels, config, torch.device("cpu"), Objects(init=model))[2].eval()


def belief(model, **cond):
    cond = sf.conditions.resolve(model, cond, len(X))
    with torch.no_grad():
        return model(model.spec.normalise(X), torch.full((len(X),), 0.4), **cond).x


def weights(model):
    return {name: value.clone() for name, value in model.net.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def fixed(model):
    """The weights of the network without its adapters, but for what is new in it."""
    return model.net.plain(adapted=False)


@pytest.mark.parametrize("settings", [{}, {"lora": 2}, {"train_only": "conditions"}])
def test_the_first_output_is_that_of_the_old_model(base, settings):
    """For classes and conditions new and old: the difference is 0."""
    old, model = base.denoiser, begun(base.denoiser, NEW, **settings)
    assert torch.equal(belief(model, label="b"), belief(old, label="b"))
    assert torch.equal(belief(model, label="b", age=33.0), belief(old, label="b"))
    assert torch.equal(belief(model, label="c", age=33.0), belief(old))
    assert torch.equal(belief(model), belief(old))
    assert model.spec.classes == ("a", "b", "c") and set(model.spec.conditions) == {"label", "age"}
    assert model.spec.normaliser == old.spec.normaliser and model.process == old.process
    assert old.spec.classes == ("a", "b")  # the caller's is as it was


def test_only_what_is_asked_for_is_trained(base, tmp_path):
    """Base bits unchanged; the rest has moved; the average is of adapters alone."""
    for settings in ({"lora": 2}, {"train_only": "conditions"}):
        name = next(iter(settings))
        run = sf.train(NEW, tmp_path / name, init=base.denoiser, **settings, **SHORT)
        start = begun(base.denoiser, NEW, **settings)
        ours, theirs = run.denoiser.net.state_dict(), start.net.state_dict()
        moved = {each for each in theirs if not torch.equal(ours[each], theirs[each])}
        assert moved and moved <= set(start.net.own()) and ("up" in str(moved)) == (name == "lora")
        rows = run.denoiser.net.plain()["conditioning.label.weight"]
        assert torch.equal(rows[:3], base.denoiser.net.state_dict()["conditioning.label.weight"])
        assert not torch.equal(rows[3], rows[0])  # the new class alone has learned
        kept = {each for each in latest(tmp_path / name)[1] if each.startswith("ema.")}
        assert kept == {f"ema.{each}" for each in start.net.own()}
        other = average(tmp_path / name, 0.1).net  # of another width
        assert all(torch.equal(other.state_dict()[each], ours[each]) for each in theirs.keys() - start.net.own().keys())
        assert not same(other.plain(), run.denoiser.net.plain())


def test_all_weights_learn_by_default(base, tmp_path):
    run = sf.train(X[:40], tmp_path / "run", Y[:40], init=base.path, **SHORT)
    assert type(run.denoiser.net) is nets.MLP and run.denoiser.spec == base.denoiser.spec
    assert (
        not same(weights(run.denoiser), weights(base.denoiser)) and not (tmp_path / "run/adapter.safetensors").exists()
    )


def test_a_run_of_adapters_is_resumed_to_the_bit(base, tmp_path):
    whole = sf.train(NEW, tmp_path / "whole", init=base.denoiser, lora=2, **{**SHORT, "steps": 6})
    sf.train(NEW, tmp_path / "half", init=base.denoiser, lora=2, **{**SHORT, "steps": 3})
    again = sf.resume(tmp_path / "half", data=NEW, console=Silent(), steps=6)
    assert same(weights(whole.denoiser), weights(again.denoiser))
    raw = [sf.load(tmp_path / each, weights="raw") for each in ("whole", "half")]
    assert same(weights(raw[0]), weights(raw[1])) and not same(weights(raw[0]), weights(whole.denoiser))


def test_adapters_alone_in_a_file(base, tmp_path, capsys):
    """Small, refused with another base by both fingerprints; merged and apart are the same model."""
    run = sf.train(NEW, tmp_path / "run", init=base.path, lora=1, **SHORT)
    file = tmp_path / "run" / "adapter.safetensors"
    assert file.stat().st_size < (base.path / "model.safetensors").stat().st_size
    model = sf.load(file, base=base.path)
    assert same(weights(model), weights(run.denoiser)) and model.spec == run.denoiser.spec
    merged = sf.merge(model)
    assert type(merged.net) is nets.MLP and sf.merge(merged) is merged
    for cond in ({"label": "c", "age": 30.0}, {}):
        torch.testing.assert_close(belief(merged, **cond), belief(model, **cond), rtol=1e-6, atol=1e-6)
    other = sf.load(tmp_path / "run")
    ours, theirs = (adapters.fingerprint(each.net)[:16] for each in (base.denoiser, sf.merge(other)))
    with pytest.raises(SfumatoError, match=f"fingerprint {ours}.*{theirs}"):
        sf.load(file, base=other)
    with pytest.raises(SfumatoError, match=f"fingerprint {ours}: give the model"):
        sf.load(file)
    with pytest.raises(SfumatoError, match="leave the base out"):
        sf.load(base.path, base=base.path)
    out = tmp_path / "merged.safetensors"
    assert main(["merge", str(file), "--base", str(base.path), "-o", str(out)]) == 0
    assert main(["merge", str(tmp_path / "run"), "-o", str(tmp_path / "too.safetensors")]) == 0
    assert same(weights(sf.load(out)), weights(merged)) and same(
        weights(sf.load(out)), weights(sf.load(tmp_path / "too.safetensors"))
    )
    assert main(["info", str(tmp_path / "run")]) == 0 and "adapters of rank 1" in capsys.readouterr().out
    assert main(["merge", str(base.path), "-o", str(out)]) == 2 and "no adapters" in capsys.readouterr().err


def test_adapters_can_be_trained_from_an_adapted_model(base, tmp_path):
    """It is merged first, and is then the base."""
    first = sf.train(X, tmp_path / "first", Y, init=base.path, lora=1, **SHORT)
    second = sf.train(X, tmp_path / "second", Y, init=tmp_path / "first", lora=2, **SHORT)
    assert second.denoiser.net.base == adapters.fingerprint(sf.merge(first.denoiser).net)
    assert same(fixed(second.denoiser), weights(sf.merge(first.denoiser)))
    loaded = sf.load(tmp_path / "second" / "adapter.safetensors", base=tmp_path / "first")
    assert same(weights(loaded), weights(second.denoiser))


def test_what_does_not_suit_the_model_is_said_before_a_run(base, tmp_path):
    model = base.denoiser
    cases = [
        (torch.randn(40, 3), {}, r"needs data of shape \(2,\).* has shape \(3,\)"),
        (100 * X, {}, "not in the units of the model"),
        ({"x": X, "label": torch.linspace(0, 1, 48)}, {}, "the condition 'label' cannot be a label"),
        (X, {"target": "x"}, "has the target v, and x is asked for: leave out target"),
        (X, {"target": "velocity"}, "has the target v"),  # asked for, though it is the default
        (X, {"schedule": "flow"}, "has the schedule Cosine.*leave out schedule"),
        (X, {"net": "MLP(width=32)"}, "has the net MLP.*leave out net"),
        (X, {"process": "masked"}, "has the process Gaussian"),
        (X, {"normalise": "quantile"}, "has the normalise affine"),
        (X, {"train_only": "conditions"}, "nothing is left to train"),
        (X, {"lora": 2, "train_only": "conditions"}, "choose one"),
        (X, {"lora": 2, "parallel": "fsdp"}, "use parallel='ddp'"),
    ]
    for data, settings, words in cases:
        with pytest.raises(SfumatoError, match=words):
            sf.train(data, tmp_path / "run", init=model, **{**SHORT, **settings})
        assert not (tmp_path / "run").exists(), words
    with pytest.raises(SfumatoError, match="give it, too"):
        sf.train(X, tmp_path / "run", lora=2, **SHORT)
    agree = {"target": "v", "schedule": "cosine", "net": "MLP(width=16)", "process": "gaussian", "normalise": "affine"}
    assert sf.train(X, tmp_path / "run", Y, init=model, **agree, **SHORT).config.target == "v"


def test_by_the_command_line(base, tmp_path, capsys):
    import numpy as np

    np.savez(tmp_path / "new.npz", x=NEW["x"], y=NEW["label"], age=NEW["age"])
    words = [str(tmp_path / "new.npz"), "--init", str(base.path), "--lora", "2", "--steps", "4", "--batch", "16"]
    assert main(["plan", *words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["facts"]
    model = begun(base.denoiser, NEW, lora=2)
    assert facts["trained"] == sum(p.numel() for p in model.net.own().values()) < facts["parameters"]
    assert facts["network"] == "MLP"
    run = str(tmp_path / "run")
    assert main(["train", *words, "-o", run, "--sample-every", "0"]) == 0
    said = capsys.readouterr().err
    assert f"of which {facts['trained']:,} are trained" in said and "label is now one of 3 classes: a, b, c" in said
    assert "A new condition of the model: age" in said
    assert main(["sample", run, "-n", "2", "--class", "c", "-o", str(tmp_path / "x.npz")]) == 0
    assert main(["train", *words, "-o", run + "2", "--target", "velocity"]) == 2
    assert "leave out target" in capsys.readouterr().err


def test_a_file_of_settings_of_an_earlier_version_says_model(tmp_path):
    (tmp_path / "old.yaml").write_text("model: runs/photos\nsteps: 3\n")
    assert from_yaml(str(tmp_path / "old.yaml")).init == "runs/photos"


def test_conditions_that_the_data_lack_are_left_out(base):
    config, tuned = TrainConfig(init="given", steps=1), copy.copy(base.denoiser)
    tuned.plans = {"2": "a plan of the weights before"}
    _, source, model = prepared(X, None, config, torch.device("cpu"), Objects(init=tuned))
    assert "The model has the condition label, which these data lack: it is trained without." in source.notes
    assert model.spec.conditions == base.denoiser.spec.conditions and model.plans == {} != tuned.plans


def test_adapters_learn_from_a_reward(base, tmp_path):
    """A loss that copies the model it trains, as its old policy, copies it with the adapters merged."""
    words = {"method": "fpo(every=2)", "samples": 32, "lora": 1, **SHORT}
    run, _ = sf.align(base.denoiser, lambda x: x[:, 0], out=tmp_path / "run", **words)
    assert isinstance(run.denoiser.net, nets.Adapted) and same(fixed(run.denoiser), weights(base.denoiser))
    assert not same(weights(sf.merge(run.denoiser)), weights(base.denoiser))


def test_a_student_of_adapters(base, tmp_path):
    """The second time that it hears is new to the network, and trained whole; its adapters alone make it again."""
    words = {name: value for name, value in SHORT.items() if name not in ("warmup", "decay")}
    run = sf.distill(base.path, tmp_path / "run", samples=48, lora=1, **words)
    assert isinstance(run.denoiser, sf.FlowMap) and any("others" in name for name in run.denoiser.net.new)
    again = sf.load(tmp_path / "run" / "adapter.safetensors", base=base.path)
    assert isinstance(again, sf.FlowMap) and same(weights(again), weights(run.denoiser))
