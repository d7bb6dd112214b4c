"""Gradient norm and noise scale against a linear network whose per-sample gradients are known in closed form."""

import math

import pytest
import torch
from torch import nn

import sfumato as sf
from sfumato.diagnostics import gradients
from sfumato.diagnostics.bins import make
from sfumato.diagnostics.draws import Draws, losses
from sfumato.objectives import Objective

FLOW = sf.Gaussian(sf.schedules.Flow())
DIM, SLOPE = 4, 0.3


class Linear(nn.Module):
    """y = a u."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(SLOPE, dtype=torch.float64))

    def forward(self, u, level, **cond):
        return self.a * u


def closed_form(logsnr: float) -> tuple[float, float]:
    """|G|^2 and tr Sigma of mean_k (a u_k - y_k)^2 for white x: u = c_in z ~ N(0, 1), y = eps - x, E u y = r.

    G = 2 (a - r); with e = a u - y, E e^2 = a^2 - 2 a r + 2 and Var(u e) = E e^2 + (a - r)^2.
    """
    alpha, sigma = (float(v) for v in FLOW.schedule(FLOW.schedule.time(logsnr)))
    r = (sigma - alpha) / math.hypot(alpha, sigma)
    square = (2 * (SLOPE - r)) ** 2
    return square, 4 / DIM * (SLOPE**2 - 2 * SLOPE * r + 2 + (SLOPE - r) ** 2)


def measured(edges, count: int, micro: int, size: int):
    """(gradients, draws, factor) of the linear network under the plain loss of the velocity."""
    times = sf.times.uniform_logsnr()
    bins = make(edges, times, FLOW.schedule)
    x = torch.randn(count * len(bins), DIM, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    draws = Draws(x, {}, FLOW, bins, count, 0, 256)
    objective = Objective(FLOW.schedule, "velocity", times)
    factor = objective.weight(draws.logsnr) / objective.density(draws.logsnr)
    model = sf.Denoiser(Linear(), FLOW, "velocity")
    return gradients.measure(model, draws, factor, micro, size), draws, factor, model


def test_a_linear_network_has_its_closed_form():
    levels = [2.0, 0.0, -2.0]
    edges = [at + by for at in levels for by in (-0.001, 0.001)]
    found, *_ = measured(edges, 1600, 100, 16)
    for k, logsnr in zip((0, 2, 4), levels, strict=True):
        for column, expected in zip((found.square, found.variance), closed_form(logsnr), strict=True):
            value, error = float(column.value[k]), float(column.stderr[k])
            assert abs(value - expected) < 4 * error < 0.7 * expected
        square, variance = closed_form(logsnr)
        scale, error = float(found.scale.value[k]), float(found.scale.stderr[k])
        assert abs(scale - variance / square) < 4 * error
        assert float(found.norm.value[k]) == pytest.approx(math.sqrt(square), abs=4 * float(found.norm.stderr[k]))


def test_the_whole_is_that_of_a_batch_of_all_levels():
    """Per-sample gradients of all draws in closed form, 2/d sum_k u_k (a u_k - y_k): their mean and variance."""
    found, draws, factor, model = measured(4, 640, 160, 4)
    drawn = draws.take(draws.index)
    alpha, sigma = (v[:, None] for v in FLOW.schedule(drawn.t))
    u = drawn.z / torch.sqrt(alpha**2 + sigma**2)
    each = 2 / DIM * (u * (SLOPE * u - (drawn.eps - drawn.x))).sum(1)
    with torch.no_grad():  # the loss that is differentiated is the plain one
        plain = (SLOPE * u - (drawn.eps - drawn.x)).square().mean(1)
        assert torch.allclose(factor * losses(model, drawn), plain)
    square, error = float(each.mean() ** 2), float(found.variance.stderr.square().sum().sqrt()) / 4
    assert found.total[0] == pytest.approx(square, abs=4 * error / 640)
    assert found.total[1] == pytest.approx(float(each.var()), abs=4 * error) and 4 * error < 0.5 * found.total[1]
    assert found.total_scale == pytest.approx(found.total[1] / found.total[0])


def test_the_estimates_are_unbiased_and_know_their_error():
    """g_i ~ N(G, Sigma / b): over many repetitions the mean of each estimate, and its spread against the jackknife."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([1.0, 2.0, 0.5, 1.5], dtype=torch.float64)
    mean, size, micro = torch.tensor([0.6, -0.3, 0.2, 0.4], dtype=torch.float64), 4, 8
    rows, errors = [], []
    for _ in range(1500):
        g = mean + scale * torch.randn(micro, 4, generator=generator, dtype=torch.float64) / math.sqrt(size)
        value, error = gradients.estimate(g @ g.T, size)
        rows.append(value[:2])
        errors.append(error[:2])
    rows, errors = torch.tensor(rows), torch.tensor(errors)
    expected = torch.tensor([float(mean.square().sum()), float(scale.square().sum())])
    assert ((rows.mean(0) - expected) / (rows.std(0) / math.sqrt(1500))).abs().max() < 4
    ratio = errors.square().mean(0).sqrt() / rows.std(0)
    assert bool(((ratio > 0.95) & (ratio < 1.25)).all())  # the jackknife errs on the safe side (Efron and Stein 1981)


def test_a_drowned_gradient_has_no_noise_scale():
    """|g|^2 below the noise: the unbiased estimate is negative, and the ratio is not told."""
    g = torch.tensor([[1.0, 0.0], [-1.0, 0.1]], dtype=torch.float64)
    (square, variance, scale), errors = gradients.estimate(g @ g.T, 3)
    assert square == pytest.approx(-1.0) and variance == pytest.approx(3 * (1.005 + 1.0)) and math.isnan(scale)
    assert all(map(math.isnan, errors))


def test_models_without_parameters_have_none():
    truth = sf.exact.GaussianMixture([1.0], [[0.0]], 1.0)
    assert sf.board(truth.denoiser(FLOW), truth, samples=8, gradients=4).gradients is None


def test_frozen_parts_do_not_count():
    torch.manual_seed(0)
    net = sf.nets.MLP(2, width=8, depth=1)
    nn.init.normal_(net.output.weight)
    model = sf.Denoiser(net, FLOW, "velocity")
    x = torch.randn(64, 2)
    every = sf.board(model, x, samples=16, gradients=4).gradients
    net.requires_grad_(False)
    net.output.requires_grad_(True)
    part = sf.board(model, x, samples=16, gradients=4).gradients
    assert bool((part.variance.value < every.variance.value).all())
    assert [p.requires_grad for p in net.parameters()].count(True) == 2
