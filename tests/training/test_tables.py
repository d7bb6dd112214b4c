"""Tables from a frame or a file to samples: a known law comes back, known categories, and every odd table trains."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from scipy import stats

import sfumato as sf
from sfumato import columns
from sfumato.data import frames
from sfumato.errors import SfumatoError
from sfumato.objectives.tables import TableLoss
from sfumato.process import Gaussian, Masked, Product
from sfumato.training.console import Silent

pa = pytest.importorskip("pyarrow")
HOW = {"precision": "float32", "snapshots": 0, "sample_every": 0, "console": Silent()}
RNG = np.random.default_rng(0)
N = 4000
SHARES, MEANS, HOLES = np.array([0.5, 0.3, 0.2]), np.array([0.0, 3.0, -2.0]), np.array([0.1, 0.5, 0.0])


def law(n=N, seed=0):
    """kind ~ SHARES, size ~ N(mean of the kind, 1/4), weight = 2 size + noise, missing by kind, tall: size > 1."""
    draw = np.random.default_rng(seed)
    kind = draw.choice(3, n, p=SHARES)
    size = np.round(MEANS[kind] + 0.5 * draw.normal(size=n), 1)
    weight = np.round(100 * (2 * size + 0.3 * draw.normal(size=n))).astype(np.int64)
    return pa.table({
        "kind": [("ash", "oak", "yew")[each] for each in kind], "size": size,
        "weight": pa.array(weight, mask=draw.uniform(size=n) < HOLES[kind]), "tall": size > 1,
    })  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("law") / "run"
    sf.train(law(), str(path), steps=800, batch=256, net="tiny", **HOW)
    return sf.load(path)


def drawn(model, n, **more):
    """Samples as arrays: kind as 0, 1, 2, the others as they are."""
    made = sf.sample(model, n, batch=n, **{"steps": 40, **more})  # columns drawn in one step do not see each other
    kind = np.array([("ash", "oak", "yew").index(each) for each in made["kind"]])
    return kind, *(np.asarray(made[name], np.float64) for name in ("size", "weight", "tall"))


def test_samples_have_the_joint_law(model):
    """By the weights of the marginals, too, which keep the means of groups that lie apart in a column."""
    assert model.spec.weights is not None
    kind, size, weight, tall = drawn(model, N)
    assert np.abs(np.bincount(kind, minlength=3) / N - SHARES).max() < 0.04
    for k in range(3):
        own = kind == k
        assert abs(size[own].mean() - MEANS[k]) < 0.15 and 0.4 < size[own].std() < 0.9, k
        assert abs(np.isnan(weight[own]).mean() - HOLES[k]) < 0.06, k
    there = ~np.isnan(weight)
    assert np.abs(weight[there] / 100 - 2 * size[there]).mean() < 0.5
    assert ((size > 1) == (tall == 1)).mean() > 0.95
    assert (size == np.round(size, 1)).all() and (weight[there] == np.round(weight[there])).all()


@pytest.mark.slow
def test_a_law_with_cells_missing_not_at_random_comes_back_within_chance(tmp_path):
    """Shares, means and empty cells of 10,000 rows, within four standard errors, with those of 40,000 of training."""
    sf.train(law(40_000), str(tmp_path / "run"), steps=1500, batch=512, **HOW)
    kind, size, weight, tall = drawn(sf.load(tmp_path / "run"), 10_000, steps=None, seed=3)
    error = 4 * np.sqrt(1 / 10_000 + 1 / 40_000)
    assert (np.abs(np.bincount(kind) / 10_000 - SHARES) < error * np.sqrt(SHARES * (1 - SHARES))).all()
    for k in range(3):
        own, own_error = kind == k, error / np.sqrt(SHARES[k])
        assert abs(size[own].mean() - MEANS[k]) < 0.5 * own_error, k
        assert abs(np.isnan(weight[own]).mean() - HOLES[k]) < max(
            0.005, own_error * np.sqrt(HOLES[k] * (1 - HOLES[k]))
        ), k
    assert 0.3 <= (weight / 100 - 2 * size)[~np.isnan(weight)].std() < 0.4  # not within chance: a tenth too much
    assert ((size > 1) == (tall == 1)).mean() > 0.99


def test_known_categories_give_the_conditional_law(model):
    for value, k in (("ash", 0), ("oak", 1)):
        kind, size, weight, _ = drawn(model, 1000, given={"kind": value})
        assert (kind == k).all() and abs(size.mean() - MEANS[k]) < 0.2 and 0.35 < size.std() < 0.9
        assert abs(np.isnan(weight).mean() - HOLES[k]) < 0.08
    kind, size, *_ = drawn(model, 1000, given={"tall": True})
    assert (kind == 1).mean() > 0.93 and (size > 1).mean() > 0.9
    for given, words in (
        ({"kind": "elm"}, "'kind' has no level 'elm'"), ({"sort": "ash"}, "no column 'sort'"),
        ({"size": 99}, "'size' ran from -.* in training, not to 99"),
        ({"size": 1.03}, "does not have the value 1.03, but 1.0"),
        ({"size": "big"}, "'size' holds numbers, and 'big' is none"), ({"kind": None}, "'kind' has no empty cells"),
    ):  # fmt: skip
        with pytest.raises(SfumatoError, match=words):
            sf.sample(model, 2, given=given)
    with pytest.raises(SfumatoError, match="this model is of no table"):
        sf.sample(sf.Denoiser(sf.nets.MLP(2, 8, 1), sf.Gaussian(sf.schedules.Flow())), 2, given={"a": "b"})


def test_known_numbers_give_the_conditional_law(model):
    """weight | size ~ N(200 size, 30^2), and a size of 3 is that of an oak, half of whose weights are missing."""
    kind, size, weight, tall = drawn(model, 1000, given={"size": 3.0}, steps=40)
    assert (size == 3.0).all() and (kind == 1).mean() > 0.97 and (tall == 1).mean() > 0.97
    there = weight[~np.isnan(weight)]
    assert abs(np.median(there) - 600) < 50 and (np.abs(there - 600) < 120).mean() > 0.8
    assert abs(np.isnan(weight).mean() - 0.5) < 0.1
    kind, size, weight, _ = drawn(model, 1000, given={"weight": -300, "size": -1.5}, steps=40)
    assert (weight == -300).all() and (size == -1.5).all() and (kind == 2).mean() > 0.75  # p(yew) = 0.96
    kind, _, weight, _ = drawn(model, 1000, given={"weight": None})
    assert np.isnan(weight).all() and np.abs(np.bincount(kind, minlength=3) / 1000 - [0.25, 0.75, 0]).max() < 0.1


def test_empty_cells_are_drawn_given_the_others(model):
    """A third of the cells of each column are emptied; those that were known stay, and pairs keep their law."""
    whole = law(3000, 1)
    holes = np.random.default_rng(2).uniform(size=(3000, 4)) < 0.33
    given = pa.table({
        name: pa.array(whole[name].to_pylist(), whole[name].type, mask=holes[:, i] | whole[name].is_null().to_numpy())
        for i, name in enumerate(whole.schema.names)
    }).append_column("row", pa.array(range(3000)))  # fmt: skip
    first, second = sf.impute(model, given, 2, seed=3)
    assert first.schema.names == given.schema.names and first.schema.types == given.schema.types
    assert first["row"].equals(given["row"]) and first["weight"].to_pylist() != second["weight"].to_pylist()
    for name in whole.schema.names:
        assert first[name].null_count == 0
        there = given[name].is_valid()
        assert first[name].filter(there).equals(given[name].filter(there)), name
    size, weight, tall = (first[name].to_numpy() for name in ("size", "weight", "tall"))
    empty = holes[:, 2] & ~holes[:, 1]  # weights drawn beside sizes that are known
    off = np.abs(weight / 100 - 2 * size)[empty]
    assert np.median(off) < 0.5 and (off < 1.5).mean() > 0.85  # of a law with 0.2, beside 3.6 of shuffled rows
    alone = holes[:, 3] & ~holes[:, 1]
    assert ((size > 1) == tall)[alone].mean() > 0.97
    with pytest.raises(SfumatoError, match="rows of a table are a data frame or the path of a file, not a list"):
        sf.impute(model, [1, 2])
    with pytest.raises(SfumatoError, match="have no column of the table"):
        sf.impute(model, given.select(["row"]))
    with pytest.raises(SfumatoError, match="impute is for models of tables"):
        sf.impute(sf.Denoiser(sf.nets.MLP(2, 8, 1), sf.Gaussian(sf.schedules.Flow())), given)


def test_a_frame_of_pandas_keeps_its_index_dtypes_and_other_columns(tmp_path):
    pd = pytest.importorskip("pandas")
    frame = law(200).to_pandas().set_index(pd.RangeIndex(50, 250)).astype({"kind": "category", "weight": "Int64"})
    run = sf.train(frame, str(tmp_path / "run"), steps=2, batch=16, net="tiny", **HOW)
    holes = frame.assign(row=range(200))
    holes.loc[60:90, "size"] = np.nan
    made = sf.impute(run.denoiser, holes, steps=3)
    assert (made.dtypes == holes.dtypes).all() and made.index.equals(holes.index) and not made["size"].isna().any()
    assert made["row"].equals(holes["row"]) and made["size"][100:].equals(holes["size"][100:])


def test_empty_cells_of_a_frame_of_polars(tmp_path):
    pl = pytest.importorskip("polars")
    whole = pl.from_arrow(law(200)).with_columns(pl.col("kind").cast(pl.Enum(["ash", "oak", "yew"])))
    run = sf.train(whole, str(tmp_path / "run"), steps=2, batch=16, net="tiny", **HOW)
    row = pl.int_range(200).alias("row")
    holes = whole.with_columns(row, *(
        pl.when((row >= 60) & (row < 91)).then(None).otherwise(pl.col(name)).alias(name) for name in ("kind", "size")
    ))  # fmt: skip
    made = sf.impute(run.denoiser, holes, steps=3)
    assert isinstance(made, pl.DataFrame) and made.schema == holes.schema and made["row"].equals(holes["row"])
    assert made["kind"].null_count() == made["size"].null_count() == 0
    assert all(made[name][:60].equals(holes[name][:60]) for name in ("kind", "size", "tall"))


def exact(table):
    """log p of each row by column, given those before it, of `law`: (N, 4) nats."""
    kind = np.array([("ash", "oak", "yew").index(each) for each in table["kind"].to_pylist()])
    size, there = table["size"].to_numpy(), table["weight"].is_valid().to_numpy()
    weight = table["weight"].fill_null(0).to_numpy()
    cell = stats.norm(MEANS[kind], 0.5)
    of_size = np.log(cell.cdf(size + 0.05) - cell.cdf(size - 0.05))
    cell = stats.norm(200 * size, 30)
    of_weight = np.log(np.maximum(cell.cdf(weight + 0.5) - cell.cdf(weight - 0.5), 1e-12))
    with np.errstate(divide="ignore"):
        of_weight = np.where(there, np.log(1 - HOLES[kind]) + of_weight, np.log(HOLES[kind]))
    return np.stack((np.log(SHARES[kind]), of_size, of_weight, np.zeros(len(kind))), 1)


def test_the_likelihood_of_rows_by_column(model):
    """Held-out rows have the entropy of the law, column by column, and unlikely rows are found."""
    table = law(600, 1)
    known = model.spec.table.field("size")._shown(np.array(model.spec.table.field("size").values))
    table = table.filter(pa.array([str(each) in known for each in table["size"].to_pylist()]))  # others have p = 0
    found, truth = sf.log_prob(model, table), exact(table)
    assert (
        found.columns == ("kind", "size", "weight", "tall") and not found.densities and len(found) == len(table) > 580
    )
    ours = found.chain.numpy()
    for i, name in enumerate(found.columns):  # Gibbs: a model's mean is never above the law's, but for chance
        assert -0.3 < (ours - truth)[:, i].mean() < 0.1, (name, ours[:, i].mean(), truth[:, i].mean())
    assert stats.spearmanr(found.value.numpy(), truth.sum(1)).statistic > 0.8
    assert np.allclose(found.bits["size"].numpy(), -ours[:, 1] / np.log(2))
    assert (found.rest[:, 0] > found.chain[:, 0]).double().mean() > 0.9  # a kind is told by its size
    odd = table.slice(0, 2).set_column(0, "kind", pa.array(["yew", "yew"])).set_column(1, "size", pa.array([3.0, 3.1]))
    strange = sf.log_prob(model, odd)
    assert float(strange.value.max()) < float(found.value.median()) - 2 and float(strange.rest[:, 0].max()) < -2
    again = sf.log_prob(model, table.slice(100, 50), batch=7)
    assert torch.allclose(again.chain, found.chain[100:150], atol=1e-3)
    with pytest.raises(SfumatoError, match="leave out the method"):
        sf.log_prob(model, table, "elbo")
    with pytest.raises(SfumatoError, match="'kind' has no level 'elm'"):
        sf.log_prob(model, odd.set_column(0, "kind", pa.array(["elm", "ash"])))


def test_probabilities_of_one_column_sum_to_one(model):
    """p(size = v | kind) over all values that the table had, and p(kind | size) over all kinds."""
    column = model.spec.table.field("size")
    every = column._shown(np.array(column.values))
    table = pa.table({
        "kind": ["oak"] * len(every), "size": [float(each) for each in every],
        "weight": pa.array([500] * len(every)), "tall": [True] * len(every),
    })  # fmt: skip
    assert float(sf.log_prob(model, table).chain[:, 1].exp().sum()) == pytest.approx(1, abs=0.02)


def test_a_network_that_knows_one_level_is_given_no_numbers(tmp_path):
    table = law(200)
    net = sf.nets.MLP(10, 16, 1)
    run = sf.train(table, str(tmp_path / "run"), steps=2, batch=16, net=net, **HOW)
    assert set(sf.sample(run.denoiser, 5, 2, given={"kind": "oak"})["kind"]) == {"oak"}
    with pytest.raises(SfumatoError, match="is told one level for all numbers"):
        sf.sample(run.denoiser, 5, 2, given={"size": 1.0})


def test_sample_i_does_not_depend_on_the_others(model):
    whole = sf.sample(model, 12, steps=4, normalised=True)
    part = sf.sample(model, steps=4, index=range(5, 9), normalised=True, batch=3)
    for name, values in whole.items():
        assert torch.allclose(part[name].double(), values[5:9].double(), atol=1e-5), name


def test_the_loss_is_the_bound_where_the_belief_is_the_marginal_law():
    """A network that says nothing: 1/2 E (x - eps)^2 = 1 a number, log K a symbol, whatever is masked."""
    process = Product(
        {
            "numbers": Gaussian(sf.schedules.Flow(), "velocity"),
            "s": Masked(sf.schedules.Flow(), 4),
            "b": Masked(sf.schedules.Flow(), 2),
        },
        {"numbers": (3,), "s": (2,), "b": (5,)},
    )
    n = 20000
    x = torch.cat(
        (
            torch.randn(n, 3, generator=torch.Generator().manual_seed(0)),
            torch.randint(4, (n, 2)),
            torch.randint(2, (n, 5)),
        ),
        1,
    )
    batch = sf.objectives.loss.Batch(x, {}, torch.arange(n), (torch.arange(n, dtype=torch.float64) + 0.5) / n)
    for told, numbers in ((None, 3.0), (columns.condition(3), 3 * 0.75)):  # a quarter of the numbers are known
        net = sf.nets.MLP(process.net_shape()[0], 8, 1, conditions=told)  # its output is 0 at first
        found = TableLoss(seed=3).losses(sf.Denoiser(net, process), batch).detach()
        wanted = (numbers + 2 * np.log(4) + 5 * np.log(2)) / 10
        assert float(found.mean()) == pytest.approx(wanted, rel=0.02)


ODD = {
    "numbers alone": {"a": RNG.normal(size=120), "b": RNG.normal(size=120)},
    "categories alone": {"a": list("abc") * 40, "b": [True, False] * 60},
    "one column": {"a": RNG.normal(size=120)},
    "one category": {"a": list("ab") * 60},
    "constants": {"a": [1.5] * 120, "b": ["x"] * 120, "c": [7] * 120},
    "all missing": {"a": pa.nulls(120, pa.float64()), "b": pa.nulls(120), "c": pa.nulls(120, pa.string())},
    "dates": {"a": RNG.integers(0, 10**4, 120).astype("datetime64[D]"), "b": [None, 3] * 60},
    "few rows": {"a": [1.0, 2.5, None], "b": ["x", None, "y"]},
    "one row": {"a": [1.0], "b": ["x"]},
    "many levels": {"a": [f"level {i % 10000}" for i in range(20000)], "b": RNG.normal(size=20000)},
    "many columns": {f"c{i}": RNG.uniform(size=100) < 0.4 for i in range(1000)},
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_odd_tables_train_and_are_sampled(name, tmp_path):
    table = pa.table(ODD[name])
    run = sf.train(table, str(tmp_path / "run"), steps=3, batch=16, net="MLP(width=16, depth=1)", **HOW)
    model = sf.load(run.path)
    made = frames.arrow(
        model.spec.table, model.spec.denormalise(model.process.table(sf.sample(model, 20, 4, normalised=True)))
    )
    assert made.schema.names == table.schema.names and made.schema.types == table.schema.types and len(made) == 20
    for each in table.schema.names:
        if table.column(each).null_count == 0:
            assert made.column(each).null_count == 0, each
        known = set(table.column(each).to_pylist())
        if not pa.types.is_floating(table.schema.field(each).type) and not pa.types.is_date32(
            table.schema.field(each).type
        ):
            assert set(made.column(each).to_pylist()) <= known, each


def test_a_run_of_a_table_can_be_resumed_and_says_what_it_is(tmp_path):
    table = law(200)
    sf.train(table, str(tmp_path / "run"), steps=3, batch=16, net="tiny", **HOW)
    run = sf.resume(tmp_path / "run", data=table, steps=5, console=Silent())
    assert run.config.process == "product" and (tmp_path / "run" / "samples" / "step_00000005.csv").is_file()
    with pytest.raises(SfumatoError, match="is not the data that"):
        sf.resume(tmp_path / "run", data=law(200, 1), steps=7, console=Silent())
    with pytest.raises(SfumatoError, match="not by the process masked: leave process out"):
        sf.train(table, str(tmp_path / "other"), steps=3, process="masked", **HOW)
    infinite = Product({"numbers": Gaussian(sf.schedules.Cosine(), "velocity")}, {"numbers": (2,)})
    with pytest.raises(SfumatoError, match="target velocity of this schedule is infinite: take target='F'"):
        TableLoss().suits(sf.Denoiser(sf.nets.MLP(2, 8, 1), infinite))
    run = sf.train(table, str(tmp_path / "cosine"), steps=2, batch=16, net="tiny", schedule="cosine", **HOW)
    assert run.config.target == "F" and all(np.isfinite(line["loss"]) for line in run.metrics)
    spec = sf.load(tmp_path / "run").spec
    assert dataclasses.replace(spec, table=spec.table) == spec and "kind: category of 3 levels" in " ".join(
        spec.describe()
    )


def test_the_report_of_a_run_has_measures_of_tables(tmp_path):
    """Those that are quick; rows told apart by trees take longer than a short run can afford."""
    run = sf.train(law(300), str(tmp_path / "run"), steps=120, batch=256, net="tiny", **{**HOW, "holdout": 0.2})
    facts = json.loads((run.path / "report.json").read_text())
    assert list(facts["metrics"]) == ["total-variation", "kolmogorov"]
    metric = facts["metrics"]["kolmogorov"]
    assert metric["floor"]["value"] >= 0 and metric["protocol"]["samples"] == facts["memorisation"]["samples"] >= 64
