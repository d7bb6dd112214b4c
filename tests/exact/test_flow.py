"""The exact probability-flow map: closed form, scipy's integrator, reversal, marginals, consistency."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import solve_ivp

from sfumato import schedules
from sfumato.exact import Empirical, GaussianMixture
from sfumato.exact.flow import integrate
from sfumato.process import Gaussian

F64 = torch.float64


def gap(a, b):
    return float(((a - b).abs() / (1 + b.abs())).max())


def twice(mean, cov):
    """One Gaussian written as two equal components, so that the flow is integrated and not known in closed form."""
    return GaussianMixture([0.25, 0.75], [mean, mean], [cov, cov]), GaussianMixture([1.0], [mean], [cov])


@pytest.mark.parametrize("scale", [1e-3, 300.0])
def test_integrated_flow_is_the_closed_form_of_a_gaussian(process, scale):
    """z_s = alpha_s m + S_s S_t^-1 (z_t - alpha_t m), in any units, from and to both ends."""
    cov = (scale**2 * torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=F64)).tolist()
    two, one = twice([2.0 * scale, -1.0 * scale], cov)
    for t, s in ((1.0, 0.0), (0.7, 0.2), (0.1, 0.9), (0.0, 1.0)):
        z = one.sample(16, seed=1, process=process, t=t)
        alpha, sigma = process.schedule(s)
        size = torch.hypot(scale * alpha, sigma)
        assert gap(two.flow(z, t, s, process) / size, one.flow(z, t, s, process) / size) < 5e-11


def test_closed_form_by_hand():
    """Diagonal covariance: each axis is stretched by sqrt(alpha^2 c + sigma^2); rows may have their own times."""
    law = GaussianMixture([1.0], [[1.0, -2.0]], [[0.5, 3.0]])
    process = Gaussian(schedules.LinearBeta())
    t, s = torch.tensor([0.9, 0.4], dtype=F64), torch.tensor([0.1, 0.8], dtype=F64)
    (at, st), (as_, ss) = ([c[:, None] for c in process.schedule(time)] for time in (t, s))
    z, c, m = torch.tensor([[0.3, 1.0], [-1.0, 2.0]], dtype=F64), law.covs[0].diagonal(), law.means
    expected = as_ * m + ((as_**2 * c + ss**2) / (at**2 * c + st**2)).sqrt() * (z - at * m)
    assert gap(law.flow(z, t, s, process), expected) < 1e-14


def test_flow_of_a_mixture_is_that_of_scipy(mixture, process):
    """dz/dt = velocity, integrated in t by DOP853 of scipy: another clock, another method."""
    model, times = mixture.denoiser(process), (0.8, 0.05)
    z = mixture.sample(4, seed=2, process=process, t=times[0])

    def velocity(t, flat):
        return model(torch.from_numpy(flat.reshape(4, 2)), float(t)).velocity.numpy().ravel()

    solution = solve_ivp(velocity, times, z.numpy().ravel(), method="DOP853", rtol=1e-12, atol=1e-12)
    expected = torch.from_numpy(np.ascontiguousarray(solution.y[:, -1])).reshape(4, 2)
    assert gap(mixture.flow(z, *times, process), expected) < 1e-9


def test_flow_runs_backwards_and_in_pieces(mixture, process):
    z = mixture.sample(12, seed=3, process=process, t=0.6)
    s = torch.linspace(0.1, 1.0, 12, dtype=F64)
    there = mixture.flow(z, 0.6, s, process)
    assert gap(mixture.flow(there, s, 0.6, process), z) < 1e-9
    half = mixture.flow(z, 0.6, 0.3, process)
    assert gap(mixture.flow(half, 0.3, 0.1, process), mixture.flow(z, 0.6, 0.1, process)) < 1e-9
    assert gap(mixture.flow(z, 0.6, 0.6, process), z) < 1e-15


def test_rows_do_not_see_each_other(mixture):
    process = Gaussian(schedules.Flow())
    z = mixture.sample(4, seed=4, process=process, t=1.0)
    alone = torch.cat([mixture.flow(row[None], 1.0, 0.0, process) for row in z])
    assert gap(alone, mixture.flow(z, 1.0, 0.0, process)) < 1e-10


def test_consistency_function(mixture, process):
    """f(z_t, t) = f(z_s, s) on one path, and f(z_0, 0) = z_0."""
    z = mixture.sample(10, seed=5, process=process, t=1.0)
    t = torch.linspace(0.1, 0.9, 10, dtype=F64)
    path = mixture.flow(z, 1.0, t, process)
    x = mixture.consistency(z, 1.0, process)
    assert gap(mixture.consistency(path, t, process), x) < 1e-9
    assert gap(mixture.consistency(x, 0.0, process), x) < 1e-15


def test_pushed_samples_have_the_marginal(line, process):
    """Noised samples carried by the flow to another level are samples of that level: Kolmogorov and Smirnov."""
    n, s = 4000, 0.15
    pushed = line.flow(line.sample(n, seed=6, process=process, t=0.8), 0.8, s, process, tol=1e-8)[:, 0]
    alpha, sigma = (float(c) for c in process.schedule(s))
    sd = [math.sqrt(alpha**2 * c + sigma**2) for c in (0.05, 0.3)]

    def cdf(x):
        return 0.3 * stats.norm.cdf(x, -alpha, sd[0]) + 0.7 * stats.norm.cdf(x, 0.8 * alpha, sd[1])

    assert stats.kstest(pushed.numpy(), cdf).pvalue > 1e-3
    still = stats.kstest(line.sample(n, seed=6, process=process, t=0.8)[:, 0].numpy(), cdf)
    assert still.pvalue < 1e-6  # the same test sees the samples that were not carried


def test_one_dimensional_flow_is_the_monotone_map(line):
    """On a line the flow keeps order, so that it is the quantile map: F_0(x) = F_1(z)."""
    process = Gaussian(schedules.Flow())
    z = torch.linspace(-2.5, 2.5, 21, dtype=F64)
    x = line.flow(z[:, None], 1.0, 0.0, process)[:, 0]
    sd = [math.sqrt(0.05), math.sqrt(0.3)]
    reached = 0.3 * stats.norm.cdf(x, -1.0, sd[0]) + 0.7 * stats.norm.cdf(x, 0.8, sd[1])
    assert np.abs(reached - stats.norm.cdf(z)).max() < 1e-11


def test_labels_choose_the_flow(line, process):
    own = [GaussianMixture([1.0], line.means[k : k + 1], line.covs[k : k + 1]) for k in (0, 1)] + [line]
    z = line.sample(6, seed=7, process=process, t=0.9)
    label = torch.tensor([0, 1, -1, 1, -1, 0])
    out = line.flow(z, 0.9, 0.1, process, label=label)
    for i, k in enumerate(label.tolist()):
        assert gap(out[i : i + 1], own[k].flow(z[i : i + 1], 0.9, 0.1, process)) < 1e-10


def test_flow_of_points_ends_on_them(process):
    """A finite data set: the flow to no noise reaches samples of it, each as often as its weight says."""
    data = torch.tensor([[-1.0], [0.5], [2.0]], dtype=F64)
    law = Empirical(data, weights=torch.tensor([0.2, 0.5, 0.3]))
    n = 1000
    z = law.sample(n, seed=8, process=process, t=1.0)
    x = law.flow(z, 1.0, 0.0, process, tol=1e-8)
    distance, nearest = torch.cdist(x, process.schedule.alpha(0.0) * data).min(-1)
    sigma = float(process.schedule.sigma(0.0))
    assert float(distance.max()) < (1e-9 if sigma == 0 else 6 * sigma)
    share = torch.bincount(nearest, minlength=3) / n
    assert (share - law.log_weights.exp()).abs().max() < 5 * math.sqrt(0.25 / n)


def test_flow_along_a_watershed_stays_finite_and_ends():
    """Between two points the responsibilities switch on the last digit of z: the flow still comes to one of them."""
    law = GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [1e-10, 1e-10])
    z = torch.tensor([[0.0], [1e-15], [-1e-13], [1e-3]], dtype=F64)
    x = law.flow(z, 1.0, 0.0, Gaussian(schedules.Flow()), tol=1e-9)
    assert float((x[1:].abs() - 1).abs().max()) < 1e-3 and float(x[0].abs()) <= 1 + 1e-3
    assert x[2] < 0 < x[1] and x[3] > 0


def test_integrator_keeps_its_tolerance():
    """y' = -y + sin(5u), rows with their own intervals; the error follows the tolerance down to rounding."""
    start, stop = torch.tensor([0.0, 0.5, 2.0], dtype=F64), torch.tensor([3.0, 0.5, -1.0], dtype=F64)

    def exact(u):
        return (torch.sin(5 * u) - 5 * torch.cos(5 * u)) / 26 + torch.exp(-u)

    for tol in (1e-4, 1e-8, 1e-12):
        y = integrate(lambda u, y, rows: torch.sin(5 * u)[..., None] - y, exact(start)[:, None], start, stop, tol)
        assert float((y[:, 0] - exact(stop)).abs().max()) < 100 * tol
