"""z = (x - mean) / std in float64: closed forms, round trips over 18 orders of magnitude."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sfumato as sf
from likelihood_models import Plain
from sfumato.cli import main
from sfumato.data import statistics as module
from sfumato.data.statistics import statistics
from sfumato.errors import SfumatoError
from sfumato.normaliser import Normaliser
from sfumato.training.console import Silent


def gaussian(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_statistics_of_a_known_set():
    x = torch.tensor([[[1.0, 3.0], [10.0, 10.0]], [[5.0, 7.0], [10.0, 10.0]]])
    figures = statistics(x)
    assert figures.mean == (4.0, 10.0)
    assert figures.std == pytest.approx((math.sqrt(5.0), 0.0))
    assert figures.low == (1.0, 10.0) and figures.high == (7.0, 10.0)
    assert figures.quiet_sample == (1.0, 0.0)


@pytest.mark.parametrize("entries", [1, 1000, 1 << 22])
def test_statistics_agree_with_numpy_in_chunks_of_any_size_and_for_an_index(monkeypatch, entries):
    monkeypatch.setattr(module, "CHUNK_ENTRIES", entries)
    x = (gaussian((40, 2, 13, 12)) * 30 + 100).clamp(0, 255).to(torch.uint8)
    indices = torch.arange(0, 40, 3)
    for chosen, rows in ((None, x), (indices, x[indices])):
        figures = statistics(x, chosen)
        reference = rows.numpy().astype(np.float64)
        assert figures.mean == pytest.approx(tuple(reference.mean((0, 2, 3))), rel=1e-12)
        assert figures.std == pytest.approx(tuple(reference.std((0, 2, 3))), rel=1e-12)


def test_the_quietest_group_is_found():
    x = gaussian((800, 1, 4))
    x[400:408] *= 1e-3
    figures = statistics(x)
    assert figures.quiet[0] == pytest.approx(float(x[400:408].std(correction=0)), rel=1e-9)


def test_a_small_spread_on_a_large_offset_is_not_lost():
    x = 1e9 + gaussian((5000, 1))
    figures = statistics(x)
    assert figures.std[0] == pytest.approx(float((x - 1e9).std(correction=0)), rel=1e-6)


@pytest.mark.parametrize("scale", [1e-300, 1e-12, 1e-3, 1.0, 1e6, 1e200])
def test_normalised_data_has_mean_0_and_std_1_whatever_the_unit(scale):
    x = gaussian((4000, 3)) * scale
    z = Normaliser.of(statistics(x)).normalise(x).double()
    assert z.mean(0).abs().max() < 1e-6
    assert (z.std(0, correction=0) - 1).abs().max() < 1e-6


@pytest.mark.parametrize("power", [-900, 0, 1000])
def test_the_quietest_group_scales_with_the_unit_to_the_last_digit(power):
    """Squares of 1e300 overflow, and a channel of its own scale lies beside it."""
    x = gaussian((100, 2, 4))
    known = statistics(x)
    figures = statistics(x * torch.tensor([2.0**power, 1.0], dtype=torch.float64)[:, None])
    for name in ("quiet", "quiet_sample"):
        scaled = getattr(known, name)
        assert getattr(figures, name) == (math.ldexp(scaled[0], power), scaled[1])


@settings(max_examples=60, deadline=None)
@given(
    exponent=st.floats(-12, 6),
    offset=st.floats(-10, 10),
    shape=st.sampled_from([(2,), (1, 16), (3, 5, 4), (2, 3, 4, 5)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 1000),
)
def test_round_trip_relative_error(exponent, offset, shape, dtype, seed):
    x = ((gaussian((32, *shape), seed) + offset) * 10.0**exponent).to(dtype)
    normaliser = Normaliser.of(statistics(x))
    back = normaliser.denormalise(normaliser.normalise(x)).to(dtype)
    assert float((back - x).abs().max() / x.abs().max()) < 1e-5


def test_round_trip_of_300_plus_minus_50():
    x = gaussian((1000, 2, 8)) * 50 + 300
    normaliser = Normaliser.of(statistics(x))
    assert float(((normaliser.denormalise(normaliser.normalise(x)) - x) / x).abs().max()) < 1e-5


def test_a_constant_channel_maps_to_zero_and_comes_back_exactly():
    x = torch.stack([torch.full((50, 6), 0.1), torch.randn(50, 6)], 1)
    normaliser = Normaliser.of(statistics(x))
    z = normaliser.normalise(x)
    assert normaliser.std[0] == 1.0
    assert torch.equal(z[:, 0], torch.zeros(50, 6))
    assert torch.equal(normaliser.denormalise(z)[:, 0].float(), x[:, 0])


def test_log_jacobian_is_that_of_the_map():
    normaliser = Normaliser((1.0, -2.0), (0.5, 40.0))
    shape = (2, 3, 2)
    x = torch.zeros(1, *shape, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(
        lambda v: (v - torch.tensor([1.0, -2.0]).view(1, 2, 1, 1)) / torch.tensor([0.5, 40.0]).view(1, 2, 1, 1), x
    )
    expected = torch.linalg.slogdet(jacobian.reshape(12, 12)).logabsdet
    assert float(normaliser.log_jacobian(x)) == pytest.approx(float(expected), rel=1e-12)
    moved = normaliser.normalise(x + 1) - normaliser.normalise(x)  # the map itself has that slope
    assert float(moved.double().log().sum()) == pytest.approx(float(expected), rel=1e-6)


def test_log_jacobian_shifts_by_the_log_of_the_unit():
    x = gaussian((500, 2, 7))
    metres, millimetres = (Normaliser.of(statistics(v)) for v in (x, 1000 * x))
    shift = millimetres.log_jacobian(x) - metres.log_jacobian(x)
    assert shift.numpy() == pytest.approx(-14 * math.log(1000))


def test_dict_round_trip_is_exact_and_strict():
    normaliser = Normaliser((0.1, 1 / 3), (1e-12, 7.0))
    assert Normaliser.from_dict(normaliser.to_dict()) == normaliser
    good = normaliser.to_dict()
    for wrong in ({**good, "extra": 1}, {"mean": [0.0], "std": [1.0]}, {**good, "name": "cube"}):
        with pytest.raises(SfumatoError, match="a normaliser( is|: )"):
            Normaliser.from_dict(wrong)


@pytest.mark.parametrize("mean, std", [((0.0,), (0.0,)), ((float("nan"),), (1.0,)), ((0.0, 1.0), (1.0,)), ((), ())])
def test_figures_that_cannot_be_inverted_are_refused(mean, std):
    with pytest.raises(SfumatoError):
        Normaliser(mean, std)


# -- values that are far from normal


def skewed(kind, count=4000):
    """Two channels (N, 2, 3) that a kind of normaliser suits."""
    g = gaussian((count, 2, 3))
    if kind == "log":
        return (g * torch.tensor([[2.0], [0.5]], dtype=torch.float64) + torch.tensor([[9.0], [-20.0]])).exp()
    if kind == "position":
        return g * torch.tensor([[1e-3, 1.0, 50.0], [2.0, 4.0, 0.1]]) + torch.tensor(
            [[0.0, 300.0, -5.0], [1.0, 2.0, 3.0]]
        )
    return g.sigmoid() if kind.startswith("bounded") else torch.where(g > 0, 5 + g, 3 * g)


KINDS = ("log", "bounded", "bounded(0, 1)", "quantile", "position")


@pytest.mark.parametrize("kind", KINDS)
def test_other_normalisers_come_back_and_give_mean_0_and_deviation_1(kind):
    x = skewed(kind)
    spec = sf.data.DataSpec.fit(sf.data.open(x), torch.arange(len(x)), kind)
    z = spec.normalise(x)
    assert float((spec.denormalise(z) - x).abs().max() / x.abs().max()) < 1e-5
    assert float(z.double().mean((0, 2)).abs().max()) < 1e-5
    assert float((z.double().transpose(0, 1).flatten(1).std(1, correction=0) - 1).abs().max()) < 1e-5
    assert sf.data.DataSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert f"Normalised by {spec.normaliser.kind}." in spec.describe()
    far = spec.denormalise(torch.full((2, 2, 3), 20.0) * torch.tensor([1.0, -1.0]).view(2, 1, 1))
    if kind == "log":
        assert float(far.min()) > 0
    if kind == "bounded(0, 1)":
        assert spec.bounds == (0.0, 1.0) and 0 <= float(far.min()) and float(far.max()) <= 1
    if kind == "bounded":
        margin = 0.01 * (x.amax((0, 2)) - x.amin((0, 2)))
        assert bool((far[1].amin(1) >= x.amin((0, 2)) - 1.0001 * margin).all()) and float(far.max()) < 1.02


@pytest.mark.parametrize("kind", KINDS)
def test_log_jacobian_of_other_normalisers_is_that_of_the_map(kind):
    x = skewed(kind)
    normaliser = sf.data.DataSpec.fit(sf.data.open(x), torch.arange(len(x)), kind).normaliser
    rows = normaliser.denormalise(normaliser.normalise(x[:8])).requires_grad_()
    std = torch.tensor(normaliser.std, dtype=torch.float64)[:, None]
    (slope,) = torch.autograd.grad((normaliser.curve(rows) / std).sum(), rows)  # g acts number by number
    expected = slope.log().flatten(1).sum(1)
    assert torch.allclose(normaliser.log_jacobian(normaliser.normalise(rows.detach())), expected, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_density_in_the_units_of_the_data_has_integral_1(kind):
    x = skewed(kind)[:, :1, 1:2] if kind == "position" else skewed(kind)[:, 0].reshape(-1, 1)
    spec = sf.data.DataSpec.fit(sf.data.open(x), torch.arange(len(x)), kind)
    law = sf.exact.GaussianMixture([1.0], torch.zeros(1, 1, dtype=torch.float64), 1.0, shape=x.shape[1:])
    model = Plain(law.denoiser(sf.Gaussian(sf.schedules.Cosine())), spec)
    grid = spec.denormalise(torch.linspace(-3, 3, 4001, dtype=torch.float64).view(-1, *x.shape[1:]))
    density = sf.log_prob(model, grid[1::2], steps=16).value.exp()
    within = math.erf(3 / math.sqrt(2))
    assert float(density @ grid[::2].flatten().diff()) == pytest.approx(within, abs=5e-3)


@pytest.mark.parametrize("kind, x, words", [
    ("log", torch.zeros(40, 2) - torch.arange(2), "has values down to -1: --normalise log needs all above 0"),
    ("log", torch.ones(40, 2, dtype=torch.int32), "holds whole numbers: --normalise log is for floats"),
    ("quantile", torch.arange(80.0).reshape(40, 2).clamp_min(60), "channel 0 .* repeats a value too often"),
    ("bounded(0, 1)", torch.linspace(0, 1, 80).reshape(40, 2), "values from 0 to 1, which are not all between 0 and 1"),
    ("position", torch.rand(40, 2), "has no positions: leave --normalise position out"),
    ("bounded(1, 0)", torch.rand(40, 2), "bounds are two numbers that increase"),
    ("bounded(a, 0)", torch.rand(40, 2), "bounds are two numbers that increase"),
    ("lgo", torch.rand(40, 2), "there is no normaliser 'lgo': did you mean 'log'"),
])  # fmt: skip
def test_what_a_normaliser_cannot_do_is_one_sentence(kind, x, words):
    with pytest.raises(SfumatoError, match=words) as caught:
        sf.data.DataSpec.fit(sf.data.open(x), torch.arange(40), kind)
    assert len(str(caught.value).splitlines()) == 1


def test_values_beyond_the_map_are_one_sentence():
    spec = sf.data.DataSpec.fit(sf.data.open(torch.rand(40, 2) + 0.1), torch.arange(40), "log")
    with pytest.raises(SfumatoError, match="values from -1 to -1 cannot be normalised by log"):
        spec.normalise(-torch.ones(2, 2))


@pytest.mark.parametrize("odd", [
    {"name": "cube"}, {"name": "log", "knots": [[0.0, 1.0]]}, {"name": "bounded"},
    {"name": "bounded", "knots": [[1.0, 0.0]]},
    {"name": "position", "knots": [[1.0, 2.0]]}, {"name": "position", "knots": [[1.0], [0.0]]},
    {"name": "position", "knots": [[1.0, 1.0], [1.0]]},
    {"name": "quantile", "knots": [[1.0]]}, {"name": "bounded", "knots": [[0.0, 1.0, 2.0]]},
])  # fmt: skip
def test_damaged_normalisers_are_refused(odd):
    with pytest.raises(SfumatoError, match="a normaliser"):
        Normaliser.from_dict({"mean": [0.0], "std": [1.0], **odd})


def laws(count=4000):
    """Laws by name, (count, ..), and the normaliser that suits them."""
    draw = np.random.default_rng(0)
    g = draw.normal(size=(count, 2))
    return {
        "normal": (g, "affine"),
        "warm": (300 + 5 * g, "affine"),
        "uniform": (draw.random((count, 2)), "affine"),
        "lognormal": (np.exp(g + 3), "log"),
        "masses beside kelvin": (np.stack([np.exp(2 * g[:, 0]), 300 + g[:, 1]], 1), "log"),
        "fields": (np.exp(draw.normal(size=(count // 10, 1, 8))), "log"),
        "waiting times": (draw.exponential(size=(count, 2)), "affine"),
        "with zeros": (np.exp(g) * (g < 1), "affine"),
        "lognormal beside normal": (np.stack([np.exp(g[:, 0]), g[:, 1]], 1), "affine"),
        "laplace": (draw.laplace(size=(count, 2)), "affine"),
        "student": (draw.standard_t(1.5, (count, 2)), "quantile"),
        "one heavy": (np.stack([g[:, 0], draw.standard_t(1, count)], 1), "quantile"),
        "few": (np.exp(g[:50]), "affine"),
        "heavy fields": (draw.standard_t(1, (count, 1, 8)), "affine"),
        "sensors": (g[:, :1, None] * np.logspace(-2, 1, 9) + draw.normal(size=(count, 1, 9)), "affine"),
        "sensors in their units": (draw.normal(size=(count, 2, 9)) * np.logspace(-2, 1, 9), "position"),
        "a field above a profile": (
            draw.normal(size=(count // 10, 1, 4, 4)) + 40 * np.arange(16).reshape(4, 4),
            "position",
        ),
        "rare spots": ((draw.random((count, 1, 9)) < 0.001) * 1.0, "affine"),
        "sparse": (draw.standard_t(1, (count, 2)).round(), "affine"),
        "counts": (np.exp(g + 3).astype(np.int64), "affine"),
        "constant beside": (np.stack([np.exp(g[:, 0]), 0 * g[:, 0] + 2], 1), "log"),
    }


def test_the_normaliser_suits_the_data_and_inspect_says_it():
    for name, (x, kind) in laws().items():
        source = sf.data.open(x.astype(np.float32) if x.dtype == np.float64 else x)
        spec = sf.data.DataSpec.fit(source, source.split()[0], "auto")
        assert spec.normaliser.kind == kind, name
        notes = sf.data.inspect(source)["notes"]
        assert any("--normalise affine" in note for note in notes) == (kind != "affine"), name
        back = spec.denormalise(spec.normalise(source.x)).double()
        assert float(((back - source.x).abs() / (source.x.abs() + source.x.double().std())).max()) < 1e-5, name
    holes = np.where(np.random.default_rng(1).random((4000, 2)) < 0.3, np.nan, laws()["lognormal"][0])
    assert sf.data.DataSpec.fit(sf.data.open(holes), normalise="auto").normaliser.kind == "log"


def test_the_likelihood_of_a_log_normal_law_is_known():
    """log p of x = exp(g), g ~ N(m, C), by the model that believes just this of the normalised logarithms."""
    draw = np.random.default_rng(0)
    mean, cov = np.array([2.0, -1.0]), np.array([[1.0, 0.6], [0.6, 0.8]])
    x = np.exp(draw.multivariate_normal(mean, cov, 2000))
    spec = sf.data.DataSpec.fit(sf.data.open(x), torch.arange(2000), "auto")
    assert spec.normaliser.kind == "log"
    shift, scale = np.array(spec.normaliser.mean), np.array(spec.normaliser.std)
    law = sf.exact.GaussianMixture(
        [1.0], torch.tensor((mean - shift) / scale)[None], torch.tensor(cov / np.outer(scale, scale))[None]
    )
    model = Plain(law.denoiser(sf.Gaussian(sf.schedules.Cosine())), spec)
    known = torch.distributions.MultivariateNormal(torch.tensor(mean), torch.tensor(cov))
    rows = torch.tensor(x[:40])
    expected = known.log_prob(rows.log()) - rows.log().sum(1)
    assert torch.allclose(sf.log_prob(model, rows, steps=32).value, expected, atol=2e-3)


def test_a_run_keeps_the_normaliser_that_was_chosen(tmp_path):
    x = skewed("log", 300).float()[:, :1].flatten(1)
    np.save(tmp_path / "x.npy", x.numpy())
    assert main(["train", str(tmp_path / "x.npy"), "-o", str(tmp_path / "run"), "--net", "tiny", "--steps", "2"]) == 0
    model = sf.resume(tmp_path / "run", steps=3).denoiser
    assert model.spec.normaliser.kind == "log" and float(sf.sample(model, 50, 4).min()) > 0
    assert sf.log_prob(model, x[:4], steps=4, sigma_min=0.1).value.isfinite().all()


def test_positions_have_units_of_their_own():
    """A constant position keeps its value; another number of positions is refused; log p is that of the law."""
    draw = torch.Generator().manual_seed(0)
    scale, shift = torch.tensor([0.01, 1.0, 30.0, 1.0]), torch.tensor([5.0, 0.0, -100.0, 7.0])
    x = (torch.randn(2000, 1, 4, generator=draw) * scale + shift).double()
    x[:, :, 3] = 7.0
    spec = sf.data.DataSpec.fit(sf.data.open(x), torch.arange(2000), "position")
    z = spec.normalise(x)
    assert not z[:, :, 3].any() and torch.equal(spec.denormalise(z)[:, :, 3], x[:, :, 3])
    with pytest.raises(SfumatoError, match="knows 4 positions of a channel, and samples of shape .1, 5. have 5"):
        spec.normaliser.normalise(torch.zeros(2, 1, 5))
    assert torch.allclose(z[:, 0, :3].std(0), torch.ones(3), atol=1e-3)
    law = sf.exact.GaussianMixture([1.0], torch.zeros(1, 3, dtype=torch.float64), 1.0, shape=(1, 3))
    three = sf.data.DataSpec.fit(sf.data.open(x[:, :, :3]), torch.arange(2000), "position")
    found = sf.log_prob(Plain(law.denoiser(sf.Gaussian(sf.schedules.Cosine())), three), x[:20, :, :3], steps=32).value
    mean, std = x[:, 0, :3].mean(0), x[:, 0, :3].std(0, correction=0)
    expected = torch.distributions.Normal(mean, std).log_prob(x[:20, 0, :3]).sum(1)
    assert torch.allclose(found, expected, atol=2e-3)
    untrained = sf.Denoiser(sf.nets.DiT((1, 3), 1, 16, 1), sf.Gaussian(sf.schedules.Flow()), "velocity", spec=three)
    drawn = sf.sample(untrained, 2000, steps=2)[:, 0]  # its velocity is 0: noise in the units of each position
    assert torch.allclose(drawn.std(0) / std, torch.ones(3, dtype=torch.float64), atol=0.1)
    assert torch.allclose((drawn.mean(0) - mean) / std, torch.zeros(3, dtype=torch.float64), atol=0.1)


@pytest.mark.slow
def test_small_positions_are_learned_in_their_own_units(tmp_path):
    """Nine sensors whose scales span three powers of ten: the deviations of samples are theirs, where units of the
    whole channel leave those of the smallest many times too large."""
    x = np.random.default_rng(0).normal(size=(4000, 1, 9)) * np.logspace(-2, 1, 9)
    ratio = {}
    for kind in ("auto", "affine"):
        run = sf.train(
            x.astype(np.float32), tmp_path / kind, net="DiT(width=32, depth=1, patch=1)", steps=300, batch=64,
            lr=2e-3, normalise=kind, precision="float32", sample_every=0, console=Silent(),
        )  # fmt: skip
        ratio[kind] = sf.sample(run.denoiser, 2000, 16).double().std(0).numpy()[0] / x.std(0)[0]
    assert np.abs(np.log(ratio["auto"])).max() < 0.25 and ratio["affine"][0] > 2, ratio
