"""Masked symbols against brute force: kernels, bridge, the path KL of 2406.07524, and the bound's equality (G11)."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

import sfumato as sf
from sfumato import noise, schedules
from sfumato.exact import Table
from sfumato.objectives.nonequilibrium import nonequilibrium_bound
from sfumato.process import Masked, Symbols, Uniform

F64 = torch.float64
CURVES = {"flow": schedules.Flow(), "cosine": schedules.Cosine()}
KINDS = {f"{kind.__name__} {name}": (kind, curve) for kind in (Masked, Uniform) for name, curve in CURVES.items()}


def law(symbols: int = 3, dim: int = 2, seed: int = 2) -> Table:
    generator = torch.Generator().manual_seed(seed)
    return Table(torch.rand([symbols] * dim, generator=generator, dtype=F64) ** 3)


def matrix(process: Symbols, s: float, t: float) -> torch.Tensor:
    """q(z_t | z_s) entry by entry from the words: kept, or else hidden (or made uniform)."""
    keep = [1.0 if v == 0 else float(process.schedule.alpha(v)) for v in (s, t)]
    a, size = keep[1] / keep[0], process.size
    hidden = isinstance(process, Masked)
    rest = [float(j == size - 1) if hidden else 1 / size for j in range(size)]
    return torch.tensor([[a * (i == j) + (1 - a) * rest[j] for j in range(size)] for i in range(size)], dtype=F64)


@pytest.mark.parametrize("case", KINDS)
def test_marginal_posterior_and_bridge_are_bayes_rule(case: str) -> None:
    kind, curve = KINDS[case]
    process = kind(curve, 3)
    for s, t in [(0.0, 0.3), (0.2, 0.5), (0.4, 0.999), (0.5, 1.0)]:
        first, second = matrix(process, 0.0, s), matrix(process, s, t)
        whole = first @ second
        assert torch.allclose(process.marginal(torch.arange(3)[:, None], t)[:, 0], whole[:3], atol=1e-14)
        for x, z in itertools.product(range(3), range(process.size)):
            if whole[x, z] < 1e-12:
                continue
            joint = first[x] * second[:, z]
            found = process.posterior(torch.tensor([[z]]), torch.tensor([[x]]), s, t)[0, 0]
            assert torch.allclose(found, joint / joint.sum(), atol=1e-12), (x, z)


@pytest.mark.parametrize("case", KINDS)
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_every_bridge_keeps_the_marginal_of_each_symbol(case: str, eta: float) -> None:
    """sum_z q(z_t | x) C(z_s | z_t, x) = q(z_s | x), for the posterior, the fewest changes and their mixtures."""
    kind, curve = KINDS[case]
    process, s, t = kind(curve, 3), 0.3, 0.7
    z = torch.arange(process.size)[:, None]
    for x in range(3):
        known = torch.full((process.size, 1, 3), -torch.inf, dtype=F64)
        known[..., x] = 0.0
        belief = sf.belief.Logits(known, z, t, process)
        step = process.bridge(belief, s, eta)[:, 0]
        at = process.marginal(torch.tensor([[x]]), t)[0, 0]
        assert torch.allclose(at @ step, process.marginal(torch.tensor([[x]]), s)[0, 0], atol=1e-12), x


@pytest.mark.parametrize("case", KINDS)
def test_the_clock_is_the_logit_of_what_is_kept(case: str) -> None:
    kind, curve = KINDS[case]
    process, t = kind(curve, 3), torch.linspace(0.02, 0.98, 7, dtype=F64)
    level = process.level(t)
    assert torch.allclose(level, torch.logit(process.keep(t))) and torch.allclose(level, process.clock.logsnr(t))
    assert torch.allclose(process.clock.time(level), t, atol=1e-9)
    step = 1e-6
    slope = (process.level(t + step) - process.level(t - step)) / (2 * step)
    assert torch.allclose(process.clock.dlogsnr(t), slope, rtol=1e-5)


@pytest.mark.parametrize("case", KINDS)
def test_the_loss_of_the_exact_belief_integrates_to_the_entropy(case: str) -> None:
    """int E rate dlevel = -log p(x) for every single x: sums over all states and Gauss-Legendre in t, no chance."""
    kind, curve = KINDS[case]
    process, truth = kind(curve, 3), law()
    model, states = truth.denoiser(process), truth.noisy(process)
    node, weight = map(torch.tensor, np.polynomial.legendre.leggauss(160))
    # t = sin^2 takes out what is singular at the ends
    angle = (node + 1) * math.pi / 4
    total = torch.zeros(len(truth.states), dtype=F64)
    for v, w in zip(angle.tolist(), (weight * math.pi / 4).tolist(), strict=True):
        t = math.sin(v) ** 2
        belief, kernel = model(states, t), truth.kernel(process, 0.0, t)
        at = abs(float(process.clock.dlogsnr(t))) * 2 * math.sin(v) * math.cos(v) * w
        for i, x in enumerate(truth.states):
            rate = process.rate(belief, x.expand(len(states), -1)).sum(1)
            total[i] += at * (kernel[i] * rate.nan_to_num(0.0, 0.0)).sum()
    assert torch.allclose(total, -truth.log_prob(truth.states), atol=2e-4), (total, -truth.log_prob(truth.states))


@pytest.mark.parametrize("kind", [Masked, Uniform])
def test_log_prob_is_the_bound_and_an_equality_for_the_exact_belief(kind: type[Symbols]) -> None:
    truth = law()
    model = truth.denoiser(kind(CURVES["flow"], 3))
    found, wanted = sf.log_prob(model, truth.states, steps=64, probes=32, seed=1), truth.log_prob(truth.states)
    assert found.bound and float((found.stderr / wanted.abs()).max()) < 0.15
    assert bool(((found.value - wanted).abs() < 4.5 * found.stderr + 1e-3).all()), (found.value - wanted) / found.stderr
    error = float((truth.probs * found.stderr).square().sum().sqrt())
    assert abs(float((truth.probs * (found.value - wanted)).sum())) < 4 * error < 0.3
    alone = sf.log_prob(model, truth.states[4:5], steps=64, probes=32, seed=1, index=[4])
    assert torch.allclose(alone.value, found.value[4:5], atol=1e-9)
    # the levels are drawn under the clock alone: another schedule between the same ends costs the same
    each = [sf.log_prob(truth.denoiser(kind(c, 3)), truth.states, steps=8, probes=2).value for c in CURVES.values()]
    assert torch.allclose(*each, atol=1e-9)
    with pytest.raises(sf.SfumatoError, match="use method='elbo'"):
        sf.log_prob(model, truth.states, "ode")


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_have_the_law_of_the_table(eta: float) -> None:
    truth, n = law(2, 3), 8000
    model = truth.denoiser(Masked(schedules.Flow(), 2))
    x = sf.sample(model, n, steps=200, seed=5, batch=8000, solver=sf.solvers.Ancestral(eta=eta))
    counts = torch.bincount(truth.place(x), minlength=8)
    assert stats.chisquare(counts.numpy(), (n * truth.probs).numpy()).pvalue > 1e-3
    assert torch.equal(sf.sample(model, 40, steps=7, batch=9), sf.sample(model, 40, steps=7))


def test_the_prior_hides_all_and_what_is_seen_stays() -> None:
    truth = law()
    model = truth.denoiser(Masked(schedules.Flow(), 3))
    states = [state.z for state in sf.trajectory(model, 50, steps=9)]
    assert bool((states[0] == 3).all()) and int(states[-1].max()) < 3
    for before, after in itertools.pairwise(states):
        seen = before != 3
        assert torch.equal(before[seen], after[seen])


def test_the_bound_of_steps_serves_masks_too() -> None:
    truth, n = law(2, 3), 4000
    x = torch.tensor([[1, 0, 1]]).expand(n, -1)
    nats = nonequilibrium_bound(truth.denoiser(Masked(schedules.Flow(), 2)), x, 32, seed=1).nats
    assert float(nats.mean()) < float(truth.log_prob(x[:1])) + 4 * float(nats.std()) / math.sqrt(n)


def test_corruption_is_a_function_of_the_sample_and_keeps_the_share() -> None:
    process, x = Masked(schedules.Cosine(), 5), torch.arange(4000)[:, None] % 5
    source = noise.Noise(3, torch.arange(4000), noise.TRAIN_NOISE)
    z = process.corrupt(x, 0.6, source)
    hidden = float((z == process.mask).double().mean())
    assert abs(hidden - float(1 - process.keep(0.6))) < 4 * math.sqrt(0.25 / 4000)
    assert torch.equal(z[z != 5], x[z != 5])
    assert torch.equal(process.corrupt(x, 0.6, source.normal((1,))), z)


def test_a_network_of_zeros_is_the_uniform_guess_and_masks_have_no_code() -> None:
    process = Masked(schedules.Flow(), 3)
    z = torch.tensor([[0, 3], [3, 2]])
    belief = process.read(torch.zeros(2, 6, dtype=F64), z, 0.5)
    assert torch.allclose(belief.prob[0, 1], torch.full((3,), 1 / 3, dtype=F64))
    assert torch.equal(belief.prob[0, 0], torch.tensor([1.0, 0, 0], dtype=F64))
    heard, level = process.inputs(z, 0.5)
    assert heard.shape == (2, 6) and torch.equal(heard.unflatten(1, (3, 2))[0, :, 1], torch.zeros(3))
    assert float(level) == pytest.approx(0.0)


def test_mistakes_are_said() -> None:
    with pytest.raises(sf.SfumatoError, match="must replace all"):
        Masked(schedules.LinearBeta(0.1, 2.0), 3)
    with pytest.raises(sf.SfumatoError, match="integers from 0 to 2"):
        Masked(schedules.Flow(), 3).data(torch.tensor([[3.0]]))
    with pytest.raises(sf.SfumatoError, match="belong to a Gaussian process"):
        sf.Denoiser(sf.nets.MLP(6, 8, 1), Masked(schedules.Flow(), 3), "v")


@pytest.mark.parametrize("case", KINDS)
def test_single_precision_is_right_near_the_data_and_near_the_prior(case: str) -> None:
    kind, curve = KINDS[case]
    process, y = kind(curve, 3), torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))
    for t in (1e-8, 1e-6, 1e-3, 1 - 1e-7):
        z = torch.tensor([[0, process.size - 1], [1, 2]])
        low, high = process.read(y, z, t), process.read(y.double(), z, t)
        assert torch.allclose(low.log_prob.double(), high.log_prob, atol=1e-3), (t, low.log_prob, high.log_prob)
        x = torch.tensor([[0, 1], [1, 2]])
        assert torch.allclose(process.rate(low, x).double(), process.rate(high, x), rtol=1e-3, atol=1e-6), t


def test_times_that_are_none_and_steps_away_from_the_data_are_refused() -> None:
    process, z = Uniform(schedules.Flow(), 3), torch.tensor([[0, 2]])
    for t in (1.1, -0.1, float("nan")):
        with pytest.raises(sf.SfumatoError, match="Times must lie in"):
            process.corrupt(z, t, torch.zeros(1, 2))
    with pytest.raises(sf.SfumatoError, match="towards the data"):
        process.read(torch.zeros(1, 2, 3), z, 0.5).to(0.7, 1.0, torch.zeros(1, 2))


def test_an_exact_law_without_conditions_refuses_them() -> None:
    with pytest.raises(sf.SfumatoError, match="leave out label"):
        sf.sample(law().denoiser(Masked(schedules.Flow(), 3)), 2, label=torch.tensor([0, 1]))


def test_a_step_draws_the_quantile_of_the_bridge_at_the_cost_of_what_is_revealed() -> None:
    process = Masked(schedules.Cosine(), 5)
    draw = torch.Generator().manual_seed(3)
    z = torch.randint(0, 6, (50, 40), generator=draw)
    z[-1] = process.mask  # at t = 1 nothing else is possible
    logits, noise = (torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((50, 40, 5), (50, 40)))
    t = torch.linspace(0.2, 1, 50, dtype=torch.float64)
    for s in (0.0, 0.1, t / 2):
        belief = process.read(logits, z, t)
        assert torch.equal(belief.to(s, 1.0, noise), process.draw(process.bridge(belief, s), noise))
