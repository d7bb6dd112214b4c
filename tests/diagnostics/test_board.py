"""The board against closed forms: floor, trivial guess, contribution, excess of a wrong model; units, mistakes."""

import json
import math

import numpy as np
import pytest
import torch

import sfumato as sf
from sfumato.belief import Estimate
from sfumato.diagnostics.bins import make
from sfumato.diagnostics.draws import Draws
from sfumato.diagnostics.samples import NormalisedLaw
from sfumato.errors import SfumatoError
from sfumato.training.console import Silent

FLOW = sf.Gaussian(sf.schedules.Flow())
MIXTURE = sf.exact.GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], [0.05, 0.2])
WHITE = sf.exact.GaussianMixture([1.0], [[2.0, -1.0, 0.5]], 0.7)
COVARIANCE = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64)
TILTED = sf.exact.GaussianMixture([1.0], [[0.0, 0.0]], COVARIANCE[None])


def network(dim: int = 2, spec=None, dropout: float = 0.0, classes: int = 0) -> sf.Denoiser:
    torch.manual_seed(0)
    net = sf.nets.MLP(dim, width=16, depth=1, classes=classes, dropout=dropout)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return sf.Denoiser(net, FLOW, "velocity", spec=spec)


class Off:
    """The exact model with `by` added to eps_hat."""

    def __init__(self, truth, by: float) -> None:
        self.inner, self.process, self.shape, self.by = truth.denoiser(FLOW), FLOW, truth.shape, by

    def __call__(self, z, t, **cond):
        belief = self.inner(z, t, **cond)
        return Estimate(z, t, FLOW.schedule, eps=belief.eps + self.by)


def apart(found, wanted) -> torch.Tensor:
    """How many standard errors two estimates are apart."""
    return (found.value - wanted.value) / (found.stderr**2 + wanted.stderr**2).sqrt()


def signal(logsnr: torch.Tensor, variance: float) -> torch.Tensor:
    """alpha^2 v / (alpha^2 v + sigma^2), the loss of E[x|z] for white data of variance v."""
    return variance / (variance + torch.exp(-logsnr))


@pytest.mark.parametrize("truth", [MIXTURE, WHITE, TILTED])
def test_the_exact_model_loses_the_floor(truth):
    board = sf.board(truth.denoiser(FLOW), truth, samples=400, times="logit-normal")
    assert apart(board.loss["model"], board.loss["floor"]).abs().max() < 4
    assert apart(board.contribution["model"], board.contribution["floor"]).abs().max() < 4
    assert board.excess["model"].value.abs().max() < 1e-24
    (ours, error), (floor, _) = board.total("model"), board.total("floor")
    assert abs(ours - floor) < 4 * error < 0.2 * floor


def test_the_floor_by_quadrature():
    """One level of a mixture on the line: (alpha / sigma)^2 E Var(x|z) by sums over z."""
    truth = sf.exact.GaussianMixture([0.4, 0.6], [[-1.0], [1.5]], [0.1, 0.3])
    board = sf.board(truth.denoiser(FLOW), truth, bins=[0.4999, 0.5001], samples=4000, times="uniform-logsnr")
    t = FLOW.schedule.time(0.5)
    z = torch.linspace(-6, 6, 20001, dtype=torch.float64)[:, None]
    weight = truth.log_prob(z, process=FLOW, t=t).exp() * (12 / 20000)
    mmse = (weight * truth.total_variance(z, process=FLOW, t=t)).sum()
    value, error = (column.item() for column in board.loss["floor"])
    assert weight.sum().item() == pytest.approx(1, abs=1e-10)
    assert abs(value - math.exp(0.5) * mmse.item()) < 4 * error < 0.05 * value


def test_white_data_leave_the_trivial_guess_nothing_to_learn():
    board = sf.board(WHITE.denoiser(FLOW), WHITE, bins=[-3.001, -3, 0, 0.001, 3, 3.001][::-1], samples=3000)
    middle = board.logsnr[[0, 2, 4]]
    loss = board.loss["trivial"]
    assert ((loss.value[[0, 2, 4]] - signal(middle, 0.7)) / loss.stderr[[0, 2, 4]]).abs().max() < 4
    assert torch.allclose(board.loss["floor"].value[[0, 2, 4]], signal(middle, 0.7), atol=1e-6)


def test_the_trivial_guess_on_tilted_data():
    """Its gain g is that of the mean variance 1: (alpha / sigma)^2 mean((1 - g alpha)^2 c_i + g^2 sigma^2)."""
    board = sf.board(TILTED.denoiser(FLOW), TILTED, bins=[0.9999, 1.0001], samples=4000, times="uniform-logsnr")
    snr, (value, error) = math.e, board.loss["trivial"]
    gain = snr / (1 + snr)  # g alpha
    expected = snr * np.mean([(1 - gain) ** 2 * c + gain**2 / snr for c in (1.9, 0.1)])
    assert abs(value.item() - expected) < 4 * error.item() < 0.07 * expected
    assert board.loss["floor"].value.item() == pytest.approx(np.mean([c * snr / (1 + c * snr) for c in (1.9, 0.1)]))


@pytest.mark.parametrize(
    ("times", "weight", "close"),
    [
        ("uniform-logsnr", "elbo", 1e-5), ("uniform-logsnr", "sigmoid", 1e-5), ("uniform-logsnr", "edm", 1e-4),
        ("uniform", "sigmoid", 1e-3), ("uniform", "v", 1e-3), ("uniform", "edm", 1e-3), ("uniform", "elbo", 2e-3),
        # a density that hardly draws the ends knows little of what they add
        ("logit-normal", "sigmoid", 0.03), ("logit-normal", "v", 0.03), ("logit-normal", "edm", 0.03),
    ],
)  # fmt: skip
def test_contributions_integrate_to_the_objective(times, weight, close):
    """int w alpha^2 v / (alpha^2 v + sigma^2) dlogsnr, the density having no say."""
    board = sf.board(WHITE.denoiser(FLOW), WHITE, samples=500, times=times, weight=weight)
    logsnr = torch.linspace(-15, 15, 60001, dtype=torch.float64)
    expected = torch.trapezoid(sf.weights.NAMED[weight]()(logsnr) * signal(logsnr, 0.7), logsnr).item()
    assert board.bins.mass.sum().item() == pytest.approx(1)
    assert board.total("floor")[0] == pytest.approx(expected, rel=close)


def test_the_information_under_the_curve():
    """With w = 1 the area is 2/d times what z knows of x: mean over axes of log((1 + c snr_0) / (1 + c snr_1))."""
    board = sf.board(TILTED.denoiser(FLOW), TILTED, samples=400, times="uniform-logsnr", weight="elbo")
    ends = [math.exp(15), math.exp(-15)]
    expected = np.mean([np.log1p(c * ends[0]) - np.log1p(c * ends[1]) for c in (1.9, 0.1)])
    assert board.total("floor")[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weight", ["plain", "sigmoid"])
def test_the_objective_is_the_loss_of_training(weight):
    """2/d times `denoising_loss` on other draws."""
    model, x = network(), MIXTURE.sample(20000, seed=5).float()
    board = sf.board(model, MIXTURE, samples=800, times="logit-normal", weight=weight, gradients=0)
    w = None if weight == "plain" else sf.weights.NAMED[weight]()
    with torch.no_grad():
        losses = sf.denoising_loss(model, x, weight=w, times=sf.times.logit_normal(), seed=9)
    value, error = board.total("model")
    assert abs(value - losses.mean().item()) < 4 * math.hypot(error, losses.std().item() / math.sqrt(20000))
    assert error < 0.05 * value


def test_what_a_wrong_model_loses_above_the_floor():
    board = sf.board(Off(MIXTURE, 0.3), MIXTURE, samples=400)
    assert torch.allclose(board.excess["model"].value, torch.full((8,), 0.09, dtype=torch.float64), atol=1e-12)
    floor = board.loss["floor"]
    assert apart(board.loss["model"], floor._replace(value=floor.value + 0.09)).abs().max() < 4
    assert (apart(board.loss["model"], floor) > 4).any()


def spec_of(x: torch.Tensor):
    return sf.data.DataSpec.fit(sf.data.open(x.float()), torch.arange(len(x)))


def test_user_units_do_not_move_the_floor():
    """N(m, diag(s^2)) seen by a model whose spec has that mean and deviation is white: snr / (1 + snr)."""
    law = sf.exact.GaussianMixture([1.0], [[100.0, -3.0]], torch.tensor([[25.0, 0.04]]))
    model = network(spec=spec_of(law.sample(20000)))
    board = sf.board(model, law, samples=100, gradients=0)
    assert torch.allclose(board.loss["floor"].value, signal(board.logsnr, 1.0), atol=0.02)
    assert apart(board.loss["trivial"], board.loss["floor"]).abs().max() < 4


def test_any_law_in_one_unit():
    """A data set of points in its own units, and the same points normalised: one floor, one excess."""
    x = 40 + 7 * torch.randn(30, 1, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    spec = spec_of(x)
    inside = NormalisedLaw(sf.exact.Empirical(x), spec)
    outside = NormalisedLaw(sf.exact.Empirical((x - spec.normaliser.mean[0]) / spec.normaliser.std[0]), None)
    draws = Draws(inside.sample(80, 0)[0], {}, FLOW, make(4, sf.times.logit_normal(), FLOW.schedule), 20, 0, 64)
    others = Draws(outside.sample(80, 0)[0], {}, FLOW, draws.bins, 20, 0, 64)
    assert torch.allclose(draws.take(draws.index).x, others.take(others.index).x, atol=1e-12)
    assert torch.allclose(inside.floor(draws), outside.floor(draws), rtol=1e-8, atol=1e-12)
    flat = Off(sf.exact.GaussianMixture([1.0], [[0.0, 0.0, 0.0]], 1.0, shape=(1, 3)), 0.0)
    assert torch.allclose(inside.excess(draws, flat).value, outside.excess(draws, flat).value, rtol=1e-8)
    (mean, variance), (other, same) = inside.moments(), outside.moments()
    assert torch.allclose(mean, other, atol=1e-12) and variance == pytest.approx(same)
    assert variance == pytest.approx(((x - x.mean(0)) ** 2).mean().item() / spec.normaliser.std[0] ** 2)


def test_each_class_has_its_own_floor():
    """Known, the class of a mixture of two points-like clusters explains what is hidden without it."""
    plain = sf.board(MIXTURE.denoiser(FLOW), MIXTURE, samples=400)
    known = sf.board(MIXTURE.denoiser(FLOW), MIXTURE, samples=400, conditional=True)
    assert apart(known.loss["model"], known.loss["floor"]).abs().max() < 4
    assert (known.loss["floor"].value < plain.loss["floor"].value - 1e-3).any()
    assert known.total("floor")[0] < plain.total("floor")[0]


def test_both_sets_of_weights_and_nothing_changed():
    first, second = network(dropout=0.5), network()
    second.net.requires_grad_(False)
    torch.nn.init.zeros_(second.net.output.weight)
    first.train()
    next(first.net.parameters()).grad = torch.ones_like(next(first.net.parameters()))
    weights = [p.clone() for p in first.net.parameters()]
    random = torch.random.get_rng_state()
    board, again = (sf.board(first, MIXTURE, ema=second, samples=32, gradients=4) for _ in range(2))
    assert board.to_dict() == again.to_dict()  # dropout is off
    assert board.models == ("raw", "ema") and board.gradients is not None and board.of == "raw"
    assert not torch.equal(board.loss["raw"].value, board.loss["ema"].value)
    assert torch.equal(torch.random.get_rng_state(), random) and all(part.training for part in first.modules())
    assert all(torch.equal(a, b) for a, b in zip(weights, first.net.parameters(), strict=True))
    grads = [p.grad for p in first.net.parameters()]
    assert torch.equal(grads[0], torch.ones_like(grads[0])) and all(grad is None for grad in grads[1:])
    frozen = sf.board(second, MIXTURE, samples=32, gradients=4)
    assert frozen.gradients is not None and not any(p.requires_grad for p in second.parameters())


def test_a_guided_model_is_a_model():
    model = network(classes=2)
    board = sf.board(sf.guide(model, 1.0), MIXTURE, samples=64, gradients=4, conditional=True)
    alone = sf.board(model, MIXTURE, samples=64, gradients=4, conditional=True)
    assert torch.allclose(board.loss["model"].value, alone.loss["model"].value, rtol=1e-5)
    assert torch.allclose(board.gradients.variance.value, alone.gradients.variance.value, rtol=1e-3)


def test_words_numbers_and_the_page(tmp_path):
    board = sf.board(network(), MIXTURE, samples=64, times="logit-normal", weight="sigmoid")
    facts = json.loads(json.dumps(board.to_dict(), allow_nan=False))
    assert facts["monotone"] and facts["nearest"]["name"] == "sigmoid" and facts["nearest"]["same"]
    assert facts["total"]["model"]["value"] == pytest.approx(sum(facts["contribution"]["model"]["value"]))
    assert facts["logsnr"] == sorted(facts["logsnr"], reverse=True) and len(facts["edges"]) == 9
    text = str(board)
    assert "monotone: a likelihood bound" in text and "noise scale" in text and text.count("\n") > 12
    page = board.plot(tmp_path / "board.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 5 and "floor" in page  # what it needs: tests/diagnostics/test_report.py
    with pytest.raises(SfumatoError, match=r"board\.png must end in \.html"):
        board.plot(tmp_path / "board.png")
    with pytest.raises(SfumatoError, match="has no 'raw': it has model, trivial, floor"):
        board.total("raw")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bins": 0}, "bins must be a number from 1 up"),
        ({"bins": [1.0]}, "at least two different, finite edges"),
        ({"bins": [0.0, math.inf]}, "at least two different, finite edges"),
        ({"bins": ["a", "b"]}, "edges of bins are values of logsnr"),
        ({"bins": [20.0, 30.0]}, "no mass between logsnr 20 and 30"),
        ({"samples": 1}, "samples, the draws per bin"),
        ({"gradients": 1}, "gradients, the micro-batches per bin"),
        ({"gradients": 65}, "from 2 to its 64 draws"),
        ({"batch": 0}, "batch, the draws at once, must be at least 1"),
        ({"times": "unifrom"}, "did you mean 'uniform'"),
        ({"weight": "sigmiod"}, "did you mean 'sigmoid'"),
        ({"ema": 3}, "not int"),
    ],
)
def test_mistakes_are_one_sentence(options, words):
    with pytest.raises(SfumatoError, match=words) as found:
        sf.board(network(), MIXTURE, **options)
    assert "\n" not in str(found.value)


def test_data_that_cannot_be_used(tmp_path):
    with pytest.raises(SfumatoError, match="not int"):
        sf.board(3, MIXTURE)
    with pytest.raises(SfumatoError, match=r"samples of shape \(3,\), but the model needs \(2,\)"):
        sf.board(network(), torch.zeros(20, 3))
    with pytest.raises(SfumatoError, match="whole numbers"):
        sf.board(network(), torch.zeros(20, 2, dtype=torch.int64))
    with pytest.raises(SfumatoError, match="does not exist"):
        sf.board(tmp_path / "none", MIXTURE)
    with pytest.raises(SfumatoError, match="conditional=True needs data with conditions"):
        sf.board(network(), torch.randn(20, 2), conditional=True)
    spec = spec_of(torch.randn(50, 2) * torch.tensor([1.0, 3.0]))
    with pytest.raises(SfumatoError, match="only mixtures of Gaussians"):
        sf.board(network(spec=spec), sf.exact.Empirical(torch.randn(9, 2, dtype=torch.float64)))
    with pytest.raises(SfumatoError, match=r"law.s samples have shape \(3,\)"):
        sf.board(network(spec=spec), WHITE)


def test_of_other_processes_the_board_names_what_there_is(tmp_path):
    """Bits by column of a table, and the bound by level of symbols."""
    pyarrow = pytest.importorskip("pyarrow")
    rows = pyarrow.table({"a": np.arange(40.0), "b": [*"xy" * 20]})
    how = {"steps": 1, "net": "tiny", "sample_every": 0, "console": Silent()}
    of_rows = sf.train(rows, tmp_path / "rows", **how).denoiser
    with pytest.raises(SfumatoError, match=r"sf.log_prob\(model, rows\).bits gives bits by column"):
        sf.board(of_rows, rows)
    assert list(sf.log_prob(of_rows, rows).bits) == ["a", "b"]
    x = torch.randint(3, (40, 1, 4))
    symbols = sf.Denoiser(sf.nets.Transformer((3, 4), 16, 1), sf.Masked(sf.schedules.Flow(), 3))
    with pytest.raises(SfumatoError, match=r"sf.log_prob\(...\).by_level"):
        sf.board(symbols, x)
    assert sf.log_prob(symbols, x).by_level.shape[0] == 40


def test_bins_are_those_of_numpy_on_the_density():
    """Mass between edges: that of N(0, 4) cut to +-15, to 1e-9 of itself; edges beyond are ends."""
    edges, times = [-100.0, -2.0, 0.5, 3.0], sf.times.logit_normal()
    bins = make(edges, times, FLOW.schedule)
    normal = torch.distributions.Normal(0.0, 2.0)
    cdf = normal.cdf(torch.tensor([-15.0, -2.0, 0.5, 3.0], dtype=torch.float64))
    assert torch.allclose(bins.mass, cdf.diff().flip(0), rtol=1e-9)
    assert torch.allclose(bins.edges, torch.tensor([3.0, 0.5, -2.0, -15.0], dtype=torch.float64), atol=1e-3)
    levels = bins.levels(50).reshape(50, 3)
    assert bool(((levels < bins.edges[:-1]) & (levels > bins.edges[1:])).all())
    assert torch.allclose(make(8, times, FLOW.schedule).mass, torch.full((8,), 0.125, dtype=torch.float64))
