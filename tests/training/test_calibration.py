"""Calibrated tables: marginals become those of the training rows whatever the model's are, and all else stays."""

import json

import numpy as np
import pytest
import torch
from scipy import stats

import sfumato as sf
from sfumato.calibration import draws, fitted
from sfumato.errors import SfumatoError
from sfumato.normaliser import Normaliser
from sfumato.training.console import Silent

pa = pytest.importorskip("pyarrow")
HOW = {"precision": "float32", "snapshots": 0, "sample_every": 0, "console": Silent(), "net": "tiny"}
N = 3000


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
    with torch.no_grad():
        model.net.output.bias[: model.spec.table.numbers] += 0.4
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
    return sf.calibrate(plain, law(), 4096)


def columns(model, n, **more):
    made = sf.sample(model, n, seed=5, **more)
    size, weight = (np.asarray(made[name], np.float64) for name in ("size", "weight"))
    return np.asarray(made["kind"]), size, weight


def test_marginals_become_those_of_the_training_rows(plain, model):
    """The standard error of a KS distance of 4,000 and 3,000 rows is about .02."""
    kind, size, weight = columns(model, 4000)
    before_kind, before, heavy = columns(plain, 4000)
    real = {name: law()[name].drop_null().to_numpy() for name in ("size", "weight")}
    there = ~np.isnan(size)
    distance = lambda x, name: stats.ks_2samp(x[~np.isnan(x)], real[name]).statistic  # noqa: E731
    assert distance(before, "size") > 0.1 and distance(heavy, "weight") > 0.1
    assert distance(size, "size") < 0.04 and distance(weight, "weight") < 0.04
    assert (size[there] == np.round(size[there], 1)).all() and size[there].max() <= real["size"].max()
    assert (kind == before_kind).all() and (np.isnan(before) == ~there).all()  # symbols stay


def test_the_map_is_monotone_and_has_an_inverse(plain, model):
    _, size, weight = columns(model, 2000)
    _, before, heavy = columns(plain, 2000)
    assert (np.diff(weight[np.argsort(heavy)]) >= 0).all()
    there = ~np.isnan(size)
    assert (np.diff(size[there][np.lexsort((size[there], before[there]))]) >= 0).all()
    scale = model.spec.normaliser
    x = torch.cat((torch.linspace(-5, 5, 400, dtype=torch.float64)[:, None].expand(-1, 2), torch.ones(400, 2)), 1)
    g = scale.curve(x)
    assert (g[:, :2].diff(dim=0) > 0).all() and torch.equal(g[:, 2:], x[:, 2:])
    back = scale.denormalise((g - torch.tensor(scale.mean)) / torch.tensor(scale.std))
    assert torch.allclose(back, x, atol=1e-9)


def test_the_jacobian_is_that_of_the_map():
    knots = (tuple(np.sort(np.random.default_rng(0).normal(size=16)).tolist()),)
    scale = Normaliser((0.1, 0.0), (1.5, 1.0), "calibrated", knots)
    x = torch.linspace(-3, 3, 50, dtype=torch.float64)[:, None].repeat(1, 2)
    z = (scale.curve(x) - torch.tensor(scale.mean)) / torch.tensor(scale.std)
    step = 1e-7
    moved = x + torch.tensor([step, 0.0])
    slope = (scale.curve(moved)[:, 0] - scale.curve(x)[:, 0]) / step / 1.5
    assert torch.allclose(scale.log_jacobian(z), slope.log(), atol=1e-4)
    assert Normaliser.from_dict(scale.to_dict()) == scale
    for wrong in ((), (*knots, *knots, *knots), ((1.0, 1.0),)):
        with pytest.raises(SfumatoError, match="normaliser"):
            Normaliser((0.1, 0.0), (1.5, 1.0), "calibrated", wrong)


def test_off_is_the_old_model_to_the_bit(plain, model, tmp_path):
    again = sf.uncalibrated(model)
    assert again.spec == plain.spec and sf.uncalibrated(plain) is plain and again.net is plain.net
    assert same(sf.sample(again, 50, seed=2), sf.sample(plain, 50, seed=2))
    assert not same(sf.sample(model, 50, seed=2), sf.sample(plain, 50, seed=2))
    sf.save(model, tmp_path / "model.safetensors")
    read = sf.load(tmp_path / "model.safetensors")
    assert read.spec == model.spec and same(sf.sample(read, 50, seed=2), sf.sample(model, 50, seed=2))
    assert same(sf.sample(sf.uncalibrated(read), 50, seed=2), sf.sample(plain, 50, seed=2))


def test_known_cells_and_likelihoods_are_of_the_plain_model(plain, model):
    """The map is that of rows of which nothing is known."""
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
    return sf.train(law(6000), str(path), steps=46, calibrate=True, batch=1024, holdout=0.1, **HOW)


def test_a_run_ends_with_the_map_of_its_training_rows(run):
    model, source = run.denoiser, sf.data.open(law(6000))
    assert model.spec.normaliser.kind == "calibrated"
    facts = json.loads((run.path / "report.json").read_text())["marginals"]
    train, held = source.split(0.1)
    assert facts["rows"] == len(held) and facts["draws"] == 1024 and facts["seconds"] > 0
    assert facts["after"] < 0.12 and facts["real"] < 0.1 and facts["before"] > 0
    drawn = torch.cat([draws(model, 512, i) for i in range(2)])
    assert fitted(source.table, drawn, source.x[train]) == model.spec.normaliser.knots
    assert "have the marginals of the training rows by 1,024 draws" in (run.path / "report.html").read_text()


def test_more_training_goes_on_from_the_plain_model(run):
    kept = json.loads(json.dumps(sf.load(run.path).spec.normaliser.to_dict()))
    more = sf.resume(str(run.path), law(6000), steps=47, console=Silent())
    assert more.denoiser.spec.normaliser.kind == "calibrated" and more.denoiser.spec.normaliser.to_dict() != kept
    new = sf.train(law(6000), str(run.path.parent / "new"), init=more.denoiser, calibrate=True, steps=1, batch=16,
                   **{name: value for name, value in HOW.items() if name != "net"})  # fmt: skip
    assert new.denoiser.spec.normaliser.kind == "affine"  # so short a run has no draws to spare


def test_what_cannot_be_calibrated(plain):
    with pytest.raises(SfumatoError, match="calibrate is for models of tables"):
        sf.calibrate(sf.Denoiser(sf.nets.MLP(2, 8, 1), sf.Gaussian(sf.schedules.Flow())), law())
    with pytest.raises(SfumatoError, match="n, the number of draws"):
        sf.calibrate(plain, law(), 10)
    few = sf.calibrate(plain, law(100), 256)  # too few rows: each column's map is the identity
    x = torch.linspace(-4, 4, 30, dtype=torch.float64)[:, None].expand(-1, len(few.spec.normaliser.mean))
    assert torch.allclose(few.spec.normaliser.curve(x), x, atol=1e-9)


def test_a_table_without_numbers_has_no_map(tmp_path):
    rows = law(200).select(["kind"])
    run = sf.train(rows, str(tmp_path / "run"), steps=2, batch=16, **HOW)
    assert run.denoiser.spec.normaliser.kind == "affine"
    with pytest.raises(SfumatoError, match="this table has none: its samples stay as they are"):
        sf.calibrate(run.denoiser, rows)
    for name, value in (("target", "F"), ("schedule", "flow")):
        with pytest.raises(SfumatoError, match=f"The {name} is that of numbers, and this table has none"):
            sf.train(rows, str(tmp_path / name), steps=2, batch=16, **HOW, **{name: value})


def test_a_target_that_is_given_is_taken_and_a_process_refused(tmp_path):
    for name in ("gaussian", "masked"):
        with pytest.raises(SfumatoError, match=f"not by the process {name}: leave process out"):
            sf.train(law(200), str(tmp_path / name), steps=2, batch=16, process=name, **HOW)
    for said, target in (({"target": "velocity"}, "velocity"), ({}, "F"), ({"target": "x"}, "x")):
        run = sf.train(law(200), str(tmp_path / f"{target}"), steps=2, batch=16, **HOW, **said)
        assert run.denoiser.process.processes["numbers"].target == target


def test_calibration_of_what_has_no_numbers_is_refused(tmp_path):
    with pytest.raises(SfumatoError, match="leave calibrate out"):
        sf.train(np.random.default_rng(0).normal(size=(40, 3)), tmp_path / "a", calibrate=True, steps=2, **HOW)
    with pytest.raises(SfumatoError, match="leave calibrate out"):
        sf.train(pa.table({"kind": ["oak", "ash"] * 20}), tmp_path / "b", calibrate=True, steps=2, **HOW)
    model = sf.train(law(200), tmp_path / "c", steps=2, batch=64, **HOW).denoiser
    for rows in (torch.zeros(40, 2), torch.zeros(0, len(model.spec.table.fields)), torch.zeros(4)):
        with pytest.raises(SfumatoError, match="calibrate needs rows"):
            sf.calibrate(model, rows)
