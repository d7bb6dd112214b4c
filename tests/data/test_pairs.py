"""Pairs of two data sets: by name, by row, or by nothing; and runs that learn from them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato as sf
from sfumato.cli import main
from sfumato.process import Bridge, RectifiedFlow


@pytest.fixture
def folders(tmp_path):
    """Pictures in a/ and b/: b's are a's upside down, 8 x 8, and a has one more."""
    for name in "ab":
        (tmp_path / name).mkdir()
    rng = np.random.default_rng(0)
    for i in range(25):
        picture = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / "a" / f"{i}.png")
        if i:
            Image.fromarray(picture[::-1].copy()).save(tmp_path / "b" / f"{i}.bmp")
    return tmp_path


def test_files_that_are_named_alike_are_pairs(folders):
    found = sf.data.paired(sf.data.open(folders / "b"), sf.data.open(folders / "a"), "name")
    assert len(found) == 24 and found.conditions["input"].kind == "field"
    assert torch.equal(found.x.flip(2), torch.from_numpy(found.conditions["input"].values))
    assert found.notes[-1] == "24 pairs by name; without a partner: 0 and 1."
    turned = sf.data.paired(sf.data.open(folders / "a"), sf.data.open(folders / "b"), "name")
    assert len(turned) == len(turned.ids) == len(turned.groups) == 24


def test_rows_are_pairs_and_sets_without_pairs_are_repeated():
    x, sources = (sf.data.open(np.random.default_rng(i).normal(size=(30 + 20 * i, 3))) for i in range(2))
    with pytest.raises(sf.SfumatoError, match="by row, each needs its source"):
        sf.data.paired(x, sources, "row")
    assert torch.equal(torch.from_numpy(sf.data.paired(x, x, "row").conditions["input"].values), x.x)
    loose = sf.data.paired(x, sources)
    assert len(loose) == 50 and torch.equal(loose.x[30:], x.x[:20])
    assert loose.conditions["input"].kind == "vector"
    with pytest.raises(sf.SfumatoError, match="paired by name or row"):
        sf.data.paired(x, sources, "nmae")


def test_what_cannot_be_a_pair_is_said(folders):
    square, other = sf.data.open(np.zeros((20, 4))), sf.data.open(np.zeros((20, 5)))
    with pytest.raises(sf.SfumatoError, match="a pair needs the same"):
        sf.data.paired(square, other)
    with pytest.raises(sf.SfumatoError, match="are no files and have no names: pair them by row"):
        sf.data.paired(square, square, "name")
    with pytest.raises(sf.SfumatoError, match="no files and have no names"):
        sf.data.paired(sf.data.open(folders / "a"), sf.data.open(np.zeros((25, 3, 8, 8))), "name")
    (folders / "c").mkdir()
    for i in range(20):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(folders / "c" / f"x{i}.png")
    with pytest.raises(sf.SfumatoError, match="name both alike"):
        sf.data.paired(sf.data.open(folders / "a"), sf.data.open(folders / "c"), "name")
    with pytest.raises(sf.SfumatoError, match="pairs says how"):
        sf.train(folders / "a", folders / "run", pairs="row")
    with pytest.raises(sf.SfumatoError, match="starts from the condition 'input'"):
        sf.train(np.zeros((20, 4)), folders / "run", process="bridge", steps=1)


def run(*words):
    assert main([str(word) for word in words]) == 0


def test_pictures_are_paired_trained_on_and_translated_from_the_shell(folders, capsys):
    out = folders / "run"
    run(
        "train",
        "--from",
        folders / "a",
        "--to",
        folders / "b",
        "--pairs",
        "name",
        "-o",
        out,
        "--steps",
        2,
        "--net=tiny",
    )
    model = sf.load(out)
    assert isinstance(model.process, Bridge)
    run("translate", out, folders / "a" / "3.png", "-o", folders / "out.png", "--steps", 2)
    assert Image.open(folders / "out.png").size == (8, 8)
    capsys.readouterr()
    run("translate", out, folders / "a", "-o", folders / "out.npz", "--steps", 2, "--json")
    facts = json.loads(capsys.readouterr().out)
    assert facts["manifest"]["number"] == 25
    made = np.load(folders / "out.npz")
    assert made["x"].shape == (25, 3, 8, 8)
    assert sorted(made["input"].sum((1, 2, 3))) == pytest.approx(
        sorted(sf.data.open(folders / "a").x.double().sum((1, 2, 3)).tolist()), rel=1e-5
    )
    resumed = sf.resume(out, steps=3)
    assert resumed.config.sources == str(folders / "a")


def test_models_of_pairs_are_judged_with_their_sources(tmp_path, capsys):
    """Those of the run, or of other data by --from and --pairs."""
    rng = np.random.default_rng(0)
    sources = rng.normal(size=(200, 2)).astype("float32")
    for name, x in (("a", sources), ("b", sources + 3), ("c", sources[::-1] + 3)):
        np.save(tmp_path / f"{name}.npy", x)
    a, c, short = tmp_path / "a.npy", tmp_path / "c.npy", ("--steps", 20, "--net=tiny", "--holdout", 0.2)
    for name, how in (("flow", ()), ("bridge", ("--pairs", "row"))):
        run("train", tmp_path / "b.npy", "--from", a, "-o", tmp_path / name, *short, *how)
        of_pairs = ("--from", a, *how, "--json")
        capsys.readouterr()
        for reference in ((), ("--reference", c, "--from", a, *how)):
            run("evaluate", tmp_path / name, *reference, "--metric", "energy", "-n", 30, "--steps", 2, "--json")
            protocol = json.loads(capsys.readouterr().out)["metrics"]["energy"]["protocol"]
            assert protocol["conditions"] == ["input"] and protocol["part"] == ("all" if reference else "train")
        run("memorization", tmp_path / name, "--holdout", c, "-n", 20, "--steps", 2, "--json")
        assert json.loads(capsys.readouterr().out)["holdout"] == 200
        assert main(["evaluate", str(tmp_path / name), "--reference", str(c), "-n", "30"]) == 2
        assert "the data that hold it (--from)" in capsys.readouterr().err
        words = ["audit", tmp_path / name, "-n", 16, "--bins", 2]
        if name == "flow":
            assert main([*map(str, words)]) == 2 and "its network does not hear" in capsys.readouterr().err
            continue
        run(*words, "--json")
        found = json.loads(capsys.readouterr().out)["audits"]
        run(*words, "--data", c, *of_pairs)
        assert json.loads(capsys.readouterr().out)["audits"].keys() == found.keys()
    run("likelihood", tmp_path / "bridge", a, "--from", c, "--pairs", "row", "-n", 4, "--steps", 4, "--json")
    assert json.loads(capsys.readouterr().out)["samples"] == 4
    assert main(["audit", str(tmp_path / "bridge"), "--data", str(c), "--pairs", "row"]) == 2
    assert "give these, --from DATA" in capsys.readouterr().err


def test_arrays_without_pairs_are_coupled_and_their_translations_are_pairs(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name, shift in (("a", 0.0), ("b", 3.0)):
        np.save(tmp_path / f"{name}.npy", (rng.normal(size=(60, 2)) + shift).astype("float32"))
    out = tmp_path / "run"
    run("train", tmp_path / "b.npy", "--from", tmp_path / "a.npy", "-o", out, "--steps", 2, "--net=tiny")
    assert isinstance(sf.load(out).process, RectifiedFlow)
    run("translate", out, tmp_path / "a.npy", "-o", tmp_path / "pairs.npz", "--steps", 3)
    again = sf.train(tmp_path / "pairs.npz", tmp_path / "again", process="rectified-flow", net="tiny", steps=2)
    assert again.config.times == "uniform"  # so that what is guessed from a source alone is learned
    found = sf.data.open(tmp_path / "pairs.npz")
    assert len(found) == 60 and found.conditions["input"].values.shape == (60, 2)
    assert sf.sample(again.denoiser, 3, 1, input=found.conditions["input"].values[:3]).shape == (3, 2)
    assert main(["translate", str(out), str(tmp_path / "a.npy"), "-o", str(tmp_path / "x.txt")]) == 2
    sf.train(np.load(tmp_path / "b.npy"), tmp_path / "plain", net="tiny", steps=1)
    capsys.readouterr()
    assert main(["translate", str(tmp_path / "plain"), str(tmp_path / "a.npy")]) == 2
    assert "has no source to translate" in capsys.readouterr().err
