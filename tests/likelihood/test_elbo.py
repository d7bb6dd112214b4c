"""The continuous-time bound: the ends alone matter, the gap is the computed one; many trajectories tighten it."""

import math

import pytest
import torch
from scipy import integrate, stats

from likelihood_models import PROCESSES, Plain, plane, ranks, spec_of
from sfumato.belief import Estimate
from sfumato.errors import SfumatoError
from sfumato.exact import GaussianMixture
from sfumato.guidance import guide
from sfumato.likelihood import bound_gap, log_prob
from sfumato.likelihood.bound import Span
from sfumato.likelihood.control import controlled
from sfumato.model import Denoiser
from sfumato.nets import MLP
from sfumato.objectives.vlb import vlb
from sfumato.process import Gaussian
from sfumato.schedules import EDM, VE, Cosine, Flow, Laplace, LinearBeta, LogLinear, SubVP

F64 = torch.float64


def line():
    return GaussianMixture([0.3, 0.7], [[-1.0], [0.8]], [0.05, 0.1])


def equal_ends():
    """Five schedules, and one more, from logsnr -10 at t = 1 to at least 9 at t = 0."""
    size = math.log1p(math.exp(10))  # of B with logsnr(1) = -log(expm1(B)) = -10
    first = {"vp": LinearBeta(0.1, 2 * size - 0.1), "edm": EDM(0.002, math.exp(5)), "ve": VE(0.002, math.exp(5))}
    first |= {"log": LogLinear(-10.0, 12.0), "laplace": Laplace(logsnr_min=-10.0, logsnr_max=11.0)}

    def end(b):  # sub-VP: alpha^2 = e^-B, sigma = 1 - e^-B
        return -b - 2 * math.log(-math.expm1(-b)) + 10

    low, high = 5.0, 20.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if end(middle) > 0 else (low, middle)
    return first | {"sub-vp": SubVP(0.1, 2 * low - 0.1)}


def test_only_the_ends_of_the_schedule_matter():
    """A6: the same noise at the same logsnr costs the same under every schedule, level by level."""
    law, curves = plane(), equal_ends()
    x = law.sample(20, seed=1)
    for curve in curves.values():
        assert float(curve.logsnr(1.0)) == pytest.approx(-10, abs=1e-7)
    found = [log_prob(law.denoiser(Gaussian(c)), x, "elbo", steps=16, sigma_min=0.02) for c in curves.values()]
    for other in found[1:]:
        torch.testing.assert_close(other.value, found[0].value, rtol=0, atol=1e-9)
        torch.testing.assert_close(other.by_level, found[0].by_level, rtol=0, atol=1e-9)
        torch.testing.assert_close(other.levels, found[0].levels, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_bound_of_an_exact_model_is_its_log_density(name):
    """Sample by sample, with the stated standard error: the gap of the ends is far below it."""
    law = plane()
    x = law.sample(200, seed=1)
    found = log_prob(law.denoiser(PROCESSES[name]), x, "elbo", steps=64)
    apart = found.value - law.log_prob(x)
    assert 0.8 < float((apart / found.stderr).square().mean().sqrt()) < 1.4
    error = float(apart.std()) / math.sqrt(200)
    assert abs(float(apart.mean())) < 4 * error + 2e-3
    low, high = found.interval()
    covered = ((law.log_prob(x) > low - 2e-3) & (law.log_prob(x) < high + 2e-3)).double().mean()
    assert 0.9 < float(covered) < 0.99
    torch.testing.assert_close(found.by_level.sum(1), found.diffusion, rtol=1e-10, atol=0)
    torch.testing.assert_close(found.value, -(found.prior + found.diffusion + found.reconstruction))


def test_of_standard_normal_data_nothing_is_left_to_chance():
    """The linear denoiser, whose error is the control variate, is then the exact one."""
    law = GaussianMixture([1.0], [[0.0, 0.0, 0.0]], 1.0)
    x = law.sample(20, seed=2)
    found = log_prob(law.denoiser(Gaussian(Flow())), x, "elbo", steps=16)
    assert float(found.stderr.max()) < 1e-6
    torch.testing.assert_close(found.value, law.log_prob(x), rtol=0, atol=1e-5)


def test_the_weight_of_the_control_biases_nothing():
    """Independent noise as value and control: the mean is that of the values whatever the weights."""
    g = torch.Generator().manual_seed(0)
    control = torch.randn(4000, 4, 8, generator=g, dtype=F64)
    value = 3 + 2 * control + 0.1 * torch.randn(4000, 4, 8, generator=g, dtype=F64)
    ones = torch.ones_like(value)
    found = controlled(value, control, ones, 2)
    assert float(found.mean()) == pytest.approx(3, abs=4 * float(found.std()) / math.sqrt(found.numel()) + 1e-3)
    assert float(found.std()) < 0.2 < 1.5 < float(value.std())
    one = control[:1].clone()
    base = controlled(value[:1], one, ones[:1], 2)
    moved = value[:1].clone()
    moved[0, 0, 3] += 1  # a value has no part in its own weight
    assert float(controlled(moved, one, ones[:1], 2)[0, 0, 3] - base[0, 0, 3]) == pytest.approx(1, abs=1e-12)


# -- closed forms on the line --------------------------------------------------------------------------------------


def density(law, z, lam):
    """p of z = alpha x + sigma eps with alpha^2 + sigma^2 = 1 at logsnr lam."""
    at = {"alpha": math.sqrt(1 / (1 + math.exp(-lam))), "sigma": math.sqrt(1 / (1 + math.exp(lam)))}
    return law.log_prob(z, **at).exp(), at


def over(function, reach=9.0, points=4001):
    z = torch.linspace(-reach, reach, points, dtype=F64)[:, None]
    return float(function(z).sum() * 2 * reach / (points - 1))


def entropy(law, lam):
    """h(z), by quadrature of -p log p."""

    def each(z):
        p, at = density(law, z, lam)
        return -torch.where(p > 0, p * law.log_prob(z, **at), 0.0)

    return over(each)


def mmse(law, lam):
    """E|eps - E[eps|z]|^2 = snr E Var[x|z], by quadrature."""

    def each(z):
        p, at = density(law, z, lam)
        return p * law.total_variance(z, **at)

    return math.exp(lam) * over(each)


def information(law, lam):
    """I(x; z) = h(z) - h(z|x)."""
    return entropy(law, lam) - 0.5 * math.log(2 * math.pi * math.e / (1 + math.exp(lam)))


def simpson(function, low, high, intervals=160):
    grid = torch.linspace(low, high, intervals + 1, dtype=F64).tolist()
    return integrate.simpson([function(v) for v in grid], x=grid)


def test_half_the_integral_of_the_error_is_the_mutual_information():
    """A6: d I / d logsnr = mmse / 2 (Guo, Shamai and Verdu 2005), the entropies by themselves."""
    law, low, high = line(), -6.0, 6.0
    found = 0.5 * simpson(lambda lam: mmse(law, lam), low, high)
    assert found == pytest.approx(information(law, high) - information(law, low), abs=1e-6)
    assert found > 1


def test_the_bound_less_the_entropy_is_the_computed_gap():
    """E[-elbo] - h(x) = KL(p_1 || prior) + E KL(p(x|z_0) || decoder), each by quadrature."""
    law, low, high = line(), -2.0, 3.0
    mean_square = over(lambda z: law.log_prob(z).exp() * z[:, 0] ** 2)
    wide = 1 / (math.exp(high) + 1)
    decoder = 0.5 * math.log(2 * math.pi * wide) + mmse(law, high) * math.exp(-high) / (2 * wide)
    bound = 0.5 * math.exp(low) * mean_square + 0.5 * simpson(lambda lam: mmse(law, lam), low, high) + decoder
    sigma = math.sqrt(1 / (1 + math.exp(low)))
    cross = over(lambda z: density(law, z, low)[0] * (0.5 * (z[:, 0] / sigma) ** 2)) + math.log(sigma)
    prior = cross + 0.5 * math.log(2 * math.pi) - entropy(law, low)
    noise = 0.5 * math.log(2 * math.pi * math.e / (1 + math.exp(high)))
    lost = decoder - (over(lambda z: -law.log_prob(z).exp() * law.log_prob(z)) + noise - entropy(law, high))
    gap = bound - over(lambda z: -law.log_prob(z).exp() * law.log_prob(z))
    assert gap == pytest.approx(prior + lost, abs=1e-6)
    assert prior > 0.005 and lost > 0.01
    # and the estimators of the library find the same numbers
    process = Gaussian(LogLinear(low, 8.0))
    model, x = law.denoiser(process), law.sample(4000, seed=3)
    found = bound_gap(model, law, 20_000, steps=4, sigma_min=math.exp(-high / 2))
    assert found.path.value == 0
    assert abs(found.prior.value - prior) < 4 * found.prior.stderr < 0.6 * prior
    assert abs(found.decoder.value - lost) < 4 * found.decoder.stderr + 1e-3 < 0.2
    apart = law.log_prob(x) - log_prob(model, x, "elbo", steps=16, sigma_min=math.exp(-high / 2)).value
    assert abs(float(apart.mean()) - gap) < 4 * float(apart.std()) / math.sqrt(4000)


class Bent:
    """An exact model whose E[eps|z] is off by a known amount at each level."""

    def __init__(self, inner, off):
        self.inner, self.process, self.shape, self.off = inner, inner.process, inner.shape, off

    def __call__(self, z, t, **cond):
        belief = self.inner(z, t, **cond)
        off = self.off(self.process.schedule.logsnr(t)).reshape(-1, *([1] * (z.ndim - 1)))
        return Estimate(belief.z, t, self.process.schedule, eps=belief.eps + off)


def test_a_bent_score_costs_the_divergence_of_the_paths():
    """E[log p - elbo] = 1/2 int |off|^2 dlogsnr, in closed form for off = a exp(-logsnr^2 / 8)."""
    law, a = plane(), 0.4
    exact = law.denoiser(Gaussian(LogLinear(-10.0, 14.0)))
    model, x = Bent(exact, lambda lam: a * torch.exp(-(lam**2) / 8)), law.sample(1500, seed=4)
    wanted = 0.5 * 2 * a**2 * math.sqrt(4 * math.pi)  # two numbers a sample
    gap = bound_gap(model, law, 500, steps=32)
    assert gap.path.value == pytest.approx(wanted, rel=0.01)
    assert gap.total.value == pytest.approx(wanted, abs=0.02)
    apart = law.log_prob(x) - log_prob(model, x, "elbo", steps=32).value
    assert abs(float(apart.mean()) - wanted) < 4 * float(apart.std()) / math.sqrt(1500) + 2e-3
    # of the exact model the ODE and the bound say the same; of the bent one they are two laws
    same = log_prob(exact, x[:100], steps=16).value - log_prob(exact, x[:100], "elbo", steps=32).value
    assert abs(float(same.mean())) < 4 * float(same.std()) / 10 + 5e-3
    other = log_prob(model, x[:100], steps=16).value
    assert abs(float((other - log_prob(model, x[:100], "elbo", steps=32).value).mean())) > 0.1


def test_each_level_has_its_own_cost():
    """by_level, its mean over the data: half the integral of mmse between two levels."""
    law = line()
    found = log_prob(law.denoiser(Gaussian(Flow())), law.sample(3000, seed=5), "elbo", steps=6, sigma_min=0.1)
    error = found.by_level.std(0) / math.sqrt(3000)
    for k in range(1, 6):
        low, high = found.levels[k : k + 2].tolist()
        wanted = 0.5 * simpson(lambda lam: mmse(law, lam), low, high, 60)
        assert abs(float(found.by_level[:, k].mean()) - wanted) < 4.5 * float(error[k])
    assert float(found.levels[0]) == -math.inf


# -- units, whole numbers, networks --------------------------------------------------------------------------------


def test_user_units():
    """log p(1000 x) = log p(x) - D log 1000."""
    law = line()
    x = law.sample(200, seed=6)
    found = []
    for scale in (1.0, 1000.0):
        spec = spec_of(scale * x)
        mean, std = spec.normaliser.mean[0] / scale, spec.normaliser.std[0] / scale
        inner = GaussianMixture(law.weights, (law.means - mean) / std, law.covs / std**2)
        found.append(log_prob(Plain(inner.denoiser(Gaussian(Flow())), spec), scale * x, "elbo", steps=32))
    apart = found[0].value - law.log_prob(x)
    assert abs(float(apart.mean())) < 4 * float(apart.std()) / math.sqrt(200) + 2e-3
    torch.testing.assert_close(found[1].value, found[0].value - math.log(1000), rtol=0, atol=1e-3)
    torch.testing.assert_close(found[1].value, -(found[1].prior + found[1].diffusion + found[1].reconstruction))


def digitised(n=3000):
    """Rounded Gaussian numbers of standard deviation 3 and 20, and the exact model of what was rounded."""
    g = torch.Generator().manual_seed(0)
    x = (100 + torch.tensor([3.0, 20.0]) * torch.randn(n, 2, generator=g, dtype=F64)).round().to(torch.uint8)
    law = GaussianMixture([1.0], torch.zeros(1, 2), 1.0)
    return Plain(law.denoiser(Gaussian(Cosine())), spec_of(x)), x


def test_whole_numbers_by_noise_or_by_cells():
    """Uniform dequantisation is the ODE's figure; the law of the cells bounds it too, for a model that knows them."""
    model, x = digitised(400)
    ode = log_prob(model, x, steps=32)
    noisy = log_prob(model, x, "elbo", steps=16, dequantisation="uniform")
    assert noisy.dequantisation == "uniform" == ode.dequantisation and noisy.bound and not ode.bound
    torch.testing.assert_close(noisy.bits_per_dim, ode.bits_per_dim, rtol=0, atol=1e-3)
    cells = log_prob(model, x, "elbo", steps=16)
    assert cells.dequantisation == "discretised" and "discretised decoder" in str(cells)
    torch.testing.assert_close(cells.bits_per_dim, -cells.value / (2 * math.log(2)))
    std = model.spec.normaliser.std
    entropy = sum(stats.norm(0, s).entropy() for s in std) / (2 * math.log(2))
    assert float(cells.bits_per_dim.mean()) > entropy - 0.05


def test_points_have_their_probability():
    """A model that knows its values: the bound with cells is log P(x), nothing left over."""
    values, weights = [0, 100, 101, 255], [10, 40, 30, 20]
    x = torch.tensor(values).repeat_interleave(torch.tensor(weights))[:, None].to(torch.uint8)
    spec = spec_of(x)
    mean, std = spec.normaliser.mean[0], spec.normaliser.std[0]
    law = GaussianMixture(weights, (torch.tensor(values, dtype=F64)[:, None] - mean) / std, 0.0)
    model = Plain(law.denoiser(Gaussian(Flow())), spec)
    exact = torch.log(torch.tensor(weights, dtype=F64) / 100).repeat_interleave(100)
    many = torch.tensor(values, dtype=torch.uint8)[:, None].repeat_interleave(100, 0)
    found = log_prob(model, many, "elbo", steps=48, sigma_min=1e-3)
    apart = (found.value - exact).reshape(4, 100)
    assert bool((apart.mean(1).abs() < 4.5 * apart.std(1) / 10 + 0.01).all())
    chance, lost = torch.tensor(weights, dtype=F64) / 100, []
    for steps in (24, 96):  # a chain of few steps has another law, which the bound is of: its cross-entropy is more
        found = log_prob(model, many[::2], "importance", steps=steps, probes=4, sigma_min=1e-3)
        lost.append(-float((found.value - exact[::2]).reshape(4, 50).mean(1) @ chance))
    assert 0 < lost[1] < lost[0] / 2.5 < 0.3


def test_draws_belong_to_their_sample():
    law = line()
    model, x = law.denoiser(Gaussian(Cosine())), law.sample(7, seed=7)
    for method in ("elbo", "importance"):
        whole = log_prob(model, x, method, steps=8, probes=3)
        parts = log_prob(model, x, method, steps=8, probes=3, batch=3)
        torch.testing.assert_close(parts.value, whole.value, rtol=0, atol=1e-10)
        some = log_prob(model, x[2:5], method, steps=8, probes=3, index=[2, 3, 4])
        torch.testing.assert_close(some.value, whole.value[2:5], rtol=0, atol=1e-10)
        other = log_prob(model, x, method, steps=8, probes=3, seed=1)
        assert float((other.value - whole.value).abs().min()) > 0


def test_labels_and_networks():
    law = GaussianMixture([0.3, 0.7], [[-1.0, 0.5], [0.8, 0.0]], [0.2, 0.1])
    x, label = law.labelled(300, seed=9)
    found = log_prob(law.denoiser(Gaussian(Flow())), x, "elbo", steps=32, label=label)
    apart = found.value - law.log_prob(x, label=label)
    assert abs(float(apart.mean())) < 4 * float(apart.std()) / math.sqrt(300) + 2e-3
    torch.manual_seed(0)
    net = MLP(2, width=16, depth=1, classes=2, outputs=2)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model = Denoiser(net, Gaussian(Cosine()), variance="learned")
    for method in ("elbo", "importance"):
        one = log_prob(guide(model, 2.0), x[:3], method, steps=6, probes=2, label=label[:3])
        plain = log_prob(model, x[:3], method, steps=6, probes=2, label=label[:3])
        assert bool(one.value.isfinite().all()) and float((one.value - plain.value).abs().min()) > 1e-4


# -- many trajectories ---------------------------------------------------------------------------------------------


def test_more_trajectories_tighten_the_bound():
    """1509.00519, Theorem 1: E rises with K to log p, which a chain of few steps does not reach at K = 1."""
    law = plane()
    model, x = law.denoiser(Gaussian(Flow())), law.sample(120, seed=8)
    apart = []
    for particles in (1, 4, 16, 48):
        found = log_prob(model, x, "importance", steps=40, probes=3, particles=particles)
        apart.append(law.log_prob(x) - found.value)
    mean = [float(v.mean()) for v in apart]
    error = [float(v.std()) / math.sqrt(120) for v in apart]
    assert mean[0] > mean[1] + 2 * error[1] and mean[1] > mean[2] + 2 * error[2] and mean[2] > mean[3] - 2 * error[3]
    assert abs(mean[3]) < 4 * error[3] + 0.05


def test_one_trajectory_is_the_discrete_time_bound():
    law, steps = line(), 12
    model, x = law.denoiser(Gaussian(LinearBeta())), torch.full((2000, 1), 0.6, dtype=F64)
    span = Span.of(model.process.schedule, math.sqrt(float(law.variance(x[:1], alpha=0.0, sigma=1.0))))
    levels = model.process.schedule.time(span.quantile(torch.linspace(1, 0, steps + 1, dtype=F64)))
    levels[-1] = 1.0
    terms = vlb(model, x, times=levels).total
    found = log_prob(model, x, "importance", steps=steps, probes=2, particles=1).value
    error = math.hypot(float(terms.std()), float(found.std())) / math.sqrt(2000)
    assert abs(float(found.mean() + terms.mean())) < 4 * error


def test_mistakes_are_named():
    model, x = line().denoiser(Gaussian(Flow())), line().sample(3)
    for kwargs, words in (
        ({"probes": 1}, "2 replicates"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"sigma_min": 0.0}, "sigma_min"),
        ({"method": "importance", "particles": 0}, "particles"),
        ({"method": "elbow"}, "did you mean 'elbo'"),
        ({"dequantisation": "uniform"}, "discrete"),
        ({"dequantisation": "unifrom"}, "did you mean 'uniform'"),
    ):
        with pytest.raises(SfumatoError, match=words):
            log_prob(model, x, **{"method": "elbo", **kwargs})
    with pytest.raises(SfumatoError, match="discrete"):
        _ = log_prob(model, x, "elbo", steps=2).bits_per_dim
    with pytest.raises(SfumatoError, match="data spec"):
        bound_gap(digitised()[0], ranks())
