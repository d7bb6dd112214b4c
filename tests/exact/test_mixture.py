"""Gaussian mixtures against Bayes' rule by quadrature, automatic differentiation and torch's own densities."""

import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from sfumato import schedules
from sfumato.errors import SfumatoError
from sfumato.exact import GaussianMixture
from sfumato.process import Gaussian

F64 = torch.float64


def close(a, b, tol):
    torch.testing.assert_close(a, b, rtol=tol, atol=tol)


def levels(n=9):
    """Pairs (alpha, sigma) from nearly clean to nearly noise, of any size, float64 (n,)."""
    angle = torch.linspace(0.05, 1.5, n, dtype=F64)
    return torch.linspace(0.5, 3.0, n, dtype=F64) * angle.cos(), torch.linspace(0.5, 3.0, n, dtype=F64) * angle.sin()


def noised_by_torch(law, alpha, sigma):
    covs = alpha**2 * law.covs + sigma**2 * torch.eye(law.dim, dtype=F64)
    return MixtureSameFamily(Categorical(law.weights), MultivariateNormal(alpha * law.means, covs))


def test_log_prob_is_that_of_torch(mixture):
    alpha, sigma = levels()
    z = 2 * torch.randn(9, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    expected = torch.stack(
        [noised_by_torch(mixture, a, s).log_prob(x) for a, s, x in zip(alpha, sigma, z, strict=True)]
    )
    close(mixture.log_prob(z, alpha=alpha, sigma=sigma), expected, 1e-12)
    close(mixture.log_prob(z), noised_by_torch(mixture, 1.0, 0.0).log_prob(z), 1e-12)


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.0), (0.8, 0.6), (0.0, 1.0), (1.0, 3.0)])
def test_density_integrates_to_one(mixture, line, alpha, sigma):
    reach, n = 8.0 * (alpha + sigma) + 2, 300
    axis = torch.linspace(-reach, reach, n, dtype=F64)
    cell = 2 * reach / (n - 1)
    plane = torch.cartesian_prod(axis, axis)
    at = {"alpha": alpha, "sigma": sigma}
    assert float(line.log_prob(axis[:, None], **at).exp().sum()) * cell == pytest.approx(1, abs=1e-10)
    assert float(mixture.log_prob(plane, **at).exp().sum()) * cell**2 == pytest.approx(1, abs=1e-8)
    assert float(mixture.log_prob(plane, **at, label=0).exp().sum()) * cell**2 == pytest.approx(1, abs=1e-8)


def test_score_is_the_gradient_of_log_prob(mixture, process):
    t = torch.linspace(0.02, 1, 12, dtype=F64)
    z = mixture.sample(12, seed=1, process=process, t=t).requires_grad_()
    (gradient,) = torch.autograd.grad(mixture.log_prob(z, process=process, t=t).sum(), z)
    close(mixture.score(z.detach(), process=process, t=t), gradient, 1e-11)


def test_posterior_moments_by_quadrature(line):
    """E[x|z], E[eps|z], Var(x|z) and p(k|z) against Bayes' rule on a grid of x."""
    x = torch.linspace(-8, 8, 8001, dtype=F64)
    prior = line.log_prob(x[:, None])
    alpha, sigma = levels()
    z = torch.linspace(-2, 2, 9, dtype=F64)[:, None]
    joint = prior - 0.5 * ((z - alpha[:, None] * x) / sigma[:, None]) ** 2
    p = torch.softmax(joint, -1)
    mean = p @ x
    m = line.moments(z, alpha=alpha, sigma=sigma)
    close(m.x[:, 0], mean, 1e-11)
    close(m.eps[:, 0], (p * (z - alpha[:, None] * x) / sigma[:, None]).sum(-1), 1e-11)
    variance = (p * (x - mean[:, None]) ** 2).sum(-1)
    close(line.variance(z, alpha=alpha, sigma=sigma)[:, 0], variance, 1e-11)
    close(line.covariance(z, alpha=alpha, sigma=sigma)[:, 0, 0], variance, 1e-11)
    first = GaussianMixture([1.0], line.means[:1], line.covs[:1]).log_prob(x[:, None])
    share = (p * (math.log(0.3) + first - prior).exp()).sum(-1)
    close(line.responsibilities(z, alpha=alpha, sigma=sigma)[:, 0], share, 1e-11)


def test_covariance_is_the_second_order_tweedie_formula(mixture):
    """Cov(x|z) = (sigma^2 I + sigma^4 Hessian log p_t) / alpha^2."""
    alpha, sigma = levels()
    z = mixture.sample(9, seed=2, alpha=alpha, sigma=sigma)
    cov = mixture.covariance(z, alpha=alpha, sigma=sigma)
    for i in range(9):
        at = {"alpha": alpha[i], "sigma": sigma[i]}
        hessian = torch.autograd.functional.hessian(lambda v, at=at: mixture.log_prob(v[None], **at)[0], z[i])
        expected = (sigma[i] ** 2 * torch.eye(2, dtype=F64) + sigma[i] ** 4 * hessian) / alpha[i] ** 2
        close(alpha[i] ** 2 / sigma[i] ** 2 * cov[i], alpha[i] ** 2 / sigma[i] ** 2 * expected, 1e-11)
    diagonal = cov.diagonal(dim1=1, dim2=2)
    close(mixture.variance(z, alpha=alpha, sigma=sigma), diagonal, 1e-13)
    close(mixture.total_variance(z, alpha=alpha, sigma=sigma), diagonal.sum(1), 1e-13)


def test_all_rows_of_the_belief_agree(mixture, process):
    """A8: z = alpha x + sigma eps, score = -eps/sigma, v = alpha eps - sigma x, velocity = alpha' x + sigma' eps."""
    t = torch.linspace(0.05, 1, 20, dtype=F64)
    z = mixture.sample(20, seed=3, process=process, t=t)
    belief = mixture.denoiser(process)(z, t)
    a, s = (c[:, None] for c in process.schedule(t))
    da, ds = (c[:, None] for c in process.schedule.rates(t))
    size = s.clamp_min(1)
    close((a * belief.x + s * belief.eps) / size, z / size, 1e-12)
    close(belief.score, mixture.score(z, process=process, t=t), 1e-12)
    close(belief.v / size, (a * belief.eps - s * belief.x) / size, 1e-12)
    close(belief.velocity, da * belief.x + ds * belief.eps, 1e-12)
    close(belief.variance, mixture.variance(z, process=process, t=t), 0)
    drift, diffusion = (c[:, None] for c in (process.schedule.drift(t), process.schedule.diffusion(t)))
    inner = (process.schedule.alpha(t) > 0)[:, None]  # f is infinite where alpha = 0
    ode = torch.where(inner, drift * z - diffusion * belief.score / 2, belief.velocity)
    close(belief.velocity / (1 + belief.velocity.abs()), ode / (1 + belief.velocity.abs()), 1e-10)


def test_ends_are_exact(mixture):
    z = torch.tensor([[0.3, -1.0], [50.0, 60.0]], dtype=F64)
    noise = mixture.moments(z, alpha=0.0, sigma=2.0)
    close(noise.x, mixture.mean.expand(2, 2), 1e-12)
    close(noise.eps, z / 2, 1e-14)
    close(noise.log_prob, MultivariateNormal(torch.zeros(2), 4 * torch.eye(2)).log_prob(z.float()).double(), 1e-6)
    close(noise.log_weights.exp(), mixture.weights.expand(2, 3), 1e-12)
    centred = mixture.means - mixture.mean
    total = torch.einsum("k,kij->ij", mixture.weights, mixture.covs + centred[:, :, None] * centred[:, None])
    close(mixture.covariance(z, alpha=0.0, sigma=2.0), total.expand(2, 2, 2), 1e-13)
    clean = mixture.moments(z, alpha=0.5, sigma=0.0)
    close(clean.x, 2 * z, 1e-13)
    assert not clean.eps.any() and clean.score.isfinite().all() and clean.log_prob.isfinite().all()
    assert float(mixture.covariance(z, alpha=0.5, sigma=0.0).abs().max()) < 1e-20
    tiny = mixture.moments(z, alpha=0.5, sigma=1e-12)
    close(tiny.score, clean.score, 1e-9)


def test_flat_directions_and_points_at_no_noise():
    """A line in the plane and a point: finite everywhere, and the density says that it is none."""
    covs = torch.tensor([[[1.0, 1.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]], dtype=F64)
    law = GaussianMixture([0.5, 0.5], [[0.0, 0.0], [3.0, 0.0]], covs)
    z = torch.tensor([[0.7, 0.7], [3.0, 0.0], [2.9, -0.1]], dtype=F64)
    m = law.moments(z, alpha=1.0, sigma=0.0)
    assert all(v.isfinite().all() for v in (m.x, m.eps, m.score))
    close(m.x[:2], z[:2], 1e-12)
    close(m.x[2], torch.tensor([3.0, 0.0], dtype=F64), 1e-12)  # the nearest of the law, z lies on nothing
    assert m.log_prob.tolist() == [math.inf, math.inf, -math.inf]
    near = law.moments(z, alpha=1.0, sigma=1e-7)
    close(near.x, m.x, 1e-6)


@pytest.mark.parametrize("form", ["number", "components", "diagonal"])
def test_short_forms_of_covariances(form):
    means = [[0.0, 1.0, 2.0], [1.0, -1.0, 0.5]]
    short = {"number": 0.3, "components": [0.3, 0.7], "diagonal": [[0.3, 0.1, 0.2], [0.7, 0.5, 0.9]]}[form]
    c = torch.as_tensor(short, dtype=F64)
    c = c.reshape(*c.shape, *[1] * (2 - c.ndim)).expand(2, 3)
    a, b = GaussianMixture([1, 3], means, short), GaussianMixture([1, 3], means, torch.diag_embed(c))
    z = a.sample(8, seed=4, alpha=0.6, sigma=0.8)
    close(a.covs, torch.diag_embed(c), 1e-15)
    for name in ("log_prob", "score", "variance", "covariance", "responsibilities"):
        close(getattr(a, name)(z, alpha=0.6, sigma=0.8), getattr(b, name)(z, alpha=0.6, sigma=0.8), 1e-13)
    close(a.weights, torch.tensor([0.25, 0.75], dtype=F64), 1e-15)


def test_noised_law_is_the_law_of_the_noised(mixture):
    noised = mixture.noised(0.6, 0.8)
    z = mixture.sample(20, seed=5, alpha=0.6, sigma=0.8)
    close(noised.log_prob(z), mixture.log_prob(z, alpha=0.6, sigma=0.8), 1e-12)
    close(noised.score(z), mixture.score(z, alpha=0.6, sigma=0.8), 1e-12)
    again = {"alpha": 0.6 * 0.9, "sigma": math.hypot(0.9 * 0.8, 0.3)}
    close(noised.log_prob(z, alpha=0.9, sigma=0.3), mixture.log_prob(z, **again), 1e-12)


def test_samples_are_of_the_law_and_of_their_index_alone(mixture):
    n = 40_000
    x, label = mixture.labelled(n, seed=6)
    m, c = mixture.mean, mixture.covariance(torch.zeros(1, 2), alpha=0.0, sigma=1.0)[0]
    assert ((x.mean(0) - m).abs() < 5 * (c.diagonal() / n).sqrt()).all()
    close(torch.cov(x.T), c, 0.05)
    assert float((label == 0).double().mean()) == pytest.approx(0.7, abs=5 * math.sqrt(0.21 / n))
    assert torch.equal(mixture.sample(5, seed=6, first=10), x[10:15])
    assert torch.equal(mixture.sample(9, seed=6, label=1), mixture.sample(9, seed=6, label=torch.ones(9).long()))
    assert not torch.equal(mixture.sample(5, seed=8), x[:5])


def test_a_label_is_its_component(line, process):
    """The conditional model is the model of the component; -1 is the whole; rows may differ."""
    t = torch.linspace(0.1, 1, 6, dtype=F64)
    z = line.sample(6, seed=9, process=process, t=t)
    label = torch.tensor([0, 1, -1, -1, 1, 0])
    own = [GaussianMixture([1.0], line.means[k : k + 1], line.covs[k : k + 1]) for k in (0, 1)] + [line]
    model = line.denoiser(process)
    belief = model(z, t, label=label)
    for i, k in enumerate(label.tolist()):
        expected = own[k].denoiser(process)(z[i : i + 1], t[i : i + 1])
        close(belief.x[i : i + 1], expected.x, 1e-12)
        close(belief.eps[i : i + 1], expected.eps, 1e-12)
        close(belief.variance[i : i + 1], expected.variance, 1e-12)
    assert torch.equal(model(z, t).x, model(z, t, label=-1).x)


def test_noisy_classifier_is_bayes_rule(mixture, process):
    """p(y|z) sums to one, and its gradient is the difference of the scores (I1)."""
    t = torch.linspace(0.1, 1, 10, dtype=F64)
    z = mixture.sample(10, seed=10, process=process, t=t).requires_grad_()
    log_p = mixture.classify(z, process=process, t=t)
    close(log_p.exp().sum(-1), torch.ones(10, dtype=F64), 1e-13)
    (gradient,) = torch.autograd.grad(log_p[:, 1].sum(), z)
    at = {"process": process, "t": t}
    close(gradient, mixture.score(z.detach(), **at, label=1) - mixture.score(z.detach(), **at), 1e-10)
    close(log_p.exp()[:, 0], mixture.responsibilities(z, **at)[:, :2].sum(-1), 1e-13)


def test_classifier_free_guidance_of_two_gaussians():
    """I2 with eps_u + w (eps_c - eps_u): a Gaussian score of precision P = w/v_c + (1 - w)/v_u at each level."""
    wide, narrow, w = 2.0, 0.25, 3.0
    law = GaussianMixture([1.0, 1e-300], [[0.0], [0.5]], [wide, narrow])
    process = Gaussian(schedules.Flow())
    t = torch.tensor([0.3, 0.6], dtype=F64)
    a, s = (c[:, None] for c in process.schedule(t))
    z = torch.tensor([[0.4], [-1.0]], dtype=F64)
    model = law.denoiser(process)
    guided = model(z, t).lerp(model(z, t, label=1), w).score
    v_c, v_u = a**2 * narrow + s**2, a**2 * wide + s**2
    precision = w / v_c + (1 - w) / v_u
    close(guided, -precision * (z - w * a * 0.5 / v_c / precision), 1e-12)


def test_mutual_information_and_mmse(line):
    """I-MMSE: dI/dsnr = mmse/2 with I = h(z) - h(noise), z = x + sigma eps (Guo, Shamai and Verdu 2005)."""
    grid = torch.linspace(-60, 60, 24_001, dtype=F64)[:, None]
    cell = float(grid[1] - grid[0])

    def information(snr):
        log_p = line.log_prob(grid, alpha=1.0, sigma=snr**-0.5)
        return -float((log_p.exp() * log_p).sum()) * cell - 0.5 * math.log(2 * math.pi * math.e / snr)

    snr, h = 1.7, 1e-3
    slope = (information(snr + h) - information(snr - h)) / (2 * h)
    at = {"alpha": 1.0, "sigma": snr**-0.5}
    mmse = float((line.log_prob(grid, **at).exp() * line.variance(grid, **at)[:, 0]).sum()) * cell
    assert slope == pytest.approx(mmse / 2, abs=1e-7)
    mean, error = line.mmse(20_000, seed=11, **at)
    assert abs(mean - mmse) < 5 * error < 0.02


def test_fokker_planck(line):
    """C6: dp/dt = -d(f z p)/dz + g^2/2 d^2p/dz^2, the right side by automatic differentiation."""
    process = Gaussian(schedules.LinearBeta())
    t, h = 0.4, 1e-4
    z = torch.linspace(-2, 2, 9, dtype=F64)

    def p(x, time=t):
        return line.log_prob(x[:, None], process=process, t=time).exp()

    x = z.clone().requires_grad_()
    (first,) = torch.autograd.grad(p(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    rate = (8 * (p(z, t + h) - p(z, t - h)) - (p(z, t + 2 * h) - p(z, t - 2 * h))) / (12 * h)
    f, g2 = process.schedule.drift(t), process.schedule.diffusion(t)
    close(rate, (-f * (p(x) + z * first) + g2 / 2 * second).detach(), 1e-9)


def test_fields_of_any_shape_and_single_precision(process):
    means = torch.linspace(-1, 1, 2 * 12, dtype=F64).reshape(2, 12)
    flat, image = (GaussianMixture([0.4, 0.6], means, 0.2, shape=s) for s in (None, (3, 2, 2)))
    z = image.sample(4, seed=12, process=process, t=0.5)
    assert z.shape == (4, 3, 2, 2) and z.dtype == F64
    model = image.denoiser(process)
    belief = model(z.float(), 0.5)
    assert model.shape == (3, 2, 2) and model.process is process
    assert belief.x.shape == belief.eps.shape == belief.variance.shape == z.shape and belief.x.dtype == F64
    expected = flat.denoiser(process)(z.float().flatten(1), 0.5)
    assert torch.equal(belief.x.flatten(1), expected.x)
    assert torch.equal(image.flow(z, 0.5, 0.2, process).flatten(1), flat.flow(z.flatten(1), 0.5, 0.2, process))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m, p: GaussianMixture([0.5, 0.5], [[0.0, 1.0]], 1.0), "weights"),
        (lambda m, p: GaussianMixture([0.5, -0.5], [[0.0], [1.0]], 1.0), "non-negative"),
        (lambda m, p: GaussianMixture([1.0], [[0.0, 1.0]], [[[1.0, 2.0], [2.0, 1.0]]]), "semi-definite"),
        (lambda m, p: GaussianMixture([1.0], [[0.0, 1.0]], [[[1.0, 0.2], [0.0, 1.0]]]), "symmetric"),
        (lambda m, p: GaussianMixture([1.0], [[0.0, 1.0]], torch.ones(3, 2)), "covs"),
        (lambda m, p: GaussianMixture([1.0], [[0.0, 1.0]], 1.0, shape=(3,)), "shape"),
        (lambda m, p: GaussianMixture([1.0], [[0.0, 1.0]], 1.0, labels=[-1]), "labels"),
        (lambda m, p: m.log_prob(torch.zeros(2, 3)), "shape"),
        (lambda m, p: m.log_prob(torch.zeros(2, 2), t=0.5), "process"),
        (lambda m, p: m.log_prob(torch.zeros(2, 2), label=2), "between 0 and 1"),
        (lambda m, p: m.flow(torch.zeros(2, 2), 1.0, 0.0, p, tol=1e-20), "tol"),
        (lambda m, p: m.flow(torch.full((2, 2), math.nan), 1.0, 0.0, p), "finite"),
    ],
)
def test_mistakes_are_said(mixture, process, call, says):
    with pytest.raises(SfumatoError, match=says):
        call(mixture, process)
