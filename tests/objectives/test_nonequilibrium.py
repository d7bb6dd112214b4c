"""The bound of 2015 for symbols against sums over all states of a table: every term, its limit and its gap (A3)."""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

import sfumato as sf
import sfumato.noise
from sfumato import schedules
from sfumato.exact import Table
from sfumato.objectives.losses import Nonequilibrium
from sfumato.objectives.nonequilibrium import (
    Bound,
    nonequilibrium_bound,
    nonequilibrium_loss,
    step_kl,
    terminal_kl,
)
from sfumato.process import Uniform
from sfumato.training import TrainConfig, fit


def table(count: int = 2, dim: int = 4) -> Table:
    generator = torch.Generator().manual_seed(2)
    return Table(torch.rand([count] * dim, generator=generator, dtype=torch.float64) ** 3)


def summed(model: object, law: Table, process: Uniform, steps: int) -> Bound:
    """The bound of every state, the expectation over z_i being a sum over all states: no chance in it."""
    states, terms = law.states, []
    for i in range(1, steps + 1):
        s, t = (i - 1) / steps, i / steps
        kernel = law.kernel(process, 0.0, t)  # q(z_t | x), rows x
        every = step_kl(model, states.repeat_interleave(len(states), 0), states.repeat(len(states), 1), s, t)
        terms.append((kernel * every.reshape(kernel.shape)).sum(1))
    return Bound(terminal_kl(process, states), torch.stack(terms, 1))


@pytest.mark.parametrize("schedule", [schedules.Flow(), schedules.LinearBeta(0.1, 4.0)], ids=["flow", "linear"])
@pytest.mark.parametrize(("count", "dim", "steps"), [(2, 4, 1), (2, 4, 7), (3, 2, 5)])
def test_the_gap_of_the_exact_belief_is_the_dependence(schedule: object, count: int, dim: int, steps: int) -> None:
    """E[log p - K] = KL(p_T || uniform) + sum of what symbol-wise draws lose: every nat is accounted for."""
    law, process = table(count, dim), Uniform(schedule, count)
    bound = summed(law.denoiser(process), law, process, steps)
    end = law.noised(process, 1.0)
    gap = float((end * (end * len(end)).log()).sum())
    gap += sum(law.dependence(process, i / steps, (i + 1) / steps) for i in range(steps))
    assert float(law.probs @ bound.nats) == pytest.approx(-law.entropy - gap, abs=1e-12)
    assert float(bound.steps.min()) > -1e-14 and gap > 0


def test_the_bound_tends_to_log_p_like_one_over_steps() -> None:
    law, process = table(2, 3), Uniform(schedules.Flow())
    model, truth = law.denoiser(process), law.log_prob(law.states)
    lacks = [truth - summed(model, law, process, n).nats for n in (64, 128, 256)]
    mean = [float(law.probs @ lack) for lack in lacks]
    assert mean[1] / mean[2] == pytest.approx(2, rel=0.05) and 0 < mean[2] < 0.003
    # of every state by itself, though the chain gives the rarest (log p = -8) too much for longer
    far = [float(lack.abs().max()) for lack in lacks]
    assert far[0] / far[1] > 1.5 and far[1] / far[2] > 1.7 and far[2] < 0.5


def chain(law: Table, process: Uniform, steps: int) -> Tensor:
    """log p(x) of the reverse chain that draws symbol by symbol, (N,): the product of its kernels, state by state."""
    states = law.states
    now = torch.full((len(states),), 1 / len(states), dtype=torch.float64)
    for i in range(steps, 0, -1):
        alone = process.bridge(law.denoiser(process)(states, i / steps), (i - 1) / steps)  # (N, d, K)
        kernel = alone[:, torch.arange(law.dim), states].prod(-1)  # rows z_t, columns z_s
        now = now @ kernel
    return now.log()


@pytest.mark.parametrize("steps", [1, 4, 32])
def test_it_is_a_bound_for_every_state_on_what_the_chain_samples(steps: int) -> None:
    law, process = table(2, 3), Uniform(schedules.Flow())
    model = chain(law, process, steps)
    assert float(model.exp().sum()) == pytest.approx(1, abs=1e-12)
    lack = model - summed(law.denoiser(process), law, process, steps).nats
    assert float(lack.min()) > -1e-12 and (steps == 1 or float(lack.max()) > 1e-3)


def test_the_bound_of_independent_symbols_is_tight() -> None:
    one, two = torch.tensor([0.3, 0.7], dtype=torch.float64), torch.tensor([0.9, 0.1], dtype=torch.float64)
    law, process = Table(one[:, None] * two), Uniform(schedules.Flow())
    bound = summed(law.denoiser(process), law, process, 3)
    assert torch.allclose(bound.nats, law.log_prob(law.states), rtol=0, atol=1e-13)  # no dependence: no gap
    assert torch.allclose(bound.bits, bound.nats / math.log(2))


def test_it_is_the_sum_of_2015() -> None:
    """Their Eq. 14: K = -sum_{t>1} E KL + H(z_T | x) - H(z_1 | x) - H(prior), with p(x | z_1) = q(z_1 | x) (App. B)."""
    law, process, steps = table(), Uniform(schedules.LinearBeta(0.1, 4.0)), 6
    states = law.states
    bound = summed(law.denoiser(process), law, process, steps)

    def entropy(t: float) -> Tensor:
        return torch.special.entr(law.kernel(process, 0.0, t)).sum(1)

    kernel = law.kernel(process, 0.0, 1 / steps)
    theirs = -bound.steps[:, 1:].sum(1) + entropy(1.0) - entropy(1 / steps) - law.dim * math.log(2)
    unlearned = -(kernel * kernel.T.log()).sum(1)  # L_0 of the last kernel that is not learned
    ours = -(bound.prior + bound.steps[:, 1:].sum(1) + unlearned)
    assert torch.allclose(theirs, ours, rtol=0, atol=1e-12) and len(states) == 16


def test_draws_estimate_every_term() -> None:
    law, process, steps, n = table(), Uniform(schedules.Flow()), 4, 4000
    model, wanted = law.denoiser(process), summed(law.denoiser(process), law, process, steps)
    x = torch.tensor([[1, 0, 1, 1]]).expand(n, -1)
    place = int(law.place(x[:1]))
    drawn = nonequilibrium_bound(model, x, steps, seed=1)
    error = drawn.steps.std(0) / math.sqrt(n)
    assert bool(((drawn.steps.mean(0) - wanted.steps[place]).abs() < 4 * error + 1e-9).all())
    loss = nonequilibrium_loss(model, x, steps, seed=2)
    assert abs(float(loss.mean() + wanted.nats[place])) < 4 * float(loss.std()) / math.sqrt(n)
    last = nonequilibrium_bound(model, x[:9], steps, seed=1, index=torch.arange(9))
    assert torch.equal(last.steps, drawn.steps[:9])


def test_ancestral_samples_have_the_law_of_the_table() -> None:
    law, process, n = table(2, 3), Uniform(schedules.Flow()), 8000
    x = sf.sample(law.denoiser(process), n, steps=200, seed=5, batch=8000)
    counts = torch.bincount(law.place(x), minlength=8)
    assert stats.chisquare(counts.numpy(), (n * law.probs).numpy()).pvalue > 1e-3
    few = sf.sample(law.denoiser(process), n, steps=1, seed=5, batch=8000)  # one step draws each symbol alone
    counts = torch.bincount(law.place(few), minlength=8)
    assert stats.chisquare(counts.numpy(), (n * law.probs).numpy()).pvalue < 1e-12


def test_states_on_the_way_can_be_seen_and_walked_on_from() -> None:
    law = table(3, 2)
    model = law.denoiser(Uniform(schedules.Flow(), 3))
    states = list(sf.trajectory(model, 5, steps=4, solver=sf.solvers.Ancestral()))
    assert [state.t for state in states] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert torch.equal(states[-1].z, sf.sample(model, 5, steps=4)) and states[-1].belief is None
    on = sf.sample(model, z=states[2].z, t_start=0.5, steps=2, normalised=True)
    assert on.shape == (5, 2) and sf.sample(model, 5, steps=2, t_stop=0.5).shape == (5, 2)


def test_samples_do_not_depend_on_the_batch() -> None:
    law = table(3, 2)
    model = law.denoiser(Uniform(schedules.Flow(), 3))
    assert torch.equal(sf.sample(model, 10, steps=5, batch=3), sf.sample(model, 10, steps=5))


@pytest.mark.parametrize("states", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_network_learns_the_bound_of_the_exact_belief(states: int) -> None:
    """Trained by the loop of all models; the floor is the sum with the exact belief, the start that of no knowledge."""
    law, process, steps = table(states, 3), Uniform(schedules.Flow(), states), 8
    torch.manual_seed(0)
    net = sf.nets.MLP(*process.net_shape((3,)), width=64, depth=2)
    model = sf.Denoiser(net, process)
    data = law.sample(4000).float()
    floor = -float(law.probs @ summed(law.denoiser(process), law, process, steps).nats)
    with torch.no_grad():
        start = -float(law.probs @ summed(model, law, process, steps).nats)
    assert start == pytest.approx(3 * math.log(states), abs=1e-4)  # a network of zeros: independent uniform symbols
    config = TrainConfig(steps=120, batch=256, precision="float32", ema=0.0, lr=5e-3)
    for _ in fit(model, data, config, loss=Nonequilibrium(steps)):
        pass
    with torch.no_grad():
        reached = -float(law.probs @ summed(model.eval(), law, process, steps).nats)
    assert floor - 1e-4 < reached < floor + 0.05 < start - 0.2
    x = sf.sample(model, 2000, steps=50, batch=2000)
    found = torch.bincount(law.place(x), minlength=states**3).double() / 2000
    assert float((found - law.probs).abs().sum() / 2) < 0.05 * states  # total variation, a third of it chance


def test_mistakes_are_said() -> None:
    process = Uniform(schedules.Flow(), 3)
    with pytest.raises(sf.SfumatoError, match="net_shape"):
        sf.Denoiser(sf.nets.MLP(4, 8, 1), process)
    model = sf.Denoiser(sf.nets.MLP(6, 8, 1), process)
    assert model.shape == (2,)
    with pytest.raises(sf.SfumatoError, match="integers from 0 to 2"):
        model.process.data(torch.tensor([[0.5, 1.0]]))
    for solver in (sf.solvers.DDIM(), sf.solvers.DDIM().plan(schedules.Flow(), 3)):
        with pytest.raises(sf.SfumatoError, match="cannot sample the states of Uniform"):
            sf.sample(model, 2, solver=solver)
    with pytest.raises(sf.SfumatoError, match="at least 1 step"):
        nonequilibrium_loss(model, torch.zeros(1, 2, dtype=torch.int64), 0)


class Echo(torch.nn.Module):
    """Says what it hears."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor, noise_level: Tensor) -> Tensor:
        assert tuple(x.shape[1:]) == self.shape and noise_level.shape == (len(x),)
        return x


@pytest.mark.parametrize("states", [2, 3, 4])
def test_a_network_hears_and_says_symbols_in_the_same_channels(states: int) -> None:
    process, shape = Uniform(schedules.Cosine(), states), (2, 6, 5)
    model = sf.Denoiser(Echo(process.net_shape(shape)), process)
    z = torch.randint(states, (3, *shape))
    y = model.predict(z, 0.5)
    assert model.shape == shape and y.shape == (3, *shape, states)
    assert torch.equal(y.argmax(-1), z)
    assert abs(float(model.predict(z, 0.5)[..., 1].mean())) < 0.3  # the code has mean 0 under uniform symbols


def test_images_of_symbols_pass_through_a_convolutional_network() -> None:
    process, shape = Uniform(schedules.Cosine(), 3), (1, 6, 5)
    model = sf.Denoiser(sf.nets.UNet(process.net_shape(shape), channels=(8, 16), blocks=1), process)
    x = sf.sample(model, 64, steps=3)
    assert x.shape == (64, *shape) and x.dtype == torch.int64
    nats = nonequilibrium_bound(model, x, 4).nats
    # the network is zero at first, the exact model of independent uniform symbols, whose bound has no gap
    assert abs(float(nats.mean()) + 30 * math.log(3)) < 4 * float(nats.std()) / 8


@pytest.mark.slow
def test_binary_pictures_are_learned_in_the_users_units() -> None:
    """Digits in black and white: fewer bits than independent pixels of the same frequencies, and samples like them."""
    source = sf.data.open((sf.data.open("digits").x > 7).numpy())
    train, held = source.split()
    spec = sf.data.DataSpec.fit(source)
    torch.manual_seed(0)
    process, steps = Uniform(schedules.Flow()), 32
    net = sf.nets.UNet(process.net_shape(source.shape), channels=(16, 32), blocks=1)
    model, config = sf.Denoiser(net, process, spec=spec), TrainConfig(steps=200, batch=64, precision="float32")
    for _ in fit(model, source.x[train], config, loss=Nonequilibrium(steps)):
        pass
    pixels = source.x[train].double().mean(0)
    alone = torch.distributions.Bernoulli(pixels.clamp(1e-3, 1 - 1e-3)).log_prob(source.x[held].double())
    nats = nonequilibrium_bound(model.eval(), model.process.data(source.x[held]), steps).nats
    assert float(nats.mean()) > 0.85 * float(alone.flatten(1).sum(1).mean())  # both are negative
    x = sf.sample(model, 256, steps=steps)
    assert x.dtype == torch.bool and x.shape == (256, 1, 8, 8)
    assert float((x.double().mean(0) - pixels).abs().mean()) < 0.06


# -- Gaussian kernels: the same sum is the discrete-time VLB ---------------------------------------------------------


def betas(steps: int) -> Tensor:
    return torch.linspace(0.05, 0.6, steps, dtype=torch.float64)


def test_gaussian_kernels_of_2015_give_the_terms_of_the_vlb() -> None:
    """KL(q(z_{i-1} | z_i, x) || p) from q(z_i | z_{i-1}) = N(sqrt(1 - beta) z_{i-1}, beta) and Bayes' rule alone."""
    steps, n = 6, 50
    truth = sf.exact.GaussianMixture([0.4, 0.6], [[-1.0, 0.5], [1.0, 0.0]], [0.1, 0.3])
    process = sf.Gaussian(schedules.FromBetas(tuple(betas(steps).tolist())))
    model, x = truth.denoiser(process), truth.sample(n)
    found = sf.vlb(model, x, steps, seed=3)
    signal = (1 - betas(steps)).cumprod(0).sqrt()  # alpha_i
    for k in range(1, steps):  # from t_{k+1} to t_k
        beta, before, after = betas(steps)[k], signal[k - 1], signal[k]
        eps = sf.noise.normal(3, torch.arange(n), (2,), sf.noise.BOUND, k, dtype=torch.float64)
        z = after * x + (1 - after**2).sqrt() * eps
        precision = (1 - beta) / beta + 1 / (1 - before**2)

        def reverse(clean: Tensor, z: Tensor = z, beta=beta, before=before, precision=precision) -> object:
            """q(z_{i-1} | z_i, x): the product of the likelihood of z_i and of q(z_{i-1} | x)."""
            mean = ((1 - beta).sqrt() / beta * z + before / (1 - before**2) * clean) / precision
            return torch.distributions.Normal(mean, precision**-0.5)

        belief = model(z, (k + 1) / steps).x
        wanted = torch.distributions.kl_divergence(reverse(x), reverse(belief)).sum(1)
        assert torch.allclose(found.steps[:, k - 1], wanted, rtol=1e-8, atol=1e-10)
    # L_T by the entropies of their Eq. 14: H(z_T | x) is that of N(alpha_T x, sigma_T^2), the rest the cross-entropy
    end = torch.distributions.Normal(signal[-1] * x, (1 - signal[-1] ** 2).sqrt())
    prior = torch.distributions.Normal(torch.zeros_like(x), (1 - signal[-1] ** 2).sqrt())  # what `sample` starts from
    assert torch.allclose(found.prior, torch.distributions.kl_divergence(end, prior).sum(1), rtol=1e-10)


@pytest.mark.parametrize("steps", [1, 3, 20])
def test_the_gaussian_bound_is_tight_where_the_reverse_kernels_are_gaussian(steps: int) -> None:
    """For N(0, I) data and the learned variance at its optimum beta the reverse chain is the forward one, for any T."""
    normal, n = sf.exact.GaussianMixture([1.0], [[0.0, 0.0]], 1.0), 2000
    model, x = normal.denoiser(sf.Gaussian(schedules.Cosine())), torch.tensor([[0.7, -1.2]]).expand(n, 2).double()
    found = sf.vlb(model, x, steps, variance="beta").total
    wanted = -float(normal.log_prob(x[:1]))
    assert abs(float(found.mean()) - wanted) < 4 * float(found.std()) / math.sqrt(n) + 1e-12
