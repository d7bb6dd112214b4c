"""The form that is fitted: it is the plan it was read from, and its derivatives are those of the walk."""

import pytest
import torch

from curves import CURVES
from sfumato.exact import GaussianMixture
from sfumato.process import Gaussian
from sfumato.schedules import VE, Cosine, Flow, LinearBeta
from sfumato.solvers import DDIM, DPMSolverPP, Heun, Multistep, UniPC
from sfumato.tuning import table
from sfumato.tuning.fit import Exam, Problem, rho

F64 = torch.float64
SOLVERS = [DDIM(), Heun(), Multistep(3), Multistep(2, "F", corrector=True), DPMSolverPP(2), UniPC(2)]


def law(dim=2):
    means = torch.linspace(-1, 1, 3 * dim, dtype=F64).reshape(3, dim).sin() * 1.5
    return GaussianMixture([0.2, 0.3, 0.5], means, [0.1, 0.3, 0.2])


def problem(schedule, dim=2, t_start=1.0, t_stop=0.0, batch=100):
    model = law(dim).denoiser(Gaussian(schedule))
    return Problem(model, table.Clock(schedule, t_start, t_stop), batch)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("curve", [Flow(), VE(), Cosine()], ids=lambda c: type(c).__name__)
def test_a_table_is_the_plan_it_was_read_from(solver, curve):
    model = law().denoiser(Gaussian(curve))
    plan = solver.plan(curve, 5)
    z = model.process.prior(torch.randn(7, 2, dtype=F64, generator=torch.Generator().manual_seed(0)))
    *_, last = plan.run(model, z)
    found = table.read(plan)
    torch.testing.assert_close(table.walk(model, found, z, {}).end, last.z, rtol=1e-9, atol=1e-9)
    written = table.write(found, plan, curve, "again")
    *_, again = written.run(model, z)
    torch.testing.assert_close(again.z, last.z, rtol=1e-9, atol=1e-9)
    assert written.calls == written.steps == plan.calls and written.path == plan.path and written.stop == plan.stop


@pytest.mark.parametrize("name", CURVES)
def test_every_vector_is_a_grid_and_every_grid_a_vector(name):
    curve = CURVES[name]
    clock = table.Clock(curve, 1.0, 0.0)
    free = 2 * torch.randn(6, dtype=F64, generator=torch.Generator().manual_seed(1))
    times = clock.times(free)
    assert times.shape == (6,) and times[0] == 1.0 and bool((times.diff() < 0).all()) and bool((times >= 0).all())
    torch.testing.assert_close(clock.times(clock.free(times)), times, rtol=1e-8, atol=1e-10)
    slopes = torch.stack([(clock.times(free + h) - clock.times(free - h))[1:] / 2e-6 for h in 1e-6 * torch.eye(6)], 1)
    torch.testing.assert_close(clock.jacobian(free), slopes.to(F64), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("curve", [Flow(), VE(), LinearBeta()], ids=lambda c: type(c).__name__)
def test_sensitivities_are_the_derivatives_of_the_end(curve, dim):
    """Every column of the Jacobian against central differences, sample by sample."""
    work = problem(curve, dim)
    plan = Multistep(2).plan(curve, 4)
    free, start = work.pack(table.read(plan)), torch.Generator().manual_seed(2)
    z = work.model.process.prior(torch.randn(5, dim, dtype=F64, generator=start))
    found = work.table(free)
    directions = torch.eye(dim, dtype=F64)[:, None].expand(dim, 5, dim)
    done = table.walk(work.model, found, z, {})
    by_time, by_a, by_b, _ = table.sensitivities(work.model, found, done, directions, (dim,), {})
    rows, columns = torch.tril_indices(4, 4)
    exact = torch.cat((by_time @ work.clock.jacobian(free[:4]), by_a, by_b[:, :, rows, columns]), -1)

    def end(p):
        return table.walk(work.model, work.table(p), z, {}).end

    for i, h in enumerate(1e-6 * torch.eye(len(free), dtype=F64)):
        slope = (end(free + h) - end(free - h)) / 2e-6
        torch.testing.assert_close(exact[:, :, i].T, slope, rtol=1e-4, atol=1e-4 * float(exact.abs().max()) * 1e-2)


@pytest.mark.parametrize("dim", [2, 12])
def test_normal_equations_are_the_gradient_of_the_loss(dim):
    """In few dimensions and in many, in one batch and in several."""
    work = problem(Flow(), dim)
    free = work.pack(table.read(Multistep(2).plan(Flow(), 4)))
    z = torch.randn(30, dim, dtype=F64, generator=torch.Generator().manual_seed(3))
    exam = Exam(z, work.model.truth.flow(z, 1.0, 0.0, work.model.process), {})
    gradient, hessian = work.normal_equations(free, exam, 0.01, torch.Generator().manual_seed(0))
    small = problem(Flow(), dim, batch=7)
    parts, _ = small.normal_equations(free, exam, 0.01, torch.Generator().manual_seed(0))
    torch.testing.assert_close(parts, gradient, rtol=1e-8, atol=1e-12)
    for i, h in enumerate(1e-6 * torch.eye(len(free), dtype=F64)):
        up, down = (rho(work.gaps(work.table(free + s * h), exam), 0.01) for s in (1, -1))
        assert (up - down) / 2e-6 == pytest.approx(2 * float(gradient[i]), rel=1e-4, abs=1e-7)
    assert float(torch.linalg.eigvalsh(hessian).min()) > -1e-9 * float(hessian.diagonal().max())


def test_random_directions_estimate_the_curvature():
    """J^T W J from random signs against the exact one, which all unit vectors give."""
    work = problem(Flow(), 12)
    table_ = table.read(Multistep(2).plan(Flow(), 3))
    free = work.pack(table_)
    z = torch.randn(1000, 12, dtype=F64, generator=torch.Generator().manual_seed(4))
    exam = Exam(z, work.model.truth.flow(z, 1.0, 0.0, work.model.process), {})
    _, estimate = work.normal_equations(free, exam, 1e9, torch.Generator().manual_seed(0))
    done = table.walk(work.model, table_, z, {})
    unit = torch.eye(12, dtype=F64)[:, None].expand(12, 1000, 12)
    by_time, by_a, by_b, _ = table.sensitivities(work.model, table_, done, unit, (12,), {})
    rows, columns = torch.tril_indices(3, 3)
    j = torch.cat((by_time @ work.clock.jacobian(free[:3]), by_a, by_b[:, :, rows, columns]), -1).flatten(0, 1)
    exact = j.T @ j / 12 / 1000
    scale = exact.diagonal().sqrt()
    assert float(((estimate - exact) / (scale[:, None] * scale)).abs().max()) < 0.15
