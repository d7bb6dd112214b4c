"""Conditions from the command line: from a folder, a file or a dict to a run, and from a run to samples."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato as sf
from sfumato.training.console import Silent

QUICK = ("--steps", 2, "--precision", "float32")
RNG = np.random.default_rng(0)
N = 60
T = RNG.uniform(280, 320, N)
X = np.stack([T - 300, RNG.normal(size=N)], 1)
COLOURS = [("red", "green", "blue")[i % 3] for i in range(N)]
BESIDE = {"temperature": T, "colour": np.array(COLOURS), "index": RNG.normal(size=(N, 3)), "n": np.arange(N) % 2 == 0}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """An untrained model of two coordinates that is conditioned on a number, two labels, a vector and a field."""
    source = sf.data.open({"x": np.repeat(X[:, :, None], 4, 2), **BESIDE, "map": RNG.normal(size=(N, 2, 8))})
    spec = sf.data.DataSpec.fit(source)
    torch.manual_seed(0)
    conditions = {name: each.network() for name, each in spec.conditions.items()}
    net = sf.nets.build(spec.shape, size="tiny", conditions=conditions)
    for parameter in net.parameters():  # else the last layer is zero, and hears nothing
        torch.nn.init.normal_(parameter, std=0.1)
    path = tmp_path_factory.mktemp("models") / "five.safetensors"
    return sf.save(sf.Denoiser(net, sf.Gaussian(sf.schedules.Flow()), "velocity", 1.0, spec), path)


def drawn(path):
    with np.load(path) as archive:
        return dict(archive)


def test_samples_are_drawn_under_what_is_asked_and_carry_it(call, model):
    np.save("map.npy", np.ones((2, 8)))
    words = ("--condition", "temperature=310", "--condition", "index=0,0.5,1", "--condition", "colour=Red")
    common = ("sample", model, "-n", 3, *QUICK, "--guidance", 1)
    status, out, err = call(*common, *words, "--condition", "map=map.npy", "-o", "a.npz")
    assert status == 0, err
    assert "Sampled without a value for n: " in err
    found = drawn("a.npz")
    manifest = json.loads(str(found["manifest"]))
    assert manifest["conditions"] == {"temperature": "310", "index": "0,0.5,1", "colour": "Red", "map": "map.npy"}
    assert found["temperature"] == pytest.approx(np.full(3, 310)) and found["colour"].tolist() == ["red"] * 3
    assert found["index"] == pytest.approx(np.tile([0, 0.5, 1], (3, 1)), abs=1e-6) and found["map"].shape == (3, 2, 8)
    loaded = sf.load(model)
    given = {"temperature": 310.0, "colour": "red", "map": np.ones((2, 8))}
    asked = sf.sample(loaded, 3, steps=2, **given, cond={"index": [0, 0.5, 1]})
    assert np.array_equal(found["x"], asked.numpy())
    status, _, err = call("sample", model, "-n", 3, *QUICK, "--condition", "temperature=310", "-o", "told.npz")
    assert status == 0 and "Not guided; --guidance sets a scale." in err
    assert np.array_equal(drawn("told.npz")["x"], sf.sample(loaded, 3, steps=2, temperature=310).numpy())
    open_ = sf.sample(loaded, 3, steps=2)
    assert not np.allclose(found["x"], open_.numpy())
    assert call("sample", model, "-n", 3, *QUICK, "-o", "open.npz")[0] == 0
    assert np.array_equal(drawn("open.npz")["x"], open_.numpy()) and set(drawn("open.npz")) == {"x", "manifest"}
    np.save("each.npy", np.array([290.0, np.nan, 310.0]))
    assert call(*common, "--condition", "temperature=each.npy", "-o", "each.npz")[0] == 0
    assert drawn("each.npz")["temperature"][[0, 2]] == pytest.approx([290, 310])
    assert np.isnan(drawn("each.npz")["temperature"][1])
    assert np.array_equal(drawn("each.npz")["x"][1], open_[1].numpy())  # a value that is missing is none
    assert call(*common, *words, "-o", "folder/")[0] == 0 and len(list(Path("folder").iterdir())) == 3
    again = sf.data.open("a.npz")
    assert "temperature (its value is always" in " ".join(again.notes)


def test_conditions_that_cannot_be_are_one_sentence(refused, model):
    (Path.cwd() / "torn.npy").write_text("no array")
    for word, sentence in {
        "temprature=3": "'temprature': the model has none of this name: did you mean 'temperature'",
        "temperature": "argument --condition: must be NAME=VALUE, not 'temperature'",
        "temperature=": "argument --condition: must be NAME=VALUE, not 'temperature='",
        "=3": "argument --condition: must be NAME=VALUE, not '=3'",
        "temperature=inf": "The condition 'temperature': a value is infinite",
        "temperature=300,warm": "The condition 'temperature': 'warm' is not a number",
        "temperature=300,301,302": "--condition temperature has 3 values for 2 samples: -n 3 draws one of each",
        "colour=red,pink": "'colour': there is no class 'pink'",
        "temperature=warm": "'temperature': 'warm' is not a number",
        "temperature=1,2": "'temperature': ",
        "temperature=0": "is far outside the data, which ran from 28",
        "colour=pink": "'colour': there is no class 'pink'; the classes are: 0 blue, 1 green, 2 red",
        "index=1,2": "'index': a value must be numbers of shape (3,), or one per sample",
        "map=missing.npy": "missing.npy cannot be read as a .npy array: no such file",
        "map=torn.npy": "torn.npy cannot be read as a .npy array",
    }.items():
        assert sentence in refused("sample", model, "-n", 2, "--condition", word), word
    several = refused("sample", model, "-n", 2, "--class", "cat")
    assert several.rstrip().endswith("give --condition colour=cat or --condition n=cat.")
    interval = ("--condition", "temperature=300", "--guidance-interval", -2, 2)
    assert "--guidance-interval needs a scale here" in refused("sample", model, "-n", 2, *interval)
    assert "nothing to guide to: give one of" in refused("sample", model, "-n", 2, "--guidance", 2)


def saved(path, given: dict) -> Path:
    """An untrained model of two coordinates under these conditions."""
    spec = sf.data.DataSpec.fit(sf.data.open({"x": X, **given}))
    net = sf.nets.build(spec.shape, size="tiny", conditions={name: c.network() for name, c in spec.conditions.items()})
    return sf.save(sf.Denoiser(net, sf.Gaussian(sf.schedules.Flow()), "velocity", 1.0, spec), path)


def test_the_class_of_a_condition_of_any_name(call, refused, workplace):
    saved("breed.safetensors", {"breed": np.array(COLOURS), "temperature": T})
    common = ("sample", "breed.safetensors", "-n", 2, *QUICK, "-o", "a.npz")
    status, _, err = call(*common, "--class", "Green")
    assert status == 0 and drawn("a.npz")["breed"].tolist() == ["green"] * 2, err
    assert json.loads(str(drawn("a.npz")["manifest"]))["conditions"] == {"breed": "Green"}
    assert "'breed': there is no class 'cat'; the classes are: 0 blue" in refused(*common, "--class", "cat")
    two = refused(*common, "--class", "red", "--condition", "breed=blue")
    assert "--class and --condition breed=... give different values" in two
    np.savez("d.npz", x=X)
    words = ("-n", 2, "--steps", 2, "--class", "green")
    assert call("likelihood", "breed.safetensors", "d.npz", *words)[0] == 0
    saved("none.safetensors", {"temperature": T})
    none = refused("sample", "none.safetensors", "-n", 2, "--class", "cat")
    assert "this model has no classes, only temperature: leave --class out" in none


def test_several_values_are_taken_in_turn(call, workplace):
    names = np.array(["a", "b", "c,d"])[np.arange(N) % 3]
    saved("kinds.safetensors", {"kind": names, "temperature": T})
    common = ("sample", "kinds.safetensors", *QUICK, "-o", "a.npz", "--condition")
    for value, kinds in {
        "a,b": "abab",
        "b": "bbbb",
        "a,b,a,b": "abab",
        "C,D": ["c,d"] * 4,
        "b,,a": "b a" + "b",
    }.items():
        status, _, err = call(*common, f"kind={value}", "-n", 4)
        assert status == 0, (value, err)
        found = [str(name) for name in drawn("a.npz")["kind"]]
        assert [name or " " for name in found] == list(kinds), value
    assert call(*common, "temperature=300,310,290", "-n", 4)[0] == 0
    assert drawn("a.npz")["temperature"] == pytest.approx([300, 310, 290, 300])
    assert call(*common, "temperature=300,310,290", "-n", 2, "--first", 2)[0] == 0  # by the number of the sample
    assert drawn("a.npz")["temperature"] == pytest.approx([290, 300])
    status, _, err = call(*common, "temperature=nan", "-n", 2)
    assert status == 0 and "Sampled without a value for kind, temperature: " in err
    fit = ("tune", "kinds.safetensors", "--steps", 2, "--points", 16, "--rounds", 1)
    status, out, err = call(*fit, "--condition", "kind=a,b", "--condition", "temperature=300")
    assert status == 0 and "--condition kind=a,b --condition temperature=300" in out, err
    saved("labels.safetensors", {"label": names})
    assert call("sample", "labels.safetensors", "-n", 4, *QUICK, "-o", "a.npz", "--class", "a,b")[0] == 0
    assert drawn("a.npz")["labels"].tolist() == [0, 1, 0, 1]
    assert json.loads(str(drawn("a.npz")["manifest"]))["conditions"] == {"label": "a,b"}


def test_numbers_far_from_the_training_data_are_said(call, model):
    far = "The condition 'temperature': 230 is far from what the model was trained on, 28"
    status, _, err = call("sample", model, "-n", 2, *QUICK, "--condition", "temperature=230", "-o", "a.npz")
    assert status == 0 and err.count(far) == 1 and any(line.startswith(far) for line in err.splitlines())
    assert call("sample", model, "-n", 2, *QUICK, "--condition", "temperature=310", "-o", "a.npz")[2].count("far") == 0
    with pytest.warns(sf.SfumatoWarning, match=far) as said:
        sf.sample(sf.load(model), 2, steps=1, temperature=[300.0, 230.0])
    assert len(said) == 1 and said[0].filename == __file__
    with pytest.warns(sf.SfumatoWarning, match=r"'index': 9 is far"):
        sf.sample(sf.load(model), 2, steps=1, cond={"index": [0, 0, 9]})


def test_classes_and_conditions_together(call, workplace):
    source = sf.data.open({"x": X, "label": COLOURS, "temperature": T})
    spec = sf.data.DataSpec.fit(source)
    net = sf.nets.build(spec.shape, 3, "tiny", conditions={"temperature": {"kind": "scalar"}})
    sf.save(sf.Denoiser(net, sf.Gaussian(sf.schedules.Flow()), "velocity", 1.0, spec), "m.safetensors")
    common = ("sample", "m.safetensors", "-n", 4, *QUICK, "--condition", "temperature=300", "-o", "a.npz")
    status, _, err = call(*common)
    assert status == 0 and drawn("a.npz")["labels"].tolist() == [0, 1, 2, 0]
    assert "Not guided; --guidance sets a scale." in err
    assert "guidance" not in json.loads(str(drawn("a.npz")["manifest"]))
    assert call(*common, "--class", "green")[0] == 0 and drawn("a.npz")["labels"].tolist() == [1] * 4
    assert drawn("a.npz")["temperature"] == pytest.approx(np.full(4, 300))
    assert json.loads(str(drawn("a.npz")["manifest"]))["class"] == "green"
    assert call(*common, "--condition", "label=blue")[0] == 0 and drawn("a.npz")["labels"].tolist() == [0] * 4
    np.savez("d.npz", x=X, label=COLOURS, temperature=T)
    for words in (("--conditional",), ("--class", "red", "--condition", "temperature=290"), ()):
        status, out, _ = call("likelihood", "m.safetensors", "d.npz", "-n", 4, "--steps", 4, "--json", *words)
        assert status == 0 and np.isfinite(json.loads(out)["nats"]), words


@pytest.mark.first(1)
@pytest.mark.parametrize("form", ["folder", "file", "dict"])
def test_from_data_to_samples(call, workplace, form):
    """A folder with metadata.csv, an .npz with keys of floats, a dict in Python: trained, stopped, resumed, sampled."""
    how = ("--steps", 4, "--batch", 16, "--net", "tiny", "--precision", "float32", "--snapshots", 0)
    given = {"temperature": T, "steps": COLOURS, "site": np.arange(N) % 4}
    if form == "folder":
        rows = ["file_name,temperature,steps,site,note"]
        for i in range(N):
            (workplace / "set").mkdir(exist_ok=True)
            Image.fromarray(RNG.integers(0, 255, (8, 8), dtype=np.uint8)).save(workplace / "set" / f"{i}.png")
            rows += [f"{i}.png,{'' if i == 3 else T[i]},{COLOURS[i]},{i % 4},words {i}"] if i != 5 else []
        (workplace / "set" / "metadata.csv").write_text("\n".join(rows))
    if form == "file":
        np.savez("set.npz", x=X, **given)
    if form == "dict":
        run = sf.train({"x": X, **given}, "run", steps=4, batch=16, net="tiny", precision="float32", snapshots=0,
                       console=Silent(), conditions={"site": "scalar"})  # fmt: skip
        sf.resume(run.path, {"x": X, **given, "new": T**2}, steps=6, console=Silent())  # which it was not trained on
        changed = {**given, "temperature": T + 1}, {name: given[name] for name in given if name != "temperature"}
        for other in changed:
            with pytest.raises(sf.SfumatoError, match="is not the data that .* was trained on"):
                sf.resume(run.path, {"x": X, **other}, steps=8, console=Silent())
    else:
        data = "set.npz" if form == "file" else "set"
        status, out, err = call("train", data, *how, "-o", "run", "--condition", "site:scalar")
        assert status == 0 and "Conditions: temperature (scalar), steps (label, 3 classes), site (scalar)" in err, err
        assert "The condition 'steps' has an argument's name: pass it as cond={'steps': ...}" in err
        assert ("note (text, 59 different: --condition note:text reads it)" in err) == (form == "folder")
        assert "conditions:\n  site: scalar" in Path("run/config.yaml").read_text()
        assert "--condition temperature=" in out
        assert call("resume", "run", "--steps", 6)[0] == 0
        facts = json.loads(call("inspect", data, "--condition", "site:ignore", "--json")[1])
        assert set(facts["conditions"]) == {"temperature", "steps"}
        assert facts["conditions"]["temperature"]["missing"] == (2 if form == "folder" else 0)
        assert sum(facts["conditions"]["steps"]["classes"].values()) == N - (form == "folder")
        if form == "file":
            facts = json.loads(call("plan", data, *how, "--json")[1])["facts"]
            assert facts["conditions"] == ["temperature", "steps", "site"]
    spec = sf.load("run").spec
    assert {name: each.kind for name, each in spec.conditions.items()} == {
        "temperature": "scalar", "steps": "label", "site": "scalar"
    }  # fmt: skip
    said = call("info", "run")[1]
    for word in (
        "condition temperature: a number from 28",
        "condition steps: one of 3 classes",
        "cond={'steps': 'blue'}",
    ):
        assert word in said, word
    assert "temperature, steps, site" in Path("run/report.html").read_text()
    command = next(line.split() for line in said.splitlines() if "sfumato sample" in line)
    assert call(*command[1:], "--steps", 1)[0] == 0
    x = sf.sample(sf.load("run"), 2, steps=1, temperature=[300.0, 310.0], cond={"steps": "red"})
    assert len(x) == 2 and torch.isfinite(x.double()).all()


def test_a_name_is_free():
    """Also one that arguments of losses, models and samplers have."""
    names = ["t", "z", "x", "seed", "index", "weight", "times", "n", "noise", "model", "eps", "cond", "class", "a b"]
    values = RNG.normal(size=(len(names), N))
    for some in (names[:7], names[7:]):
        given = {name: values[names.index(name)] for name in some if name != "x"}
        run = sf.train({"data": X, **given}, f"run-{some[0]}", steps=2, batch=8, net="tiny", precision="float32",
                       snapshots=0, console=Silent())  # fmt: skip
        assert set(run.denoiser.spec.conditions) == set(given)
        asked = {name: 0.5 for name in given}
        assert torch.isfinite(sf.sample(run.denoiser, 2, steps=2, cond=asked)).all()
        assert np.isfinite(sf.log_prob(run.denoiser, torch.from_numpy(X[:2]), steps=4, cond=asked).value.numpy()).all()


def test_settings_of_conditions_are_checked(refused, call, workplace):
    np.savez("set.npz", x=X, temperature=T)
    train = ("train", "set.npz", "--steps", 1)
    for word, sentence in {
        "temprature:scalar": "no condition 'temprature' in the data: did you mean 'temperature'",
        "temperature:number": "'temperature' cannot be of the kind 'number': known are ",
        "temperature:label": "'temperature' cannot be a label: label 0 is ",
        "temperature:field": "'temperature' cannot be a field: its values have shape ()",
        "temperature": "argument --condition: must be NAME:KIND, not 'temperature'",
    }.items():
        for command in (train, ("inspect", "set.npz")):
            assert sentence in refused(*command, "--condition", word), word
    Path("c.yaml").write_text("conditions:\n  temperature: ignore\n")
    status, out, _ = call(*train, "--config", "c.yaml", "--net", "tiny", "-o", "run")
    assert status == 0 and "no classes" in call("info", "run")[1]
    Path("d.yaml").write_text("conditions: [temperature]\n")
    assert "conditions are names and kinds" in refused(*train, "--config", "d.yaml")


def test_a_picture_is_asked_for_by_its_file(call, workplace, refused):
    """As it stands, or resized where it has another size; a folder has one for each sample."""
    pixels = RNG.integers(0, 255, (3, 8, 8, 3), dtype=np.uint8)
    plain = np.broadcast_to(np.array([9, 90, 200]), pixels.shape)
    (workplace / "in").mkdir()
    for i, each in enumerate(pixels):
        Image.fromarray(each).save(workplace / f"in/{i}.png")
    Image.new("RGB", (32, 32), (9, 90, 200)).save("large.png")
    Image.fromarray(pixels[0, :, :, 0]).save("grey.png")
    source = sf.data.open(
        {"x": RNG.integers(0, 255, (12, 1, 8, 8), dtype=np.uint8), "map": np.tile(pixels, (4, 1, 1, 1))}
    )
    spec = sf.data.DataSpec.fit(source)
    net = sf.nets.build(spec.shape, size="tiny", conditions={"map": spec.conditions["map"].network()})
    sf.save(sf.Denoiser(net, sf.Gaussian(sf.schedules.Flow()), "velocity", 1.0, spec), workplace / "m.safetensors")
    words = ("sample", "m.safetensors", "-n", 3, *QUICK, "-o", "a.npz", "--condition")
    for given, wanted in (("in/0.png", pixels[[0, 0, 0]]), ("large.png", plain), ("in", pixels)):
        status, _, err = call(*words, f"map={given}")
        assert status == 0, err
        assert drawn("a.npz")["map"] == pytest.approx(wanted.transpose(0, 3, 1, 2), abs=1e-3)
    assert "shape (1, 1, 8, 8)" in refused(*words, "map=grey.png")
