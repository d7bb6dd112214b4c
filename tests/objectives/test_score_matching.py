"""Score matching: every identity between its losses, by quadrature and by all probes; and where they fail."""

import itertools
import math

import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from numpy.polynomial.legendre import leggauss

import sfumato as sf
from sfumato.errors import SfumatoError
from sfumato.exact import GaussianMixture
from sfumato.objectives import denoising_loss, score_matching, weights
from sfumato.objectives.score_matching import Levels, denoising, draw_probes, explicit, implicit, ncsn, sliced
from sfumato.process import Gaussian
from sfumato.schedules import VE, Cosine, LogLinear

F64 = torch.float64


def mixture():
    return GaussianMixture([0.3, 0.7], [[-1.0, 0.5], [0.8, 0.0]], [[[0.3, 0.1], [0.1, 0.4]], [[0.5, 0.0], [0.0, 0.2]]])


def line():
    return GaussianMixture([0.4, 0.6], [[-1.0], [0.7]], [0.2, 0.4])


def network(dim, seed=0):
    """A smooth function of z, no score and no gradient: a network whose Jacobian is not symmetric."""
    g = torch.Generator().manual_seed(seed)
    w = [torch.randn(16, dim, generator=g, dtype=F64), torch.randn(dim, 16, generator=g, dtype=F64) / 4]
    return lambda z: (torch.tanh(z.flatten(1) @ w[0].T) @ w[1].T).reshape(z.shape)


def plane(reach=8.0, count=161, dim=2):
    """Nodes of the trapezoidal rule, which converges exponentially for what decays within the reach; their weight."""
    axis = torch.linspace(-reach, reach, count, dtype=F64)
    return torch.cartesian_prod(*[axis] * dim).reshape(-1, dim), (axis[1] - axis[0]).item() ** dim


# -- implicit (B1) ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", [line(), mixture()], ids=["1-D", "2-D"])
def test_implicit_is_explicit_less_half_the_fisher_information(law):
    """J = SM - 1/2 E|grad log p|^2, for a function that is no score."""
    z, cell = plane(dim=law.dim)
    score, p = network(law.dim), law.log_prob(z).exp() * cell
    assert float(p.sum()) == pytest.approx(1, abs=1e-12)
    true = law.score(z)
    fisher = float((p * true.square().sum(1)).sum())
    found, wanted = (float((p * loss).sum().detach()) for loss in (implicit(score, z), explicit(score, z, true)))
    assert found == pytest.approx(wanted - fisher / 2, abs=1e-10)
    assert wanted > 0.1  # the identity is not that of a perfect score


def test_on_a_box_implicit_misses_what_flows_through_the_walls():
    """E div s = int_walls p s.n - E s.grad log p: a normal law cut to [-1, 1]^2 leaves the first term."""
    x, w = (torch.tensor(v, dtype=F64) for v in leggauss(40))
    z, cell = torch.cartesian_prod(x, x), torch.cartesian_prod(w, w).prod(1)
    mass = math.erf(1 / math.sqrt(2))  # of the standard normal law in [-1, 1]

    def density(u):
        return torch.exp(-u.square() / 2) / (math.sqrt(2 * math.pi) * mass)

    p = density(z).prod(1) * cell
    score = network(2)
    gap = float((p * (implicit(score, z) - explicit(score, z, -z) + 0.5 * z.square().sum(1))).sum().detach())
    walls = 0.0
    for axis, side in itertools.product((0, 1), (-1.0, 1.0)):
        wall = torch.full((len(x), 2), side, dtype=F64)
        wall[:, 1 - axis] = x
        walls += side * float((density(wall).prod(1) * score(wall)[:, axis] * w).sum())
    assert gap == pytest.approx(walls, abs=1e-10)
    assert abs(walls) > 0.01


def test_on_uniform_data_implicit_prefers_a_wrong_score_and_denoising_does_not():
    """x ~ U(-1, 1) has the score 0. s = -k z: J = k^2/6 - k is least at k = 3; denoising at k = 1 / (1/3 + sigma^2)."""
    x, w = (torch.tensor(v, dtype=F64) for v in leggauss(20))
    n, m = (torch.tensor(v, dtype=F64) for v in hermegauss(20))
    z, p, sigma = x[:, None], w / 2, 0.5
    pairs, q = torch.cartesian_prod(x, n), torch.cartesian_prod(p, m / math.sqrt(2 * math.pi)).prod(1)
    k = torch.tensor(0.0, dtype=F64, requires_grad=True)

    def slope(at, loss):
        (value,) = torch.autograd.grad(loss(k + at), k)
        return float(value)

    for at in (0.5, 3.0, 4.0):
        assert slope(at, lambda k: (p * implicit(lambda z: -k * z, z)).sum()) == pytest.approx(at / 3 - 1, abs=1e-12)
    best = 1 / (1 / 3 + sigma**2)
    noisy = {"x": pairs[:, :1], "sigma": sigma, "eps": pairs[:, 1:]}
    assert slope(best, lambda k: (q * denoising(lambda z: -k * z, **noisy)).sum()) == pytest.approx(0, abs=1e-12)
    assert slope(3.0, lambda k: (q * denoising(lambda z: -k * z, **noisy)).sum()) > 0.5


@pytest.mark.parametrize("shape", [(3,), (2, 2), (1, 2, 3)], ids=str)
def test_trace_is_that_of_the_jacobian_for_any_shape(shape):
    score = network(math.prod(shape))
    z = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1), dtype=F64)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda z: score(z[None])[0]))(z).reshape(4, z[0].numel(), -1)
    wanted = jacobian.diagonal(dim1=1, dim2=2).sum(1) + 0.5 * score(z).square().flatten(1).sum(1)
    torch.testing.assert_close(implicit(score, z), wanted, rtol=0, atol=1e-13)


# -- sliced (B2) ------------------------------------------------------------------------------------------------------


def jacobian(score, z):
    return torch.func.vmap(torch.func.jacrev(lambda z: score(z[None])[0]))(z)


def all_probes(law, z):
    """Every probe of a law with its weight, or nodes that integrate degree 4 exactly: (M, B, D) and (M,)."""
    dim = z.shape[1]
    if law == "rademacher":
        v = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=dim)), dtype=F64)
        w = torch.full((len(v),), 1 / len(v), dtype=F64)
    elif law == "gaussian":
        n, m = (torch.tensor(u, dtype=F64) for u in hermegauss(4))
        v = torch.cartesian_prod(*[n] * dim)
        w = torch.cartesian_prod(*[m / math.sqrt(2 * math.pi)] * dim).prod(1)
    else:  # equal angles on the circle
        angle = torch.arange(8, dtype=F64) * math.pi / 4
        v, w = math.sqrt(2) * torch.stack((angle.cos(), angle.sin()), 1), torch.full((8,), 1 / 8, dtype=F64)
    return v[:, None].expand(-1, len(z), -1), w


CASES = [("rademacher", 3), ("gaussian", 2), ("sphere", 2)]


@pytest.mark.parametrize("reduced", [False, True], ids=["plain", "reduced"])
@pytest.mark.parametrize("law, dim", CASES)
def test_sliced_is_implicit_in_the_mean_over_probes(law, dim, reduced):
    z = torch.randn(5, dim, generator=torch.Generator().manual_seed(2), dtype=F64)
    score, (v, w) = network(dim), all_probes(law, z)
    each = torch.stack([sliced(score, z, probes=one[None], reduced=reduced) for one in v])
    torch.testing.assert_close(w @ each, implicit(score, z), rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", [(2, 2), (1, 3, 1)], ids=str)
def test_sliced_takes_any_shape(shape):
    """The mean over all sign vectors of a field is the exact trace."""
    dim = math.prod(shape)
    z = torch.randn(3, *shape, generator=torch.Generator().manual_seed(6), dtype=F64)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=dim)), dtype=F64)
    v = signs.reshape(-1, 1, *shape).expand(-1, 3, *shape)
    for reduced in (False, True):
        found = sliced(network(dim), z, probes=v, reduced=reduced)
        torch.testing.assert_close(found, implicit(network(dim), z), rtol=0, atol=1e-13)


@pytest.mark.parametrize("law, dim", CASES)
def test_variance_over_probes_is_that_of_theory(law, dim):
    """H = (J + J^T) / 2: signs 2 |offdiag H|^2, normal numbers 2 |H|^2, the sphere 2D/(D+2) (|H|^2 - (tr H)^2/D)."""
    z = torch.randn(5, dim, generator=torch.Generator().manual_seed(3), dtype=F64)
    score, (v, w) = network(dim), all_probes(law, z)
    each = torch.stack([sliced(score, z, probes=one[None]).detach() for one in v])
    h = jacobian(score, z)
    h = (h + h.mT) / 2
    whole, diagonal = h.square().sum((1, 2)), h.diagonal(dim1=1, dim2=2)
    wanted = {
        "rademacher": 2 * (whole - diagonal.square().sum(1)),
        "gaussian": 2 * whole,
        "sphere": 2 * dim / (dim + 2) * (whole - diagonal.sum(1).square() / dim),
    }[law]
    torch.testing.assert_close(w @ each.square() - (w @ each).square(), wanted, rtol=0, atol=1e-12)
    plain = torch.stack([sliced(score, z, probes=one[None], reduced=False).detach() for one in v])
    noisier = w @ plain.square() - (w @ plain).square()
    assert bool((wanted > 1e-4).all()) and float(noisier.mean()) > float(wanted.mean())


@pytest.mark.parametrize("law", score_matching.PROBES)
def test_probes_have_unit_covariance_and_belong_to_their_sample(law):
    z = torch.zeros(4000, 1, 3, dtype=F64)
    v = draw_probes(z, 5, law, seed=4)
    flat = v.reshape(-1, 3)
    # an entry of v v^T has a variance of at most 2: five standard errors
    assert float((flat.T @ flat / len(flat) - torch.eye(3)).abs().max()) < 5 * math.sqrt(2 / len(flat))
    assert float((v[0] - v[1]).abs().max()) > 0.5
    part = draw_probes(z[:2], 5, law, seed=4, index=[3999, 7])
    assert torch.equal(part[:, 0], v[:, 3999]) and torch.equal(part[:, 1], v[:, 7])
    if law != "gaussian":
        torch.testing.assert_close(v.flatten(2).square().sum(2), torch.full((5, 4000), 3.0, dtype=F64))


def test_more_probes_are_their_mean():
    z = torch.randn(3, 2, generator=torch.Generator().manual_seed(5), dtype=F64)
    v = draw_probes(z, 4, "gaussian", seed=1)
    for reduced in (False, True):
        whole = sliced(network(2), z, probes=v, reduced=reduced)
        single = torch.stack([sliced(network(2), z, probes=v[i : i + 1], reduced=reduced) for i in range(4)])
        torch.testing.assert_close(whole, single.mean(0), rtol=0, atol=1e-13)
        assert torch.equal(whole, sliced(network(2), z, probes=4, law="gaussian", seed=1, reduced=reduced))


# -- denoising (B3) and NCSN (B4) -------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", [line(), mixture()], ids=["1-D", "2-D"])
def test_denoising_is_explicit_and_a_constant(law):
    """1/2 E|s + eps/sigma|^2 = SM + 1/2 (D / sigma^2 - E|score|^2) of the noised law, whatever s is.

    Each component's x given its number is a line or plane of Hermite nodes, and so is eps: exact for what is smooth.
    """
    sigma, dim, count = 1.1, law.dim, 40 if law.dim == 1 else 14
    noised = law.noised(1.0, sigma)
    n, m = (torch.tensor(u, dtype=F64) for u in hermegauss(count))
    u = torch.cartesian_prod(*[n] * (2 * dim))
    w = torch.cartesian_prod(*[m / math.sqrt(2 * math.pi)] * (2 * dim)).prod(1)
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(dim, dim, generator=g, dtype=F64), torch.randn(dim, generator=g, dtype=F64)

    def score(z):
        return z @ a.T + 0.3 * torch.cos(z @ a) + b

    found = wanted = 0.0
    for weight, mean, cov in zip(law.weights, law.means, law.covs, strict=True):
        x, eps = mean + u[:, :dim] @ torch.linalg.cholesky(cov).T, u[:, dim:]
        z = x + sigma * eps
        true = noised.score(z)
        found += float(weight * (w * denoising(score, x, sigma, eps=eps)).sum())
        constant = 0.5 * (dim / sigma**2 - true.square().sum(1))
        wanted += float(weight * (w * (explicit(score, z, true) + constant)).sum())
    assert found == pytest.approx(wanted, rel=1e-12 if dim == 1 else 1e-7)
    assert wanted > 1


def test_the_constant_of_denoising_on_a_grid():
    """The same in the plane, integrated over z: E[eps | z] and E[|eps|^2 | z] are known in closed form."""
    law, sigma = mixture(), 0.7
    noised = law.noised(1.0, sigma)
    z, cell = plane(9.0, 161)
    p, true, score = noised.log_prob(z).exp() * cell, noised.score(z), network(2)
    moments = law.moments(z, alpha=1.0, sigma=sigma)
    square = law.total_variance(z, alpha=1.0, sigma=sigma) / sigma**2 + moments.eps.square().sum(1)
    s = score(z)
    found = 0.5 * s.square().sum(1) + (s * moments.eps).sum(1) / sigma + 0.5 * square / sigma**2
    wanted = explicit(score, z, true) + 0.5 * (2 / sigma**2 - true.square().sum(1))
    assert float((p * found).sum()) == pytest.approx(float((p * wanted).sum()), abs=1e-12)


def test_denoising_at_one_level_is_the_denoising_loss_of_the_score():
    """For target "score" they are one function; for the others sigma^2 DSM is the loss with w / p = 1."""
    process, law = Gaussian(LogLinear(-6.0, 6.0)), mixture()
    x, t = law.sample(6, seed=1), torch.linspace(0.1, 0.9, 6, dtype=F64)
    denoiser = sf.Denoiser(sf.nets.MLP(2, 16, 1).double(), process, target="score")
    torch.nn.init.normal_(denoiser.net.output.weight, generator=torch.Generator().manual_seed(0))
    found = denoising(denoiser, x, t=t, seed=3, index=range(5, 11))
    torch.testing.assert_close(found, denoising_loss(denoiser, x, t, seed=3, index=range(5, 11)), rtol=1e-12, atol=0)
    other = sf.Denoiser(denoiser.net, process, target="v")
    sigma = process.schedule.sigma(t)
    wanted = denoising_loss(other, x, t, weight=lambda lam: 1 / _slope(process, t), seed=3)
    torch.testing.assert_close(sigma**2 * denoising(other, x, t=t, seed=3), wanted, rtol=1e-9, atol=0)


def _slope(process, t):
    """1 / p(logsnr) of the density that is uniform in t."""
    return -process.schedule.dlogsnr(t)


LEVELS = Levels.geometric(0.05, 8.0, 7)


@pytest.mark.parametrize("name", ["score", "eps", "v"])
@pytest.mark.parametrize("curve", [VE(0.05, 8.0), VE(0.01, 50.0), LogLinear()], ids=["VE", "wide VE", "VP"])
def test_ncsn_is_the_denoising_loss_with_a_constant_weight(name, curve):
    """E over the drawn level of `ncsn` = sum_i sigma_i^2 DSM(sigma_i), computed from the score alone (Eq. 5 and 6)."""
    law, process, n = mixture(), Gaussian(curve), len(LEVELS.sigmas)
    denoiser = sf.Denoiser(sf.nets.MLP(2, 16, 1).double(), process, target=name)
    torch.nn.init.normal_(denoiser.net.output.weight, generator=torch.Generator().manual_seed(0))
    x = law.sample(1, seed=2).expand(n, 2)
    eps = torch.randn(n, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    u = (torch.arange(n, dtype=F64) + 0.5) / n  # each level once
    lam = LEVELS.logsnr(u, curve)
    t = curve.time(lam)
    each = denoising_loss(denoiser, x, t, weight=weights.elbo(), times=LEVELS, eps=eps)
    wanted = 0.0
    for i, sigma in enumerate(LEVELS.sigmas):
        alpha = curve.alpha(t[i])
        score = alpha * denoiser(alpha * (x[i : i + 1] + sigma * eps[i : i + 1]), t[i]).score  # of the state over alpha
        wanted += sigma**2 * 0.5 * float((score + eps[i] / sigma).square().sum().detach())
    assert float(each.detach().mean()) == pytest.approx(wanted, rel=1e-9)


def test_ncsn_draws_every_level_as_often():
    curve, index = VE(0.05, 8.0), torch.arange(7000)
    calls = []

    class Watched:
        process = Gaussian(curve, "eps")

        def __call__(self, z, t):
            calls.append(t)
            return self.process.read(torch.zeros_like(z), z, t)

    x = mixture().sample(7000, seed=0)
    loss = ncsn(Watched(), x, LEVELS, seed=5, index=index)
    sigmas, counts = torch.unique(curve.sigma(calls[0]).round(decimals=9), return_counts=True)
    torch.testing.assert_close(sigmas, torch.tensor(LEVELS.sigmas, dtype=F64).round(decimals=9))
    assert float((counts - 1000).abs().max()) < 5 * math.sqrt(1000)
    # eps_hat = 0: the sum over the levels is that of E|eps|^2 / 2 = 1 each
    assert float(loss.mean()) == pytest.approx(7, abs=5 * 7 / math.sqrt(7000))


def test_geometric_levels_are_those_of_the_paper():
    ratio = torch.tensor(LEVELS.sigmas[1:]) / torch.tensor(LEVELS.sigmas[:-1])
    torch.testing.assert_close(ratio, torch.full((6,), (8.0 / 0.05) ** (1 / 6)))
    assert LEVELS.sigmas[0] == pytest.approx(0.05, rel=1e-14) and LEVELS.sigmas[-1] == pytest.approx(8.0, rel=1e-14)


# -- what any of them does --------------------------------------------------------------------------------------------


class Bowed(torch.nn.Module):
    """A score with a parameter: s = -a z^3."""

    def __init__(self):
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(0.5, dtype=F64))

    def forward(self, z):
        return -self.a * z**3


def test_losses_have_gradients_where_they_are_wanted():
    """s = -a z^3: J = a^2 z^6 / 2 - 3 a z^2 and dJ/da = a z^6 - 3 z^2, by second derivatives through the network."""
    score, z = Bowed(), torch.tensor([[0.7], [-1.2]], dtype=F64)
    for loss in (implicit(score, z), sliced(score, z), sliced(score, z, reduced=False)):
        torch.testing.assert_close(loss, (0.125 * z**6 - 1.5 * z**2)[:, 0])
        (slope,) = torch.autograd.grad(loss.sum(), score.a)
        assert float(slope) == pytest.approx(float((0.5 * z**6 - 3 * z**2).sum()), rel=1e-12)
    with torch.no_grad():
        still = implicit(score, z)
    assert not still.requires_grad and torch.equal(still, implicit(score, z).detach())
    with torch.inference_mode():
        assert torch.equal(implicit(score, z.clone()), still)


def test_a_model_at_a_level_is_a_score():
    law, process = mixture(), Gaussian(Cosine())
    model, t = law.denoiser(process), torch.tensor([0.2, 0.5, 0.8], dtype=F64)
    z = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    label = torch.tensor([0, 1, -1])

    def true(z):
        return law.score(z, process=process, t=t, label=label)

    assert float(explicit(model, z, true, t, label=label).max()) < 1e-25
    torch.testing.assert_close(implicit(model, z, t, label=label), implicit(true, z), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sliced(model, z, t, label=label), sliced(true, z), rtol=1e-12, atol=1e-12)


def test_half_precision_scores_are_summed_in_single():
    z = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))

    def score(z):
        return -z.to(torch.bfloat16)

    found = implicit(score, z)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, 0.5 * score(z).float().square().sum(1) - 40, rtol=1e-6, atol=0)


def test_attention_has_the_second_derivatives_that_training_needs():
    """The fused kernel has none: beyond 512 tokens a transformer uses it."""
    net = sf.nets.DiT((1, 520), patch=1, width=8, depth=1, heads=1)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2, generator=torch.Generator().manual_seed(1))
    z = torch.randn(1, 1, 520, generator=torch.Generator().manual_seed(0))
    sliced(lambda z: net(z, torch.zeros(1)), z).sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.blocks.parameters())


def test_mistakes_are_said_in_one_sentence():
    z, model = torch.zeros(2, 2, dtype=F64), mixture().denoiser(Gaussian(VE()))
    cases = [
        (lambda: implicit(model, z), "pass t"),
        (lambda: implicit(network(2), z, t=0.5), "function z -> score"),
        (lambda: implicit(lambda z: z.sum(1), z), "shape of z"),
        (lambda: implicit(lambda z: torch.ones_like(z), z), "not connected to z"),
        (lambda: implicit(lambda z: Bowed()(z.detach()), z), "not connected to z"),
        (lambda: sliced(network(2), z, law="signs"), "known are"),
        (lambda: sliced(network(2), z, probes=0), "at least 1"),
        (lambda: sliced(network(2), z, probes=torch.ones(1, 2, 3)), "Probes must have shape"),
        (lambda: denoising(network(2), z), "sigma"),
        (lambda: denoising(model, z, sigma=0.5, t=0.5), "as t for a model"),
        (lambda: denoising(network(2), z, sigma=0.0), "above 0"),
        (lambda: Levels((0.5, 0.2)), "increasing"),
        (lambda: Levels.geometric(1.0, 0.1, 5), "sigma_min < sigma_max"),
        (lambda: Levels((0.001, 90.0)).logsnr(torch.zeros(1), VE(0.01, 50.0)), "VE"),
    ]
    for call, words in cases:
        with pytest.raises(SfumatoError, match=words):
            call()
