"""Maximum likelihood through the ODE: the likelihood of exact models, its gradient both ways, and what it learns."""

import pytest
import torch

import sfumato as sf
from sfumato.conditions import Conditions
from sfumato.objectives.loss import Batch
from sfumato.objectives.max_likelihood import MaximumLikelihood

pytest.importorskip("torchdiffeq")
FLOW = sf.Gaussian(sf.schedules.Flow(), "velocity")
TRUTH = sf.exact.GaussianMixture([0.6, 0.4], torch.tensor([[-1.0, 0.3], [0.8, -0.5]]), 0.15)


def batch(x, label=None):
    cond = Conditions({}) if label is None else Conditions.of({"label": label})
    return Batch(x, cond, torch.arange(len(x)), torch.rand(len(x)))


class Still(torch.nn.Sequential):
    """A velocity that does not hear the level, and so is as smooth in time as Runge-Kutta's order needs."""

    def forward(self, x, level):
        return super().forward(x)


def network(seed=0, dim=2):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Still(torch.nn.Linear(dim, 16), torch.nn.Tanh(), torch.nn.Linear(16, dim)).double()
    return sf.Denoiser(net, FLOW)


def test_it_is_the_likelihood_of_an_exact_flow():
    """log p of the law at the least noise: below log p(x) itself by the truncation, 1/2 sigma^2 terms, here 1e-4."""
    x = TRUTH.sample(40, 1)
    found = MaximumLikelihood(steps=48).log_prob(TRUTH.denoiser(FLOW), x, torch.arange(40), Conditions({}))
    assert torch.allclose(found, TRUTH.log_prob(x), atol=2e-3)


@pytest.mark.parametrize("dim", [2, 6])
def test_the_adjoint_has_the_gradient_of_the_steps(dim):
    """In float64, to 1e-6 of the largest; with the exact trace and with a probe."""
    x = torch.randn(8, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = []
    for adjoint in (False, True):
        model = network(dim=dim)
        MaximumLikelihood(steps=32, adjoint=adjoint).losses(model, batch(x)).mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert float(gradients[0].abs().max()) > 0.01
    assert float((gradients[0] - gradients[1]).abs().max()) < 1e-6 * float(gradients[0].abs().max())


def test_the_gradient_is_that_of_the_likelihood_which_sf_measures():
    """A finite difference along a direction of the weights of `sf.log_prob`, whose ends are corrected by little."""
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    model, loss = network(3), MaximumLikelihood(steps=24)
    loss.losses(model, batch(x)).mean().backward()
    weight = model.net.get_parameter(next(n for n, p in model.net.named_parameters() if p.grad is not None))
    way = torch.sign(weight.grad)
    along = float((weight.grad * way).sum())

    def measured(step):
        with torch.no_grad():
            weight.add_(step * way)
            value = float(sf.log_prob(model, x, steps=48, trace="exact").value.mean()) / 2
            weight.sub_(step * way)
        return -value

    assert along == pytest.approx((measured(1e-3) - measured(-1e-3)) / 2e-3, rel=0.05, abs=1e-3)


def test_a_probe_is_that_of_the_sample_and_unbiased():
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    model = network(dim=6)
    exact = MaximumLikelihood(steps=8)
    with torch.no_grad():
        some = exact.log_prob(model, x[2:], torch.tensor([2, 3]), Conditions({}))
        whole = exact.log_prob(model, x, torch.arange(4), Conditions({}))
        assert torch.allclose(some, whole[2:], atol=1e-12)
        many = [
            MaximumLikelihood(seed=k, steps=8).log_prob(model, x, torch.arange(4), Conditions({})) for k in range(64)
        ]
        true = sf.log_prob(model, x, steps=32, trace="exact").value
    spread = torch.stack(many).std(0) / 24**0.5
    assert bool(((torch.stack(many).mean(0) - true).abs() < 4.5 * spread + 5e-3).all())


@pytest.mark.slow
def test_training_by_likelihood_learns_the_law(tmp_path):
    """A mixture, by a run of the loop: within 0.25 nats of the log p of the law; the nearest normal law is 0.33 off."""
    x = TRUTH.sample(4000, 5).float()
    run = sf.train(
        x.numpy(), tmp_path / "run", loss="maximum-likelihood(steps=8)", schedule="flow", target="velocity", steps=150,
        batch=64, lr=0.01, sample_every=0, snapshots=0, precision="float32", net="MLP(width=32, depth=1)",
    )  # fmt: skip
    model, fresh = sf.load(tmp_path / "run"), TRUTH.sample(300, 9).float()
    found = float(sf.log_prob(model, fresh, steps=32).value.mean())
    best = float(TRUTH.log_prob(fresh.double()).mean())
    assert best - 0.25 < found < best + 0.05, run
    drawn = sf.sample(model, 2000, solver="heun", steps=10).double()
    assert torch.allclose(drawn.mean(0), TRUTH.sample(20_000, 3).mean(0), atol=0.25)


def test_what_it_cannot_train_is_said(tmp_path):
    with pytest.raises(sf.SfumatoError, match="only for a Gaussian process"):
        sf.train(
            torch.zeros(64, 4, dtype=torch.uint8).numpy(), tmp_path / "a", loss="maximum-likelihood", process="masked"
        )
