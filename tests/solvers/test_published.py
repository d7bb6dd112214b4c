"""The published algorithms, written out from their papers, against the tables that come of rows and variables."""

import math

import mpmath
import pytest
import torch

from sfumato.process import Gaussian
from sfumato.schedules import VE, Cosine, Flow, LinearBeta
from sfumato.solvers import DEIS, LMS, PNDM, DPMSolver, DPMSolverPP, Multistep, UniPC, axis, clocks, grids
from solver_cases import mixture

F64 = torch.float64
CURVES = {"vp": LinearBeta(), "ve": VE(), "flow": Flow()}


class Setting:
    """Nodes from t = 0.9 to 0.2, a start state, and the exact model, for an algorithm as its paper writes it."""

    def __init__(self, curve, steps=6, grid=None, levels=None):
        self.curve, self.process, self.grid = curve, Gaussian(curve), grid or grids.Uniform()
        self.ends = [float(curve.time(logsnr)) for logsnr in levels] if levels else [0.9, 0.2]
        self.nodes, self.steps = self.grid.times(curve, steps, *self.ends), steps
        self.z = mixture().sample(5, seed=3, process=self.process, t=self.ends[0])
        self.model = mixture().denoiser(self.process)

    def at(self, t):
        alpha, sigma = (float(c) for c in self.curve(t))
        return alpha, sigma, math.log(alpha / sigma)

    def time(self, lam):
        return float(self.curve.time(2 * lam))

    def x(self, z, t):
        return self.model(z, t).x

    def eps(self, z, t):
        return self.model(z, t).eps

    def check(self, solver, wanted):
        *_, last = solver.plan(self.curve, self.steps, *self.ends).run(self.model, self.z)
        torch.testing.assert_close(last.z, wanted, rtol=1e-10, atol=1e-10)


@pytest.fixture(params=CURVES)
def case(request):
    return Setting(CURVES[request.param])


def test_dpm_solver_2(case):
    """2206.00927, Algorithm 1 with r1 = 1/2."""
    z = case.z
    for t, s in zip(case.nodes, case.nodes[1:], strict=False):
        (at, _, lt), (as_, ss, ls) = case.at(t), case.at(s)
        h = ls - lt
        m = case.time(lt + h / 2)
        am, sm, _ = case.at(m)
        u = am / at * z - sm * math.expm1(h / 2) * case.eps(z, t)
        z = as_ / at * z - ss * math.expm1(h) * case.eps(u, m)
    case.check(DPMSolver(2, grid=case.grid), z)


def test_dpm_solver_3(case):
    """2206.00927, Algorithm 2 with r1 = 1/3, r2 = 2/3."""
    z, r1, r2 = case.z, 1 / 3, 2 / 3
    for t, s in zip(case.nodes, case.nodes[1:], strict=False):
        (at, _, lt), (as_, ss, ls) = case.at(t), case.at(s)
        h = ls - lt
        t1, t2 = case.time(lt + r1 * h), case.time(lt + r2 * h)
        (a1, s1, _), (a2, s2, _) = case.at(t1), case.at(t2)
        e0 = case.eps(z, t)
        d1 = case.eps(a1 / at * z - s1 * math.expm1(r1 * h) * e0, t1) - e0
        u2 = a2 / at * z - s2 * math.expm1(r2 * h) * e0 - s2 * r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1) * d1
        d2 = case.eps(u2, t2) - e0
        z = as_ / at * z - ss * math.expm1(h) * e0 - ss / r2 * (math.expm1(h) / h - 1) * d2
    case.check(DPMSolver(3, grid=case.grid), z)


def test_dpm_solver_pp_2s(case):
    """2211.01095, Algorithm 1 with r = 1/2."""
    z = case.z
    for t, s in zip(case.nodes, case.nodes[1:], strict=False):
        (_, st, lt), (as_, ss, ls) = case.at(t), case.at(s)
        h = ls - lt
        m = case.time(lt + h / 2)
        am, sm, _ = case.at(m)
        u = sm / st * z - am * math.expm1(-h / 2) * case.x(z, t)
        z = ss / st * z - as_ * math.expm1(-h) * case.x(u, m)
    case.check(DPMSolverPP(2, multistep=False, grid=case.grid), z)


@pytest.mark.parametrize("published", [True, False])
def test_dpm_solver_pp_2m(case, published):
    """2211.01095, Algorithm 2: D = (1 + 1/2r) x_i - 1/2r x_{i-1}; exactly, the slope's weight is phi_2's integral."""
    z, old, gap = case.z, None, None
    for t, s in zip(case.nodes, case.nodes[1:], strict=False):
        (_, st, lt), (as_, ss, ls) = case.at(t), case.at(s)
        h, x = ls - lt, case.x(z, t)
        full, slope = -as_ * math.expm1(-h), as_ * (math.expm1(-h) / h + 1)
        z = ss / st * z + full * x
        if old is not None:
            z = z + (full / 2 if published else slope) * (x - old) * h / gap
        old, gap = x, h
    solver = Multistep(2, "x", case.grid, variable="logsnr", phi2="B2") if published else DPMSolverPP(2, grid=case.grid)
    case.check(solver, z)


def third_order(case, factor, exact=False):
    """The 3M update of the public code: phi_1 D0 + phi_2 D1 - factor phi_3 D2; the factor there is 1."""
    z, past = case.z, []
    for i, (t, s) in enumerate(zip(case.nodes, case.nodes[1:], strict=False)):
        (_, st, lt), (as_, ss, ls) = case.at(t), case.at(s)
        h, x = ls - lt, case.x(z, t)
        past = [(lt, x), *past][:3]
        one, two, three = math.expm1(-h), math.expm1(-h) / h + 1, (math.expm1(-h) + h) / h**2 - 0.5
        z = ss / st * z - as_ * one * x
        if exact and i < 2:
            z = mixture().flow(case.z, case.nodes[0], s, case.process)
        elif i == 1:
            z = z + as_ * two * (x - past[1][1]) * h / (lt - past[1][0])
        elif i > 1:
            r0, r1 = (lt - past[1][0]) / h, (past[1][0] - past[2][0]) / h
            near, far = (x - past[1][1]) / r0, (past[1][1] - past[2][1]) / r1
            first, second = near + r0 / (r0 + r1) * (near - far), (near - far) / (r0 + r1)
            z = z + as_ * two * first - factor * as_ * three * second
    return z


def test_dpm_solver_pp_3m(case):
    """With the second difference in full: phi_3 stands for a half of it, as D2 is half of the second derivative."""
    case.check(DPMSolverPP(3, grid=case.grid, start="low"), third_order(case, 2))


def test_the_public_3m_is_of_order_2():
    """diffusers and the authors' code take half of the second difference: from exact starts order 2, where 3 is due."""
    slopes = {}
    for factor in (1, 2):
        gaps = []
        for steps in (48, 96):
            case = Setting(VE(), steps, grids.LogSNR(), (0.0, 4.0))
            truth = mixture().flow(case.z, *case.ends, case.process)
            gaps.append(float((third_order(case, factor, exact=True) - truth).square().mean().sqrt()))
        slopes[factor] = math.log2(gaps[0] / gaps[1])
    assert slopes == pytest.approx({1: 2.0, 2: 3.0}, abs=0.15)


def unipc(case, order, b):
    """2302.04867, Algorithms 1 to 4 for x_hat: the systems R a = phi / B solved, half a slope where one is unknown."""

    def residual(r, h, count):
        """B a_m / r_m for each difference D_m, by the moments of phi."""
        if count == 1:
            return [(math.expm1(-h) if b == "B2" else -h) / 2 / r[0]]
        matrix = torch.tensor([[(m * -h) ** n for m in r] for n in range(count)], dtype=F64)
        phi = [mpmath.expm1(-h) / -h]
        for n in range(1, count + 1):
            phi.append((phi[-1] - mpmath.mpf(1) / math.factorial(n)) / -h)
        # h phi_{n+1}(-h) n! (-h)^n, n = 1 ...
        moments = [float(-h * math.factorial(n) * (-h) ** (n - 1) * phi[n]) for n in range(1, count + 1)]
        return (torch.linalg.solve(matrix, torch.tensor(moments, dtype=F64)) / torch.tensor(r, dtype=F64)).tolist()

    z, past, before = case.z, [], None  # past: (lam, x), the newest first
    for i, t in enumerate(case.nodes[:-1]):
        _, st, lt = case.at(t)
        x = case.x(z, t)
        if past:
            used, ((_, su, lu), state) = past[:order], before
            h = lt - lu
            r = [*((lam - lu) / h for lam, _ in used[1:]), 1.0]
            at = case.at(t)[0]
            z = st / su * state - at * math.expm1(-h) * used[0][1]
            for weight, other in zip(residual(r, h, len(r)), [*(v for _, v in used[1:]), x], strict=True):
                z = z - at * weight * (other - used[0][1])
        past, before = [(lt, x), *past], (case.at(t), z)  # z is corrected now
        as_, ss, ls = case.at(case.nodes[i + 1])
        h, used = ls - lt, past[:order]
        r = [(lam - lt) / h for lam, _ in used[1:]]
        z = ss / st * z - as_ * math.expm1(-h) * x
        for weight, (_, other) in zip(residual(r, h, len(r)) if r else [], used[1:], strict=True):
            z = z - as_ * weight * (other - x)
    return z


@pytest.mark.parametrize("b", ["B1", "B2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc(case, order, b):
    case.check(UniPC(order, b, grid=case.grid, start="low"), unipc(case, order, b))


@pytest.mark.parametrize("start", ["plms", "prk"])
def test_pndm(case, start):
    """2202.09778, Eq. 11 to 13: past noises by the weights of equal steps, moved by DDIM."""

    def move(z, e, t, s):
        (at, st, _), (as_, ss, _) = case.at(t), case.at(s)
        return as_ * (z - st * e) / at + ss * e

    z, past = case.z, []
    for i, (t, s) in enumerate(zip(case.nodes, case.nodes[1:], strict=False)):
        e = case.eps(z, t)
        past = [e, *past]
        if start == "plms" and i == 0:
            mean = (e + case.eps(move(z, e, t, s), s)) / 2
        elif start == "prk" and i < 3:
            m = (t + s) / 2
            e2 = case.eps(move(z, e, t, m), m)
            e3 = case.eps(move(z, e2, t, m), m)
            mean = (e + 2 * e2 + 2 * e3 + case.eps(move(z, e3, t, s), s)) / 6
        else:
            weights = {2: (3, -1), 3: (23, -16, 5), 4: (55, -59, 37, -9)}[min(i + 1, 4)]
            mean = sum(w * v for w, v in zip(weights, past, strict=False)) / sum(weights)
        z = move(z, mean, t, s)
    case.check(PNDM(start, case.grid), z)


def test_deis_and_lms_integrate_their_polynomials(case):
    """2204.13902, Eq. 15: a weight is the integral of a Lagrange polynomial in t, or in sigma / alpha."""
    for solver, variable in ((DEIS(3, grid=case.grid), "t"), (LMS(3, case.grid), "clock")):
        plan = solver.plan(case.curve, case.steps, 0.9, 0.2)
        k = plan.calls - 1
        calls = [k, k - 1, k - 2]
        (a_end, s_end), times = plan.path[-1], [plan.times[j] for j in calls]
        c = [float(case.curve.sigma(t) / case.curve.alpha(t)) for t in times]
        nodes, end = (times if variable == "t" else c), s_end / a_end

        def read(value, variable=variable):
            return float(case.curve.time(-2 * math.log(value))) if variable == "t" else float(value)

        for i, j in enumerate(calls):
            others = nodes[:i] + nodes[i + 1 :]

            def basis(value, here=nodes[i], others=others):
                return math.prod((read(value) - other) / (here - other) for other in others)

            # z_s / alpha_s gains weight eps_j, and eps_j = (z_j - alpha_j x_j) / sigma_j
            weight = float(mpmath.quad(basis, [c[0], end]))
            alpha, sigma = plan.path[j]
            assert plan.lines[k].x[j] == pytest.approx(-weight * a_end * alpha / sigma, rel=1e-8)


# -- the weights ---------------------------------------------------------------------------------------------------


def exact_weights(row, lam, h, ratios):
    """int l_i(lam) dc over a step of h in lam, with 30 digits."""
    mpmath.mp.dps = 30
    curve = {
        "x": mpmath.exp,
        "eps": lambda v: -mpmath.exp(-v),
        "flow": lambda v: -1 / (4 * mpmath.cosh(v / 2) ** 2),
        "F": lambda v: -1 / (2 * mpmath.cosh(v)),
    }[row]
    h, lam = mpmath.mpf(h), mpmath.mpf(lam)
    out = []
    for i, here in enumerate(ratios):
        others, here = [mpmath.mpf(r) for r in ratios[:i] + ratios[i + 1 :]], mpmath.mpf(here)

        def value(u, here=here, others=others):
            return h * mpmath.fprod((u - r) / (here - r) for r in others) * curve(lam + h * u)

        out.append(float(mpmath.quad(value, mpmath.linspace(0, 1, 9))))
    mpmath.mp.dps = 15
    return out


@pytest.mark.parametrize("h", [1e-7, 0.3, 9.0])
@pytest.mark.parametrize("row", ["x", "eps", "flow", "F"])
def test_weights_in_logsnr_have_full_precision(row, h):
    """Orders 2 to 4, steps from 1e-7 to 9 in lam: nothing cancels beyond the rounding of the nodes themselves."""
    lam, rule = -1.7, clocks.clock(row)

    def place(ratio):
        v = lam + h * ratio
        sigma = 1 / math.sqrt(1 + math.exp(2 * v))
        return axis.Place(rule.time(math.exp(v) * sigma, sigma), v, v)

    frame = axis.Axis(LinearBeta(), rule, "logsnr")
    for ratios in ([0.0, -1.0], [0.0, -0.8, -2.1], [1.0, 0.0, -0.8], [0.0, -1.0, -1.7, -3.0]):
        got = frame.weights([place(r) for r in ratios], place(0.0), place(1.0))
        wanted = exact_weights(row, lam, h, ratios)
        rounding = 1e-12 + 1e-15 / h
        assert got == pytest.approx(wanted, rel=20 * rounding, abs=20 * rounding * max(map(abs, wanted)))


@pytest.mark.parametrize("row", ["eps", "flow", "F"])
@pytest.mark.parametrize("variable", ["logsnr", "t"])
def test_weights_to_the_clean_signal(row, variable):
    """lam is infinite there and the integral is not: against the same in the clock, where the end is a number."""
    curve, rule = Cosine(s=0.0), clocks.clock(row)
    frame = axis.Axis(curve, rule, variable)
    times = [0.1, 0.2, 0.35]
    places = [frame.place(t, tuple(float(c) for c in curve(t))) for t in times]
    end = frame.place(0.0, (1.0, 0.0))
    got = frame.weights(places, places[0], end)

    def read(c):
        logsnr = rule.logsnr(float(c))
        return logsnr / 2 if variable == "logsnr" else float(curve.time(logsnr))

    v = [place.variable for place in places]
    for i, weight in enumerate(got):
        others = v[:i] + v[i + 1 :]

        def basis(c, here=v[i], others=others):
            return math.prod((read(c) - other) / (here - other) for other in others)

        assert weight == pytest.approx(float(mpmath.quad(basis, [places[0].clock, 0.0])), rel=1e-7)
