"""Tables from a frame or a file to samples: a known law comes back, known categories, and every odd table trains."""

import dataclasses

import numpy as np
import pytest
import torch

import sfumato as sf
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


def law(n=N):
    """kind ~ SHARES, size ~ N(mean of the kind, 1/4), weight = 2 size + noise, missing by kind, tall: size > 1."""
    kind = RNG.choice(3, n, p=SHARES)
    size = np.round(MEANS[kind] + 0.5 * RNG.normal(size=n), 1)
    weight = np.round(100 * (2 * size + 0.3 * RNG.normal(size=n))).astype(np.int64)
    return pa.table({
        "kind": [("ash", "oak", "yew")[each] for each in kind], "size": size,
        "weight": pa.array(weight, mask=RNG.uniform(size=n) < HOLES[kind]), "tall": size > 1,
    })  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("law") / "run"
    sf.train(law(), str(path), steps=400, batch=256, net="tiny", **HOW)
    return sf.load(path)


def drawn(model, n, **more):
    """Samples as arrays: kind as 0, 1, 2, the others as they are."""
    made = sf.sample(model, n, batch=n, **more)
    kind = np.array([("ash", "oak", "yew").index(each) for each in made["kind"]])
    return kind, *(np.asarray(made[name], np.float64) for name in ("size", "weight", "tall"))


def test_samples_have_the_joint_law(model):
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


def test_known_categories_give_the_conditional_law(model):
    for value, k in (("ash", 0), ("oak", 1)):
        kind, size, weight, _ = drawn(model, 1000, given={"kind": value})
        assert (kind == k).all() and abs(size.mean() - MEANS[k]) < 0.2 and 0.35 < size.std() < 0.9
        assert abs(np.isnan(weight).mean() - HOLES[k]) < 0.08
    kind, size, *_ = drawn(model, 1000, given={"tall": True})
    assert (kind == 1).mean() > 0.93 and (size > 1).mean() > 0.9
    for given, words in (
        ({"kind": "elm"}, "'kind' has no level 'elm'"), ({"sort": "ash"}, "no column 'sort'"),
        ({"size": 1.0}, "'size' is a number, and only categories can be given"),
    ):  # fmt: skip
        with pytest.raises(SfumatoError, match=words):
            sf.sample(model, 2, given=given)
    with pytest.raises(SfumatoError, match="this model is of no table"):
        sf.sample(sf.Denoiser(sf.nets.MLP(2, 8, 1), sf.Gaussian(sf.schedules.Flow())), 2, given={"a": "b"})


def test_sample_i_does_not_depend_on_the_others(model):
    whole = sf.sample(model, 12, steps=4, normalised=True)
    part = sf.sample(model, steps=4, index=range(5, 9), normalised=True, batch=3)
    for name, values in whole.items():
        assert torch.allclose(part[name].double(), values[5:9].double(), atol=1e-5), name


def test_the_loss_is_the_bound_where_the_belief_is_the_marginal_law():
    """A network that says nothing: 1/2 E (x - eps)^2 = 1 a number, log K a symbol, whatever is masked."""
    process = Product(
        {
            "n": Gaussian(sf.schedules.Flow(), "velocity"),
            "s": Masked(sf.schedules.Flow(), 4),
            "b": Masked(sf.schedules.Flow(), 2),
        },
        {"n": (3,), "s": (2,), "b": (5,)},
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
    model = sf.Denoiser(sf.nets.MLP(process.net_shape()[0], 8, 1), process)  # its output is 0 at first
    found = TableLoss(seed=3).losses(model, batch)
    wanted = (3 + 2 * np.log(4) + 5 * np.log(2)) / 10
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
        sf.resume(tmp_path / "run", data=law(200), steps=7, console=Silent())
    with pytest.raises(SfumatoError, match="takes no masked"):
        sf.train(table, str(tmp_path / "other"), steps=3, process="masked", **HOW)
    with pytest.raises(SfumatoError, match="rows of tables are not compared yet"):
        sf.memorization(sf.load(tmp_path / "run"), table)
    spec = sf.load(tmp_path / "run").spec
    assert dataclasses.replace(spec, table=spec.table) == spec and "kind: category of 3 levels" in " ".join(
        spec.describe()
    )
