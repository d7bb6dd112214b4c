"""Posterior samplers of other libraries, given the exact denoiser and the measurement of `benchmarks/inverse.py`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Draw = Callable[[dict[str, Any], int, int], tuple[Tensor, dict[str, float]]]  # (case, n, seed)
Matrix = Callable[[Any, tuple[int, ...]], Tensor]  # of an operator
STEPS = 200
WIDEST = 5.0  # what DiffPIR, whose data lie in [0, 1], takes for their largest number
END = 1e-3  # the peers are not asked nearer to the ends of the schedule


def azula(process: Any, matrix: Matrix, case_of_vectors: bool) -> dict[str, Draw]:
    """Samplers of azula, under the same schedule; its particles only of vectors, of which few are measured."""
    import azula.denoise

    class Schedule(torch.nn.Module):
        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            return process.schedule(t.clamp(END, 1 - END))

    class Exact(azula.denoise.Denoiser):
        def __init__(self, case: dict[str, Any]) -> None:
            super().__init__()
            self.model, self.schedule, self.calls = case["truth"].denoiser(process), Schedule(), 0

        def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> Any:
            self.calls += 1
            return azula.denoise.DiracPosterior(mean=self.model(x_t, t.clamp(END, 1 - END)).x)

    def drawn(make: Callable[[Any, dict[str, Any]], Any]) -> Draw:
        def draw(case: dict[str, Any], n: int, seed: int) -> tuple[Tensor, dict[str, float]]:
            torch.manual_seed(seed)
            denoiser = Exact(case)
            sampler = make(denoiser, case)
            noise = torch.randn(n, *case["truth"].shape, dtype=torch.float64)
            return sampler(noise * process.schedule.sigma(1 - END)), {"calls": denoiser.calls}

        return draw

    return {name: drawn(make) for name, make in _makers_of_azula(matrix, case_of_vectors).items()}


def _makers_of_azula(matrix: Matrix, case_of_vectors: bool) -> dict[str, Callable[[Any, dict[str, Any]], Any]]:
    """What makes each sampler of a denoiser and a case."""
    import azula.guidance as guidance
    import azula.linalg.covariance as linalg
    import azula.sample as samplers

    def mmps(solver: str, iterations: int) -> Callable[[Any, dict[str, Any]], Any]:
        return lambda d, case: samplers.DDPMSampler(
            guidance.MMPSDenoiser(
                d, case["y"], case["operator"], linalg.IsotropicCovariance(case["s"] ** 2), solver, iterations
            ),
            steps=STEPS, silent=True,
        )  # fmt: skip

    def dps(zeta: float) -> Callable[[Any, dict[str, Any]], Any]:
        return lambda d, case: guidance.DPSSampler(d, case["y"], case["operator"], zeta, steps=STEPS, silent=True)

    def belief(make: Callable[[Any, dict[str, Any]], Any]) -> Callable[[Any, dict[str, Any]], Any]:
        return lambda d, case: samplers.DDPMSampler(make(d, case), steps=STEPS, silent=True)

    def pgdm(d: Any, case: dict[str, Any]) -> Any:
        A = matrix(case["operator"], case["truth"].shape)
        inverse = torch.linalg.pinv(A)

        def back(y: Tensor) -> Tensor:
            return (y.reshape(-1, len(A)) @ inverse.mT).reshape(-1, *case["truth"].shape)

        return guidance.PGDMSampler(d, case["y"], case["operator"], back, eta=1.0, steps=STEPS, silent=True)

    def twisted(d: Any, case: dict[str, Any]) -> Any:
        def twist(x: Tensor, ratio: Tensor) -> Tensor:  # of each number measured, r^2 as in PiGDM
            spread = (case["s"] ** 2 + ratio**2 / (1 + ratio**2)).sqrt()
            return torch.distributions.Normal(case["operator"](x), spread).log_prob(case["y"].expand(len(x), -1))

        return guidance.TDSSampler(d, twist, steps=STEPS, silent=True)

    makers = {"azula MMPS, gmres 1 (default)": mmps("gmres", 1), "azula MMPS, gmres 5": mmps("gmres", 5)}
    makers |= {"azula DPS, 1": dps(1.0), "azula DPS, 14.1": dps(STEPS**0.5), "azula PiGDM": pgdm}
    makers["azula TMPD"] = belief(lambda d, c: guidance.TMPDenoiser(d, c["y"], c["operator"], c["s"] ** 2))
    makers["azula DiffPIR, gmres 5"] = belief(
        lambda d, c: guidance.DiffPIRDenoiser(d, c["y"], c["operator"], c["s"] ** 2, iterations=5)
    )
    makers["azula JFPS, gmres 5"] = belief(
        lambda d, c: guidance.JFPSDenoiser(
            d, c["y"], c["operator"], *(linalg.IsotropicCovariance(v) for v in (c["s"] ** 2, 1.0)), "gmres", 5
        )
    )
    if case_of_vectors:
        makers["azula TDS"] = twisted
    return makers


@functools.cache
def _operators_of_torchvision() -> tuple[Any, ...]:
    """Declare the operators that torchvision asks of its library at import: wheels built for CUDA cannot load it here,
    and deepinv, which imports torchvision, calls none of them in its samplers."""
    libraries = []
    for namespace, name in (("torchvision", "nms"), ("torchvision", "qnms")):
        if not hasattr(getattr(torch.ops, namespace), name):
            library = torch.library.Library(namespace, "FRAGMENT")
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            libraries.append(library)
    return tuple(libraries)


def _exact(dinv: Any, process: Any) -> Any:
    """The denoiser of a case for deepinv, a class: its base is not known before the import."""

    class Exact(dinv.models.Denoiser):
        """E[x | x + sigma n] of vectors as pictures (B, 1, 1, D), in units in which `scale` numbers of ours are one."""

        def __init__(self, case: dict[str, Any], scale: float = 1.0, centre: float = 0.0) -> None:
            super().__init__()
            self.truth, self.scale, self.centre, self.calls = case["truth"], scale, centre, 0
            self.model = self.truth.denoiser(process)

        def forward(self, x: Tensor, sigma: Any, **_: Any) -> Tensor:
            self.calls += 1
            level = torch.as_tensor(sigma, dtype=torch.float64).flatten()[0] * self.scale
            t = float(process.schedule.time(-2 * level.clamp_min(1e-6).log()))
            ours = (x.double().reshape(-1, *self.truth.shape) - self.centre) * self.scale
            clean = self.model(process.schedule.alpha(t) * ours, t).x
            return (clean / self.scale + self.centre).reshape(x.shape).to(x.dtype)

    return Exact


def _physics(dinv: Any, A: Tensor, case: dict[str, Any], scale: float, centre: float) -> tuple[Any, Tensor]:
    """(the operator, U^T y), both in units in which `scale` numbers of ours are one, for the matrix A."""
    U, s, Vh = torch.linalg.svd(A, full_matrices=True)
    values = torch.zeros(A.shape[1], dtype=torch.float64)
    values[: len(s)] = s
    y = torch.zeros(A.shape[1], dtype=torch.float64)
    y[: len(A)] = U.mT @ case["y"].flatten()
    y = y / scale + centre * values * (Vh @ torch.ones(A.shape[1], dtype=torch.float64))
    found = dinv.physics.DecomposablePhysics(
        V_adjoint=lambda x: x @ Vh.mT.to(x), V=lambda x: x @ Vh.to(x), mask=values.reshape(1, 1, 1, -1),
        noise_model=dinv.physics.GaussianNoise(case["s"] / scale),
    )  # fmt: skip
    return found, y.reshape(1, 1, 1, -1)


def deepinv(process: Any, matrix: Matrix, _: bool) -> dict[str, Draw]:
    """Samplers of deepinv. Its operators have singular values: y is turned to U^T y, whose noise stays white, and
    A = diag(s) V^T, with zeros up to the size of a sample."""
    _operators_of_torchvision()
    import deepinv as dinv
    from deepinv import sampling

    Exact = _exact(dinv, process)

    def drawn(make: Callable[[Any, float], Any], scale: float = 1.0, centre: float = 0.0) -> Draw:
        def draw(case: dict[str, Any], n: int, seed: int) -> tuple[Tensor, dict[str, float]]:
            torch.manual_seed(seed)
            denoiser = Exact(case, scale, centre)
            A = matrix(case["operator"], case["truth"].shape)
            physics, y = _physics(dinv, A, case, scale, centre)
            x = make(denoiser, case["s"] / scale)(y.expand(n, -1, -1, -1).clone(), physics, seed=seed + 1)
            x = ((x.double() - centre) * scale).reshape(n, *case["truth"].shape)
            return x.detach(), {"calls": denoiser.calls}

        return draw

    def posterior(fidelity: Callable[[Any], Any]) -> Callable[[Any, float], Any]:
        def make(denoiser: Any, _: float) -> Any:
            times, rng = torch.linspace(1, 0, STEPS + 1, dtype=torch.float64), torch.Generator()
            return sampling.PosteriorDiffusion(
                fidelity(denoiser), denoiser, sampling.VariancePreservingDiffusion(alpha=1.0),
                sampling.DDPMSolver(timesteps=times, rng=rng), minus_one_one=False,
            )  # fmt: skip

        return make

    def diffpir(denoiser: Any, s: float) -> Any:
        return sampling.DiffPIR(denoiser, dinv.optim.data_fidelity.L2(), sigma=s, max_iter=STEPS)

    def ddrm(denoiser: Any, _: float) -> Any:
        levels = torch.logspace(math.log10(30), -2, STEPS, dtype=torch.float64).tolist()
        return sampling.DDRM(denoiser, sigmas=[*levels, 0.0])

    made = {
        "DPS (default)": drawn(posterior(lambda d: sampling.DPSDataFidelity(d))),
        "DPS, annealed": drawn(posterior(lambda d: sampling.DPSDataFidelity(d, guidance="annealed"))),
        "PiGDM": drawn(posterior(lambda d: sampling.PiGDMDataFidelity(d))),
        "moment matching, cg 3 (default)": drawn(posterior(lambda d: sampling.MomentMatchingDataFidelity(d))),
        "moment matching, cg 10": drawn(posterior(lambda d: sampling.MomentMatchingDataFidelity(d, cg_max_iter=10))),
        "Score-ALD": drawn(posterior(lambda d: sampling.ALDDataFidelity())),
        "Score-SDE": drawn(posterior(lambda d: sampling.ScoreSDEDataFidelity())),
        "ILVR": drawn(posterior(lambda d: sampling.ILVRDataFidelity())),
        "DDRM": drawn(ddrm),
        "DiffPIR": drawn(diffpir, scale=2 * WIDEST, centre=0.5),
    }
    return {f"deepinv {name}": draw for name, draw in made.items()}


PEERS = {"azula": azula, "deepinv": deepinv}
