"""The deterministic solvers of six public libraries, each called through its own code on given noise levels.

A run takes x_hat(w, sigma) = E[x | w] for w = x + sigma eps, the start w and falling sigmas, and returns w at the last
sigma. `peers()` lists what is installed, `MISSING` names what is not. Float64 where the library allows it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import io
import itertools
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]
Run = Callable[[Denoise, Tensor, list[float]], Tensor]

F64 = torch.float64
MISSING: dict[str, str] = {}


@dataclasses.dataclass(frozen=True)
class Peer:
    """A solver of a library. clean: it runs on to sigma = 0 after the last sigma, which it calls as well."""

    library: str
    name: str
    run: Run
    clean: bool = False


def _need(library: str, module: str) -> Any:
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return importlib.import_module(module)
    except (ImportError, RuntimeError, TypeError, AttributeError) as error:
        MISSING[library] = f"{type(error).__name__}: {error}"
        return None


# -- k-diffusion --------------------------------------------------------------------------------------------------


def _k_diffusion_sampling() -> Any:
    found = importlib.util.find_spec("k_diffusion")
    if found is None:
        MISSING["k-diffusion"] = "not installed"
        return None
    # its samplers without the evaluation code beside them, which needs CLIP and wandb
    package = types.ModuleType("k_diffusion")
    package.__path__, package.__spec__ = list(found.submodule_search_locations or []), found
    sys.modules.setdefault("k_diffusion", package)
    return _need("k-diffusion", "k_diffusion.sampling")


def _k_diffusion_run(sampler: Any, options: dict, x_hat: Denoise, w: Tensor, sigmas: list[float]) -> Tensor:
    model = lambda w, sigma: x_hat(w, float(sigma[0]))  # noqa: E731
    return sampler(model, w, torch.tensor(sigmas, dtype=F64), disable=True, **options)


def k_diffusion() -> Iterator[Peer]:
    sampling = _k_diffusion_sampling()
    if sampling is None:
        return
    for name, options in (
        ("euler", {}), ("heun", {}), ("dpm_2", {}), ("dpmpp_2m", {}),
        *(("lms", {"order": order}) for order in (2, 3, 4)),
    ):  # fmt: skip
        label = name + "".join(f" order {v}" for v in options.values())
        sampler = getattr(sampling, f"sample_{name}")
        yield Peer("k-diffusion", label, functools.partial(_k_diffusion_run, sampler, options))


# -- azula --------------------------------------------------------------------------------------------------------


def azula() -> Iterator[Peer]:
    sample, denoise = _need("azula", "azula.sample"), _need("azula", "azula.denoise")
    if sample is None or denoise is None:
        return

    class Exact(denoise.Denoiser):
        """alpha = 1 and sigma as given at t = i / steps."""

        def __init__(self, x_hat: Denoise, sigmas: list[float]) -> None:
            super().__init__()
            self.x_hat, self.table = x_hat, torch.tensor(sigmas[::-1], dtype=F64)

        def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
            sigma = self.table[(t * (len(self.table) - 1)).round().long()]
            return torch.ones_like(sigma), sigma

        def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> Any:
            return denoise.DiracPosterior(self.x_hat(x_t, float(self.schedule(t)[1])))

    def run(sampler: Any, options: dict, x_hat: Denoise, w: Tensor, sigmas: list[float]) -> Tensor:
        return sampler(Exact(x_hat, sigmas), steps=len(sigmas) - 1, silent=True, dtype=F64, **options)(w)

    for name, orders in (
        ("DDIM", [None]), ("Euler", [None]), ("Heun", [None]), ("zAB", (2, 3, 4)), ("vAB", (2, 3, 4)),
        ("zEAB", (2, 3)), ("xEAB", (2, 3)), ("REAB", (2, 3)),
    ):  # fmt: skip
        for order in orders:
            options = {} if order is None else {"order": order}
            label = name + ("" if order is None else f" order {order}")
            yield Peer("azula", label, functools.partial(run, getattr(sample, f"{name}Sampler"), options))


# -- smalldiffusion -----------------------------------------------------------------------------------------------


def smalldiffusion() -> Iterator[Peer]:
    diffusion = _need("smalldiffusion", "smalldiffusion.diffusion")
    if diffusion is None:
        return

    class Model(torch.nn.Module):
        def __init__(self, x_hat: Denoise) -> None:
            super().__init__()
            self.x_hat = x_hat

        def predict_eps_cfg(self, x: Tensor, sigma: Tensor, cond: Any, scale: float) -> Tensor:
            return (x - self.x_hat(x, float(sigma))) / sigma

        def rand_input(self, batch: int) -> Tensor:
            return torch.zeros(())  # mu = 0: no noise is added

    cpu = types.SimpleNamespace(device="cpu")

    def run(gam: float, x_hat: Denoise, w: Tensor, sigmas: list[float]) -> Tensor:
        walk = diffusion.samples(Model(x_hat), torch.tensor(sigmas, dtype=F64), gam=gam, xt=w, accelerator=cpu)
        *_, last = walk
        return last

    for name, gam in (("DDIM", 1.0), ("accelerated, gam 1.5", 1.5), ("accelerated, gam 2", 2.0)):
        yield Peer("smalldiffusion", name, functools.partial(run, gam))


# -- flow_matching ------------------------------------------------------------------------------------------------


def flow_matching() -> Iterator[Peer]:
    solver = _need("flow_matching", "flow_matching.solver")
    if solver is None:
        return

    def run(method: str, x_hat: Denoise, w: Tensor, sigmas: list[float]) -> Tensor:
        """On the path z = (1 - t) x + t eps, whose w = z / (1 - t)."""

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            at = float(t)
            w = x / (1 - at)
            clean = x_hat(w, at / (1 - at))
            return (w - clean) * (1 - at) / at - clean

        grid = torch.tensor([s / (1 + s) for s in sigmas], dtype=F64)
        end = solver.ODESolver(velocity).sample(w * (1 - grid[0]), None, method=method, time_grid=grid)
        return end / (1 - grid[-1])

    for method in ("euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams"):
        yield Peer("flow_matching", method, functools.partial(run, method))


# -- denoising-diffusion-pytorch ----------------------------------------------------------------------------------


def denoising_diffusion() -> Iterator[Peer]:
    library = "denoising-diffusion-pytorch"
    elucidated = _need(library, "denoising_diffusion_pytorch.elucidated_diffusion")
    if elucidated is None:
        return
    small = 1e-3  # its samples are clamped to [-1, 1]: the same walk at a thousandth of the scale

    class Exact(elucidated.ElucidatedDiffusion):
        """The library's walks, from a given start, over given sigmas and with a given denoiser."""

        def __init__(self, x_hat: Denoise, w: Tensor, sigmas: list[float]) -> None:
            torch.nn.Module.__init__(self)
            self.x_hat, self.start, self.levels = x_hat, w, torch.tensor([small * s for s in sigmas], dtype=F64)
            self.channels, self.image_size, self.num_sample_steps, self.self_condition = 1, 1, len(sigmas), False
            self.S_tmin, self.S_tmax, self.S_churn, self.S_noise = 1.0, 0.0, 0.0, 0.0
            self.net = types.SimpleNamespace()

        @property
        def device(self) -> Any:
            return torch.device("cpu")

        def sample_schedule(self, num_sample_steps: int | None = None) -> Tensor:
            return torch.cat((self.levels, torch.zeros(1, dtype=F64)))

        def preconditioned_network_forward(self, images: Tensor, sigma: float, *_: Any, **__: Any) -> Tensor:
            flat = images.flatten(1) / small
            return (small * self.x_hat(flat, sigma / small)).reshape(images.shape)

    def run(walk: str, x_hat: Denoise, w: Tensor, sigmas: list[float]) -> Tensor:
        model, first = Exact(x_hat, w, sigmas), small * sigmas[0]
        plain, starts = torch.randn, itertools.chain([w[:, None, None] * small / first], itertools.repeat(None))

        def given(shape: Any, **options: Any) -> Tensor:
            start = next(starts)
            return torch.zeros(1, dtype=F64) if start is None else start

        torch.randn = given  # type: ignore[assignment]
        try:
            with contextlib.redirect_stderr(io.StringIO()), torch.no_grad():
                out = getattr(model, walk)(batch_size=len(w), num_sample_steps=len(sigmas))
        finally:
            torch.randn = plain
        return (2 * out.flatten(1) - 1) / small

    for name, walk in (("Heun (sample)", "sample"), ("DPM-Solver++ (sample_using_dpmpp)", "sample_using_dpmpp")):
        yield Peer(library, name, functools.partial(run, walk), clean=True)


# -- diffusers ----------------------------------------------------------------------------------------------------


def _diffusers_multistep(make: Callable[[], Any], x_hat: Denoise, w: Tensor, sigmas: list[float]) -> Tensor:
    """Schedulers that read everything from `sigmas`; the state is w / sqrt(1 + sigma^2)."""
    scheduler = make()
    scheduler.set_timesteps(len(sigmas) - 1)
    levels = torch.tensor(sigmas, dtype=F64)
    scheduler.sigmas = levels
    scheduler.timesteps = torch.arange(len(sigmas) - 1, 0, -1)
    z = w / (1 + levels[0] ** 2).sqrt()
    for i, t in enumerate(scheduler.timesteps):
        w = z * (1 + levels[i] ** 2).sqrt()
        eps = (w - x_hat(w, sigmas[i])) / sigmas[i]
        z = scheduler.step(eps, t, z, return_dict=False)[0]
    return z * (1 + levels[-1] ** 2).sqrt()


def diffusers() -> Iterator[Peer]:
    schedulers = _need("diffusers", "diffusers")
    if schedulers is None:
        return

    def plain(kind: str, options: dict, x_hat: Denoise, w: Tensor, sigmas: list[float]) -> Tensor:
        """Schedulers whose state is w itself."""
        scheduler = getattr(schedulers, kind)(**options)
        scheduler.set_timesteps(len(sigmas) - 1)
        levels = torch.tensor(sigmas, dtype=F64)
        twice = kind == "HeunDiscreteScheduler"
        scheduler.sigmas = torch.cat((levels[:1], levels[1:].repeat_interleave(2), levels[-1:])) if twice else levels
        scheduler.timesteps = torch.arange(len(scheduler.sigmas) - 1.0, 0, -1)
        scheduler.is_scale_input_called = True
        for i, t in enumerate(scheduler.timesteps[: 2 * (len(sigmas) - 1) if twice else None]):
            sigma = float(scheduler.sigmas[i + 1] if twice and i % 2 else scheduler.sigmas[i])
            eps = (w - x_hat(w, sigma)) / sigma
            w = scheduler.step(eps, t, w, return_dict=False)[0]
        return w

    for kind, options in (
        *(("DPMSolverMultistepScheduler", {"solver_order": o}) for o in (1, 2, 3)),
        *(("DPMSolverMultistepScheduler", {"solver_order": o, "algorithm_type": "dpmsolver"}) for o in (2, 3)),
        *(("UniPCMultistepScheduler", {"solver_order": o}) for o in (2, 3)),
        *(("DEISMultistepScheduler", {"solver_order": o}) for o in (2, 3)),
    ):  # fmt: skip
        settings = {**options, "final_sigmas_type": "sigma_min"}
        if kind.startswith("DEIS"):
            settings.pop("final_sigmas_type")
        for lower in (True, False):
            label = kind.removesuffix("MultistepScheduler") + " " + " ".join(str(v) for v in options.values())
            label += "" if lower else ", full order at the end"
            settings = {**settings, "lower_order_final": lower}
            make = functools.partial(getattr(schedulers, kind), **settings)
            yield Peer("diffusers", label, functools.partial(_diffusers_multistep, make))
    for kind in ("EulerDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler"):
        yield Peer("diffusers", kind.removesuffix("DiscreteScheduler"), functools.partial(plain, kind, {}))


# -- stochastic ---------------------------------------------------------------------------------------------------


def stochastic() -> Iterator[Peer]:
    """The public forms of churn, SDE-DPM-Solver++ and SA-Solver; their noise is torch's, in float64 by default here."""
    sampling, schedulers = _k_diffusion_sampling(), _need("diffusers", "diffusers")
    if sampling is not None:
        for name in ("euler", "heun"):
            run = functools.partial(_k_diffusion_run, getattr(sampling, f"sample_{name}"), {"s_churn": 10.0})
            yield Peer("k-diffusion", f"churn 10, {name}", run)
        for order in (2, 3):

            def fresh(x_hat: Denoise, w: Tensor, sigmas: list[float], order: int = order) -> Tensor:
                draw = {"noise_sampler": lambda sigma, following: torch.randn_like(w)}
                return _k_diffusion_run(getattr(sampling, f"sample_dpmpp_{order}m_sde"), draw, x_hat, w, sigmas)

            yield Peer("k-diffusion", f"SDE-DPM-Solver++ {order}M", fresh)
    if schedulers is not None:
        sde = {"algorithm_type": "sde-dpmsolver++", "final_sigmas_type": "sigma_min"}
        make = functools.partial(schedulers.DPMSolverMultistepScheduler, **sde)
        yield Peer("diffusers", "SDE-DPM-Solver++ 2M", functools.partial(_diffusers_multistep, make))
        for order in (2, 3):
            orders = {"predictor_order": order, "corrector_order": order, "tau_func": lambda t: 1.0}
            make = functools.partial(schedulers.SASolverScheduler, **orders)
            yield Peer("diffusers", f"SA-Solver {order}", functools.partial(_diffusers_multistep, make))


def peers() -> list[Peer]:
    """Every solver of every library that is installed."""
    makers = (k_diffusion, azula, smalldiffusion, flow_matching, denoising_diffusion, diffusers)
    return [peer for maker in makers for peer in maker()]
