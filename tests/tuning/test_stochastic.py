"""`tune(noise=...)`: coefficients and noise of a stochastic plan, judged by path and law on other noise."""

import json

import pytest
import torch
from scipy import stats

import sfumato as sf
from sfumato import serialization
from sfumato.errors import SfumatoError
from sfumato.exact import GaussianMixture
from sfumato.process import Gaussian
from sfumato.schedules import VE, Cosine, Flow, LinearBeta
from sfumato.solver_selection import make_plan
from sfumato.solvers import DDPM, EulerMaruyama, SASolver, SDEDPMSolver
from sfumato.solvers.brownian import along
from sfumato.tuning import stochastic, table
from sfumato.tuning.fit import Exam
from sfumato.tuning.search import Range, Wiener, end_of, untuned
from sfumato.tuning.stochastic import Stochastic, sliced
from sfumato.tuning.study import Study
from tuning_cases import network

F64 = torch.float64
PLANS = [SASolver(), SASolver(3, 3, 0.5), SDEDPMSolver(3), DDPM(), EulerMaruyama()]


def law():
    return GaussianMixture([0.3, 0.3, 0.4], [[-1.2, 0.3], [1.0, 0.8], [0.4, -0.9]], [0.05, 0.03, 0.08])


def exam(model, tau, n, seed=99, t_stop=0.05, start=0):
    """Noise of another seed than any fit has, with the ends of the reverse SDE in 128 steps along its paths."""
    paths = Wiener(seed, torch.arange(start, start + n))
    z = model.process.prior(sf.noise.normal(seed, paths.index, (2,), dtype=F64))
    fine = SDEDPMSolver(2, tau).plan(model.process.schedule, 128, 1.0, t_stop)
    return Exam(z, end_of(fine, model, z, {}, n, paths), {}, paths)


def figures(plan, model, one):
    """(the score of path and law, distance of the laws)."""
    end = end_of(plan, model, one.z, {}, len(one.z), one.paths)
    law2 = float(sliced(end, one.end))
    return float((end - one.end).square().mean()) + stochastic.LAW * law2, law2**0.5


# -- the form that is fitted -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", PLANS, ids=repr)
@pytest.mark.parametrize("curve", [Flow(), VE(), Cosine()], ids=lambda c: type(c).__name__)
def test_a_table_is_the_plan_it_was_read_from(solver, curve):
    model, plan = law().denoiser(Gaussian(curve)), solver.plan(curve, 5)
    z = model.process.prior(torch.randn(7, 2, dtype=F64, generator=torch.Generator().manual_seed(0)))
    draws = torch.randn(5, 7, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    *_, last = plan.run(model, z, lambda call, like: draws[call])
    found = table.read(plan)
    torch.testing.assert_close(table.walk(model, found, z, {}, draws).end, last.z, rtol=1e-9, atol=1e-9)
    assert table.write(found, plan, curve, plan.name) == plan


def test_lines_that_look_back_are_refused():
    with pytest.raises(SfumatoError, match="states before its own"):
        table.read(SASolver(row="eps").plan(Cosine(), 5, 0.9, 0.1))


def problem(curve=None, n=24, calls=3, batch=16):
    curve = curve or Flow()
    model = law().denoiser(Gaussian(curve))
    one = exam(model, 1.0, n)
    return Stochastic(model, SASolver().plan(curve, calls, 1.0, 0.05), one, batch, 0.05)


@pytest.mark.parametrize("curve", [Flow(), VE(), LinearBeta()], ids=lambda c: type(c).__name__)
def test_the_gradient_is_that_of_the_loss(curve):
    """In all numbers, those of the noise among them, over several batches, against central differences."""
    work = problem(curve)
    free = work.pack(work.start.a, work.start.b, work.start.c) + 1e-3
    gradient = work.gradient(free, work.walks(free))
    for i, h in enumerate(1e-6 * torch.eye(len(free), dtype=F64)):
        slope = (work.value(free + h)[0] - work.value(free - h)[0]) / 2e-6
        assert slope == pytest.approx(float(gradient[i]), rel=1e-3, abs=1e-6 * float(gradient.abs().max()))


def test_the_curvature_is_that_of_the_first_term():
    work = problem(n=12)
    free = work.pack(work.start.a, work.start.b, work.start.c)
    found = work.curvature(free, work.walks(free), 0)

    def ends(p):
        return torch.cat([one.end for one in work.walks(p)])

    rows = [(ends(free + h) - ends(free - h)) / 2e-6 for h in 1e-6 * torch.eye(len(free), dtype=F64)]
    j = torch.stack(rows, -1)
    weight = 1 / (1 + (ends(free) - work.exam.end).square().mean(-1) / work.c2)
    exact = 2 * torch.einsum("bdi,b,bdj->ij", j, weight, j) / 2 / 12
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-6 * float(exact.abs().max()))


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


# -- what a fit gives --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("curve", [Flow(), VE(), Cosine()], ids=lambda c: type(c).__name__)
def test_nearer_in_law_than_every_untuned_plan_on_other_noise(curve):
    model = law().denoiser(Gaussian(curve))
    stop = float(curve.time(5.0))
    plan = sf.tune(model, 6, noise=1.0, points=1000, rounds=25, batch=1000, t_stop=stop)
    one = exam(model, 1.0, 1000, t_stop=stop)
    found = figures(plan, model, one)
    scores, laws = zip(*(figures(p, model, one) for p in untuned(Range(curve, 1.0, stop), 6, 1.0)), strict=True)
    assert plan.stochastic and plan.calls == plan.steps == 6 and plan.tuned["noise"] == 1.0
    assert found[0] < 0.8 * min(scores) and found[1] < 0.9 * min(laws)


def spread(x):
    return float((x - x.mean(0)).square().sum(1).mean())


@pytest.mark.slow
def test_samples_keep_their_law_with_paths_and_without():
    """Against fresh samples of the mixture: nearer than the untuned plan, and the variance is the law's."""
    model = law().denoiser(Gaussian(Flow()))
    fit = {"noise": 1.0, "points": 1000, "batch": 1000}
    plan, start = sf.tune(model, 6, rounds=25, **fit), sf.tune(model, 6, rounds=0, **fit)
    fresh = law().sample(8000, seed=3)
    for brownian in (False, True):
        ours, known = (
            sf.sample(model, 8000, solver=p.along_paths() if brownian else p, seed=5, batch=8000).double()
            for p in (plan, start)
        )
        assert float(sliced(ours, fresh)) < 0.6 * float(sliced(known, fresh))
        assert spread(ours) == pytest.approx(spread(fresh), rel=0.03)


@pytest.mark.slow
def test_paths_alone_would_lose_variance(monkeypatch):
    """Without the distance of the laws the fit gives E[y | the steps' increments], narrower by its squared error."""
    model = law().denoiser(Gaussian(Flow()))
    one, base = exam(model, 1.0, 1500), SDEDPMSolver(2).plan(Flow(), 5, 1.0, 0.05)
    held = exam(model, 1.0, 1500, start=5000)
    spreads, exact = {}, spread(held.end)
    for factor in (0.0, stochastic.LAW):
        monkeypatch.setattr(stochastic, "LAW", factor)
        *_, last = Stochastic(model, base, one, 1500, 1e9).descend(25)
        plan = table.write(last, base, Flow(), "fitted")
        spreads[factor] = spread(end_of(plan, model, held.z, {}, 1500, held.paths))
    assert spreads[0.0] < 0.93 * exact
    assert abs(spreads[100.0] - exact) < 0.3 * abs(spreads[0.0] - exact)


def test_nearer_than_its_start():
    """A small fit, judged on paths of another seed."""
    model = law().denoiser(Gaussian(Flow()))
    plan, start = (sf.tune(model, 4, noise=1.0, points=64, rounds=r, t_stop=0.1) for r in (12, 0))
    one = exam(model, 1.0, 600, t_stop=0.1)
    found, known = figures(plan, model, one), figures(start, model, one)
    assert found[1] < 0.9 * known[1] and found[0] < 0.9 * known[0]
    assert plan.times == start.times and plan.lines != start.lines


@pytest.mark.slow
def test_never_worse_even_where_there_is_too_little_to_fit():
    model = law().denoiser(Gaussian(Flow()))
    plan = sf.tune(model, 6, noise=1.0, points=8, rounds=10, t_stop=0.05)
    after, before = plan.tuned["error"], plan.tuned["untuned"]
    assert after["law"] <= before["law"]
    start = sf.tune(model, 6, noise=1.0, points=8, rounds=0, t_stop=0.05)
    assert start.name == before["name"] and start.tuned["error"] == {k: v for k, v in before.items() if k != "name"}
    one = exam(model, 1.0, 2000)
    found, known = figures(plan, model, one), figures(start, model, one)
    assert found[0] < 1.2 * known[0] and found[1] < 1.1 * known[1]


def test_the_fit_hears_other_noise_than_any_sample():
    """Fitted, held-out and drawn paths are those of different numbers."""
    model, plan = law().denoiser(Gaussian(Flow())), SASolver().plan(Flow(), 3)
    exams = Study(model, Range(Flow(), 1.0, 0.0), 3, 8, lambda _: None, 1.0).exams(0, 8, {})
    paths = [Wiener(0, torch.arange(100)), *(one.paths for one in exams)]
    seen = [along(plan, p.seed, p.index).at(0).like(torch.zeros(len(p.index), 2, dtype=F64))[:, 0] for p in paths]
    assert [len(one) for one in seen] == [100, 8, 64] and len(torch.cat(seen).unique()) == 172


def test_the_same_seed_gives_the_same_plan_and_json_keeps_it():
    model = law().denoiser(Gaussian(Flow()))
    first, again, other = (sf.tune(model, 2, noise=0.5, points=8, rounds=2, seed=seed) for seed in (0, 0, 1))
    assert first == again and first.tuned["error"] != other.tuned["error"]
    assert sf.solvers.Plan.from_dict(json.loads(json.dumps(first.to_dict()))) == first
    assert first.tuned["noise"] == 0.5 and sf.tune(model, 2, points=8, rounds=0).tuned["noise"] == 0


def test_a_network_with_classes_and_guidance_keeps_its_plan_in_its_file(tmp_path):
    model = network()
    path = sf.save(model, tmp_path / "m.safetensors", network().net.state_dict())
    plan = sf.tune(model, 4, noise=1.0, guidance=2.0, points=48, rounds=4)
    assert plan.guidance == (2.0, None) and plan.tuned["error"]["law"] <= plan.tuned["untuned"]["law"]
    serialization.store_plan(path, plan)
    loaded = sf.load(path)
    assert make_plan(loaded, 4, None, guidance=2.0) == plan and make_plan(loaded, 4, None).tuned is None
    guided, stored = sf.guide(loaded, 2.0), make_plan(loaded, 4, None, guidance=2.0)
    drawn = [sf.sample(guided, 3, solver=p, label=["a", "b", "c"]) for p in (stored, stored.along_paths())]
    assert all(bool(x.isfinite().all()) for x in drawn) and bool((drawn[0] != drawn[1]).any())


def test_mistakes():
    with pytest.raises(SfumatoError, match="noise >= 0"):
        sf.tune(law().denoiser(Gaussian(Flow())), 3, noise=-1.0)
