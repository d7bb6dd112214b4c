"""`tune(noise=...)`: coefficients and noise of a stochastic plan, judged by path and law on other noise."""

import json

import pytest
import torch

import sfumato as sf
from sfumato import serialization
from sfumato.errors import SfumatoError
from sfumato.exact import GaussianMixture
from sfumato.process import Gaussian
from sfumato.schedules import VE, Cosine, Flow
from sfumato.solver_selection import make_plan
from sfumato.solvers import SASolver, SDEDPMSolver
from sfumato.solvers.brownian import along
from sfumato.tuning import fit
from sfumato.tuning.coefficients import write
from sfumato.tuning.fit import Fit, Pairs, sliced
from sfumato.tuning.search import Range, Wiener, end_of, untuned
from sfumato.tuning.study import Study
from tuning_cases import network

F64 = torch.float64


def law():
    return GaussianMixture([0.3, 0.3, 0.4], [[-1.2, 0.3], [1.0, 0.8], [0.4, -0.9]], [0.05, 0.03, 0.08])


def pairs(model, tau, n, seed=99, t_stop=0.05, start=0):
    """Noise of another seed than any fit has, with the ends of the reverse SDE in 128 steps along its paths."""
    paths = Wiener(seed, torch.arange(start, start + n))
    z = model.process.prior(sf.noise.normal(seed, paths.index, (2,), dtype=F64))
    fine = SDEDPMSolver(2, tau).plan(model.process.schedule, 128, 1.0, t_stop)
    return Pairs(z, end_of(fine, model, z, {}, n, paths), {}, paths)


def figures(plan, model, one):
    """(the score of path and law, distance of the laws)."""
    end = end_of(plan, model, one.z, {}, len(one.z), one.paths)
    law2 = float(sliced(end, one.end))
    return float((end - one.end).square().mean()) + fit.LAW * law2, law2**0.5


@pytest.mark.slow
@pytest.mark.parametrize("curve", [Flow(), VE(), Cosine()], ids=lambda c: type(c).__name__)
def test_nearer_in_law_than_every_untuned_plan_on_other_noise(curve):
    model = law().denoiser(Gaussian(curve))
    stop = float(curve.time(5.0))
    plan = sf.tune(model, 6, noise=1.0, points=1000, rounds=25, batch=1000, t_stop=stop)
    one = pairs(model, 1.0, 1000, t_stop=stop)
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
    options = {"noise": 1.0, "points": 1000, "batch": 1000}
    plan, start = sf.tune(model, 6, rounds=25, **options), sf.tune(model, 6, rounds=0, **options)
    fresh = law().sample(8000, seed=3)
    for brownian in (False, True):
        ours, known = (
            sf.sample(model, 8000, solver=p.along_paths() if brownian else p, seed=5, batch=8000).double()
            for p in (plan, start)
        )
        assert float(sliced(ours, fresh)) < 0.6 * float(sliced(known, fresh))
        assert spread(ours) == pytest.approx(spread(fresh), rel=0.05)  # 25 rounds leave 4 %


@pytest.mark.slow
def test_paths_alone_would_lose_variance(monkeypatch):
    """Without the distance of the laws the fit gives E[y | the steps' increments], narrower by its squared error."""
    model = law().denoiser(Gaussian(Flow()))
    one, base = pairs(model, 1.0, 1500), SDEDPMSolver(2).plan(Flow(), 5, 1.0, 0.05)
    held = pairs(model, 1.0, 1500, start=5000)
    spreads, exact = {}, spread(held.end)
    for factor in (0.0, fit.LAW):
        monkeypatch.setattr(fit, "LAW", factor)
        *_, last = Fit(model, base, Range(Flow(), 1.0, 0.05), one, 1500, 1e9).descend(25)
        plan = write(last, base, Flow(), "fitted")
        spreads[factor] = spread(end_of(plan, model, held.z, {}, 1500, held.paths))
    assert spreads[0.0] < 0.93 * exact
    assert abs(spreads[100.0] - exact) < 0.3 * abs(spreads[0.0] - exact)


def test_nearer_than_its_start(coarse):
    """A small fit, judged on paths of another seed."""
    model = law().denoiser(Gaussian(Flow()))
    plan, start = (sf.tune(model, 4, noise=1.0, points=64, rounds=r, t_stop=0.1) for r in (12, 0))
    one = pairs(model, 1.0, 600, t_stop=0.1)
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
    one = pairs(model, 1.0, 2000)
    found, known = figures(plan, model, one), figures(start, model, one)
    assert found[0] < 1.2 * known[0] and found[1] < 1.1 * known[1]


def test_the_fit_hears_other_noise_than_any_sample(coarse):
    """Fitted, held-out and drawn paths are those of different numbers."""
    model, plan = law().denoiser(Gaussian(Flow())), SASolver().plan(Flow(), 3)
    pairs = Study(model, Range(Flow(), 1.0, 0.0), 3, 8, lambda _: None, 1.0).pairs(0, 8, {})
    paths = [Wiener(0, torch.arange(100)), *(one.paths for one in pairs)]
    seen = [along(plan, p.seed, p.index).at(0).like(torch.zeros(len(p.index), 2, dtype=F64))[:, 0] for p in paths]
    assert [len(one) for one in seen] == [100, 8, 64] and len(torch.cat(seen).unique()) == 172


def test_the_same_seed_gives_the_same_plan_and_json_keeps_it(coarse):
    model = law().denoiser(Gaussian(Flow()))
    first, again, other = (sf.tune(model, 2, noise=0.5, points=8, rounds=2, seed=seed) for seed in (0, 0, 1))
    assert first == again and first.tuned["error"] != other.tuned["error"]
    assert sf.solvers.Plan.from_dict(json.loads(json.dumps(first.to_dict()))) == first
    assert first.tuned["noise"] == 0.5 and sf.tune(model, 2, points=8, rounds=0).tuned["noise"] == 0


def test_a_network_with_classes_and_guidance_keeps_its_plan_in_its_file(tmp_path, coarse):
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
