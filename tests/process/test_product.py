"""A number and a category with a known joint law, corrupted together: beliefs, losses, samples and the bound."""

import math

import pytest
import torch
from scipy import stats

import sfumato as sf
from sfumato import noise, schedules
from sfumato.belief import Beliefs
from sfumato.noise import Noise
from sfumato.process import Embedded, Gaussian, Masked, Product, Uniform
from sfumato.process import from_config as process_from
from sfumato.training import TrainConfig, fit

F64 = torch.float64
TRUTH = sf.exact.GaussianMixture([0.5, 0.3, 0.2], [[-1.0], [0.5], [2.0]], [0.1, 0.3, 0.05])
LAW = sf.exact.Labelled(TRUTH)
FLOW, COSINE = schedules.Flow(), schedules.Cosine()
PROCESSES = {
    "masked": Product({"x": Gaussian(FLOW), "label": Masked(FLOW, 3)}),
    "uniform": Product({"x": Gaussian(COSINE), "label": Uniform(FLOW, 3)}),
    "label first": Product({"label": Masked(COSINE, 3), "x": Gaussian(FLOW)}),
    "embedded": Product({"x": Gaussian(FLOW), "label": Embedded(FLOW, 3)}),
}


def test_the_belief_is_bayes_rule_over_both_parts() -> None:
    """By a fine grid of x and all labels, from the words alone."""
    process, t = PROCESSES["masked"], 0.55
    z = {"x": torch.tensor([[0.1], [-0.4], [0.9]], dtype=F64), "label": torch.tensor([[3], [1], [3]])}
    belief = LAW.denoiser(process)(z, t)
    grid = torch.linspace(-4, 4, 20001, dtype=F64)
    alpha, sigma = (float(v) for v in FLOW(t))
    for row in range(3):
        noisy = torch.exp(-((z["x"][row] - alpha * grid) ** 2) / (2 * sigma**2))
        joint = torch.stack([
            LAW.log_prob({"x": grid[:, None], "label": torch.full((len(grid), 1), k)}).exp() * noisy for k in range(3)
        ])  # fmt: skip
        seen = int(z["label"][row])
        if seen != 3:
            joint = joint * (torch.arange(3) == seen)[:, None]
        joint = joint / joint.sum()
        assert torch.allclose(belief["label"].prob[row, 0], joint.sum(1), atol=1e-6), row
        assert float(belief["x"].x[row]) == pytest.approx(float((joint.sum(0) * grid).sum()), abs=1e-5), row


@pytest.mark.parametrize("name", PROCESSES)
def test_log_prob_of_the_exact_belief_is_that_of_the_joint_law(name: str) -> None:
    x = LAW.sample(24, seed=3)
    found = sf.log_prob(LAW.denoiser(PROCESSES[name]), x, steps=96, probes=24, seed=1)
    wanted = LAW.log_prob(x)
    apart = found.value - wanted
    assert bool((apart.abs() < 4.5 * found.stderr + 0.02).all()), (apart, found.stderr)
    assert abs(float(apart.mean())) < 4 * float(found.stderr.square().mean().sqrt()) / math.sqrt(24) + 0.01
    assert float(found.stderr.mean()) < 0.3


@pytest.mark.parametrize("name", PROCESSES)
def test_samples_have_the_joint_law(name: str) -> None:
    n = 4000
    drawn = sf.sample(LAW.denoiser(PROCESSES[name]), n, steps=80, seed=2, batch=n)
    label, x = drawn["label"][:, 0], drawn["x"][:, 0]
    counts = torch.bincount(label, minlength=3)
    assert stats.chisquare(counts.numpy(), n * torch.tensor([0.5, 0.3, 0.2], dtype=F64).numpy()).pvalue > 1e-3
    for k, (mean, std) in enumerate([(-1.0, math.sqrt(0.1)), (0.5, math.sqrt(0.3)), (2.0, math.sqrt(0.05))]):
        own = x[label == k]
        assert abs(float(own.mean()) - mean) < 4.5 * std / math.sqrt(len(own)) + 0.02, k
        assert abs(float(own.std()) / std - 1) < 0.12, k
    again = sf.sample(LAW.denoiser(PROCESSES[name]), 10, steps=80, seed=2, batch=3)
    assert torch.equal(again["label"], drawn["label"][:10]) and torch.allclose(again["x"], drawn["x"][:10])


def test_every_part_has_noise_of_its_own_and_its_own_loss() -> None:
    process, x = PROCESSES["masked"], LAW.sample(3000, seed=1)
    source = Noise(4, torch.arange(3000), noise.TRAIN_NOISE)
    z = process.corrupt(x, 0.5, source)
    eps = (z["x"] - 0.5 * x["x"]) / 0.5
    hidden = (z["label"] == 3).double()
    assert abs(float((eps * (hidden - hidden.mean())).mean())) < 4 / math.sqrt(3000)
    model = LAW.denoiser(process)
    t = torch.full((3000,), 0.5, dtype=F64)
    whole = sf.denoising_loss(model, x, t, weight=sf.weights.elbo(), seed=4)
    belief, times = model(z, t), sf.times.uniform()
    parts = [
        process.processes[name].loss(belief[name], x[name], source.fold(name), sf.weights.elbo(), times)
        for name in ("x", "label")
    ]
    # each clock cuts t where its own level is 15, which moves the uniform density by a thousandth
    assert torch.allclose(whole, parts[0] + parts[1], rtol=2e-3) and bool((parts[1] > 0).any())


@pytest.mark.first(1)
@pytest.mark.parametrize("name", ["masked", "embedded"])
def test_a_table_of_numbers_and_symbols_trains_and_samples(name: str) -> None:
    """fit on (N, 2): a network learns the joint law, its bound comes near the entropy, and samples are a table."""
    process = PROCESSES[name]
    if name == "embedded":  # as many numbers as symbols, so that the network has as many outputs as inputs
        process = Product({"x": Gaussian(FLOW), "label": Embedded(FLOW, 3, "simplex")})
    torch.manual_seed(0)
    net = sf.nets.MLP(process.net_shape()[0], width=64, depth=2)
    model = sf.Denoiser(net, process)
    assert process.net_shape() == (4,) and model.shape == {"x": (1,), "label": (1,)}
    x = process.table(LAW.sample(4000)).float()
    config = TrainConfig(steps=500, batch=256, precision="float32", lr=5e-3, ema=0.0, weight="elbo")
    for _ in fit(model, x, config):
        pass
    held = LAW.sample(300, seed=9)
    reached = float(sf.log_prob(model.eval(), held, steps=32, probes=8).value.mean())
    truth = float(LAW.log_prob(held).mean())
    assert truth - 0.35 < reached < truth + 0.1, (reached, truth)
    drawn = sf.sample(model, 2000, steps=60, batch=2000)
    counts = torch.bincount(drawn["label"][:, 0], minlength=3).double() / 2000
    assert float((counts - torch.tensor([0.5, 0.3, 0.2])).abs().max()) < 0.08


def test_it_is_described_and_mistakes_are_said() -> None:
    process = PROCESSES["label first"]
    again = process_from(process.config())
    assert again == process and again.clock == process.clock
    assert process_from(PROCESSES["embedded"].config()) == PROCESSES["embedded"]
    with pytest.raises(sf.SfumatoError, match="needs 4 outputs"):
        process.read(torch.zeros(2, 3), process.data(torch.zeros(2, 2)), 0.5)
    with pytest.raises(sf.SfumatoError, match="need 2 columns along the first axis"):
        process.data(torch.zeros(2, 3))
    with pytest.raises(sf.SfumatoError, match="integers from 0 to 2"):
        process.data(torch.full((2, 2), 0.5))
    with pytest.raises(sf.SfumatoError, match="at least one part"):
        Product({})
    with pytest.raises(sf.SfumatoError, match="no single schedule"):
        sf.Rescheduled(LAW.denoiser(process), FLOW)
    belief = LAW.denoiser(process)(process.data(torch.tensor([[0.0, 0.3], [2.0, 1.0]])), 0.5)
    assert isinstance(belief, Beliefs) and belief.rows(slice(1, 2))["x"].x.shape == (1, 1)


def test_parts_are_checked_and_a_network_of_float64_serves() -> None:
    with pytest.raises(sf.SfumatoError, match="cannot be read at zero signal"):
        sf.Denoiser(sf.nets.MLP(4, 8, 1), Product({"x": Gaussian(FLOW, "eps"), "label": Masked(FLOW, 3)}))
    with pytest.raises(sf.SfumatoError, match="not a process of numbers or symbols"):
        Product({"x": PROCESSES["masked"]})
    with pytest.raises(sf.SfumatoError, match="has learned vectors"):
        Product({"word": Embedded(FLOW, 3, "learned", 4)})
    model = sf.Denoiser(torch.nn.Linear(4, 4).double(), PROCESSES["masked"])
    model.net.forward = lambda x, level: torch.nn.functional.linear(x, model.net.weight)
    assert sf.sample(model, 2, steps=2)["x"].shape == (2, 1)
