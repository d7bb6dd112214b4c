"""The published methods by name: each is a row, a variable and an order of `Multistep` or `Singlestep`.

| name                     | row | variable | what it is                              |
|--------------------------|-----|----------|-----------------------------------------|
| DPMSolver                | eps | logsnr   | singlestep or multistep                 |
| DPMSolverPP              | x   | logsnr   | singlestep (2S, 3S), multistep (2M, 3M) |
| DEIS                     | eps | t, clock | tAB and rhoAB, multistep                |
| LMS                      | eps | clock    | Adams-Bashforth in sigma / alpha        |
| UniPC                    | x   | logsnr   | multistep with the corrector            |
"""

from __future__ import annotations

from sfumato.errors import SfumatoError
from sfumato.registry import register
from sfumato.solvers import grids
from sfumato.solvers.build import Solver
from sfumato.solvers.multistep import Multistep
from sfumato.solvers.singlestep import Singlestep


def _exponential(family: str, row: str, order: int, multistep: bool, grid: grids.Grid | None, start: str) -> Solver:
    grid = grid or grids.auto()
    if multistep:
        return Multistep(order, row, grid, variable="logsnr", start=start, name=f"{family} ({order}M)")
    return Singlestep(order, row, grid, name=f"{family} ({order}S)")


@register("solver", "dpm2", order=2)
@register("solver", "dpm3", order=3)
def DPMSolver(order: int = 2, multistep: bool = False, grid: grids.Grid | None = None, start: str = "rk") -> Solver:
    """z_s = alpha_s z_t / alpha_t - alpha_s int e^-lam eps_hat dlam, eps_hat a polynomial in lam = logsnr / 2.

    Singlestep: 2206.00927, Algorithms 1 and 2 (r1 = 1/2; r1 = 1/3, r2 = 2/3). Orders 1 to 3, multistep to 4.
    """
    return _exponential("DPM-Solver", "eps", order, multistep, grid, start)


@register("solver", "dpm++2m", order=2)
@register("solver", "dpm++2s", order=2, multistep=False)
@register("solver", "dpm++3m", order=3)
@register("solver", "dpm++3s", order=3, multistep=False)
def DPMSolverPP(order: int = 2, multistep: bool = True, grid: grids.Grid | None = None, start: str = "rk") -> Solver:
    """z_s = sigma_s z_t / sigma_t + sigma_s int e^lam x_hat dlam, x_hat a polynomial in lam = logsnr / 2.

    2M, 3M, and with multistep=False 2S, 3S (2211.01095, Algorithms 1 and 2). The integral is exact here; the published
    2M, with slope weight (e^h - 1) / 2, is Multistep(2, "x", variable="logsnr", phi2="B2").
    """
    return _exponential("DPM-Solver++", "x", order, multistep, grid, start)


@register("solver", "deis")
def DEIS(order: int = 3, variable: str = "t", grid: grids.Grid | None = None, start: str = "rk") -> Multistep:
    """tAB-DEIS (variable='t') and rhoAB-DEIS (variable='clock', sigma / alpha), by their polynomial's variable
    (2204.13902)."""
    kinds = {"t": "tAB", "clock": "rhoAB", "logsnr": "log-rhoAB"}
    name = f"{kinds.get(variable, variable)}{order - 1}-DEIS"
    return Multistep(order, "eps", grid or grids.auto(), variable=variable, start=start, name=name)


@register("solver", "lms")
def LMS(order: int = 4, grid: grids.Grid | None = None, start: str = "rk") -> Multistep:
    """d(z / alpha) = eps_hat d(sigma / alpha) (2206.00364, Eq. 1) by Adams-Bashforth: k-diffusion's LMS."""
    return Multistep(order, "eps", grid or grids.auto(), start=start, name=f"LMS (order {order})")


@register("solver", "unipc")
def UniPC(
    order: int = 2, b: str = "B2", row: str = "x", grid: grids.Grid | None = None, start: str = "rk", end: str = "full"
) -> Multistep:
    """UniP-p with the corrector UniC-p: order p + 1 without extra calls (2302.04867, Algorithms 1 to 4).

    b: 'B1' (h) or 'B2' (e^h - 1), used if the polynomial is a line. The published code has start='low' and end='low',
    which reduce UniPC-3 from order 4 to 3 and 2.
    """
    if order not in (1, 2, 3):
        raise SfumatoError(f"UniPC has order 1 to 3, got {order}.")
    if b not in ("B1", "B2"):
        raise SfumatoError(f"UniPC takes b = 'B1' or 'B2', got {b!r}.")
    return Multistep(
        order, row, grid or grids.auto(), variable="logsnr", corrector=True, start=start, end=end, phi2=b,
        name=f"UniPC-{order} ({b})",
    )  # fmt: skip


@register("solver", "multistep-in-t")
def InTime(order: int = 4, row: str = "flow") -> Multistep:
    """Adams-Bashforth and a corrector at equal steps of t: the default of spectral processes.

    Their schedules place the coefficients in t, so that grids in the noise level of the total are worse.
    """
    grid = grids.Uniform()
    return Multistep(order, row, grid, corrector=order, start="low", end="near", amplification=2.5)
