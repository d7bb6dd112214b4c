"""Files of format 1, written by version 0.1.0, load, say what they said and give the samples they gave."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import sfumato as sf
from sfumato import serialization

HERE = Path(__file__).parent / "fixtures"
Z = torch.linspace(-2, 2, 15).reshape(3, 5)


def samples() -> dict[str, torch.Tensor]:
    """What is drawn from each file; `v1_samples.safetensors` holds what the code that wrote the files drew."""
    model, raw = (sf.load(HERE / "v1_classes.safetensors", weights) for weights in ("ema", "raw"))
    learned, energy = (sf.load(HERE / f"v1_{name}.safetensors") for name in ("learned_variance", "energy"))
    codec = sf.load(HERE / "v1_codec.safetensors")
    label = ["red", "green", "blue", "red"]
    return {
        "classes": sf.sample(model, 4, 6, solver=model.plans["6"], seed=3, label=label),
        "classes.raw": sf.sample(raw, 4, 5, seed=3, label="green"),
        "learned_variance": sf.sample(learned, 2, 6, solver=sf.solvers.LearnedDDPM(), seed=3),
        "energy": sf.sample(energy, 4, 5, seed=3),
        "codec": codec.encode(Z),
        "codec.back": codec.decode(codec.encode(Z)),
    }


def test_the_samples_are_what_they_were():
    wanted, found = load_file(HERE / "v1_samples.safetensors"), samples()
    assert wanted.keys() == found.keys()
    for name, value in wanted.items():
        assert torch.allclose(found[name].float(), value.float(), rtol=1e-6, atol=1e-6), name


@pytest.mark.parametrize("name", ["classes", "learned_variance", "energy"])
def test_a_file_says_what_it_is(name):
    words = "\n".join(serialization.describe(HERE / f"v1_{name}.safetensors"))
    said = {
        "classes": ["an MLP of", "predicts v under the Shifted schedule", "1,234 samples", "Solver plan '6'", "green"],
        "learned_variance": ["a UNet of", "predicts v and the variance of a step under the LinearBeta schedule"],
        "energy": ["an energy made of an MLP", "predicts F under the VE schedule", "format 1"],
    }
    for phrase in said[name]:
        assert phrase in words, (phrase, words)
