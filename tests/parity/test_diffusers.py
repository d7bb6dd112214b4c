"""Step for step with diffusers' schedulers, on an exact mixture and the same nodes (pip install diffusers)."""

import pytest
import torch

from sfumato.exact import GaussianMixture
from sfumato.process import Gaussian
from sfumato.schedules import VE, FromBetas
from sfumato.solvers import DDIM, Heun, Multistep, grids

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.parity

F64 = torch.float64
STEPS, TRAIN = 20, 1000
BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "num_train_timesteps": TRAIN}


class Given(grids.Grid):
    """Nodes as they are given."""

    def __init__(self, times):
        self._times = torch.tensor(times, dtype=F64)

    def nodes(self, schedule, steps, t_start, t_stop):
        return self._times


def mixture():
    return GaussianMixture([0.3, 0.7], [[-1.0, 0.5], [0.8, 0.0]], [[[0.2, 0.1], [0.1, 0.3]], [[0.4, 0.0], [0.0, 0.15]]])


def start(seed=0):
    return torch.randn(16, 2, dtype=F64, generator=torch.Generator().manual_seed(seed))


def table_nodes(scheduler):
    """diffusers' step i stands at our t = (i + 1)/N; the last leads to the clean signal."""
    return [*((scheduler.timesteps.double() + 1) / TRAIN).tolist(), 0.0]


def walk(plan, model, z, noise=None):
    """The states at the ends of the steps."""
    return [state.z.clone() for state in plan.run(model, z, noise)]


def close(a, b):
    # diffusers keeps its tables in float32
    torch.testing.assert_close(a, b.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_ddim(spacing, eta):
    """Not spacing="linspace": there diffusers steps to i - N/steps, which is not where its next step starts."""
    scheduler = diffusers.DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=True, timestep_spacing=spacing)
    scheduler.set_timesteps(STEPS)
    check_table(scheduler, DDIM(eta=eta, grid=Given(table_nodes(scheduler))), {"eta": eta})


def check_table(scheduler, solver, extra):
    curve = FromBetas.ddpm()
    process, law = Gaussian(curve), mixture()
    nodes = table_nodes(scheduler)
    plan = solver.plan(curve, STEPS, nodes[0], 0.0)
    z = start()
    ours = walk(plan, law.denoiser(process), z, source := Recorded(1))
    theirs, generator = z, torch.Generator().manual_seed(1)
    for k, i in enumerate(scheduler.timesteps):
        close(ours[k], theirs)
        eps = law.moments(theirs, process=process, t=(float(i) + 1) / TRAIN).eps
        theirs = scheduler.step(eps, i, theirs, generator=generator, **extra).prev_sample
    close(ours[-1], theirs)
    assert source.calls == (0 if not plan.stochastic else STEPS - 1)


class Recorded:
    """The numbers that a generator of the same seed gives diffusers, one draw for each noisy step."""

    def __init__(self, seed):
        self.generator, self.calls = torch.Generator().manual_seed(seed), 0

    def __call__(self, call, like):
        self.calls += 1
        return torch.randn(like.shape, generator=self.generator, dtype=like.dtype)


def test_ddpm():
    scheduler = diffusers.DDPMScheduler(
        **BETAS, variance_type="fixed_small", clip_sample=False, timestep_spacing="leading"
    )
    scheduler.set_timesteps(STEPS)
    check_table(scheduler, DDIM(eta=1.0, grid=Given(table_nodes(scheduler))), {})


def exploding(scheduler, sigmas):
    """A VE curve and its times at the given sigmas, then the clean signal."""
    curve = VE(1e-3, 1e3)
    return curve, [*curve.time(-2 * sigmas.double().log()).tolist(), 0.0]


@pytest.mark.parametrize("karras", [False, True])
def test_euler(karras):
    scheduler = diffusers.EulerDiscreteScheduler(**BETAS, timestep_spacing="trailing", use_karras_sigmas=karras)
    scheduler.set_timesteps(STEPS)
    sigmas = scheduler.sigmas[:-1]
    curve, nodes = exploding(scheduler, sigmas)
    law, process = mixture(), Gaussian(curve)
    z = start() * float(sigmas[0])
    theirs = z
    for solver in (DDIM(grid=Given(nodes)), Multistep(1, "eps", Given(nodes))):
        ours = walk(solver.plan(curve, STEPS, nodes[0], 0.0), law.denoiser(process), z)
        theirs = z
        scheduler.set_timesteps(STEPS)
        for k, i in enumerate(scheduler.timesteps):
            close(ours[k], theirs)
            scheduler.scale_model_input(theirs, i)
            eps = law.moments(theirs, alpha=1.0, sigma=float(sigmas[k])).eps
            theirs = scheduler.step(eps, i, theirs).prev_sample
        close(ours[-1], theirs)


@pytest.mark.parametrize("karras", [False, True])
def test_heun(karras):
    scheduler = diffusers.HeunDiscreteScheduler(**BETAS, timestep_spacing="trailing", use_karras_sigmas=karras)
    scheduler.set_timesteps(STEPS)
    every = scheduler.sigmas[:-1].double()  # sigma_0, then each of the others twice
    sigmas = torch.cat((every[:1], every[1::2]))
    curve, nodes = exploding(scheduler, sigmas)
    law, process = mixture(), Gaussian(curve)
    z = start() * float(sigmas[0])
    plan = Heun(row="eps", grid=Given(nodes)).plan(curve, STEPS, nodes[0], 0.0)
    ours = walk(plan, law.denoiser(process), z)
    assert plan.calls == len(scheduler.timesteps) == 2 * STEPS - 1
    theirs = z
    for k, i in enumerate(scheduler.timesteps):
        # between, both hold the Euler state that the second stage looks at
        close(ours[k], theirs)
        eps = law.moments(theirs, alpha=1.0, sigma=float(every[k])).eps
        theirs = scheduler.step(eps, i, theirs).prev_sample
    close(ours[-1], theirs)
