"""Calibrated tables: rows come nearer to those of training, and have their marginals, whatever the model's are."""

import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from scipy import stats

import sfumato as sf
from sfumato.calibration import draws, fitted, projected
from sfumato.cli.plan import page
from sfumato.columns import with_weights
from sfumato.data import frames
from sfumato.data.row_weights import RowWeights, Tree
from sfumato.data.spec import DataSpec
from sfumato.data.table_schema import TableSchema
from sfumato.diagnostics.sentences import marginals_words
from sfumato.errors import SfumatoError
from sfumato.sampling import TRIES
from sfumato.training.averages import WIDTHS, average
from sfumato.training.console import Console, Silent

pa = pytest.importorskip("pyarrow")
HOW = {"precision": "float32", "snapshots": 0, "sample_every": 0, "console": Silent(), "net": "tiny"}
N, LENGTH, HEARD = 3000, {"steps": 46, "batch": 1024, "holdout": 0.1}, io.StringIO()


def law(n=N, seed=0):
    """kind, oak in 7 of 10 rows; size ~ Gamma(3) on a grid of 0.1, of which 20 % are empty; weight = 2 size + noise."""
    draw = np.random.default_rng(seed)
    size, kind = np.round(draw.gamma(3.0, 1.0, n), 1), draw.uniform(size=n) < 0.7
    return pa.table({
        "kind": np.where(kind, "oak", "ash").tolist(), "size": pa.array(size, mask=draw.uniform(size=n) < 0.2),
        "weight": 2 * size + draw.normal(size=n),
    })  # fmt: skip


def wrong(rows, path):
    """A model whose marginals are wrong: hardly trained, and its answers about numbers are off."""
    model = sf.train(rows, str(path), steps=2, batch=64, **HOW).denoiser
    assert model.spec.weights is None  # so short a run has no draws to spare
    with torch.no_grad():
        model.net.output.bias[: model.spec.table.numbers] += 0.2
        model.net.output.weight[: model.spec.table.numbers] += 0.03 * torch.sin(torch.arange(128.0))
    return model


def same(one, other):
    """Whether rows are equal to the bit; numbers may be missing."""
    return all(np.array_equal(v, other[name], equal_nan=v.dtype.kind == "f") for name, v in one.items())


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return wrong(law(), tmp_path_factory.mktemp("plain") / "run")


@pytest.fixture(scope="module")
def model(plain):
    return sf.calibrate(plain, law(), 2048)


def columns(model, n, **more):
    made = sf.sample(model, n, seed=5, **more)
    size, weight = (np.asarray(made[name], np.float64) for name in ("size", "weight"))
    return np.asarray(made["kind"]), size, weight


def test_marginals_become_those_of_the_training_rows(plain, model):
    """The standard error of a KS distance of 1,000 and 3,000 rows is about .03."""
    _, size, weight = columns(model, 1000)
    _, before, heavy = columns(plain, 1000)
    real = {name: law()[name].drop_null().to_numpy() for name in ("size", "weight")}
    distance = lambda x, name: stats.ks_2samp(x[~np.isnan(x)], real[name]).statistic  # noqa: E731
    assert distance(before, "size") > 0.15 and distance(heavy, "weight") > 0.15 and np.isnan(before).mean() > 0.4
    assert distance(size, "size") < 0.08 and distance(weight, "weight") < 0.08
    assert abs(np.isnan(size).mean() - 0.2) < 0.06
    there = ~np.isnan(size)
    assert (size[there] == np.round(size[there], 1)).all() and size[there].max() <= real["size"].max()


def table_of(*names, levels=2):
    """The schema of a table of continuous numbers and a category."""
    draw = np.random.default_rng(0)
    numbers = {name: draw.normal(size=1000) + 0.1 for name in names}
    return sf.data.open(pa.table(numbers | {"kind": [f"kind {i % levels}" for i in range(1000)]})).table


def test_accepted_rows_are_the_nearest_law_with_the_right_marginals():
    """p: four groups, each with its share; q = p w has the marginals of the data and the odds ratio of p,
    and is nearer to the data in KL, by at least KL(q || p)."""
    table = table_of("a", "b")
    p, data = np.array([[0.4, 0.1], [0.2, 0.3]]), np.array([[0.3, 0.3], [0.1, 0.3]])

    def rows(shares, n=40_000):
        at = np.random.default_rng(1).choice(4, n, p=shares.ravel())
        x = np.stack((at // 2, at % 2, at % 2), 1) * 2.0 - 1 + 0.5 * np.random.default_rng(2).uniform(-1, 1, (n, 3))
        return torch.from_numpy(x) * torch.tensor([1, 1, 0])  # of the one level of "kind"

    drawn = rows(p)
    u = torch.from_numpy(np.random.default_rng(3).uniform(size=len(drawn)))

    def accepted(weights):
        kept = drawn[weights.accepts(table, drawn, u)][:, :2] > 0
        return np.array([[(kept == torch.tensor([i, j])).all(1).double().mean() for j in (0, 1)] for i in (0, 1)])

    q = accepted(projected(table, drawn, rows(data), highest=4.0))
    assert np.abs(q.sum(0) - data.sum(0)).max() < 0.015 and np.abs(q.sum(1) - data.sum(1)).max() < 0.015
    odds = lambda law: law[0, 0] * law[1, 1] / law[0, 1] / law[1, 0]  # noqa: E731
    assert abs(odds(q) / odds(p) - 1) < 0.1
    apart = lambda a, b: (a * np.log(a / b)).sum()  # noqa: E731
    assert apart(data, q) < apart(data, p) - 0.7 * apart(q, p) and apart(q, p) > 0.02
    # with the ratio of the densities, known by rows alone, it is nearer than without it
    r, q = accepted(fitted(table, drawn[::2], drawn[1::2], rows(data))), accepted(projected(table, drawn, rows(data)))
    assert np.abs(r.sum(0) - data.sum(0)).max() < 0.015 and np.abs(r.sum(1) - data.sum(1)).max() < 0.015
    assert apart(data, r) < 0.6 * apart(data, q)


def test_accepted_rows_have_the_dependence_of_the_data():
    """p: independent normal numbers, the data: correlated by .6 and no nearer to p in either column."""
    table, draw = table_of("a", "b"), torch.Generator().manual_seed(0)
    x, drawn = (torch.randn(n, 3, generator=draw, dtype=torch.float64) for n in (8000, 24_000))
    x[:, 2] = drawn[:, 2] = 0  # of the one level of "kind"
    x[:, 1] = 0.6 * x[:, 0] + 0.8 * x[:, 1]

    def correlation(weights):
        kept = drawn[12_000:][weights.accepts(table, drawn[12_000:], u)]
        return float(torch.corrcoef(kept[:, :2].T)[0, 1])

    u = torch.rand(12_000, generator=draw, dtype=torch.float64)
    assert abs(correlation(projected(table, drawn[:12_000], x))) < 0.03
    found = fitted(table, drawn[:8000], drawn[8000:12_000], x)
    assert 0.4 < correlation(found) < 0.65 and found.trees
    x[:, 1] = drawn[12_000:20_000, 1]
    assert not fitted(
        table, drawn[:8000], drawn[8000:12_000], x
    ).trees  # of rows that cannot be told apart there are none


def test_groups_that_lie_apart_keep_their_means():
    """A map of one column would carry rows of a group that is drawn too often into the place of another."""
    draw, shares, means = np.random.default_rng(0), np.array([0.4, 0.4, 0.2]), np.array([0.0, 1.5, -1.0])

    def rows(shares, n):
        group = draw.choice(3, n, p=shares)
        return torch.from_numpy(np.stack((means[group] + 0.25 * draw.normal(size=n), group), 1))

    table, x, drawn = table_of("a"), rows(shares, 8000), rows(np.array([0.5, 0.25, 0.25]), 16_000)
    weights = fitted(table, drawn[:5000], drawn[5000:8000], x)
    kept = drawn[8000:][weights.accepts(table, drawn[8000:], torch.from_numpy(draw.uniform(size=8000)))]
    for group in range(3):
        own = kept[:, 1] == group
        assert abs(float(own.double().mean()) - shares[group]) < 0.03
        assert abs(float(kept[own, 0].mean()) - means[group]) < 0.04


def test_levels_of_categories_have_the_shares_of_the_training_rows():
    """A number that follows a group, and is off in the model, would take the shares of the group with it."""
    draw = np.random.default_rng(0)

    def rows(n, shift, shares=(0.5, 0.3, 0.2)):
        group = draw.choice(3, n, p=shares)
        return torch.from_numpy(np.stack((group + shift + 0.5 * draw.normal(size=n), group), 1))

    table, drawn, judge = table_of("a", levels=3), rows(8000, 0.3), rows(16_000, 0.3)
    u = torch.from_numpy(draw.uniform(size=len(judge)))
    for shares in ((0.5, 0.3, 0.2), (0.4, 0.3, 0.3)):
        weights = projected(table, drawn, rows(8000, 0.0, shares))
        kept = judge[weights.accepts(table, judge, u)]
        found = torch.bincount(kept[:, 1].long(), minlength=3) / len(kept)
        plain = judge[dataclasses.replace(weights, logs=weights.logs[:1]).accepts(table, judge, u)]  # a file of before
        other = torch.bincount(plain[:, 1].long(), minlength=3) / len(plain)
        apart = [float((each - torch.tensor(shares)).abs().max()) for each in (found, other)]
        assert apart[0] < 0.025 < 0.04 < apart[1], apart
    seldom = projected(table, drawn[:1000], rows(8000, 0.0))  # 512 draws of the first at least
    assert not any(seldom.logs[1][1:]) or seldom.logs[1][1] == seldom.logs[1][2]


def test_the_bound_is_as_low_as_the_weights_allow():
    """Where the model is right, few rows are rejected; rows of one law are never rejected by much."""
    table, draw = table_of("a", "b"), torch.Generator().manual_seed(0)
    x, drawn = (torch.randn(8000, 3, generator=draw, dtype=torch.float64) for _ in range(2))
    x[:, 2] = drawn[:, 2] = 0
    weights = fitted(table, drawn[:5000], drawn[5000:], x)
    w = weights.log(table, drawn[5000:]).exp()
    assert abs(float(w.mean()) - 1) < 0.01 and not weights.trees and 1 < weights.bound < 1.3
    assert (w - weights.bound).clamp_min(0).mean() <= 0.006
    few = fitted(table, drawn[:100], drawn[:100], x[:100])  # too few for several intervals: nothing is known of them
    assert few.edges == ((), ()) and few.bound == 1 and torch.allclose(few.log(table, x), torch.zeros(8000).double())


def test_a_row_depends_on_its_seed_and_number_alone(plain, model):
    """Whatever the batch, and whichever rows are drawn again beside it."""
    every = sf.sample(model, 60, seed=4, normalised=True)
    assert not torch.equal(every["numbers"], sf.sample(plain, 60, seed=4, normalised=True)["numbers"])
    for some, batch in (([7, 50, 8], None), (range(30, 60), 16)):
        own = sf.sample(model, index=some, seed=4, batch=batch, normalised=True)
        for name, rows in own.items():
            assert torch.allclose(rows.double(), every[name][list(some)].double(), atol=1e-4), name


def test_a_row_that_no_weight_accepts_is_its_last_try(plain):
    table = plain.spec.table
    logs = (tuple([-30.0] * 2), (-30.0,))
    none = with_weights(plain, RowWeights(((), ()), logs, 3.0))
    last = torch.arange(5) + (TRIES - 1) * 2**48
    with pytest.warns(sf.SfumatoWarning, match="5 of 5 rows were accepted by none of their 32 tries"):
        assert same(sf.sample(none, 5, seed=3), sf.sample(plain, index=last, seed=3))
    every = with_weights(plain, RowWeights(((), ()), ((0.0, 0.0), (0.0,)), 1.0))
    assert same(sf.sample(every, 40, seed=3), sf.sample(plain, 40, seed=3)) and table.numbers == 2


def test_off_is_the_old_model_to_the_bit(plain, model, tmp_path):
    again = sf.uncalibrated(model)
    assert again.spec == plain.spec and sf.uncalibrated(plain) is plain and again.net is plain.net
    assert same(sf.sample(again, 50, seed=2), sf.sample(plain, 50, seed=2))
    assert not same(sf.sample(model, 50, seed=2), sf.sample(plain, 50, seed=2))
    sf.save(model, tmp_path / "model.safetensors")
    read = sf.load(tmp_path / "model.safetensors")
    assert read.spec == model.spec and same(sf.sample(read, 50, seed=2), sf.sample(model, 50, seed=2))
    assert same(sf.sample(sf.uncalibrated(read), 50, seed=2), sf.sample(plain, 50, seed=2))


def test_weights_of_another_table_are_refused(model):
    spec, weights = model.spec, model.spec.weights
    for edges, logs in (((0.0,), ()), (((0.0,),), ((0.0,),)), (((1.0, 0.0),), ((0.0, 0.0, 0.0),))):
        with pytest.raises(SfumatoError, match="weights of rows need"):
            RowWeights(edges, logs, 1.5)
    numbers = ((0.0, 0.0), (0.0,))
    for wrong in (((), ()), (((),), ((0.0,),)), (((), ()), ((0.0,), (0.0,))), (((), ()), (*numbers, (0.0,)))):
        with pytest.raises(SfumatoError, match="the intervals of the columns of their table"):
            with_weights(model, RowWeights(*wrong, 1.0))
    assert DataSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    with pytest.raises(SfumatoError, match="bound"):
        RowWeights.from_dict(weights.to_dict() | {"bound": 0.5})
    for place, values, why in ((7, (0.1, 0.2), "entries of their table"), (0, (0.1,), "a value for each answer")):
        with pytest.raises(SfumatoError, match=why):
            with_weights(model, dataclasses.replace(weights, trees=(Tree((place,), (0.0,), values),)))
    old = {name: each for name, each in weights.to_dict().items() if name != "trees"}
    assert RowWeights.from_dict(old) == dataclasses.replace(weights, trees=())  # a file of before
    assert (
        len(weights.logs) == 3 and len(with_weights(model, RowWeights(((), ()), numbers, 1.0)).spec.weights.logs) == 2
    )
    assert isinstance(spec.table, TableSchema)


def test_known_cells_and_likelihoods_are_of_the_plain_model(plain, model):
    """The weights are those of rows of which nothing is known."""
    for value in (0.3, 2.3, 8.0):
        one, other = (sf.sample(each, 40, steps=3, given={"size": value}) for each in (model, plain))
        assert (one["size"] == value).all() and same(one, other)
    whole = law(60, 1)
    holes = whole.set_column(1, "size", pa.array(whole["size"].to_pylist(), mask=np.arange(60) % 3 == 0))
    assert sf.impute(model, holes, steps=3).equals(sf.impute(plain, holes, steps=3))
    assert torch.equal(sf.log_prob(model, law(20), steps=2).chain, sf.log_prob(plain, law(20), steps=2).chain)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("calibrated") / "run"
    console = Console(HEARD)
    return sf.train(law(6000), str(path), **HOW | {"snapshots": 4, "console": console}, **LENGTH)


def test_a_run_ends_with_the_weights_of_its_training_rows(run):
    model, source = run.denoiser, sf.data.open(law(6000))
    facts = json.loads((run.path / "report.json").read_text())["marginals"]
    train, held = source.split(0.1)
    assert facts["rows"] == len(held) and facts["draws"] == 3060
    assert facts["seconds"] > 0 and 0.2 < facts["accepted"] < 1
    assert facts["after"]["value"] < 0.12 and facts["real"]["value"] < 0.1 and facts["before"]["value"] > 0
    assert all(0 <= facts[name]["low"] < facts[name]["value"] < facts[name]["high"] for name in ("before", "after"))
    low, high = (f"{facts['after'][end]:.3f}" for end in ("low", "high"))
    assert f"({low} to {high}) where it was" in marginals_words(facts)
    old = {**facts, **dict.fromkeys(("before", "after", "real"), 0.1)}  # a report of before
    assert "is 0.100 where it was 0.100, and that of training rows 0.100" in marginals_words(old)
    seen, others = (draws(model, 1530, i) for i in range(2))
    assert fitted(source.table, seen, others, source.x[train]) == model.spec.weights
    said = "Fitting weights of rows to 3,060 draws of the model, beyond the budget (--no-calibrate leaves them out)."
    assert said in HEARD.getvalue()
    assert "by weights fitted to 3,060 draws" in (run.path / "report.html").read_text()
    assert "accepted by weights" in model.spec.describe()[-1]


def test_a_plan_says_what_the_weights_of_rows_take():
    how = {name: each for name, each in HOW.items() if name != "console"} | LENGTH
    found = sf.forecast(law(6000), **how)
    assert 0 < found.parts["weights of rows"] < found.total.value and "weights of rows " in "\n".join(page(found))
    assert not sf.forecast(law(6000), calibrate=False, **how).parts["weights of rows"]


def test_other_weights_of_the_network_have_no_weights_of_rows(run):
    """Since they were fitted to the draws of another model."""
    raw = sf.load(run.path, weights="raw")
    assert raw.spec.weights is None and sf.load(run.path).spec.weights is not None and raw.provenance["holdout"] == 0.1
    model = average(run.path, WIDTHS[0])
    assert run.denoiser.spec.weights is not None and model.spec.weights is None and "average" in model.provenance


def test_more_training_goes_on_from_the_plain_model(run):
    kept = sf.load(run.path).spec.weights
    more = sf.resume(str(run.path), law(6000), steps=47, console=Silent())
    assert more.denoiser.spec.weights not in (None, kept)
    new = sf.train(law(6000), str(run.path.parent / "new"), init=more.denoiser, steps=24, batch=1024, calibrate=False,
                   **{name: value for name, value in HOW.items() if name != "net"})  # fmt: skip
    assert new.denoiser.spec.weights is None


def test_what_cannot_be_calibrated(plain):
    with pytest.raises(SfumatoError, match="calibrate is for models of tables"):
        sf.calibrate(sf.Denoiser(sf.nets.MLP(2, 8, 1), sf.Gaussian(sf.schedules.Flow())), law())
    with pytest.raises(SfumatoError, match="n, the number of draws"):
        sf.calibrate(plain, law(), 10)


def test_a_table_of_categories_gets_their_joint_shares(tmp_path):
    """Two categories that are equal in eight of ten rows; a hardly trained model draws them independently."""
    draw = np.random.default_rng(0)
    a = draw.uniform(size=4000) < 0.6
    b = np.where(draw.uniform(size=4000) < 0.8, a, ~a)
    rows = pa.table({"a": np.where(a, "oak", "ash").tolist(), "b": np.where(b, "oak", "ash").tolist()})
    plain = sf.train(rows, str(tmp_path / "run"), steps=2, batch=16, **HOW).denoiser
    assert plain.spec.weights is None and not plain.spec.table.numbers
    model = sf.calibrate(plain, rows, 4096)

    def alike(denoiser):
        made = sf.sample(denoiser, 1000, seed=3)
        return (np.asarray(made["a"]) == np.asarray(made["b"])).mean()

    assert alike(plain) < 0.62 and 0.7 < alike(model) < 0.88
    sf.save(model, tmp_path / "model.safetensors")
    assert same(sf.sample(sf.load(tmp_path / "model.safetensors"), 50), sf.sample(model, 50))


def test_what_is_said_for_numbers_is_refused_without_them(tmp_path):
    for name, value in (("target", "F"), ("schedule", "flow")):
        with pytest.raises(SfumatoError, match=f"The {name} is that of numbers, and this table has none"):
            sf.train(law(200).select(["kind"]), str(tmp_path / name), steps=2, batch=16, **HOW, **{name: value})


def test_a_target_that_is_given_is_taken_and_a_process_refused(tmp_path):
    for name in ("gaussian", "masked"):
        with pytest.raises(SfumatoError, match=f"not by the process {name}: leave process out"):
            sf.train(law(200), str(tmp_path / name), steps=2, batch=16, process=name, **HOW)
    for said, target in (({"target": "velocity"}, "velocity"), ({}, "F"), ({"target": "x"}, "x")):
        run = sf.train(law(200), str(tmp_path / f"{target}"), steps=2, batch=16, **HOW, **said)
        assert run.denoiser.process.processes["numbers"].target == target


def test_rows_of_other_tables_are_no_marginals(tmp_path):
    model = sf.train(law(200), tmp_path / "c", steps=2, batch=64, **HOW).denoiser
    for rows in (torch.zeros(400, 2), torch.zeros(255, len(model.spec.table.fields)), torch.zeros(400)):
        with pytest.raises(SfumatoError, match="calibrate needs rows"):
            sf.calibrate(model, rows)
    with pytest.raises(SfumatoError, match="calibrate needs finite numbers"):
        sf.calibrate(model, torch.full((400, model.spec.shape[0]), torch.nan))


def test_a_table_whose_rows_cannot_be_told_apart_has_no_weights(tmp_path, monkeypatch):
    """No trees, and levels too seldom for factors: nothing is claimed."""
    monkeypatch.setattr("sfumato.calibration.boosted", lambda real, drawn: ())
    monkeypatch.setattr("sfumato.calibration.LEVEL_EACH", 10**6)
    draw = np.random.default_rng(0)
    rows = pa.table({name: draw.choice(["ash", "oak"], 3000).tolist() for name in "ab"})
    run = sf.train(rows, str(tmp_path / "run"), steps=60, batch=512, **HOW)
    assert run.denoiser.spec.weights is None and sf.calibrate(run.denoiser, rows, 2048).spec.weights is None
    assert json.loads((run.path / "report.json").read_text())["marginals"] is None


def test_calibrate_does_not_depend_on_the_default_dtype(plain, model):
    torch.set_default_dtype(torch.float64)
    try:
        again = sf.calibrate(plain, law(), 2048)
    finally:
        torch.set_default_dtype(torch.float32)
    assert again.spec.weights.trees == model.spec.weights.trees


def test_mistakes_of_calibrate(plain):
    for words, match in (({"seed": 1.5}, "seed must be a whole number"), ({"n": 10**13}, "GB of memory")):
        with pytest.raises(SfumatoError, match=match):
            sf.calibrate(plain, law(), **words)
    wrong = plain.spec.table.encode(frames.columns_of(frames.arrow_of(law()), plain.spec.table))
    wrong[3, -1] = 7
    with pytest.raises(SfumatoError, match="calibrate needs symbols from 0 to 1 of the column"):
        sf.calibrate(plain, wrong)


def test_calibrate_shows_how_far_it_is(plain, monkeypatch, capsys):
    """Of draws and of trees, on stderr, where it takes longer; nothing else is printed, and nothing if asked."""
    monkeypatch.setattr("sfumato.progress.SILENT_SECONDS", 0.0)
    monkeypatch.setattr("sfumato.progress.QUIET_SECONDS", 0.0)
    model = sf.calibrate(plain, law(), 2048)
    out, err = capsys.readouterr()
    assert not out and "Drawing rows to fit weights to: 1,024 of 1,024" in err and "Fitting trees of weights: " in err
    again = sf.calibrate(plain, law(), 2048, progress=False)
    assert capsys.readouterr() == ("", "") and again.spec == model.spec
