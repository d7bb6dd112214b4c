"""The default rule: one call a step, order 3, and closer to the exact ODE than each of the plain rules."""

import math

import pytest
import torch

import sfumato as sf
from sfumato.compose import Rescheduled
from sfumato.errors import SfumatoError
from sfumato.exact import GaussianMixture
from sfumato.guidance import Guided
from sfumato.model import Denoiser
from sfumato.nets import MLP
from sfumato.process import Gaussian
from sfumato.schedules import EDM, VE, Cosine, Flow, LinearBeta
from sfumato.solver_selection import make_plan
from sfumato.solvers import DDIM, Heun, Multistep, default, grids

F64 = torch.float64


def narrow():
    """Eight components on a ring of radius 1.3, standard deviations 0.1 and 0.3."""
    angle = torch.arange(8, dtype=F64) * math.pi / 4
    means = 1.3 * torch.stack((angle.cos(), angle.sin()), -1)
    return GaussianMixture([1 / 8] * 8, means, torch.tensor([0.1, 0.3], dtype=F64).square().expand(8, 2))


@pytest.fixture(scope="module")
def walks():
    """RMS distance to the exact flow from sigma/alpha = 80 to 0.002 on a schedule, by solver and number of steps."""
    law, curve = narrow(), VE(0.0005, 80.0)
    stop = float(curve.time(-2 * math.log(0.002)))
    z = 80 * torch.randn(300, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    exact = law.flow(z, 1.0, stop, Gaussian(curve))

    def error(solver, steps):
        *_, last = solver.plan(curve, steps, 1.0, stop).run(law.denoiser(Gaussian(curve)), z)
        return float((last.z - exact).square().mean().sqrt())

    return error


@pytest.mark.parametrize("steps", [8, 10, 15, 20, 35, 50])
def test_closer_than_the_plain_rules(walks, steps):
    """By a factor of 2 and more than what is published, and than order 2 on the same nodes from 20 calls on."""
    mine = walks(default(exact=True), steps)
    published = {
        "DPM-Solver++ (2M) on Karras' nodes": walks(Multistep(2, "x", grids.Rho(), variable="logsnr"), steps),
        "DDIM": walks(DDIM(), steps),
        "Heun": walks(Heun(grid=grids.Rho()), (steps + 1) // 2),
    }
    assert all(2 * mine < other for other in published.values()), (mine, published)
    assert mine * (2 if steps >= 20 else 1) < walks(Multistep(2), steps)


@pytest.mark.parametrize("curve", [VE(), EDM(), Cosine(), LinearBeta(), Flow()], ids=lambda c: type(c).__name__)
def test_one_call_a_step(curve):
    for steps in (1, 2, 3, 8, 40):
        for exact in (True, False):
            plan = default(exact).plan(curve, steps)
            assert plan.calls == steps and plan.order == 3 and not plan.stochastic


@pytest.mark.parametrize("exact", [True, False])
def test_order_of_the_whole(walks, exact):
    fine = [walks(default(exact), steps) for steps in (80, 160)]
    assert math.log2(fine[0] / fine[1]) > 2.7


def reach(plan, k):
    """How many calls the state after call k rests on."""
    return len(set(plan.lines[k].x))


def test_the_predictor_is_short_where_a_step_is_long():
    """Without a corrector the line shows it: four calls, three past 22 % of the clock left, two past half of it."""
    curve = Flow()
    plan = Multistep(4, start="low", end="near", grid=grids.Uniform()).plan(curve, 12)
    nodes = [*plan.times, 0.0]
    for k in range(3, 12):
        taken = 1 - nodes[k + 1] / nodes[k]
        assert reach(plan, k) == (2 if taken > 0.5 else 3 if taken > 0.22 else 4), (k, taken)
    assert {reach(plan, k) for k in range(3, 12)} == {2, 3, 4}
    full = Multistep(4, start="low", grid=grids.Uniform()).plan(curve, 12)
    assert all(reach(full, k) == 4 for k in range(3, 12))


@pytest.mark.parametrize(("amplification", "order"), [(1.0, 1), (2.0, 2), (4.0, 3), (7.0, 4)])
def test_amplification_bounds_the_order(amplification, order):
    """On equal steps the weights of orders 1 to 4 sum to 1, 2, 3.7 and 6.7 steps."""
    plan = Multistep(4, start="low", grid=grids.Uniform(), amplification=amplification).plan(Flow(), 10)
    assert [reach(plan, k) for k in range(10)] == [min(k + 1, order) for k in range(10)] and plan.order == min(2, order)
    assert Multistep(4, grid=grids.Uniform(), amplification=amplification).plan(Flow(), 10).order == order


def test_amplification_below_one_is_refused():
    with pytest.raises(SfumatoError, match="amplification >= 1, that of order 1; got 0.5"):
        Multistep(2, amplification=0.5)


def test_exact_models_alone_keep_order_4():
    exact = narrow().denoiser(Gaussian(Flow()))
    assert make_plan(exact, 8, None) == default(exact=True).plan(Flow(), 8)
    assert make_plan(Guided(exact, 2.0), 8, None) == default(exact=True).plan(Flow(), 8)
    assert make_plan(Rescheduled(exact, Cosine()), 8, None) == default(exact=True).plan(Cosine(), 8)
    trained = Denoiser(MLP(2), Gaussian(Flow()))
    assert make_plan(trained, 8, None) == default().plan(Flow(), 8)
    assert make_plan(Guided(trained, 2.0), 8, None) == default().plan(Flow(), 8)


@pytest.mark.slow  # trains for a minute
def test_a_trained_network_against_its_own_fine_solve(tmp_path):
    """At 10 calls closer than order 2 and not farther than order 4, with and without guidance; and a network that is
    asked only at its own noise levels is solved more than 1.5 times as closely in 20 calls."""
    sf.train("emoji", tmp_path / "run", steps=200, seed=0)
    model = sf.load(tmp_path / "run")
    z = torch.randn(8, *model.shape, generator=torch.Generator().manual_seed(0))

    def end(solver, steps, scale):
        with torch.inference_mode():
            walk = solver.plan(Flow(), steps).run(Guided(model, scale), z, label=torch.arange(8))
            return [*walk][-1].z

    def distances(solvers, steps, scale):
        fine = end(Multistep(2, corrector=2, grid=grids.FlowTime(0.6)), 100, scale)
        return [float((end(solver, steps, scale) - fine).square().mean().sqrt()) for solver in solvers]

    levels = model.noise_levels
    for scale in (1.0, 2.5):
        solvers = default(), Multistep(2, grid=grids.FlowTime(0.15)), default(exact=True)
        mine, second, fourth = distances(solvers, 10, scale)
        assert mine < 0.8 * second and mine < 1.3 * fourth, (scale, mine, second, fourth)
        (known,) = distances([default()], 20, scale)
        model.noise_levels = None
        (unknown,) = distances([default()], 20, scale)
        model.noise_levels = levels
        assert 1.5 * known < unknown, (scale, known, unknown)
