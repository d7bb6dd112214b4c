"""Symbols, and numbers with symbols beside them, from an array to samples by the commands of everyone."""

import json

import numpy as np
import pytest
import torch

import sfumato as sf
from sfumato.exact import Table

TABLE = Table(torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64) ** 3)


@pytest.fixture
def symbols(tmp_path):
    path = tmp_path / "symbols.npy"
    np.save(path, TABLE.sample(1500).numpy().astype(np.uint8))
    return path


@pytest.mark.parametrize(
    "process", ["masked", "uniform(states=4)", "hybrid(share=0.5)", "ladder", "counts", "embedded"]
)
def test_symbols_are_trained_sampled_and_measured(call, symbols, tmp_path, process):
    run = tmp_path / "run"
    common = ["--net", "tiny", "--batch", "128", "--precision", "float32", "--loss", "denoising"]
    status, out, err = call("train", symbols, "-o", run, "--process", process, "--steps", "40", *common)
    assert status == 0, err
    model = sf.load(run)
    states = 4 if "4" in process else 3
    assert model.process.states == states and type(model.process).__name__.lower() == process.partition("(")[0]
    status, out, err = call("sample", run, "-n", "40", "-o", tmp_path / "x.npy")
    drawn = np.load(tmp_path / "x.npy")
    assert status == 0 and drawn.dtype == np.uint8 and drawn.shape == (40, 3) and drawn.max() < states
    status, out, err = call("likelihood", run, symbols, "-n", "8", "--steps", "16", "--json")
    found = json.loads(out)
    assert status == 0 and found["bound"] and -12 < found["nats"] < 0 and found["bits_per_dim"] > 0
    status, out, err = call("resume", run, "--steps", "45")
    assert status == 0, err
    status, out, err = call("explain-objective", run)
    what = "schedule Flow, target" if process == "embedded" else "the loss is the bound on -log p(x)"
    assert status == 0 and what in out
    assert call("explain-objective", run / "model.safetensors") == (status, out, err)
    status, out, err = call("doctor", run)
    assert status == 0 and "of 23 checks could be made" in out
    status, out, err = call("info", run)
    assert f"which of {states} symbols each is under the Flow schedule" in out


def test_strings_of_any_length_are_trained_sampled_and_measured(call, tmp_path):
    law = sf.exact.Strings({(): 0.1, (0,): 0.2, (1, 0, 1): 0.4, (0, 0): 0.3}, 2)
    data, run = tmp_path / "strings.npy", tmp_path / "run"
    np.save(data, law.sample(1200).numpy().astype(np.uint8))
    common = ["--net", "tiny", "--batch", "128", "--precision", "float32"]
    status, out, err = call("train", data, "-o", run, "--process", "deletion", "--steps", "40", *common)
    assert status == 0, err
    status, out, err = call("sample", run, "-n", "40", "-o", tmp_path / "x.npy")
    drawn = torch.from_numpy(np.load(tmp_path / "x.npy"))
    assert status == 0 and drawn.dtype == torch.uint8 and sf.load(run).process.data(drawn).shape == (40, 3), err
    status, out, err = call("likelihood", run, data, "-n", "8", "--steps", "16", "--json")
    assert status == 0 and -12 < json.loads(out)["nats"] < 0, err
    status, out, err = call("info", run)
    assert "which of 2 symbols are missing in each gap under the Flow schedule" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tune", "RUN", "--steps", "3"], "there is nothing to tune"),
        (["sample", "RUN", "--solver", "heun"], "cannot sample the states of Masked"),
        (["likelihood", "RUN", "DATA", "--method", "ode"], "use method='elbo'"),
        (["explain-objective", "RUN", "--times", "uniform", "--weight", "plain"], "add --loss"),
        (["train", "DATA", "--process", "product", "--steps", "3"], "needs the argument 'processes'"),
        (["train", "DATA", "--process", "masked(states=2)", "--steps", "3"], "integers from 0 to 1"),
        (
            ["train", "DATA", "--loss", "masked", "--times", "uniform", "--steps", "3"],
            "takes no times: leave times out",
        ),
        (
            ["train", "DATA", "--loss", "sundae", "--weight", "elbo", "--steps", "3"],
            "takes no weight: leave weight out",
        ),
        (["train", "DATA", "--loss", "sundae", "--times", "adaptive", "--steps", "3"], "would change with one that"),
    ],
)
def test_what_has_no_answer_is_one_sentence(call, symbols, tmp_path, words, said):
    run = tmp_path / "run"
    torch.manual_seed(0)
    spec = sf.data.DataSpec.fit(sf.data.open(np.load(symbols)))
    model = sf.Denoiser(sf.nets.MLP(9, 8, 1), sf.Masked(sf.schedules.Flow(), 3), spec=spec)
    run.mkdir()
    sf.save(model, run / "model.safetensors")
    places = {"RUN": run, "DATA": symbols}
    status, out, err = call(
        *(places.get(word, word) for word in words), *(["-o", tmp_path / "o"] if words[0] == "train" else [])
    )
    assert status == 2 and said in err and len(err.strip().splitlines()) == 1, err


def test_masks_are_revealed_in_an_order_by_name(call, symbols, tmp_path):
    torch.manual_seed(0)
    spec = sf.data.DataSpec.fit(sf.data.open(np.load(symbols)))
    sf.save(
        sf.Denoiser(sf.nets.MLP(9, 8, 1), sf.Masked(sf.schedules.Flow(), 3), spec=spec), tmp_path / "model.safetensors"
    )
    words = ["--solver", "reveal", "--solver.order", "confidence", "--steps", "3", "-o", tmp_path / "x.npy"]
    status, _, err = call("sample", tmp_path / "model.safetensors", "-n", "5", *words)
    assert status == 0 and np.load(tmp_path / "x.npy").max() < 3, err


def test_a_product_is_trained_from_python_and_sampled_by_the_command(call, tmp_path):
    law = sf.exact.Labelled(sf.exact.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.3]))
    joint = law.sample(800)
    x = torch.cat((100 + 10 * joint["x"], joint["label"].double()), 1).numpy()  # in units of its own
    flow = sf.schedules.Flow()
    process = sf.Product({"x": sf.Gaussian(flow), "label": sf.Masked(flow, 2)})
    torch.manual_seed(0)
    model = sf.Denoiser(sf.nets.MLP(process.net_shape()[0], 32, 2), process)
    run = sf.train(x, tmp_path / "run", init=model, steps=60, batch=64, precision="float32")
    assert run.denoiser.spec.normaliser.std[1] == 1.0 and run.denoiser.spec.normaliser.std[0] > 5
    status, out, err = call("sample", tmp_path / "run", "-n", "30", "-o", tmp_path / "x.npy")
    drawn = np.load(tmp_path / "x.npy")
    assert status == 0 and drawn.shape == (30, 2) and set(drawn[:, 1]) <= {0.0, 1.0} and 50 < drawn[:, 0].mean() < 150
    status, out, err = call("info", tmp_path / "run")
    assert "of 'x' v under the Flow schedule" in out and "of 'label' which of 2 symbols each is" in out
