"""Coupling flows: invertible, with the determinant of their Jacobian, trained by the loop, measured and sampled."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import sfumato as sf
from sfumato import CouplingFlow
from sfumato.cli import main
from sfumato.nets import Couplings

TRUTH = sf.exact.GaussianMixture([0.6, 0.4], torch.tensor([[-1.0, 0.3], [0.8, -0.5]]), 0.15)


def moved(dim, **more):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Couplings(dim, layers=4, width=16, **more).double()
        for each in net.parameters():
            torch.nn.init.normal_(each, std=0.2)
    return net


@pytest.mark.parametrize("dim", [2, 5])
def test_the_inverse_and_the_determinant(dim):
    net = moved(dim, classes=3)
    x, label = torch.randn(4, dim, dtype=torch.float64), torch.tensor([0, 2, -1, 1])
    z, change = net(x, label)
    assert torch.allclose(net.inverse(z, label), x, atol=1e-10)
    for i in range(4):
        jacobian = torch.func.jacrev(lambda v, i=i: net(v[None], label[i : i + 1])[0][0])(x[i])
        assert float(torch.linalg.slogdet(jacobian)[1].detach()) == pytest.approx(float(change[i].detach()), abs=1e-10)
    assert float((z - x).abs().min()) > 0  # every number is moved by some layer
    fresh = Couplings(dim)
    assert torch.equal(fresh(x.float())[0], x.float())


def test_the_density_integrates_to_one_and_is_that_of_the_samples():
    model = CouplingFlow(moved(2))
    grid = torch.linspace(-9, 9, 240, dtype=torch.float64)
    x = torch.cartesian_prod(grid, grid)
    p = sf.log_prob(model, x).value.exp() * (grid[1] - grid[0]) ** 2
    assert float(p.sum()) == pytest.approx(1, abs=1e-3)
    drawn = sf.sample(model, 20_000, seed=3)
    assert torch.equal(drawn, model.sample(20_000, seed=3))
    assert torch.allclose(drawn.double().mean(0), (p[:, None] * x).sum(0), atol=0.05)
    assert torch.allclose(sf.sample(model, seed=3, index=[7, 1, 2], batch=2)[0], drawn[7], atol=1e-12)


def test_a_run_trains_one_and_it_is_measured_in_user_units(tmp_path):
    label = torch.arange(2000) % 2
    x = 30 + 10 * (TRUTH.sample(2000, 5).float() + 2 * label[:, None])
    run = sf.train(
        x.numpy(), tmp_path / "run", loss="coupling-flow", net="Couplings(layers=4, width=24)", steps=150, batch=128,
        lr=0.005, labels=label.numpy(), sample_every=0, snapshots=0, precision="float32", optimizer="adamw",
    )  # fmt: skip
    model = sf.load(run.path)
    fresh = TRUTH.sample(400, 9)
    best = float(TRUTH.log_prob(fresh).mean()) - 2 * torch.tensor(10.0).log()
    for k in (0, 1):
        user = (30 + 10 * (fresh + 2 * k)).float()
        found = sf.log_prob(model, user, label=k)
        assert best - 0.4 < float(found.value.mean()) < best + 0.1
        drawn = sf.sample(model, 2000, label=k).double()
        plain = sf.sample(model, 3, label=k, normalised=True)
        assert torch.allclose(plain, model.spec.normalise(drawn[:3].float()), atol=1e-4)
        assert torch.allclose(drawn.mean(0), user.double().mean(0), atol=2.5)
    assert "coupling flow" in found.method


def test_commands_judge_one_by_its_samples_and_its_likelihood(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    x = TRUTH.sample(400, 5).float()
    np.save("x.npy", x.numpy())
    sf.train(
        "x.npy", "run", loss="coupling-flow", net="Couplings(layers=4, width=24)", steps=60, batch=128, lr=0.005,
        sample_every=0, snapshots=0, precision="float32", optimizer="adamw",
    )  # fmt: skip
    model = sf.load("run")
    kept = json.loads(Path("run/report.json").read_text())  # the end of its training compares its samples
    assert kept["memorisation"]["samples"] >= 16 and kept["memorisation"]["verdict"] == "none", kept["memorisation"]
    found = sf.metrics.evaluate("run", "x.npy", ["energy"], n=100)["energy"]
    assert found.protocol["sampler"] == "coupling flow" and found.protocol["calls"] == 1
    untrained = sf.metrics.evaluate(CouplingFlow(Couplings(2), model.spec), "x.npy", ["energy"], n=100)["energy"]
    assert found.value < untrained.value
    judged = sf.memorization("run", "x.npy", samples=40)
    assert judged.samples == 40 and judged.exact == 0
    copies = CouplingFlow(Copies(model.spec.normalise(x)), model.spec)
    copies.provenance = dict(model.provenance)
    assert sf.memorization(copies, "x.npy", samples=40).verdict == "memorised"
    for words in (("evaluate", "run", "--metric", "energy", "-n", "50"), ("memorization", "run", "-n", "40")):
        assert main(list(words)) == 0
    assert main(["likelihood", "run", "x.npy", "-n", "20"]) == 0
    with pytest.raises(sf.SfumatoError, match="one call"):
        sf.metrics.evaluate("run", "x.npy", ["energy"], n=100, steps=5)
    capsys.readouterr()
    for words in (["likelihood", "run", "x.npy", "-n", "20"], ["memorization", "run", "-n", "40"]):
        assert main([*words, "--steps", "7"]) == 2 and "in one call" in capsys.readouterr().err


class Copies(torch.nn.Module):
    """A flow whose samples are data."""

    def __init__(self, x):
        super().__init__()
        self.x, self.shape = torch.nn.Parameter(x), (2,)

    def inverse(self, z):
        return self.x[(z[:, 0].double().sigmoid() * len(self.x)).long()]


def test_mistakes_are_said(tmp_path):
    model = CouplingFlow(Couplings(2))
    wrong = {
        "exact log p": lambda: sf.log_prob(model, torch.zeros(1, 2), method="elbo"),
        "in one call": lambda: sf.sample(model, 2, solver="ddim"),
        "invertible network": lambda: CouplingFlow(sf.nets.MLP(2, 8, 1)),
        "vectors of 2 numbers": lambda: Couplings(1),
        "no attention|labels, numbers": lambda: Couplings(2, conditions={"c": {"kind": "tokens", "size": 2}}),
        "leave model out": lambda: sf.train(
            torch.randn(64, 2).numpy(),
            tmp_path / "a",
            loss="coupling-flow",
            model=sf.Denoiser(sf.nets.MLP(2, 8, 1), sf.Gaussian("flow")),
        ),
    }
    for words, call in wrong.items():
        with pytest.raises(sf.SfumatoError, match=words):
            call()
