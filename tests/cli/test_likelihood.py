"""`likelihood`: figures of the library, in words, as JSON and in a file."""

import json

import numpy as np
import pytest

import sfumato as sf
from sfumato.cli.likelihood import _figure


def test_points_in_nats(call, models, workplace):
    x = 100 + np.random.default_rng(1).normal(size=(30, 2))
    np.save("x.npy", x)
    status, out, err = call("likelihood", models["points"], "x.npy", "--steps", 8, "-n", 20, "-o", "out.npz")
    assert status == 0 and err == ""
    assert "nats" in out and "float64" in out and "exact trace" in out and "bits" not in out
    with np.load("out.npz") as file:
        columns = dict(file)
    model = sf.load(models["points"])
    own = sf.log_prob(model, x[columns["index"]], steps=8, index=columns["index"])
    assert len(columns["value"]) == 20
    np.testing.assert_allclose(columns["value"], own.value.numpy(), rtol=0, atol=1e-4)
    facts = json.loads(call("likelihood", models["points"], "x.npy", "--steps", 8, "-n", 20, "--json")[1])
    assert facts["nats"] == pytest.approx(float(own.value.mean()), abs=1e-4) and facts["rms"]["stderr"] == 0


def test_the_least_noise_is_a_flag(call, models, workplace):
    np.save("x.npy", 100 + np.random.default_rng(1).normal(size=(4, 2)))
    words = ("likelihood", models["points"], "x.npy", "--steps", 8, "--sigma-min", 0.2, "--json")
    own = sf.log_prob(sf.load(models["points"]), np.load("x.npy"), steps=8, sigma_min=0.2)
    assert json.loads(call(*words)[1])["nats"] == pytest.approx(float(own.value.mean()), abs=1e-4)


def test_figures_have_two_digits_and_no_power_of_ten():
    assert [_figure(v) for v in (0.0, 0.01234, 4.7, 188.0, 91_734.0)] == ["0", "0.012", "4.7", "190", "92,000"]


def test_images_in_bits_under_their_classes(call, models, workplace):
    x = np.random.default_rng(2).integers(0, 256, (6, 1, 8, 8), dtype=np.uint8)
    np.savez("set.npz", x=x, labels=np.resize([3, 5], 6))
    words = ("likelihood", models["images"], "set.npz", "--steps", 4, "--trace", "rademacher", "--probes", 2)
    status, out, err = call(*words)
    assert status == 0 and "bits per dimension" in out and "uniform" in out
    assert err == "Not conditioned on label; --conditional takes each sample under its own.\n"
    assert "Not conditioned" not in call(*words, "--conditional")[2] + call(*words, "--class", 9)[2]
    plain, classes, one = (
        json.loads(call(*words, "--json", *more)[1]) for more in ((), ("--conditional",), ("--class", "9"))
    )
    assert plain["dequantisation"] == "uniform" and 4 < plain["bits_per_dim"] < 20
    assert plain["bits_per_dim"] == pytest.approx(-plain["nats"] / 64 / np.log(2), abs=1e-6)
    assert classes["samples"] == one["samples"] == 6


def test_mistakes(refused, models, workplace):
    np.save("other.npy", np.ones((5, 3)))
    np.save("x.npy", 100 + np.random.default_rng(1).normal(size=(9, 2)))
    assert "shape" in refused("likelihood", models["points"], "other.npy")
    assert "even" in refused("likelihood", models["points"], "x.npy", "--steps", 5)
    assert "-n" in refused("likelihood", models["points"], "x.npy", "-n", 0)
    assert ".npz" in refused("likelihood", models["points"], "x.npy", "-o", "out.csv")
    assert "classes" in refused("likelihood", models["points"], "x.npy", "--conditional")


def test_bounds_with_their_terms(call, models, workplace):
    x = np.random.default_rng(2).integers(0, 256, (6, 1, 8, 8), dtype=np.uint8)
    np.save("set.npy", x)
    words = ("likelihood", models["images"], "set.npy", "--steps", 4, "--probes", 2)
    status, out, err = call(*words, "--method", "elbo", "-o", "out.npz")
    assert status == 0 and err == ""
    assert ">=" in out and "discretised decoder" in out and "the prior's term" in out and "half the steps" not in out
    facts = json.loads(call(*words, "--method", "elbo", "--json")[1])
    assert facts["bound"] and facts["dequantisation"] == "discretised"
    assert facts["bits_per_dim"] == pytest.approx(-facts["nats"] / 64 / np.log(2), abs=1e-6)
    with np.load("out.npz") as file:
        columns = dict(file)
    total = columns["prior"] + columns["diffusion"] + columns["reconstruction"]
    np.testing.assert_allclose(columns["value"], -total, rtol=1e-12)
    np.testing.assert_allclose(columns["by_level"].sum(1), columns["diffusion"], rtol=1e-12)
    np.testing.assert_allclose(np.mean(columns["by_level"], 0), facts["levels"]["nats"], rtol=1e-5)
    noisy = json.loads(call(*words, "--method", "elbo", "--dequantisation", "uniform", "--json")[1])
    assert noisy["dequantisation"] == "uniform" and noisy["nats"] != facts["nats"]
    many = json.loads(call(*words, "--method", "importance", "--particles", 3, "--json")[1])
    assert "3 trajectories" in many["method"] and many["bound"] and "levels" not in many


def test_a_probability_of_cells_is_a_bounds(refused, models, workplace):
    np.save("set.npy", np.random.default_rng(2).integers(0, 256, (2, 1, 8, 8), dtype=np.uint8))
    assert "uniform" in refused("likelihood", models["images"], "set.npy", "--dequantisation", "discretised")


def test_a_model_without_units_is_refused(refused, workplace):
    np.save("x.npy", np.zeros((20, 2)))
    sf.save(sf.Denoiser(sf.nets.MLP(2, 8, 1), sf.Gaussian("flow"), "v", 1.0), "bare.safetensors")
    assert "bare.safetensors has no data spec, so its samples have no units" in refused(
        "likelihood", "bare.safetensors", "x.npy"
    )
