"""`tune`: better on noise that it was not fitted to, never worse; guided and labelled models; stored in the file."""

import json
import math

import pytest
import torch

import sfumato as sf
from sfumato import noise, serialization
from sfumato.errors import SfumatoError
from sfumato.exact import GaussianMixture
from sfumato.process import Gaussian
from sfumato.schedules import EDM, VE, Cosine, Flow, LinearBeta
from sfumato.solver_selection import make_plan
from sfumato.solvers import Multistep, default
from sfumato.tuning.coefficients import write
from sfumato.tuning.fit import Fit, Pairs
from sfumato.tuning.search import Range, untuned
from sfumato.tuning.study import worse
from tuning_cases import network

F64 = torch.float64


def law():
    return GaussianMixture([0.3, 0.3, 0.4], [[-1.2, 0.3], [1.0, 0.8], [0.4, -0.9]], [0.03, 0.02, 0.05])


def error(plan, model, z, exact):
    """(RMS, median) of the distance from the exact end."""
    *_, last = plan.run(model, z)
    gap = (last.z - exact).square().mean(-1)
    return float(gap.mean().sqrt()), float(gap.median().sqrt())


@pytest.mark.first(2)
@pytest.mark.parametrize("curve", [Flow(), VE(), EDM(), Cosine(), LinearBeta()], ids=lambda c: type(c).__name__)
def test_half_the_error_of_every_untuned_plan_on_other_noise(curve):
    model = law().denoiser(Gaussian(curve))
    stop = float(curve.time(6.0))
    plan = sf.tune(model, 6, points=256, rounds=15, batch=500, t_stop=stop)
    z = model.process.prior(noise.normal(99, range(300), (2,), dtype=F64))
    exact = law().flow(z, 1.0, stop, model.process)
    rms, median = zip(*(error(p, model, z, exact) for p in untuned(Range(curve, 1.0, stop), 6)), strict=True)
    found = error(plan, model, z, exact)
    assert plan.calls == plan.steps == 6
    assert found[0] < 0.7 * min(rms) and found[1] < 0.5 * min(median)  # a few points rule the RMS, by chance
    assert found[1] == pytest.approx(plan.tuned["error"]["median"], rel=0.5)


@pytest.mark.slow
def test_never_worse_even_where_there_is_too_little_to_fit():
    """Eight points are far too few for so many numbers; on other noise the plan is still no worse than its start."""
    model = law().denoiser(Gaussian(Flow()))
    seen = []
    plan = sf.tune(model, 8, points=8, rounds=10, t_stop=0.05, progress=seen.append)
    assert plan.tuned["error"]["median"] <= plan.tuned["untuned"]["median"]
    assert [p.stage for p in seen][:2] == ["fine solve", "untuned plans"] and seen[-1].round <= 10
    start = sf.tune(model, 8, points=8, rounds=0, t_stop=0.05)
    assert start.tuned["error"] == {k: start.tuned["untuned"][k] for k in ("rms", "median")}
    assert start.name == start.tuned["untuned"]["name"] == plan.tuned["untuned"]["name"]
    z = noise.normal(99, range(300), (2,), dtype=F64)
    exact = law().flow(z, 1.0, 0.05, model.process)
    found, before = error(plan, model, z, exact), error(start, model, z, exact)
    assert found[0] <= 1.1 * before[0] and found[1] <= 1.1 * before[1]
    *_, unchecked = overfit(model, start).descend(30)
    spoilt = error(write(unchecked, start, Flow(), "unchecked"), model, z, exact)
    assert spoilt[0] > 1.1 * before[0]  # without held-out noise it would have been


def overfit(model, start):
    """The same fit to eight points, with nothing to judge it."""
    z = noise.normal(0, range(8), (2,), noise.PRIOR, 1, dtype=F64)
    pairs = Pairs(z, law().flow(z, 1.0, 0.05, model.process), {})
    return Fit(model, start, Range(Flow(), 1.0, 0.05), pairs, 100, 1e9)


def test_chance_is_told_from_harm():
    before = torch.full((1000,), 1e-4)
    one = before / 2
    one[0] = 1.0  # a single sample in another mode
    assert not worse(one, before) and not worse(before, before)
    assert worse(2 * before, before) and worse(before + 1e-6, before)
    many = one.clone()
    many[:300] = 1.0
    assert worse(many, before)


def test_the_same_seed_gives_the_same_plan(coarse):
    model = law().denoiser(Gaussian(Flow()))
    first, again, other = (sf.tune(model, 3, points=32, rounds=4, seed=seed) for seed in (0, 0, 1))
    assert first == again and first.times != other.times


def test_a_guided_plan_is_used_with_its_guidance_alone(coarse):
    model = law().denoiser(Gaussian(Flow()))
    label = torch.arange(3)
    plan = sf.tune(model, 4, guidance=2.0, interval=(-2.0, 3.0), points=128, rounds=8, label=label)
    wrapped = sf.tune(sf.guide(model, 2.0, (-2.0, 3.0)), 4, points=128, rounds=8, label=label)
    assert plan.guidance == wrapped.guidance == (2.0, (-2.0, 3.0))
    assert plan.times == wrapped.times and plan.lines == wrapped.lines
    model.plans = {serialization.plan_name(plan): plan}
    assert make_plan(model, 4, None, guidance=2.0, interval=(-2.0, 3.0)) is plan
    assert make_plan(sf.guide(model, 2.0, (-2.0, 3.0)), 4, None) is plan
    for other in ({}, {"guidance": 1.0}, {"guidance": 2.0}, {"guidance": 3.0, "interval": (-2.0, 3.0)}):
        assert make_plan(model, 4, None, **other) == default(exact=True).plan(Flow(), 4)
    assert make_plan(model, 5, None, guidance=2.0, interval=(-2.0, 3.0)).tuned is None
    assert make_plan(model, 4, Multistep(2), guidance=2.0, interval=(-2.0, 3.0)).tuned is None
    guided = sf.guide(model, 2.0, (-2.0, 3.0))
    drawn = sf.sample(guided, 6, steps=4, label=[0, 1, 2] * 2)
    torch.testing.assert_close(drawn, sf.sample(guided, 6, solver=plan, label=[0, 1, 2] * 2))
    assert bool((drawn != sf.sample(sf.guide(model, 2.5), 6, steps=4, label=[0, 1, 2] * 2)).any())


def test_scale_one_and_no_guidance_are_the_same_use(coarse):
    model = law().denoiser(Gaussian(Flow()))
    plan = sf.tune(model, 3, guidance=1.0, points=16, rounds=1, label=0)
    assert plan.guidance == (1.0, None) and serialization.plan_name(plan) == "3"
    model.plans = {"3": plan}
    assert make_plan(model, 3, None) is plan and make_plan(model, 3, None, guidance=1.0, interval=(0.0, 1.0)) is plan
    assert make_plan(sf.Rescheduled(model, VE()), 3, None).tuned is None  # another schedule
    assert make_plan(model, 3, None, t_stop=0.1).tuned is None  # another range


def test_a_start_below_one_is_reached_by_the_flow():
    model = law().denoiser(Gaussian(Cosine()))
    plan = sf.tune(model, 3, t_start=0.7, t_stop=0.1, points=128, rounds=10)
    z = law().flow(model.process.prior(noise.normal(5, range(200), (2,), dtype=F64)), 1.0, 0.7, model.process)
    exact = law().flow(z, 0.7, 0.1, model.process)
    best = min(error(p, model, z, exact)[0] for p in untuned(Range(Cosine(), 0.7, 0.1), 3))
    assert plan.times[0] == 0.7 and plan.stop == 0.1
    assert error(plan, model, z, exact)[0] < 0.6 * best


@pytest.mark.slow
def test_a_start_within_rounding_of_one_is_one():
    model, how = law().denoiser(Gaussian(Cosine())), {"t_stop": 0.1, "points": 32, "rounds": 2}
    near, at_one = (sf.tune(model, 3, t_start=t, **how) for t in (math.nextafter(1.0, 0.0), 1.0))
    assert near.times[1:] == pytest.approx(at_one.times[1:], abs=1e-9)


def test_a_network_with_classes_keeps_its_plan_in_its_file(tmp_path, coarse):
    model = network()
    path = sf.save(model, tmp_path / "m.safetensors", network().net.state_dict())
    before = serialization.read_contract(path)
    plan = sf.tune(model, 3, guidance=2.0, points=48, rounds=10)
    assert plan.tuned["error"]["rms"] < 0.7 * plan.tuned["untuned"]["rms"]
    assert serialization.store_plan(path, plan) == "3 guidance 2"
    facts = serialization.read_contract(path)
    assert facts["hash"] != before["hash"] and facts["raw"] and list(facts["plans"]) == ["3 guidance 2"]
    loaded = sf.load(path)
    assert loaded.plans == {"3 guidance 2": plan} and sf.load(path, "raw").plans == loaded.plans
    assert make_plan(loaded, 3, None, guidance=2.0) == plan
    assert any("3 guidance 2" in line and "tuned" in line for line in serialization.describe(path))
    again = sf.tune(model, 3, guidance=2.0, points=16, rounds=1, seed=1)
    serialization.store_plan(path, again)
    assert sf.load(path).plans == {"3 guidance 2": again}  # in the place of the first
    assert sf.solvers.Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@pytest.mark.parametrize("options", [{"steps": 0}, {"steps": 2, "points": 3}, {"steps": 2, "rounds": -1}])
def test_mistakes(options):
    model, (name, value) = law().denoiser(Gaussian(Flow())), list(options.items())[-1]
    with pytest.raises(SfumatoError, match=f"{name} must be at least .*, not {value}"):
        sf.tune(model, **options)


def test_a_model_without_a_shape_is_refused():
    class Bare:
        process = Gaussian(Flow())

        def __call__(self, z, t):
            raise NotImplementedError

    with pytest.raises(SfumatoError, match="shape"):
        sf.tune(Bare(), 3)
