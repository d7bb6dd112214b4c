"""The Gaussian process: jump, posterior and bridge against Bayes' rule by quadrature and against each other."""

import itertools
import json

import pytest
import torch

from curves import CURVES
from loops import every
from sfumato.belief import Estimate, ancestral, broadcast
from sfumato.errors import SfumatoError
from sfumato.exact import GaussianMixture
from sfumato.process import Gaussian, from_config
from sfumato.schedules import VE, Cosine, Flow, LinearBeta

F64 = torch.float64

PROCESSES = {name: Gaussian(curve) for name, curve in CURVES.items()}


def close(a, b, tol):
    torch.testing.assert_close(torch.as_tensor(a, dtype=F64), torch.as_tensor(b, dtype=F64), rtol=tol, atol=tol)


def density(x, mean, std):
    return torch.exp(-0.5 * ((x - mean) / std) ** 2) / std


def bridge(belief, s, eta=0.0):
    """(mean, std) of z_s given z_t and the belief about it, on the curve itself at s = 0 too."""
    step = ancestral(belief.alpha, belief.sigma, *belief.schedule(s), eta=eta)
    return broadcast(step.z, belief.z) * belief.z + broadcast(step.x, belief.z) * belief.x, step.std


@every(process=PROCESSES)
def test_jumps_compose(process):
    """q(z_t|x) = int q(z_t|z_s) q(z_s|x), and q(z_t|z_r) = int q(z_t|z_s) q(z_s|z_r)."""
    for r, s, t in itertools.combinations((0.05, 0.3, 0.55, 0.8, 0.97), 3):
        alpha_s, sigma_s = process.schedule(s)
        jump = process.jump(s, t)
        close(jump.alpha * alpha_s, process.schedule.alpha(t), 1e-12)
        whole = torch.sqrt((jump.alpha * sigma_s) ** 2 + jump.sigma**2)
        torch.testing.assert_close(whole, process.schedule.sigma(t), rtol=1e-12, atol=0)
        first, both = process.jump(r, s), process.jump(r, t)
        close(both.alpha, first.alpha * jump.alpha, 1e-12)
        joint = torch.sqrt((jump.alpha * first.sigma) ** 2 + jump.sigma**2)
        torch.testing.assert_close(joint, both.sigma, rtol=1e-9, atol=0)


def test_a_jump_to_the_same_time_is_nothing():
    for curve in CURVES.values():
        jump = Gaussian(curve).jump(0.4, 0.4)
        assert float(jump.alpha) == 1 and float(jump.sigma) == 0


@every(process=PROCESSES)
@pytest.mark.parametrize(("s", "t"), [(0.2, 0.5), (0.45, 0.5), (0.05, 0.95), (0.6, 1.0)])
def test_posterior_by_quadrature(process, s, t):
    """q(z_s|z_t, x) is proportional to q(z_t|z_s) q(z_s|x) (A7): mean and variance on a grid of z_s."""
    (alpha_s, sigma_s), (alpha_t, sigma_t) = process.schedule(s), process.schedule(t)
    jump, step = process.jump(s, t), process.posterior(s, t)
    for x, shift in [(0.7, -1.3), (-2.0, 0.4)]:
        z_t = alpha_t * x + shift * sigma_t
        mean = step.z * z_t + step.x * x
        grid = torch.linspace(-12, 12, 4001, dtype=F64) * step.std + mean
        # q(z_t|z_s) as a function of z_s; a jump that is nearly pure noise is nearly flat in it
        weight = density(z_t, jump.alpha * grid, jump.sigma) * density(grid, alpha_s * x, sigma_s)
        weight = weight / weight.sum()
        bayes = (weight * grid).sum()
        close((bayes - mean) / step.std, 0.0, 1e-10)
        close((weight * (grid - bayes) ** 2).sum() / step.std**2, 1.0, 1e-10)


@every(process=PROCESSES)
def test_posterior_is_the_formula_of_the_table(process):
    """a sigma_s^2/sigma_t^2 z + alpha_s sigma_ts^2/sigma_t^2 x, variance sigma_ts^2 sigma_s^2/sigma_t^2."""
    s, t = torch.rand(2, 200, dtype=F64, generator=torch.Generator().manual_seed(4)).sort(0).values
    (alpha_s, sigma_s), (_, sigma_t) = process.schedule(s), process.schedule(t)
    jump, step = process.jump(s, t), process.posterior(s, t)
    close(step.z, jump.alpha * sigma_s**2 / sigma_t**2, 1e-7)
    close(step.x, alpha_s * jump.sigma**2 / sigma_t**2, 1e-7)
    close(step.std, jump.sigma * sigma_s / sigma_t, 1e-7)


@every(process=PROCESSES, eta=[0.0, 0.5, 1.0])
def test_bridge_keeps_the_marginal_of_each_x(process, eta):
    """With the true x, z_s ~ N(alpha_s x, sigma_s^2) for any eta: coefficient by coefficient."""
    for s, t in [(0.0, 0.3), (0.2, 0.5), (0.05, 0.95), (0.6, 1.0)]:
        (alpha_s, sigma_s), (alpha_t, sigma_t) = process.schedule(s), process.schedule(t)
        z = torch.tensor([[0.0], [1.0], [0.0]], dtype=F64)
        x = torch.tensor([[0.0], [0.0], [1.0]], dtype=F64)
        mean, std = bridge(Estimate(z, t, process.schedule, x=x), s, eta)
        of_z, of_x = mean[1, 0], mean[2, 0]
        assert float(mean[0, 0]) == 0
        close(of_z * alpha_t + of_x, alpha_s, 1e-12)
        torch.testing.assert_close((of_z * sigma_t) ** 2 + std**2, sigma_s**2, rtol=1e-9, atol=1e-14)
        if eta == 1:
            step = process.posterior(s, t)
            close(of_z, step.z, 1e-9)
            close(of_x, step.x, 1e-9)
            close(std, step.std, 1e-9)
        if eta == 0:
            assert float(std) == 0


def test_bridge_takes_one_time_for_each_row():
    process = Gaussian(Cosine())
    z, x = torch.randn(2, 4, 1, 4, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    t, s = torch.tensor([0.9, 0.5, 0.3, 0.2], dtype=F64), torch.tensor([0.5, 0.2, 0.1, 0.0], dtype=F64)
    mean, std = bridge(Estimate(z, t, process.schedule, x=x), s, 1.0)
    assert mean.shape == z.shape and std.shape == (4,)
    for i in range(4):
        one, one_std = bridge(Estimate(z[i : i + 1], t[i], process.schedule, x=x[i : i + 1]), s[i], 1.0)
        close(mean[i : i + 1], one, 1e-14)
        close(std[i], one_std, 1e-14)


def test_bridge_with_more_noise_than_the_end_holds_is_refused():
    process = Gaussian(LinearBeta())
    belief = Estimate(torch.zeros(1, 1, dtype=F64), 0.5, process.schedule, x=torch.zeros(1, 1, dtype=F64))
    with pytest.raises(SfumatoError, match="smaller eta"):
        bridge(belief, 0.1, eta=50.0)


@every(process=PROCESSES)
def test_corrupt_and_prior(process):
    x, eps = torch.randn(2, 3, 2, 5, dtype=F64, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0.0, 0.4, 1.0], dtype=F64)
    z = process.corrupt(x, t, eps)
    for i in range(3):
        alpha, sigma = process.schedule(t[i])
        close(z[i], alpha * x[i] + sigma * eps[i], 1e-14)
    close(process.prior(eps), process.schedule.sigma(1.0) * eps, 1e-14)
    assert process.prior(eps.float()).dtype == torch.float32
    close(process.corrupt(x, 0.4, eps)[1], z[1], 0)


@pytest.mark.parametrize("name", ["linear_beta", "ve", "flow"])
def test_ancestral_steps_with_the_true_posterior_keep_the_marginal(name):
    """x ~ p(x|z_t) of an exact mixture, then q(z_s|z_t, x): z_s has the law p_s, by moments on a grid (A7, A4).

    E[z_s|z_t] and Var[z_s|z_t] follow from E[x|z_t] and Var[x|z_t]; their mean over p_t is the law of z_s.
    """
    process, law = Gaussian(CURVES[name]), GaussianMixture([0.3, 0.7], [[-1.0], [0.8]], [0.05, 0.3])
    s, t = 0.3, 0.7
    alpha, sigma = process.schedule(t)
    reach = 9 * float(torch.hypot(alpha, sigma))
    z = torch.linspace(-reach, reach, 6001, dtype=F64)[:, None]
    p = law.log_prob(z, process=process, t=t).exp()[:, None] * (z[1] - z[0])
    step = process.posterior(s, t)
    mean = step.z * z + step.x * law.moments(z, process=process, t=t).x
    variance = step.std**2 + step.x**2 * law.variance(z, process=process, t=t)
    alpha_s, sigma_s = process.schedule(s)
    first = float(law.mean[0])
    second = float((law.weights * (law.means[:, 0] ** 2 + law.covs[:, 0, 0])).sum())
    close((p * mean).sum(), alpha_s * first, 1e-9)
    close((p * (mean**2 + variance)).sum(), alpha_s**2 * second + sigma_s**2, 1e-9)


def test_config_round_trip():
    for curve in CURVES.values():
        process = Gaussian(curve)
        assert from_config(json.loads(json.dumps(process.config()))) == process
    with pytest.raises(SfumatoError, match="There is no process 'Smear'"):
        from_config({"name": "Smear", "args": {}})


def test_variance_exploding_is_variance_preserving_scaled():
    """z_VE = z_VP / alpha_VP at equal logsnr: the bridge of one is that of the other, scaled (C2)."""
    vp, ve = Gaussian(LinearBeta()), Gaussian(VE(0.01, 150.0))
    t, s = 0.7, 0.35
    t_ve, s_ve = (ve.schedule.time(vp.schedule.logsnr(v)) for v in (t, s))
    x, z = torch.randn(2, 4, 3, dtype=F64, generator=torch.Generator().manual_seed(2))
    for eta in (0.0, 0.6, 1.0):
        mean, std = bridge(Estimate(z, t, vp.schedule, x=x), s, eta)
        mean_ve, std_ve = bridge(Estimate(z / vp.schedule.alpha(t), t_ve, ve.schedule, x=x), s_ve, eta)
        close(mean_ve, mean / vp.schedule.alpha(s), 1e-10)
        close(std_ve, std / vp.schedule.alpha(s), 1e-10)


def test_flow_bridge_is_the_convex_combination():
    """eta 0 on the linear path: z_s = (s/t) z_t + (1 - s/t) x (InDI and alpha-deblending, 2303.11435, 2305.03486)."""
    process = Gaussian(Flow())
    z, x = torch.randn(2, 4, 3, dtype=F64, generator=torch.Generator().manual_seed(3))
    mean, _ = bridge(Estimate(z, 0.8, process.schedule, x=x), 0.2)
    close(mean, 0.25 * z + 0.75 * x, 1e-15)
