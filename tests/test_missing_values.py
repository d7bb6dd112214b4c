"""Missing values of arrays: a mask travels with the sample, the loss skips them, and samples are whole."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import sfumato as sf
from sfumato import data, nets
from sfumato.belief import Estimate
from sfumato.cli import main
from sfumato.conditions import MISSING, Conditions
from sfumato.data import DataSpec
from sfumato.errors import SfumatoError
from sfumato.metrics.reference import Reference
from sfumato.normaliser import Normaliser
from sfumato.objectives.denoising import denoising_loss
from sfumato.process import Gaussian
from sfumato.schedules import Flow
from sfumato.training.console import Silent

MEAN, COV = np.array([3.0, -1.0, 0.0]), np.array([[4.0, 1.6, 0.0], [1.6, 1.0, 0.5], [0.0, 0.5, 1.0]])
SMALL = {"net": "tiny", "batch": 16, "precision": "float32", "sample_every": 0}


def with_gaps(count, share=0.3, seed=0):
    """(rows of the law, the same with values missing at random, where)."""
    draw = np.random.default_rng(seed)
    x = draw.multivariate_normal(MEAN, COV, count)
    gaps = draw.random(x.shape) < share
    return x, np.where(gaps, np.nan, x), gaps


def trained(x, out, **settings):
    return sf.train(x.astype(np.float32), out, console=Silent(), **{**SMALL, **settings})


def refused(words, call):
    with pytest.raises(SfumatoError, match=words) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.slow
def test_the_law_of_whole_samples_is_learned(tmp_path):
    """30 % of a Gaussian's values are missing: mean and covariance are those of whole samples, where samples that are
    filled with the mean have three quarters of the variances and half of the covariances."""
    x, holes, gaps = with_gaps(6000)
    found = {}
    for name, rows in {"holes": holes, "filled": np.where(gaps, np.nanmean(holes, 0), x)}.items():
        run = trained(rows, tmp_path / name, steps=500, batch=128, lr=2e-3, net="MLP(width=64, depth=2)")
        found[name] = sf.sample(run.denoiser, 6000, steps=16).double().numpy()
    scale = np.sqrt(np.diag(COV))
    apart = {name: np.abs(np.cov(each.T) - COV) / np.outer(scale, scale) for name, each in found.items()}
    assert np.isfinite(found["holes"]).all() and (np.abs(found["holes"].mean(0) - MEAN) / scale).max() < 0.1
    assert apart["holes"].max() < 0.12, apart
    assert min(apart["filled"][0, 0], apart["filled"][0, 1], apart["filled"][1, 2]) > 0.2, apart


def model_of(x, shape=(3,)):
    torch.manual_seed(0)
    net = nets.MLP(shape[0], width=16, depth=1, conditions={MISSING: {"kind": "missing", "shape": list(shape)}})
    nn.init.normal_(net.output.weight)
    spec = DataSpec.fit(data.open(x))
    return sf.Denoiser(net, Gaussian(Flow()), "velocity", spec=spec)


def test_the_loss_is_that_of_present_values():
    _, holes, gaps = with_gaps(64)
    model = model_of(holes)
    z, cond = model.spec.apart(model.spec.normalise(holes), Conditions())
    assert torch.equal(cond.given(MISSING).values, torch.tensor(gaps, dtype=torch.float32)) and not z[gaps].any()
    t, here = torch.full((64,), 0.4), torch.tensor(~gaps)
    for weight in (None, "elbo"):
        whole = Conditions({MISSING: cond.given(MISSING)._replace(values=torch.zeros(64, 3))})
        assert torch.equal(denoising_loss(model, z, t, weight, cond=whole), denoising_loss(model, z, t, weight))
    eps = torch.randn(64, 3)
    belief = model(model.process.corrupt(z, t, eps), t, **cond)
    squares = (belief.velocity - (eps - z)).square()
    expected = torch.stack(
        [each[row].mean() if row.any() else each.sum() * 0 for each, row in zip(squares, here, strict=True)]
    )
    found = denoising_loss(model, z, t, eps=eps, cond=cond) * 2 / 3
    assert torch.allclose(found, expected, atol=1e-6) and not here.any(1).all()
    found.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


class Gauss:
    """E[x | the present part of z] of this Gaussian, of noise alone where values are missing."""

    def __init__(self, spec):
        self.spec, self.process, self.shape, self.heard = spec, Gaussian(Flow(), "x"), (3,), []

    def __call__(self, z, t, **cond):
        here = 1 - cond[MISSING].values.double()
        alpha, sigma = (v.double().reshape(-1, 1) for v in self.process.schedule(torch.as_tensor(t)))
        self.heard.append((z[here == 0] / sigma.expand(len(z), 3)[here == 0]).detach())
        cov = torch.tensor(COV) * here[:, :, None] * here[:, None]
        inverse = alpha[..., None] ** 2 * cov + sigma[..., None] ** 2 * torch.eye(3, dtype=torch.float64)
        off = (z.double() - alpha * torch.tensor(MEAN)) * here
        x = torch.tensor(MEAN) + (alpha[..., None] * cov @ torch.linalg.solve(inverse, off[..., None]))[..., 0]
        return Estimate(z, t, self.process.schedule, x=x)


def test_the_likelihood_is_that_of_what_is_present():
    """log N of the present values alone, whichever they are, while the network hears noise in the place of the others,
    as in training."""
    x, holes, gaps = with_gaps(40)
    holes = np.where(gaps.all(1, keepdims=True), x, holes)
    spec = DataSpec.fit(data.open(holes))
    model = Gauss(DataSpec(**{**vars(spec), "normaliser": Normaliser((0.0,) * 3, (1.0,) * 3)}))
    found = sf.log_prob(model, holes, steps=64)
    for row, value in zip(holes, found.value.tolist(), strict=True):
        at = np.flatnonzero(~np.isnan(row))
        mean, cov = torch.tensor(MEAN[at]), torch.tensor(COV[np.ix_(at, at)])
        truth = torch.distributions.MultivariateNormal(mean, cov).log_prob(torch.tensor(row[at]))
        assert value == pytest.approx(float(truth), abs=5e-3)
    heard = torch.cat(model.heard)
    assert abs(float(heard.mean())) < 0.5 and float(heard.std()) == pytest.approx(1, abs=0.4)


def test_statistics_are_of_present_values():
    _, holes, gaps = with_gaps(500)
    source = data.open(holes)
    assert np.allclose(source.missing, gaps.mean(0))
    spec = DataSpec.fit(source, torch.arange(500))
    for name, of in {"mean": np.nanmean, "std": np.nanstd, "low": np.nanmin, "high": np.nanmax}.items():
        assert np.allclose(getattr(spec.statistics, name), of(holes, 0)), name
    assert DataSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    whole = DataSpec.fit(data.open(with_gaps(500)[0]))
    assert whole.missing == () and "missing" not in whole.to_dict()
    positive = np.exp(holes)
    for kind in ("log", "quantile", "bounded"):
        spec = DataSpec.fit(data.open(positive), normalise=kind)
        z = spec.normalise(positive)
        assert torch.equal(z.isnan(), torch.tensor(gaps)) and abs(float(z.nanmean())) < 0.2, kind
    refused(
        "channel 1 has no value in the samples", lambda: DataSpec.fit(data.open(np.where([[0, 1, 0]], np.nan, holes)))
    )
    spec.check(positive, whole=False)
    refused("values that are NaN or infinite", lambda: spec.check(positive))


def test_what_no_sample_has_is_missing_in_samples(tmp_path, recwarn):
    """A position that is NaN in every row, such as land in a field of the sea: nothing is made up there."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(40, 2, 5)).astype(np.float32)
    x[draw.random(x.shape) < 0.2] = np.nan
    x[:, 0, 2] = x[:, 1, 4] = np.nan
    spec = DataSpec.fit(data.open(x))
    assert spec.unseen == (2, 9) and DataSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert any("2 of the 10 values are missing in all of the training" in line for line in spec.describe())
    never = torch.tensor([[False] * 2 + [True] + [False] * 2, [False] * 4 + [True]])
    run = trained(x, tmp_path / "run", steps=2)
    made = sf.sample(run.denoiser, 30, steps=2)
    assert torch.equal(made.isnan(), never.expand(30, 2, 5))
    assert not any("NaN" in str(each.message) for each in recwarn)
    whole = trained(np.nan_to_num(x), tmp_path / "whole", steps=2)
    assert whole.denoiser.spec.unseen == () and not sf.sample(whole.denoiser, 3, steps=2).isnan().any()
    reference = Reference(data.open(x), torch.arange(40), 20)
    assert torch.equal(reference.with_gaps(made[:20]).isnan(), torch.from_numpy(x)[reference.rest].isnan())


def test_inspect_says_how_much_is_missing(tmp_path, capsys):
    np.save(tmp_path / "holes.npy", with_gaps(500)[1])
    assert main(["inspect", str(tmp_path / "holes.npy")]) == 0
    assert "of the values are missing (by channel" in capsys.readouterr().out
    facts = data.inspect(tmp_path / "holes.npy")
    assert len(facts["missing"]) == 3 and all(0.2 < each < 0.4 for each in facts["missing"])
    assert data.inspect(with_gaps(100)[0])["missing"] == []


def test_masks_and_fill_values_are_missing_values(tmp_path):
    x = np.random.default_rng(0).integers(0, 200, (40, 4)).astype(np.int16)
    gaps = np.random.default_rng(1).random(x.shape) < 0.2
    wanted = np.where(gaps, np.nan, x).astype(np.float32)
    masked = np.ma.masked_array(x, gaps)
    for given in (masked, list(masked), {"x": masked}):
        source = data.open(given)
        assert source.x.dtype == torch.float32 and np.array_equal(source.x.numpy(), wanted, equal_nan=True)
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = np.where(gaps, -32768, x)
        file["x"].attrs["_FillValue"] = np.int16(-32768)
        file["y"] = np.where(gaps, -1, x)
        file["y"].attrs["missing_value"] = np.array([-1])
    for key in "xy":
        assert np.array_equal(data.open(tmp_path / "a.h5", key=key).x.numpy(), wanted, equal_nan=True)
    tifffile = pytest.importorskip("tifffile")
    pages = x.reshape(10, 4, 4).astype(np.float32)
    holes = np.where(gaps.reshape(10, 4, 4), -9999, pages).astype(np.float32)
    tifffile.imwrite(
        tmp_path / "a.tif", holes, photometric="minisblack", extratags=[(42113, 2, 6, "-9999", False)], metadata=None
    )
    found = data.open(tmp_path / "a.tif").x[:, 0].numpy()
    assert np.array_equal(found, np.where(gaps.reshape(10, 4, 4), np.nan, pages), equal_nan=True)


def test_commands_for_samples_with_gaps(tmp_path, capsys):
    np.save(tmp_path / "holes.npy", with_gaps(60)[1])
    run, words = str(tmp_path / "run"), ["--net", "tiny", "--batch", "16", "--steps", "2"]
    assert main(["train", str(tmp_path / "holes.npy"), "-o", run, *words]) == 0
    said = capsys.readouterr().out
    assert f"sfumato info {run}" in said and f"sfumato memorization {run}" in said
    assert main(["likelihood", run, str(tmp_path / "holes.npy"), "-n", "9", "--steps", "4"]) == 0
    assert "9 samples of 1 to 3 numbers" in capsys.readouterr().out


def test_the_tools_of_a_run_take_what_is_missing(tmp_path):
    """A run of pictures with holes, its doctor, board, table of draws and information; each refusal is one sentence."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(120, 2, 4, 4)).astype(np.float32) + 5
    x[draw.random(x.shape) < 0.2] = np.nan
    site = np.arange(120) % 2
    run = sf.train({"x": x, "site": site}, tmp_path / "run", console=Silent(), **SMALL, steps=101)
    given = {"x": x, "site": site}
    again = sf.load(tmp_path / "run")
    assert again.spec == run.denoiser.spec and bool(sf.sample(again, 4, steps=3).isfinite().all())
    assert all(np.isfinite(line["loss"]) for line in run.metrics) and not (tmp_path / "run" / "incident.json").exists()
    report = sf.doctor(tmp_path / "run", given)
    assert "since hardly any sample is whole" in str(report) and "condition-dead" in report.checked
    assert np.isfinite(sf.board(again, given, samples=8, gradients=2).loss["model"].value.numpy()).all()
    assert np.isfinite(sf.information(again, given, draws=64).together.value)
    assert np.isfinite(sf.draws(again, x[:8], count=2)["loss"]).all()
    copies = sf.memorization(again, given, samples=40)
    assert copies.verdict == "none" and copies.samples == 40 and np.isfinite(copies.ratio.value)
    refused("no distances in features", lambda: sf.memorization(again, given, features=lambda x: x.flatten(1)))
    assert np.isfinite(sf.metrics.evaluate(again, given, "marginals", 20, steps=2)["marginals"].value)
    assert bool(sf.log_prob(again, x[:2], steps=2, trace="rademacher", probes=2).value.isfinite().all())
    refused("sample 1 has no value", lambda: sf.log_prob(again, np.stack([x[0], np.full((2, 4, 4), np.nan)])))
    refused("which only the denoising loss", lambda: trained(x, tmp_path / "b", steps=2, loss="score-matching"))
    whole = trained(np.nan_to_num(x), tmp_path / "c", steps=2)
    refused("NaN or infinite", lambda: sf.log_prob(whole.denoiser, x[:2]))
    refused("the model knows whole samples alone", lambda: sf.doctor(whole.denoiser, x))
    refused("the model knows whole samples alone", lambda: sf.board(whole.denoiser, x, samples=8, gradients=0))
    np.save(tmp_path / "drawn.npy", x)
    rest = np.nan_to_num(x)
    refused("metrics compare whole samples", lambda: sf.metrics.evaluate(tmp_path / "drawn.npy", rest, "mmd", 20))
    refused("was trained on whole samples", lambda: sf.train(x, tmp_path / "d", init=whole.denoiser, steps=2))


class Own(nn.Module):
    config = {}

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(6, 3)

    def forward(self, x, noise_level, missing_values=None):
        gaps = torch.zeros_like(x) if missing_values is None else missing_values
        return self.map(torch.cat([x, gaps], 1))


class Deaf(nn.Module):
    config = {}

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(3, 3)

    def forward(self, x, noise_level):
        return self.map(x)


def test_a_network_of_ones_own_is_given_the_mask(tmp_path):
    holes = with_gaps(200)[1]
    run = trained(holes, tmp_path / "run", steps=3, net=Own(), modules=[Own])
    assert bool(sf.sample(run.denoiser, 4, steps=2).isfinite().all())
    refused(f"takes no condition '{MISSING}'", lambda: trained(holes, tmp_path / "b", steps=3, net=Deaf()))


def test_a_stopped_run_goes_on_and_parts_change_nothing(tmp_path):
    holes = with_gaps(300)[1].astype(np.float32)
    np.save(tmp_path / "holes.npy", holes)
    how = {**SMALL, "optimizer": "adamw", "console": Silent()}
    one = sf.train(tmp_path / "holes.npy", tmp_path / "one", steps=12, **how)
    sf.train(tmp_path / "holes.npy", tmp_path / "two", steps=8, decay=0.0, **how)
    two = sf.resume(tmp_path / "two", steps=12, console=Silent())
    three = sf.train(tmp_path / "holes.npy", tmp_path / "three", steps=12, decay=0.0, micro=5, **how)
    ours, theirs = two.denoiser.state_dict(), three.denoiser.state_dict()
    assert all(float((ours[name] - theirs[name]).abs().max()) < 1e-5 for name in ours)
    assert bool(sf.sample(one.denoiser, 4, steps=2).isfinite().all())


def test_pictures_of_floats_may_have_gaps(tmp_path):
    """TIFF files of a folder with NaN: missing values; one without a number, one of another size are left out."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(20, 8, 9)).astype(np.float32)
    x[draw.random(x.shape) < 0.1] = np.nan
    for i, one in enumerate(x):
        Image.fromarray(one).save(tmp_path / f"{i:02}.tif")
    source = data.open(tmp_path)
    assert np.array_equal(source.x[:, 0], x, equal_nan=True)
    assert source.missing == (pytest.approx(float(np.isnan(x).mean())),)
    refused("9 x 8 pixels, and is not resized", lambda: data.open(tmp_path, size=4))
    Image.fromarray(np.full((8, 9), np.nan, np.float32)).save(tmp_path / "none.tif")
    Image.fromarray(np.tile(x[0], (2, 2))).save(tmp_path / "wide.tif")
    assert {path: why.split(",")[0] for path, why in data.open(tmp_path).skipped} == {
        "none.tif": "it holds no number",
        "wide.tif": "it has missing values (NaN) and 18 x 16 pixels",
    }
