"""Measures of tables: beside scipy, symbols as symbols, shuffled columns found, and what a model repeats."""

import numpy as np
import pytest
import torch
from scipy import stats

import sfumato as sf
from sfumato.diagnostics.sentences import copies_words
from sfumato.metrics import Association, Copies, Kolmogorov, RowsC2ST, TotalVariation, Utility, evaluate
from sfumato.metrics.tables import Rows, associated
from sfumato.training.console import Silent

pa = pytest.importorskip("pyarrow")
HOW = {"precision": "float32", "snapshots": 0, "sample_every": 0, "console": Silent(), "holdout": 0.3}


def table(n, seed, names=("ash", "oak", "yew")):
    """kind, size | kind, twice = 2 size + noise, empty for a fifth of the oaks."""
    draw = np.random.default_rng(seed)
    kind = draw.choice(3, n, p=[0.5, 0.3, 0.2])
    size = np.round(np.array([1.0, -1.0, 1.0])[kind] + 0.5 * draw.normal(size=n), 2)
    twice = np.round(2 * size + 0.3 * draw.normal(size=n), 2)
    return pa.table({
        "kind": [names[each] for each in kind], "size": size,
        "twice": pa.array(twice, mask=(kind == 1) & (draw.uniform(size=n) < 0.2)),
    })  # fmt: skip


def shuffled(given, seed=0):
    """The same columns, each in an order of its own."""
    draw = np.random.default_rng(seed)
    return pa.table({name: given[name].take(pa.array(draw.permutation(len(given)))) for name in given.schema.names})


@pytest.fixture(scope="module")
def source():
    return sf.data.open(table(2000, 0))


def rows(source, given):
    found = sf.data.frames.columns_of(given, source.table)
    return Rows(source.table, source.table.encode(found))


def test_columns_and_pairs_beside_scipy(source):
    first, second = rows(source, table(2000, 0)), rows(source, shuffled(table(1500, 0)).slice(0, 1200))
    ks = [
        stats.ks_2samp(*(each.numbers[name][~np.isnan(each.numbers[name])] for each in (first, second))).statistic
        for name in ("size", "twice")
    ]
    assert Kolmogorov()(first, second).value == pytest.approx(np.mean(ks), abs=1e-12)
    every = np.arange(2000)
    kind, empty = first.levels["kind"], first.levels["twice is empty"]
    counts = np.zeros((3, 2))
    np.add.at(counts, (kind, empty), 1)
    wanted = stats.contingency.association(counts.astype(int), "cramer")
    assert associated(first, "kind", "twice is empty", every) == pytest.approx(wanted, abs=1e-12)
    size = first.numbers["size"]
    groups = [size[kind == k] for k in range(3)]
    between = sum(len(g) * (g.mean() - size.mean()) ** 2 for g in groups)
    assert associated(first, "size", "kind", every) == pytest.approx(
        np.sqrt(between / ((size - size.mean()) ** 2).sum())
    )
    assert associated(first, "size", "twice", every) == pytest.approx(
        abs(stats.pearsonr(*(first.numbers[name][empty == 0] for name in ("size", "twice"))).statistic)
    )
    p, q = (np.bincount(each.levels["kind"], minlength=3) / len(each) for each in (first, second))
    e = first.levels["twice is empty"].mean() - second.levels["twice is empty"].mean()
    assert TotalVariation()(first, second).value == pytest.approx((np.abs(p - q).sum() / 2 + abs(e)) / 2)


def test_shuffled_columns_are_found_by_pairs_and_rows_alone(source):
    pytest.importorskip("sklearn")
    real, other, loose = (rows(source, each) for each in (table(1500, 1), table(1500, 2), shuffled(table(1500, 2))))
    assert Kolmogorov()(loose, real).value < 0.05 and TotalVariation()(loose, real).value < 0.05
    assert Association()(other, real).value < 0.03 and Association()(loose, real).value > 0.4
    assert Association(worst=True)(loose, real).value > 0.9
    found, floor = RowsC2ST(trees=20)(loose, real), RowsC2ST(trees=20)(other, real)
    assert found.low > 0.8 and floor.low < 0.5 < floor.high
    assert Utility("twice")(other, real).value > 0.9 and Utility("twice")(loose, real).value < 0.1
    assert Utility("kind")(other, real).value > 0.6


def test_categories_are_symbols_not_quantities():
    """Another order of the levels changes no measure."""
    pytest.importorskip("sklearn")
    found = []
    for names in (("ash", "oak", "yew"), ("yew", "ash", "oak")):
        source = sf.data.open(table(2000, 0, names))
        x, y = rows(source, table(600, 1, names)), rows(source, shuffled(table(600, 2, names)))
        found.append([metric(x, y).value for metric in (TotalVariation(), Association(), RowsC2ST(trees=20))])
    assert np.allclose(found[0], found[1], atol=1e-12)


def test_a_run_of_a_table_is_evaluated(tmp_path):
    pytest.importorskip("sklearn")
    given = table(800, 3)
    run = sf.train(given, str(tmp_path / "run"), steps=30, batch=64, net="tiny", **HOW)
    found = evaluate(run.denoiser, given, n=200, steps=5)
    assert list(found) == [
        "total-variation", "kolmogorov", "association", "worst-association", "rows-c2st", "utility", "closer-to-train",
        "copies",
    ]  # fmt: skip
    for name in ("kolmogorov", "association", "rows-c2st"):
        assert found[name].value > found[name].floor.value, name
    assert found["utility"].value < found["utility"].floor.value
    assert found["closer-to-train"].interval.low < 0.5 < found["closer-to-train"].interval.high
    assert found["rows-c2st"].protocol["preprocessing"] == "decoded columns"
    judged = evaluate(given, given, ["kolmogorov", "rows-c2st"], n=300)
    assert judged["kolmogorov"].value < 0.2 and judged["kolmogorov"].protocol["sampler"] == "given"
    with pytest.raises(sf.SfumatoError, match="MMD is a metric of numbers, and frame is of rows of a table"):
        evaluate(run.denoiser, given, "mmd", n=200)
    with pytest.raises(sf.SfumatoError, match="Kolmogorov is a metric of rows of a table"):
        evaluate(torch.randn(40, 2), torch.randn(40, 2), "kolmogorov", n=10)


def test_copied_rows_are_found(tmp_path):
    given = table(800, 3)
    run = sf.train(given, str(tmp_path / "run"), steps=30, batch=64, net="tiny", **HOW)
    assert sf.memorization(run.denoiser, given, samples=200, steps=5).verdict == "none"
    source = sf.data.open(given, conditions=run.denoiser.spec)
    train, held = source.split(0.3)
    copied = sf.memorization(run.denoiser, given, generated=source.x[train[:200]])
    assert copied.verdict == "memorised" and copied.exact == 200
    fresh = sf.memorization(run.denoiser, given, generated=sf.data.open(table(200, 9), conditions=run.denoiser.spec).x)
    assert fresh.verdict == "none" and fresh.exact < 20


def test_rows_of_few_categories_are_copies_by_chance(tmp_path):
    given = pa.table({"a": ["x", "y"] * 60, "b": [True, False, False, True] * 30})
    run = sf.train(given, str(tmp_path / "run"), steps=2, batch=16, net="tiny", **HOW)
    source = sf.data.open(given, conditions=run.denoiser.spec)
    assert Copies()(run.denoiser, source, *source.split(0.3)).value == 1
    assert list(evaluate(run.denoiser, given, n=40, steps=3))[:2] == ["total-variation", "association"]


def test_rows_of_few_categories_are_no_leak(tmp_path):
    """Rows that training rows equal by chance as often; a hold-out that was copied from training is one."""

    def rows(n, seed, names="abc"):
        draw = np.random.default_rng(seed)
        return pa.table({name: draw.choice(["ash", "fir", "oak", "yew"], n).tolist() for name in names})

    def found(rows, unseen):
        model = sf.train(rows, str(tmp_path / str(len(list(tmp_path.iterdir())))), steps=2, net="tiny", **HOW).denoiser
        return sf.memorization(model, rows, unseen, generated=sf.data.open(rows, conditions=model.spec).x[:100])

    train = rows(400, 0)
    for unseen in (rows(80, 1), train.slice(0, 80)):  # of 64 rows all are alike by chance
        same = found(train, unseen)
        assert same.leaked >= 78 and same.repeated > 390 and same.exact == 100 and same.chance
        assert "LEAK" not in str(same) and "% of the held-out rows equal a row of training, of which" in str(same)
        assert "100 samples equal a training sample bit for bit, 100.0% of them (held-out ones: " in str(same)
    train = rows(400, 0, "abcdefghijkl")
    copied, new = found(train, train.slice(0, 80)), found(train, rows(80, 1, "abcdefghijkl"))
    assert copied.leaked == 80 and not copied.repeated and "LEAK: 80 held-out samples are" in str(copied)
    assert not new.leaked and "held-out rows" not in str(new)
    old = {k: v for k, v in copied.to_dict().items() if k not in ("repeated", "chance", "searched")}
    assert "LEAK: 80" in "\n".join(copies_words(old))  # a report of before
