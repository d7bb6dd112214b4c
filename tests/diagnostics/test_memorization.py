"""Copies are named, new samples are not: on laws whose fresh samples and whose copies are known."""

import dataclasses
import math

import numpy as np
import pytest
import torch

import sfumato as sf
from sfumato import data
from sfumato.diagnostics.memorization import choose, compare, drawn
from sfumato.diagnostics.nearest import Space, nearest
from sfumato.training import Run

LAW = sf.exact.GaussianMixture([0.3, 0.7], torch.randn(2, 6, generator=torch.Generator().manual_seed(1)), [0.4, 0.2])
MODEL = LAW.denoiser(sf.Gaussian(sf.schedules.Cosine()))


def judged(samples, x, held=50, **more):
    """`compare` of samples with x, the last `held` rows of which were held out."""
    source, n = data.open(x), len(x) - held
    train, rest = torch.arange(n), torch.arange(n, len(x))
    return compare(samples, source, train, (source, rest), choose(train, len(samples), 0), Space(None, None), **more)


def test_fresh_samples_of_the_exact_model_are_new():
    """Sampled by the solver, not drawn from the law: 1/2 and 1 within their intervals."""
    x = LAW.sample(1050, seed=3)
    found = judged(sf.sample(MODEL, 400, steps=20, seed=5), x)
    assert found.closer.low < 0.5 < found.closer.high and found.ratio.low < 1 < found.ratio.high
    assert found.verdict == "none" and found.exact == found.leaked == 0
    assert abs(found.copies - found.copies_real) < 0.03


def test_each_row_goes_into_the_space_once_and_is_counted(told):
    """Of codes and features the space is a network, which takes longer than all else."""
    x, seen = LAW.sample(400, seed=3), []
    source, train, rest = data.open(x), torch.arange(350), torch.arange(350, 400)
    space = Space(None, lambda part: seen.append(len(part)) or part)
    twins = choose(train, 100, 0)
    compare(LAW.sample(100, seed=4), source, train, (source, rest), twins, space)
    assert sum(seen) == 100 + len(twins.unique()) + 350 + 50
    assert [each.done for each in told if each.what.startswith("Looking for copies") and each.over] == [350, 50]


def test_intervals_hold_what_they_promise():
    """Over 100 sets and fresh samples of one law; the training set is 20 times the hold-out."""
    inside, near, alarms = 0, 0, 0
    for k in range(100):
        x = LAW.sample(420, seed=1000 + k)
        found = judged(LAW.sample(120, seed=5000 + k), x, held=20, seed=k)
        inside += found.closer.low <= 0.5 <= found.closer.high
        near += found.ratio.low <= 1 <= found.ratio.high
        alarms += found.verdict == "memorised"
    assert inside >= 88 and near >= 88 and alarms <= 2  # 95 % of 100 within three deviations


@pytest.mark.parametrize("held", [2000, 100])
def test_the_ratio_of_resampled_data_is_one(held):
    """Training set, hold-out and samples are fresh draws of one law: 1 within 0.05, whatever the size of the hold-out.

    With 2,000 samples its standard deviation is 0.014, of which 0.05 is three and a half.
    """
    for k in range(5):
        x, rest, new = (LAW.sample(n, seed=3 * k + i) for i, n in enumerate((2000, held, 2000)))
        found = sf.memorization(MODEL, x, rest, generated=new, seed=k)
        assert found.ratio.value == pytest.approx(1, abs=0.05) and found.ratio.half < 0.05, (k, found.ratio)
        assert found.samples == found.train == 2000 and found.verdict == "none"


@pytest.mark.parametrize(("steps", "near"), [(10, 0.4), (40, 0.05)])
def test_a_model_that_returns_training_samples_is_named(steps, near):
    """Its samples end as near to the training samples as the solver brings them."""
    x = LAW.sample(420, seed=3)
    learned = sf.exact.Empirical(x[:400]).denoiser(sf.Gaussian(sf.schedules.Cosine()))
    found = judged(sf.sample(learned, 100, steps=steps, seed=1), x, held=20)
    assert found.verdict == "memorised" and found.ratio.high < near and found.closer.value > 0.95
    assert found.z > 8 and found.copies > 0.5 > 10 * found.copies_real


def test_one_copy_in_five_is_found_though_the_hold_out_is_a_twentieth():
    """A subset of the training set as large as the hold-out holds one copied sample in twenty, and sees nothing."""
    x = LAW.sample(1050, seed=4)
    new = LAW.sample(400, seed=5)
    mixed = torch.cat((x[:80] + 1e-3, new[80:]))
    found = judged(mixed, x)
    assert found.verdict == "memorised" and found.copies == pytest.approx(0.2 + 0.8 * found.copies_real, abs=0.05)
    assert {row for _, row, _ in found.nearest} <= set(range(80)) and {i for i, _, _ in found.nearest} <= set(range(80))
    # the share of the samples that are nearer to a part of the training set than to the hold-out, over all such parts
    rest, space = torch.arange(1000, 1050), Space(None, None)
    shares = []
    for samples in (mixed, new):
        away = nearest(samples, x, rest, space).first
        parts = [nearest(samples, x, part, space).first < away for part in torch.arange(1000).split(50)]
        shares.append(float(torch.stack(parts).double().mean()))
    assert abs(shares[0] - shares[1]) < 0.02 < 0.07 < found.closer.value - judged(new, x).closer.value


def test_shrunken_copies_are_named_and_blurred_samples_are_not():
    x = LAW.sample(1050, seed=4)
    centre = x.mean(0)
    assert judged(centre + 0.97 * (x[:300] - centre), x).verdict == "memorised"
    new = LAW.sample(300, seed=6)
    blurred = judged(centre + 0.8 * (new - centre), x)  # near to everything, copies of nothing
    assert blurred.verdict != "memorised" and blurred.closer.value < 0.56
    plain = nearest(centre + 0.8 * (new - centre), x, torch.arange(1000), Space(None, None)).first
    assert float(plain.median()) < 0.85 * float(nearest(new, x, torch.arange(1000), Space(None, None)).first.median())


def test_bits_are_compared_and_leaks_counted():
    x = torch.randint(0, 256, (120, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x[110] = x[3]
    found = judged(x[[5, 6, 7, 8]].clone(), x, held=20)
    assert found.exact == 4 and found.leaked == 1 and "LEAK: 1 held-out" in str(found)
    assert found.nearest[0][2] == 0.0


def test_variants_of_one_thing_are_no_twins_of_each_other():
    """With four variants of each thing the nearest neighbour of a twin is its own variant: its group is taken out."""
    things = LAW.sample(100, seed=7)
    x = things.repeat_interleave(4, 0) + 0.01 * torch.randn(400, 6, generator=torch.Generator().manual_seed(2))
    source = data.open(x)
    source = dataclasses.replace(source, groups=[str(i // 4) for i in range(400)])
    train, rest = torch.arange(360), torch.arange(360, 400)
    new = LAW.sample(200, seed=8).repeat_interleave(1, 0)
    found = compare(new, source, train, (source, rest), choose(train, 200, 0), Space(None, None))
    assert found.verdict == "none"
    copies = x[:200] + 0.01 * torch.randn(200, 6, generator=torch.Generator().manual_seed(3))
    assert compare(copies, source, train, (source, rest), choose(train, 200, 0), Space(None, None)).verdict != "none"


def test_nearest_is_that_of_differences():
    """By products of float64, as torch.cdist finds it by differences; a copy is at the distance 0."""
    generator = torch.Generator().manual_seed(0)
    x = 100 + torch.randn(500, 40, generator=generator)
    queries = torch.cat((x[:5], 100 + torch.randn(45, 40, generator=generator)))
    rows = torch.arange(3, 500)
    near = nearest(queries.double(), x, rows, Space(None, None))
    whole = torch.cdist(queries.double(), x[rows].double(), compute_mode="donot_use_mm_for_euclid_dist")
    two = whole.topk(2, largest=False)
    assert torch.allclose(near.first, two.values[:, 0], atol=1e-8) and near.first[3] == near.first[4] == 0
    assert torch.allclose(near.second, two.values[:, 1], atol=1e-8)
    assert torch.equal(near.row, rows[two.indices[:, 0]])


def with_gaps(x, seed, share=0.3):
    gaps = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < share
    return x.masked_fill(gaps, torch.nan)


def test_distances_of_samples_with_gaps_are_those_of_what_both_have():
    """sqrt(D / n sum of squares over the n common numbers), by a loop; without a common number no row is near."""
    x, queries = (with_gaps(LAW.sample(n, seed=n).double(), n) for n in (60, 9))
    queries[0] = torch.tensor([1.0] + [torch.nan] * 5)
    x[:, 0] = torch.nan
    x[7], queries[1] = LAW.sample(1, seed=1)[0], torch.nan
    x[7, 0], queries[1, 2:] = torch.nan, x[7, 2:]
    near = nearest(queries, x, torch.arange(60), Space(None, None))
    for i, query in enumerate(queries):
        found = []
        for row in x:
            both = [(float(a) - float(b)) ** 2 for a, b in zip(query, row, strict=True) if not (a.isnan() or b.isnan())]
            found.append(math.sqrt(6 / len(both) * sum(both)) if both else math.inf)
        first, second = sorted(found)[:2]
        assert near.first[i] == pytest.approx(first, abs=1e-7) and near.second[i] == pytest.approx(second, abs=1e-7)
        assert math.isinf(first) or found[int(near.row[i])] == pytest.approx(first, abs=1e-7)
    assert math.isinf(near.first[0]) and near.first[1] == 0 and near.row[1] == 7


def test_copies_of_samples_with_gaps_are_named_and_fresh_ones_are_not():
    """Whole samples, as a model draws them, lack what their twins do, and are then compared alike."""
    inside = 0
    for k in range(20):
        holes = with_gaps(LAW.sample(450, seed=1000 + k), k, 0.2)
        fresh = judged(LAW.sample(150, seed=5000 + k), holes, seed=k)
        inside += fresh.closer.low <= 0.5 <= fresh.closer.high
        assert fresh.verdict == "none" and fresh.exact == 0
    assert inside >= 17  # 95 % of 20, within two deviations
    x = LAW.sample(450, seed=3)
    copied = judged(x[:150], with_gaps(x, 1, 0.2))
    assert copied.verdict == "memorised" and copied.exact >= 140


def test_samples_without_a_common_number_are_no_sign_of_anything():
    x, made = with_gaps(LAW.sample(450, seed=3), 1, 0.2), LAW.sample(150, seed=9)
    x[:, 0], made[:10, 1:] = torch.nan, torch.nan
    assert any("count as ties: 10" in note for note in judged(made, x).notes)
    made[:, 1:] = torch.nan
    with pytest.raises(sf.SfumatoError, match="no value in common"):
        judged(made, x)


def test_many_blocks_are_one(monkeypatch):
    x, queries = LAW.sample(300, seed=1), LAW.sample(20, seed=2)
    whole = nearest(queries, x, torch.arange(300), Space(None, None))
    monkeypatch.setattr("sfumato.diagnostics.nearest._BLOCK", 7 * 6)
    monkeypatch.setattr("sfumato.diagnostics.nearest._MOST", 7 * 6)
    parts = nearest(queries, x, torch.arange(300), Space(None, None))
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(whole, parts, strict=True))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("memorisation")
    x = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32) * [1.0, 50.0, 0.2]
    np.savez(folder / "x.npz", x=x.astype(np.float32), labels=np.resize([0, 1], 200))
    return sf.train(folder / "x.npz", folder / "run", steps=20, net="tiny", precision="float32", holdout=0.2)


def test_a_run_is_judged_on_its_own_split(run):
    place = run.path.parent / "x.npz"
    found = sf.memorization(run.path, place, samples=64)
    assert found.train + found.holdout == 200 and found.samples == 64 and found.twins == 64
    assert 0 <= found.closer.low <= found.closer.value <= found.closer.high <= 1
    plain = found.to_dict()
    assert plain["verdict"] in ("none", "suspect", "memorised") and plain["space"].startswith("standard")
    again = sf.memorization(sf.load(run.path), place, samples=64)
    assert again == found
    only = sf.memorization(run.path, place, samples=64, features=lambda x: x[:, :1])
    assert only.space == "features" and only.closer != found.closer
    own = sf.memorization(run.path, place, generated=sf.data.open(place).x[:40], samples=3)
    assert own.samples == 40 and own.exact > 20


def test_what_cannot_be_compared_is_one_sentence(run):
    place = run.path.parent / "x.npz"
    with pytest.raises(sf.SfumatoError, match="has 150 samples, but the model was trained on 200"):
        sf.memorization(run.path, np.random.default_rng(0).normal(size=(150, 3)).astype(np.float32))
    with pytest.raises(sf.SfumatoError, match="give unseen data with --holdout"):
        sf.memorization(MODEL, LAW.sample(50, seed=0))
    with pytest.raises(sf.SfumatoError, match="features must return a tensor"):
        sf.memorization(run.path, place, samples=8, features=lambda x: x.sum())
    with pytest.raises(sf.SfumatoError, match="have shape"):
        sf.memorization(MODEL, LAW.sample(50, seed=0), LAW.sample(50, seed=0)[:, :2])
    found = sf.memorization(MODEL, LAW.sample(200, seed=0), LAW.sample(40, seed=1), samples=50, steps=4)
    assert found.train == 200 and math.isfinite(found.ratio.value) and str(found)


def test_a_sample_that_resembles_the_one_it_was_asked_for_is_no_copy():
    """x = y + noise, y of 6 numbers: what a model should answer to the y of a training sample lies near that sample."""
    draw = torch.Generator().manual_seed(2)
    y = torch.randn(450, 6, generator=draw)
    x = y + 0.05 * torch.randn(450, 6, generator=draw)
    answers = y[choose(torch.arange(400), 200, 0)] + 0.05 * torch.randn(200, 6, generator=draw)
    assert judged(answers, x).verdict == "memorised"
    found = judged(answers, x, told=True)
    assert found.verdict == "none" and 0.9 < found.ratio.value < 1.1 and "not compared" in found.notes[0]
    assert judged(x[torch.randperm(400, generator=draw)[:200]] + 1e-3, x, told=True).verdict == "memorised"


def test_samples_of_a_blurred_model_are_judged_as_samples():
    """And not as their coefficients."""
    x = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8)).astype(np.uint8)
    spec = sf.data.DataSpec.fit(sf.data.open(x))
    process = sf.process.Blur("cosine", (1, 8, 8), width=3.0).fitted(
        spec.normaliser.normalise(torch.from_numpy(x).float())
    )
    model = sf.Denoiser(sf.nets.UNet((1, 8, 8), (8,), 1, (), 8), process, spec=spec)
    assert torch.equal(drawn(model, 5, 3, 0, {}), sf.sample(model, 5, 3))
