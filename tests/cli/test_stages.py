"""The commands on models of several stages: a cascade, and a latent model, of pictures in three classes."""

from pathlib import Path

import numpy as np
import pytest
import torch

import sfumato as sf
from consoles import Silent
from sfumato.coupling_flow import CouplingFlow

NET = "UNet(channels=(8, 8), blocks=1, attention=())"


@pytest.fixture(scope="session")
def staged(tmp_path_factory) -> Path:
    """A folder with data.npz, and runs of few steps on it: cascade (4 and 8 pixels) and latent."""
    folder, draw = tmp_path_factory.mktemp("staged"), np.random.default_rng(0)
    y = np.resize([0, 1, 2], 60)
    x = (80 * y[:, None, None, None] + draw.integers(0, 60, (60, 1, 8, 8))).astype(np.uint8)
    np.savez(folder / "data.npz", x=x, y=np.array(["ash", "elm", "oak"])[y])
    how = {"batch": 16, "sample_every": 0, "net": NET, "holdout": 0.2, "console": Silent()}
    sf.train(folder / "data.npz", folder / "cascade", cascade=(4, 8), steps=4, **how)
    coder = "Autoencoder(latent=2, channels=(8, 8))"
    sf.train(folder / "data.npz", folder / "latent", autoencoder=coder, steps=5, reconstruction=0, **how)
    return folder


def test_a_cascade_is_sampled_as_in_python(call, staged) -> None:
    status, said, _ = call("sample", staged / "cascade", "-n", 3, "--steps", 2, "--class", "oak", "--guidance", 2,
                           "--precision", "float32", "-o", "x.npy")  # fmt: skip
    assert status == 0 and "4 calls each" in said  # two of each stage
    model = sf.load(staged / "cascade")
    drawn = sf.sample(sf.guide(model, 2), 3, 2, label="oak").numpy()
    assert np.array_equal(np.load("x.npy"), drawn)
    small, large = sf.guide(model, 2).stages
    assert small.scale == large.scale == 2 and small.inner is model.stages[0]


def test_samples_of_a_cascade_are_measured(call, staged) -> None:
    for words in (["evaluate", "--metric", "marginals", "--guidance", 2], ["memorization"]):
        status, _, heard = call(words[0], staged / "cascade", "-n", 10, "--steps", 2, *words[1:])
        assert status == 0, heard


def test_what_asks_one_model_says_so_of_a_cascade(call, staged) -> None:
    data, cascade = staged / "data.npz", staged / "cascade"
    for words in (
        ["likelihood", cascade, data], ["tune", cascade, "--steps", 2], ["audit", cascade], ["views", cascade],
        ["distill", cascade], ["explain-guidance", cascade], ["explain-objective", cascade, "--data", data],
        ["doctor", cascade / "model.safetensors"],
    ):  # fmt: skip
        status, _, heard = call(*words)
        assert status == 2 and "Cascade" in heard and "stages[0]" in heard, words
    status, _, heard = call("sample", cascade, "--from", "x.png")
    assert status == 2 and "a cascade has 2" in heard


def test_the_last_stage_of_a_cascade_is_averaged(call, staged) -> None:
    status, _, heard = call("average", staged / "cascade", "--width", 0.07, "-o", "average.safetensors")
    assert status == 0, heard
    before, after = sf.load(staged / "cascade").stages, sf.load("average.safetensors").stages
    same = [all(a.equal(b) for a, b in zip(*(each.state_dict().values() for each in pair), strict=True))
            for pair in zip(before, after, strict=True)]  # fmt: skip
    assert same == [True, False]


def test_commands_read_pictures_for_a_latent_model(call, staged) -> None:
    data, latent = staged / "data.npz", staged / "latent"
    np.save("one.npy", np.load(data)["x"][0])
    for words in (
        ["sample", latent, "-n", 2, "--steps", 2, "--from", "one.npy", "-o", "varied.npy"],
        ["evaluate", latent, "-n", 10, "--steps", 2, "--metric", "marginals"],
        ["memorization", latent, "-n", 10, "--steps", 2],
        ["likelihood", latent, data, "-n", 2, "--method", "elbo", "--steps", 4],
    ):
        status, _, heard = call(*words)
        assert status == 0, (words, heard)
    assert np.load("varied.npy").shape == (2, 1, 8, 8)
    status, _, heard = call("likelihood", latent, data, "-n", 2)
    assert status == 2 and "elbo" in heard


def test_a_wrapper_computes_as_the_model_inside() -> None:
    inner = sf.Denoiser(sf.nets.build((1, 8, 8), 3, "tiny"), sf.Gaussian(sf.schedules.Flow()))
    guided = sf.guide(inner, 2.0)
    guided.compute_dtype = "bfloat16"
    assert inner.compute_dtype == guided.compute_dtype == "bfloat16"


def test_the_doctor_examines_a_latent_run_on_its_pictures(call, staged) -> None:
    status, said, heard = call("doctor", staged / "latent")
    assert status == 0 and "nothing found" in said, heard


def test_a_latent_model_is_not_trained_as_if_it_were_of_data(call, staged) -> None:
    data, latent = staged / "data.npz", staged / "latent"
    Path("mine.py").write_text("def mean(x):\n    return x.double().mean((1, 2, 3))\n")
    for words, said in (
        (["align", latent, "--reward", "mine.py:mean"], "not of codes"),
        (["distill", latent], "not of codes"),
        (["train", data, "--init", latent, "--latent"], "leave latent, autoencoder and cascade out"),
        (["train", data, "--init", latent, "--cascade", "4,8"], "leave latent, autoencoder and cascade out"),
        (["plan", data, "--cascade", "4,8"], "plan each with --size"),
    ):
        status, _, heard = call(*words)
        assert status == 2 and said in heard, (words, heard)


def test_a_coupling_flow_says_how_it_is_used(call) -> None:
    np.save("points.npy", np.random.default_rng(0).normal(size=(60, 2)))
    sf.save(CouplingFlow(sf.nets.Couplings(2)), "flow.safetensors")
    status, said, _ = call("plan", "points.npy", "--loss", "coupling-flow", "--steps", 5, "--snapshots", 0)
    assert status == 0 and "Couplings" in said
    status, said, _ = call("info", "flow.safetensors")
    assert status == 0 and "sf.sample(model, 64)" in said
    sf.save(CouplingFlow(sf.nets.Couplings(2), sf.data.DataSpec.fit(sf.data.open("points.npy"))), "flow.safetensors")
    status, said, _ = call("sample", "flow.safetensors", "-n", 5, "-o", "x.npy")
    assert status == 0 and "1 call each" in said
    assert np.array_equal(np.load("x.npy"), sf.sample(sf.load("flow.safetensors"), 5).numpy())
    for words, why in (
        (("--steps", 4), "in one call"),
        (("--guidance", 2), "a coupling flow has no guidance"),
        (("--inpaint", "points.npy"), "train a denoiser"),
    ):
        status, _, heard = call("sample", "flow.safetensors", *words)
        assert status == 2 and why in heard, words
    status, said, _ = call("likelihood", "flow.safetensors", "points.npy")
    assert status == 0 and "exact, coupling flow" in said
    status, _, heard = call("distill", "flow.safetensors")
    assert status == 2 and "sfumato info flow.safetensors" in heard


def test_a_student_of_captions_is_told_to_take_data(call) -> None:
    draw = np.random.default_rng(0)
    x = torch.from_numpy(draw.integers(0, 256, (40, 1, 4, 4), dtype=np.uint8))
    data = {"x": x, "caption": ["a dark one", "a light one"] * 20}
    sf.train(
        data,
        "captioned",
        steps=1,
        batch=8,
        net="DiT(width=16, depth=1, heads=2, patch=2)",
        sample_every=0,
        snapshots=0,
        console=Silent(),
    )
    status, _, heard = call("distill", "captioned", "--guidance", 2)
    assert status == 2 and "pass the training data, data= (--data)" in heard
    Path("mine.py").write_text("def mean(x):\n    return x.double().mean((1, 2, 3))\n")
    status, _, heard = call("align", "captioned", "--reward", "mine.py:mean")
    assert status == 2 and "align a model without it" in heard


def test_a_file_of_adapters_says_how_it_is_used(call, staged) -> None:
    data = str(staged / "data.npz")
    how = {"batch": 8, "sample_every": 0, "snapshots": 0, "console": Silent()}
    sf.train(data, "base", steps=1, net=NET, **how)
    sf.train(data, "adapted", init="base", lora=2, steps=1, **how)
    status, said, _ = call("info", "adapted/adapter.safetensors")
    assert status == 0 and "sfumato merge adapted/adapter.safetensors --base RUN" in said and "sf.sample" not in said


def test_an_autoencoder_of_one_picture_has_nothing_to_explain(call) -> None:
    np.save("one.npy", np.random.default_rng(0).integers(0, 256, (1, 1, 8, 8), dtype=np.uint8))
    status, _, heard = call("train", "one.npy", "--latent", "--autoencoder", "Autoencoder(latent=2, channels=(8, 8))",
                            "--steps", 2, "-o", "run")  # fmt: skip
    assert status == 2 and "all the same" in heard


@pytest.fixture(scope="session")
def captioned(tmp_path_factory) -> Path:
    """A folder with pictures of 8 pixels under captions, and runs of few steps on them: unclip, and a cascade."""
    folder, draw = tmp_path_factory.mktemp("captioned"), np.random.default_rng(0)
    side = draw.integers(0, 2, 60)
    x = draw.integers(0, 60, (60, 3, 8, 8), dtype=np.uint8)
    x[np.arange(60), side] += 150
    np.savez(folder / "data.npz", x=x, caption=np.array(["a red one", "a green one"])[side])
    np.save(folder / "one.npy", x[0])
    np.save(folder / "other.npy", x[1])
    np.save(folder / "small.npy", x[0].reshape(3, 4, 2, 4, 2).mean((2, 4)).round().astype(np.uint8))
    how = {"batch": 16, "sample_every": 0, "net": NET, "holdout": 0.2, "console": Silent(), "snapshots": 0}
    sf.train(folder / "data.npz", folder / "unclip", unclip=True, steps=4, **how)
    how |= {"net": "DiT(width=16, depth=1, heads=2, patch=2)"}  # which attends to words
    sf.train(folder / "data.npz", folder / "cascade", cascade=(4, 8), steps=4, **how)
    return folder


def test_an_unclip_pair_is_sampled_as_in_python(call, captioned) -> None:
    run, red, plain = (
        captioned / "unclip",
        ["--caption", "a red one"],
        ["-n", 3, "--steps", 2, "--precision", "float32", "-o", "x.npy"],
    )
    model, x = sf.load(run), torch.from_numpy(np.load(captioned / "one.npy"))
    status, said, heard = call("sample", run, *plain, *red, "--guidance", 2)
    assert status == 0 and "4 calls each" in said, heard  # two of each stage
    drawn = sf.sample(sf.guide(model, 2), 3, 2, caption="a red one").numpy()
    assert np.array_equal(np.load("x.npy"), drawn)
    status, _, heard = call("sample", run, *plain, "--variations", captioned / "one.npy")
    assert status == 0, heard
    assert np.array_equal(np.load("x.npy"), sf.variations(model, x, 3, steps=2).numpy())
    ends = [captioned / "one.npy", captioned / "other.npy"]
    status, _, heard = call("sample", run, *plain, "--interpolate", *ends)
    assert status == 0 and np.load("x.npy").shape == (3, 3, 8, 8), heard
    for words in (
        ["sample", run, *plain, *red, "--threshold", 0.9, "--negative", "a green one", "--guidance", 3],
        ["evaluate", run, "-n", 10, "--steps", 2, "--metric", "marginals"],
        ["memorization", run, "-n", 10, "--steps", 2],
        ["average", run / "prior", "--width", 0.07],
        ["info", run],
        ["doctor", run],  # the decoder, on pictures under their embeddings
        ["doctor", run / "prior"],
    ):  # fmt: skip
        status, said, heard = call(*words)
        assert status == (2 if words[0] == "average" else 0), (words, heard)  # which kept no snapshots
    for words, why in (
        (["sample", run, "--from", captioned / "one.npy"], "an unCLIP pair has 2"),
        (["sample", captioned / "cascade", "--variations", captioned / "one.npy"], "a cascade has 2"),
        (["sample", captioned / "cascade" / "size_4", "--variations", captioned / "one.npy"], "take --from"),
        (["likelihood", run, captioned / "data.npz"], "stages[0]"),
        (["plan", captioned / "data.npz", "--unclip"], "in two stages"),
        (["train", captioned / "data.npz", "--unclip", "--cascade", "4,8"], "take one of latent"),
    ):
        status, _, heard = call(*words)
        assert status == 2 and why in heard, (words, heard)


def test_a_cascade_of_captions_is_thresholded_and_enlarges_a_picture_of_ones_own(call, captioned) -> None:
    run, plain = captioned / "cascade", ["--steps", 2, "--precision", "float32", "-o", "x.npy"]
    status, said, heard = call("sample", run, *plain, "-n", 2, "--caption", "a red one", "--guidance", 3,
                               "--threshold", 0.9, "--negative", "a green one")  # fmt: skip
    assert status == 0 and "4 calls each" in said, heard
    model = sf.guide(sf.load(run), 3, negative={"caption": "a green one"})
    model = model.each_stage(lambda stage: sf.guidance.Thresholded(stage, 0.9))
    assert np.array_equal(np.load("x.npy"), sf.sample(model, 2, 2, caption="a red one").numpy())
    status, said, heard = call("sample", run, *plain, "-n", 2, "--upscale", captioned / "small.npy", "--caption", "red")
    assert status == 0 and "Not guided; --guidance sets a scale." in heard, heard
    small = torch.from_numpy(np.load(captioned / "small.npy"))
    assert np.array_equal(np.load("x.npy"), sf.sample(sf.load(run), 2, 2, low_resolution=small, caption="red").numpy())
    asked = ("-n", 2, "--upscale", captioned / "small.npy", "--caption", "reddish one", "--retrieval")
    status, _, heard = call("sample", run, *plain, *asked)
    assert status == 0 and "captions of training: 'reddish one' as 'a red one'" in heard, heard
    near = sf.sample(sf.load(run), 2, 2, low_resolution=small, caption="a red one")
    assert np.array_equal(np.load("x.npy"), near.numpy())
    status, _, heard = call("sample", run, *plain, "--upscale", captioned / "one.npy")
    assert status == 2 and "and the model enlarges pictures of 3 x 4 x 4: resize it" in heard


def test_a_pair_whose_prior_is_a_regression_is_trained_and_drawn_from(call, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    kind = draw.integers(0, 3, 40)
    x = (60 * kind[:, None, None, None] + draw.integers(0, 60, (40, 3, 8, 8))).astype(np.uint8)
    np.savez("data.npz", x=x, tint=np.eye(3)[kind])
    status, _, heard = call("train", "data.npz", "--unclip", "--prior", "regression", "--embedding", "numbers",
                            "--condition", "tint:vector", "--steps", 2, "--batch", 16, "--net", NET, "-o", "pair",
                            "--sample-every", 0)  # fmt: skip
    assert status == 0, heard
    tinted = ["--steps", 2, "--condition", "tint=1,0,0"]
    for words in (
        ["sample", "pair", *tinted, "--guidance", 2, "-n", 2, "-o", "x.npy"],
        ["info", "pair"],
        ["doctor", "pair"],
    ):
        status, said, heard = call(*words)
        assert status == 0, (words, heard)
    assert np.load("x.npy").shape == (2, 3, 8, 8)
