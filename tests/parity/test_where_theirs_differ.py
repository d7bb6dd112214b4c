"""Where diffusers' schedulers are not what they say, each shown by a measurement (docs/parity.md is the table)."""

import math

import pytest
import torch

from sfumato.certification import Foreign, certify, checks
from sfumato.certification.bench import INTERVAL, Oracle, constant, logsnr
from sfumato.schedules import Trig
from sfumato.solvers import DPMSolverPP, Multistep, UniPC, grids

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.parity

F64 = torch.float64
BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "num_train_timesteps": 1000}
KARRAS, EXPONENTIAL = {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}


def theirs(name, **config):
    diffusers.utils.logging.set_verbosity_error()
    return getattr(diffusers, f"{name}Scheduler")(**BETAS, **config)


def order_of(scheduler, **options):
    """The slope of its error, from pure noise to logsnr 4."""
    return checks.order(Foreign(scheduler, **options), None, Foreign.counts).order


def error_of(scheduler, steps, **options):
    return checks.distance(Foreign(scheduler, **options).setup(None, steps), INTERVAL[1])


def square(z, level):
    """A belief that is the square of l = log(alpha / sigma), wherever z is: order 3 follows it exactly."""
    x = torch.full_like(z, (logsnr(level) / 2) ** 2)
    return x, (z - level[0] * x) / level[1]


def residuals(states, levels):
    """Of each step on that belief: z_s / sigma_s - z_t / sigma_t = int e^l l^2 dl = [e^l (l^2 - 2 l + 2)]."""

    def antiderivative(level):
        half = logsnr(level) / 2
        return math.exp(half) * (half**2 - 2 * half + 2)

    out = []
    for z, w, at, to in zip(states, states[1:], levels, levels[1:], strict=False):
        if to[1] > 0:
            step = float(w[0, 0] / to[1] - z[0, 0] / at[1])
            exact = antiderivative(to) - antiderivative(at)
            out.append(abs(step - exact) / exact)
    return out


def test_dpm_solver_pp_3m_is_of_order_2():
    """Its D2 is half the second derivative and its weight that of the whole one: the quadratic part counts half."""
    scheduler = theirs("DPMSolverMultistep", **KARRAS, solver_order=3)
    assert order_of(scheduler) == pytest.approx(2, abs=0.25)
    run = Foreign(scheduler).setup(None, 20).run(square, torch.zeros(1, 1, dtype=F64))
    states, levels = zip(*run.stops, strict=True)
    wrong = residuals(states, levels)[2:]  # after the starts by orders 1 and 2
    nodes = [float(Trig().time(logsnr(level))) if level[1] else 0.0 for level in levels]
    plan = Multistep(3, "x", Given(nodes), variable="logsnr", start="low").plan(Trig(), 20, nodes[0], 0.0)
    ours = [state.z for state in plan.run(Oracle(square, Trig()), torch.zeros(1, 1, dtype=F64))]
    right = residuals(ours, plan.path)[2:]
    assert max(right[:-1]) < 1e-6 and max(wrong[:-1]) > 1e-3, (right, wrong)  # the last is of order 1 in both
    assert certify(DPMSolverPP(3), quick=True).passed


class Given(grids.Grid):
    """Nodes as they are given."""

    def __init__(self, times):
        self._times = torch.tensor(times, dtype=F64)

    def nodes(self, schedule, steps, t_start, t_stop):
        return self._times


def off_level(scheduler, steps, **options):
    """How far states are from the level of their call, in sigmas, where the data is one point."""
    setup = Foreign(scheduler, **options).setup(None, steps)
    eps = torch.tensor([[1.3, -0.4]], dtype=F64)
    run = setup.run(constant(checks.POINT), setup.start[0] * checks.POINT + setup.start[1] * eps)
    return max(
        float((z - alpha * checks.POINT - sigma * eps).abs().max()) / sigma for z, _, (alpha, sigma) in run.calls
    )


@pytest.mark.parametrize("name", ["DDIM", "PNDM"])
def test_steps_do_not_join_where_the_grid_is_not_of_whole_timesteps(name):
    """A step goes to t - floor(N / K), whatever the grid's next node is."""
    config = {"skip_prk_steps": True} if name == "PNDM" else {"clip_sample": False}
    spaced = {kind: theirs(name, timestep_spacing=kind, **config) for kind in ("leading", "trailing", "linspace")}
    for steps in (20, 30):
        assert off_level(spaced["leading"], steps) < 1e-9
        assert off_level(spaced["linspace"], steps) > 0.01
    assert off_level(spaced["trailing"], 20) < 1e-9
    assert off_level(spaced["trailing"], 30) > 0.01


@pytest.mark.parametrize("name", ["DPMSolverMultistep", "UniPCMultistep"])
@pytest.mark.parametrize("grid", [KARRAS, EXPONENTIAL], ids=["karras", "exponential"])
def test_the_network_hears_a_rounded_timestep(name, grid):
    """Nodes between two trained timesteps are given out as whole ones: the error stops falling."""
    scheduler, off = theirs(name, **grid), {"heard": "timesteps"}
    assert off_level(scheduler, 100, **off) > 0.1 > 1e-4 > off_level(scheduler, 100)
    assert error_of(scheduler, 500, **off) > 2 * error_of(scheduler, 500)
    euler = theirs("EulerDiscrete", **KARRAS)  # keeps its timesteps as they are
    assert off_level(euler, 100, **off) < 1e-4


def test_unipc_b1_ends_in_nan():
    """B(h) = h is infinite at the clean signal; the default, B2, is not."""
    scheduler = theirs("UniPCMultistep", **KARRAS, solver_type="bh1")
    end = Foreign(scheduler).setup(None, 20).run(constant(0.8), torch.ones(1, 2, dtype=F64)).end
    assert bool(end.isnan().all())
    assert certify(UniPC(2, "B1"), quick=True).passed


def test_ddpm_with_the_larger_variance_leaves_noise_in_the_sample():
    """Its last step is without noise only where it stands at timestep 0, which 'trailing' never visits."""

    def spread(spacing):
        scheduler = theirs("DDPM", variance_type="fixed_large", clip_sample=False, timestep_spacing=spacing)
        run = Foreign(scheduler).setup(None, 20).run(constant(0.8), torch.ones(500, 2, dtype=F64))
        return float((run.end - 0.8).std())

    assert spread("leading") < 1e-9 < 0.1 < spread("trailing")


def test_pndm_is_of_order_2():
    """Its weights of order 4 are those of the mean noise over t, its transfer function that of sigma / alpha."""
    assert order_of(theirs("PNDM", skip_prk_steps=True, timestep_spacing="trailing")) == pytest.approx(2, abs=0.25)


@pytest.mark.parametrize(
    ("name", "order"), [("DPMSolverMultistep", 2), ("HeunDiscrete", 2), ("LMSDiscrete", 4), ("EulerDiscrete", 1)]
)
def test_what_theirs_do_keep(name, order):
    """The same measurement passes where nothing is wrong."""
    assert order_of(theirs(name, **KARRAS)) == pytest.approx(order, abs=0.15)


def test_a_foreign_scheduler_is_certified():
    good = certify(theirs("HeunDiscrete", **KARRAS), order=2, quick=True)
    assert good.passed and good.findings[0].calls == "2 K - 1", good.faults
    wrong = certify(Foreign(theirs("DPMSolverMultistep", **KARRAS, solver_order=3), order=3), quick=True)
    assert "declared 3" in " ".join(wrong.faults)
