"""The form that is fitted is the plan it was read from, and the derivatives that a fit uses are those of its loss."""

import pytest
import torch
from scipy import stats

import sfumato as sf
from curves import CURVES
from sfumato.errors import SfumatoError
from sfumato.exact import GaussianMixture
from sfumato.process import Gaussian
from sfumato.schedules import VE, Cosine, Flow, LinearBeta
from sfumato.solvers import DDIM, DDPM, DPMSolverPP, EulerMaruyama, Heun, Multistep, SASolver, SDEDPMSolver, UniPC
from sfumato.tuning.coefficients import TimeShares, read, write
from sfumato.tuning.fit import Fit, Pairs, objective, sliced
from sfumato.tuning.search import Range, Wiener, end_of

F64 = torch.float64
SOLVERS = [
    DDIM(), Heun(), Multistep(3), Multistep(2, "F", corrector=True), DPMSolverPP(2), UniPC(2),
    SASolver(), SASolver(3, 3, 0.5), SDEDPMSolver(3), DDPM(), EulerMaruyama(),
]  # fmt: skip


def law(dim=2):
    means = torch.linspace(-1, 1, 3 * dim, dtype=F64).reshape(3, dim).sin() * 1.5
    return GaussianMixture([0.2, 0.3, 0.5], means, [0.1, 0.3, 0.2])


def work(solver, curve, dim=2, calls=4, n=12, batch=100, c2=0.05, t_stop=0.0):
    """A fit to the ends of a fine solve of the same noise, and with noise of the same paths."""
    model, plan = law(dim).denoiser(Gaussian(curve)), solver.plan(curve, calls, 1.0, t_stop)
    paths = Wiener(99, torch.arange(n)) if plan.stochastic else None
    z = model.process.prior(sf.noise.normal(99, range(n), (dim,), dtype=F64))
    fine = (SDEDPMSolver(2) if plan.stochastic else Multistep(3)).plan(curve, 128, 1.0, t_stop)
    pairs = Pairs(z, end_of(fine, model, z, {}, n, paths), {}, paths)
    return Fit(model, plan, Range(curve, 1.0, t_stop), pairs, batch, c2)


@pytest.mark.first(12)
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("curve", [Flow(), VE(), Cosine()], ids=lambda c: type(c).__name__)
def test_coefficients_are_the_plan_they_were_read_from(solver, curve):
    one = work(solver, curve, n=7, calls=5)
    plan, pairs, free = one.base, one.pairs, one.pack(one.start)
    known = end_of(plan, one.model, pairs.z, {}, 7, pairs.paths)
    written = write(one.start, plan, curve, plan.name)
    again = end_of(written, one.model, pairs.z, {}, 7, pairs.paths)
    torch.testing.assert_close(again, known, rtol=1e-9, atol=1e-9)
    assert written.calls == written.steps == plan.calls and written.path == plan.path and written.stop == plan.stop
    assert written == plan or not plan.stochastic
    times, *others = one.unpack(free)
    assert all(torch.equal(found, value) for found, value in zip(others, one.start[1:], strict=True))
    kept = float((times - one.start.times).abs().max()) < 1e-9
    # Heun calls twice at one time, and a uniform grid of VE leaves the range of the clock: steps are lengthened
    assert kept or isinstance(solver, Heun) or isinstance(curve, VE)
    torch.testing.assert_close(one.ends(free), known, rtol=0, atol=1e-7 if kept else 0.1)


def test_lines_that_look_back_are_refused():
    with pytest.raises(SfumatoError, match="states before its own"):
        read(SASolver(row="eps").plan(Cosine(), 5, 0.9, 0.1))


@pytest.mark.parametrize("name", CURVES)
def test_every_vector_is_a_grid_and_every_grid_a_vector(name):
    curve = CURVES[name]
    shares = TimeShares(curve, 1.0, 0.0)
    free = 2 * torch.randn(6, dtype=F64, generator=torch.Generator().manual_seed(1))
    times = shares.times(free)
    assert times.shape == (6,) and times[0] == 1.0 and bool((times.diff() < 0).all()) and bool((times >= 0).all())
    torch.testing.assert_close(shares.times(shares.free(times)), times, rtol=1e-8, atol=1e-10)
    found = torch.autograd.functional.jacobian(shares.times, free)
    slopes = torch.stack([(shares.times(free + h) - shares.times(free - h)) / 2e-6 for h in 1e-6 * torch.eye(6)], 1)
    torch.testing.assert_close(found, slopes.to(F64), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("solver", [Multistep(2), SASolver()], ids=["ODE", "SDE"])
@pytest.mark.parametrize("curve", [Flow(), VE(), LinearBeta()], ids=lambda c: type(c).__name__)
def test_the_gradient_is_that_of_the_loss(curve, solver):
    """In all numbers, those of times and of noise among them, over several batches, against central differences."""
    one = work(solver, curve, calls=3, n=20, batch=8, t_stop=0.05)
    free = one.pack(one.start) + 1e-3
    gradient, _ = one.normal_equations(free, one.ends(free), torch.Generator())

    def loss(free):
        return float(objective(one.ends(free), one.pairs.end, one.c2, one.law))

    for i, h in enumerate(1e-6 * torch.eye(len(free), dtype=F64)):
        slope = (loss(free + h) - loss(free - h)) / 2e-6
        assert slope == pytest.approx(float(gradient[i]), rel=1e-3, abs=1e-6 * float(gradient.abs().max()))


@pytest.mark.parametrize(("solver", "dim"), [(Multistep(2), 2), (Multistep(2), 3), (SASolver(), 2)])
def test_the_curvature_is_that_of_the_first_term(solver, dim):
    one = work(solver, Flow(), dim, calls=3, n=12, batch=5)
    free = one.pack(one.start)
    steps = 1e-6 * torch.eye(len(free), dtype=F64)
    j = torch.stack([(one.ends(free + h) - one.ends(free - h)) / 2e-6 for h in steps], -1)
    weight = 1 / (1 + (one.ends(free) - one.pairs.end).square().mean(-1) / one.c2)
    exact = 2 * torch.einsum("bdi,b,bdj->ij", j, weight, j) / dim / 12
    _, found = one.normal_equations(free, one.ends(free), torch.Generator())
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5 * float(exact.abs().max()))


def test_random_directions_estimate_the_curvature():
    """From random signs against the exact one, which all unit vectors give."""
    one = work(Multistep(2), Flow(), 12, calls=3, n=1000, batch=1000, c2=1e9)
    free = one.pack(one.start)
    own = free.expand(1000, -1).clone().requires_grad_()
    end = one._end(own, one.pairs, None)
    j = torch.cat([torch.autograd.grad(end[:, d].sum(), own, retain_graph=True)[0] for d in range(12)])
    exact = 2 * j.T @ j / 12 / 1000
    scale = exact.diagonal().sqrt()
    _, found = one.normal_equations(free, end.detach(), torch.Generator().manual_seed(0))
    assert float(((found - exact) / (scale[:, None] * scale)).abs().max()) < 0.15


def test_the_sliced_distance():
    """That of SciPy in one dimension; a shift by s gives |s|^2 / D; never more than the mean squared gap."""
    start = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 400, 1, dtype=F64, generator=start)
    y = 1.3 * y + 0.2
    order = (x.sort(0).values - y.sort(0).values).square().mean()
    assert float(sliced(x, y)) == pytest.approx(float(order), rel=1e-12)
    assert float(sliced(x, y)) ** 0.5 >= stats.wasserstein_distance(x[:, 0].numpy(), y[:, 0].numpy()) - 1e-12
    for dim in (2, 5):
        z, gap = torch.randn(2, 300, dim, dtype=F64, generator=start)
        shift = torch.arange(1.0, dim + 1, dtype=F64)
        assert float(sliced(z + shift, z)) == pytest.approx(float(shift.square().mean()), rel=0.35 if dim > 2 else 1e-9)
        assert float(sliced(z + 0.1 * gap, z)) <= 1.2 * 0.01 * float(gap.square().mean())
        assert float(sliced(z[torch.randperm(300, generator=start)], z)) == 0
