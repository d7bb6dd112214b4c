"""The objective compiler: what trainers imply, names found, the same in other words, and bounds of noised data."""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import sfumato as sf
from curves import CURVES
from loops import every
from sfumato.belief import Estimate
from sfumato.errors import SfumatoError
from sfumato.exact import GaussianMixture
from sfumato.objectives import Objective, denoising_loss, times, weights
from sfumato.objectives.factor import check
from sfumato.process import Gaussian
from sfumato.schedule import schedule_of
from sfumato.schedules import EDM, VE, Cosine, Flow, FromBetas, LinearBeta, LogLinear, Schedule
from sfumato.target import NAMES

F64 = torch.float64
COSINE, FLOW = Cosine(0.0), Flow()


def snr(lam):
    return torch.exp(lam)


@dataclasses.dataclass(frozen=True)
class Trainer:
    """A published loss as it is written: levels from `times`, factor(logsnr) |y - y_hat|^2. name: the weight it is."""

    name: str
    falls: bool
    schedule: Schedule
    target: str
    times: Any = None
    factor: Callable[..., Any] | None = None
    sigma_data: float = 1.0

    def objective(self) -> Objective:
        return Objective(self.schedule, self.target, self.times, sigma_data=self.sigma_data, factor=self.factor)


def slope(curve):
    """-dlogsnr/dt as a function of logsnr."""
    return lambda lam: -curve.dlogsnr(curve.time(lam))


BETA = LinearBeta()
TRAINERS = [
    Trainer("elbo", True, LogLinear(-12.0, 12.0), "eps"),
    Trainer("elbo", True, FLOW, "x", factor=lambda lam: slope(FLOW)(lam) * snr(lam)),  # VDM: -snr' |x - x_hat|^2
    Trainer("elbo", True, BETA, "score", factor=lambda lam: BETA.diffusion(BETA.time(lam))),  # g^2 |s - s_hat|^2
    Trainer("elbo", True, VE(), "score", factor=lambda lam: VE().sigma(VE().time(lam)) ** 2),  # NCSN
    Trainer("eps-simple", False, COSINE, "eps"),
    Trainer("x-simple", True, COSINE, "x"),
    Trainer("v", True, COSINE, "v"),
    Trainer("v", True, FLOW, "velocity"),
    Trainer("indi", True, FLOW, "x"),
    Trainer("sd3-logit-normal", False, FLOW, "velocity", times.logit_normal()),
    Trainer("sd3-mode", False, FLOW, "velocity", times.mode()),
    Trainer("sd3-cosmap", True, FLOW, "velocity", times.cosmap()),
    Trainer("edm", False, EDM(), "F", times.edm(), sigma_data=0.5),
    Trainer(
        "edm", False, EDM(), "x", times.edm(), lambda lam: (torch.exp(-lam) + 0.25) / (0.25 * torch.exp(-lam)), 0.5
    ),  # the same by the denoiser's own error
    Trainer("p2", False, COSINE, "eps", factor=lambda lam: 1 / (1 + snr(lam))),
    Trainer("min-snr", False, COSINE, "x", factor=lambda lam: snr(lam).clamp_max(5.0)),
    Trainer("min-snr", False, COSINE, "v", factor=lambda lam: snr(lam).clamp_max(5.0) / (snr(lam) + 1)),
    Trainer("soft-min-snr", False, COSINE, "x", factor=lambda lam: 4 * snr(lam) / (4 + snr(lam))),
    Trainer("truncated-snr", True, COSINE, "x", factor=lambda lam: snr(lam).clamp_min(1.0)),
    Trainer("sigmoid", True, FLOW, "x", factor=lambda lam: slope(FLOW)(lam) * torch.sigmoid(lam)),  # SiD2, bias 0
]
IDS = [f"{t.name}-{type(t.schedule).__name__}-{t.target}" for t in TRAINERS]


class Off:
    """A denoiser of data 0 that is wrong by 1 in eps at every level: eps_hat = z / sigma + 1."""

    def __init__(self, trainer: Trainer) -> None:
        self.process = Gaussian(trainer.schedule, trainer.target, trainer.sigma_data)

    def __call__(self, z, t):
        alpha, sigma = self.process.schedule(t)
        return Estimate(
            z, t, self.process.schedule, x=-(sigma / alpha)[:, None].expand_as(z), sigma_data=self.process.sigma_data
        )


@pytest.mark.parametrize("trainer", TRAINERS, ids=IDS)
def test_a_trainers_histogram_is_the_closed_form(trainer):
    """K1, K2: draw a trainer's t, add up what it puts on |eps - eps_hat|^2 by bins of logsnr: w within 1 %."""
    n, edges = 60_000, torch.linspace(-6, 6, 25, dtype=F64)
    law = times.low_discrepancy(trainer.times)
    schedule = trainer.schedule
    lam = law.logsnr(law.levels(0, torch.arange(n), sf.noise.TRAIN_TIME), schedule)
    x = torch.zeros(n, 1, dtype=F64)
    loss = 2 * denoising_loss(Off(trainer), x, schedule.time(lam), times=law, seed=1)
    loss = loss * (1.0 if trainer.factor is None else trainer.factor(lam))
    i = torch.bucketize(lam, edges) - 1
    inside = (i >= 0) & (i < 24)
    width = float(edges[1] - edges[0])
    often = torch.bincount(i[inside], minlength=24) > 300  # fewer draws do not tell a density within 1 %
    assert int(often.sum()) >= 18
    counted = torch.zeros(24, dtype=F64).index_add_(0, i[inside], loss[inside]) / (n * width)
    fine = torch.linspace(-6, 6, 24 * 64 + 1, dtype=F64)
    fine = (fine[1:] + fine[:-1]) / 2
    compiled = trainer.objective()
    counted, wanted = counted[often], compiled.weight(fine).reshape(24, 64).mean(1)[often]
    torch.testing.assert_close(counted, wanted, rtol=0.01, atol=0)
    named = compiled.named(trainer.name)(fine).reshape(24, 64).mean(1)[often]
    torch.testing.assert_close(counted, named * float(wanted.sum() / named.sum()), rtol=0.01, atol=0)


@pytest.mark.parametrize("trainer", TRAINERS, ids=IDS)
def test_the_compiler_finds_the_name_and_whether_it_falls(trainer):
    """METHODS' dictionary: the nearest name at distance 0 (up to a constant), monotone or not."""
    found = trainer.objective()
    near = found.nearest()
    assert trainer.name in (near.name, *near.aliases) and near.distance < 1e-9 and near.same
    assert found.monotone == trainer.falls
    lam = torch.linspace(-6, 6, 49, dtype=F64)
    torch.testing.assert_close(found.weight(lam), near.scale * found.named(near.name)(lam), rtol=1e-9, atol=0)


def test_flow_matching_and_v_prediction_have_one_weight():
    """exp(-logsnr/2)/2 and exp(-logsnr/2)/pi to 1e-9, but for the cut of uniform t at logsnr +-15."""
    flow, cosine = Objective(FLOW, "velocity"), Objective(COSINE, "v")
    assert flow.distance(cosine) < 1e-9 and cosine.distance(flow) < 1e-9
    assert flow.nearest().name == cosine.nearest().name == "v" and "flow" in flow.nearest().aliases
    lam = torch.linspace(-12, 12, 97, dtype=F64)
    for one, constant in ((flow, 1 / 2), (cosine, 1 / math.pi)):
        start, stop = one.schedule.time(15.0), one.schedule.time(-15.0)
        w = one.weight(lam) * (stop - start)
        torch.testing.assert_close(w, constant * torch.exp(-lam / 2), rtol=1e-9, atol=0)
    assert flow.distance(Objective(FLOW, "velocity", times.logit_normal())) > 0.5


def test_distance_is_up_to_a_constant_and_told_as_a_factor():
    base = Objective(FLOW, weight=weights.sigmoid(1.0))
    assert base.distance(lambda lam: 17.0 * torch.sigmoid(1.0 - lam)) < 1e-9
    tilted = Objective(FLOW, weight=lambda lam: torch.sigmoid(-lam) * torch.exp(0.1 * lam))
    # the logarithms differ by lam / 10, whose root mean square on +-10 is 1 / sqrt(3)
    assert tilted.distance(weights.sigmoid()) == pytest.approx(1 / math.sqrt(3), rel=3e-3)
    near = tilted.nearest()
    assert not near.same and near.factor == pytest.approx(math.exp(near.distance))
    apart = Objective(LogLinear(5.0, 9.0), "eps"), Objective(LogLinear(-9.0, -5.0), "eps")
    assert apart[0].distance(apart[1]) == math.inf


@pytest.mark.parametrize(
    ("objective", "word"),
    [
        (Objective(FLOW, weight=weights.sigmoid(-2.25)), "sigmoid(bias=-2.25)"),
        (Objective(COSINE, "x", factor=lambda lam: snr(lam).clamp_max(3.0)), "min-snr(gamma=3)"),
        (Objective(COSINE, "eps", factor=lambda lam: (1 + snr(lam)) ** -0.5), "p2(gamma=0.5)"),
        (Objective(COSINE, "x", factor=lambda lam: snr(lam) / (5 + snr(lam))), "soft-min-snr(gamma=5)"),
        (Objective(FLOW, "velocity", times.logit_normal(0.4, 0.9)), "sd3-logit-normal(mean=0.4, std=0.9)"),
        (Objective(FLOW, "velocity", times.edm()), "sd3-logit-normal(mean=-1.2, std=1.2)"),  # logsnr ~ N(2.4, 2.4^2)
        (Objective(FLOW, "velocity", times.mode(0.8)), "sd3-mode(s=0.8)"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_the_compiler_finds_the_numbers_of_a_family(objective, word):
    near = objective.nearest()
    assert near.name == word and near.same
    lam = torch.linspace(-8, 8, 33, dtype=F64)
    torch.testing.assert_close(objective.weight(lam), near.scale * objective.named(word)(lam), rtol=1e-6, atol=0)


def test_free_numbers_are_not_taken_for_a_little():
    """Cosine with its offset is v-prediction but near the data, and no member of a family as near as that."""
    near = Objective(Cosine(), "v").nearest()
    assert near.name == "v" and not near.same and near.factor < 1.2


@pytest.mark.parametrize("name", weights.NAMED)
def test_a_given_weight_is_the_weight(name):
    """Whatever the schedule, target and density: w is what was asked for, inside the range and 0 outside."""
    for curve, target, law in ((FLOW, "x", times.mode()), (EDM(), "eps", times.edm()), (BETA, "velocity", None)):
        found = Objective(curve, target, law, weights.NAMED[name]())
        lo, hi = found.range
        lam = torch.linspace(lo, hi, 33, dtype=F64)
        torch.testing.assert_close(found.weight(lam), weights.NAMED[name]()(lam))
        assert bool((found.weight(torch.tensor([lo - 1, hi + 1], dtype=F64)) == 0).all())
        again = Objective(curve, target, law, factor=found.factor)  # from the outside: what the factor amounts to
        torch.testing.assert_close(again.weight(lam), found.weight(lam), rtol=1e-8, atol=0)


def test_a_table_of_betas_rises_in_one_stretch():
    """DDPM's linear table with plain eps: w = p, which is largest where the table is slowest in logsnr."""
    found = Objective(FromBetas.ddpm(), "eps")
    (stretch,) = found.rises
    assert stretch[0] == pytest.approx(found.range[0], abs=0.05) and -2 < stretch[1] < 0 and not found.monotone


# -- the same objective in other words ----------------------------------------------------------------------------


class Scaled:
    """EDM's F = theta z / sqrt(alpha^2 + sigma^2): a model of one parameter, told in any target."""

    def __init__(self, objective: Objective, theta: torch.Tensor) -> None:
        self.process = Gaussian(objective.schedule, objective.target, objective.sigma_data)
        self.theta = theta

    def __call__(self, z, t):
        alpha, sigma = self.process.schedule(t)
        unit = z / torch.sqrt(alpha**2 + sigma**2)[:, None]
        return Estimate(z, t, self.process.schedule, self.theta * unit, sigma_data=0.5, named="F")


def gradient(objective, plain):
    """d/dtheta of the mean loss over 20,000 places of u, with fixed x = 1 and eps = 0.4: an integral over logsnr."""
    n = 20_000
    theta = torch.tensor(0.3, dtype=F64, requires_grad=True)
    u = (torch.arange(n, dtype=F64) + 0.5) / n
    t = objective.schedule.time(objective.times.logsnr(u, objective.schedule))
    x = torch.ones(n, 1, dtype=F64)
    weight = None if plain else objective.weight
    loss = denoising_loss(Scaled(objective, theta), x, t, weight, objective.times, eps=0.4 * x)
    (found,) = torch.autograd.grad(loss.mean(), theta)
    return float(found)


@pytest.mark.parametrize(
    ("curve", "target", "law"),
    [
        (FLOW, "velocity", times.logit_normal(-0.5, 1.5)),
        (FLOW, "x", times.uniform()),
        (VE(0.0006, 1800.0), "eps", times.uniform_logsnr()),
        (COSINE, "F", times.mode()),
        (EDM(0.0006, 1800.0), "v", times.cosmap()),
        (LogLinear(-15.0, 15.0), "score", times.from_density(lambda lam: torch.exp(-(lam**2) / 40))),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
def test_reexpressed_it_has_the_same_expected_gradient(curve, target, law):
    """EDM's plain loss on a flow path, under any schedule, target and density."""
    first = Objective(FLOW, "F", times.edm(), sigma_data=0.5)
    second = first.express(curve, target, law)
    assert first.distance(second) < 1e-9 and second.nearest().name == "edm"
    assert gradient(second, plain=False) == pytest.approx(gradient(first, plain=True), rel=1e-4)
    assert first.missing(second) < 1e-3


def test_reexpressed_factors_are_known_where_they_are_known():
    """v-prediction with cosine is x-prediction with the factor 1 + snr, and eps-prediction with 1 + 1/snr."""
    v = Objective(COSINE, "v")
    lam = torch.linspace(-9, 9, 37, dtype=F64)
    torch.testing.assert_close(v.express(target="x").factor(lam), 1 + snr(lam), rtol=1e-9, atol=0)
    curve = LogLinear(-15.0, 15.0)
    eps = v.express(curve, "eps", times.cosmap())  # the density of the cosine schedule, cut otherwise
    ratio = eps.factor(lam) / (1 + 1 / snr(lam))
    assert float(ratio.max() / ratio.min() - 1) < 1e-9 and abs(float(ratio[0]) - 1) < 1e-3
    assert bool((v.factor(lam) == 1).all())


def test_what_a_narrower_schedule_loses_is_told():
    whole, narrow = Objective(FLOW, "velocity"), LogLinear(-2.0, 3.0)
    t = FLOW.time(torch.tensor([3.0, -2.0], dtype=F64))
    lost = whole.missing(whole.express(narrow, "v"))
    assert lost == pytest.approx(1 - float(t[1] - t[0]), abs=2e-3)
    assert whole.share(-2.0, 3.0) == pytest.approx(1 - lost)


# -- K3: a weight that never rises is an evidence bound of noised data --------------------------------------------

LAW = GaussianMixture([0.3, 0.7], [[-1.0], [0.8]], [0.05, 0.2])
SPAN = LogLinear(-8.0, 6.0)


def gauss(lo, hi, panels, n=16):
    """Nodes and weights of a composite Gauss rule."""
    x, w = np.polynomial.legendre.leggauss(n)
    edges = torch.linspace(lo, hi, panels + 1, dtype=F64)
    half = edges.diff()[:, None] / 2
    return (edges[:-1, None] + (torch.from_numpy(x) + 1) * half).reshape(-1), (torch.from_numpy(w) * half).reshape(-1)


def over_states(lam, f):
    """int f(z, level) dz for each level of a variance-preserving path."""
    z, w = gauss(-9, 9, 36)
    alpha, sigma = torch.sigmoid(lam).sqrt(), torch.sigmoid(-lam).sqrt()
    found = []
    for a, s in zip(alpha, sigma, strict=True):
        found.append((w * f(z[:, None], {"alpha": a, "sigma": s})).sum())
    return torch.stack(found)


def error_of_eps(lam):
    """E|eps - E[eps|z]|^2 of the mixture, by quadrature."""

    def f(z, level):
        return LAW.log_prob(z, **level).exp() * LAW.total_variance(z, **level)

    return lam.exp() * over_states(lam, f)


def information(lam):
    """I(x; z) = h(z) - h(z|x) by quadrature, which is KL(q(z.. | x) | p(z..)) of the exact model."""

    def f(z, level):
        log_prob = LAW.log_prob(z, **level)
        return -log_prob.exp() * log_prob

    return over_states(lam, f) - 0.5 * torch.log(2 * math.pi * math.e * torch.sigmoid(-lam))


@pytest.fixture(scope="module")
def known():
    """Levels of a fine rule with the mixture's error there, and its information as a polynomial on the whole range."""
    lam, w = gauss(-8, 6, 60, 12)
    nodes = torch.cos(math.pi * (torch.arange(200, dtype=F64) + 0.5) / 200)
    series = np.polynomial.chebyshev.Chebyshev.fit(nodes.numpy(), information(7 * nodes - 1).numpy(), 160)
    return lam, w, error_of_eps(lam), lambda at: torch.from_numpy(series(((at + 1) / 7).numpy()))


@pytest.mark.parametrize("name", [n for n in weights.NAMED if n not in ("likelihood", "ncsn", "flow")])
def test_a_weighted_loss_is_an_expectation_of_bounds(name, known):
    """Theorem 1 of 2303.00848 to 1e-10: 1/2 int w mmse dlam = w(lo) (E_{p_w}[I(x; z_Lam)] - I(x; z_lo)).

    Both sides from different quantities of an exact mixture; monotone weights give a law p_w, others a signed one.
    """
    lam, share, error, bound = known
    found = Objective(SPAN, weight=weights.NAMED[name]())
    law = found.augmentation()
    # a kink of the weight is put on an edge of the rule: snr = 5 (min-SNR) or 1 (truncated)
    if name in ("min-snr", "truncated-snr"):
        kink = math.log(5.0) if name == "min-snr" else 0.0
        parts = [gauss(-8, kink, 24, 8), gauss(kink, 6, 16, 8)]
        lam, share = (torch.cat(both) for both in zip(*parts, strict=True))
        error = error_of_eps(lam)
    loss = 0.5 * float((share * found.weight(lam) * error).sum())
    start = float(bound(torch.tensor([-8.0], dtype=F64))[0])
    # the eye's weight is interpolated in a table, with a kink at each of its levels
    assert law.scale * (law.expect(bound) - start) == pytest.approx(loss, rel=1e-6 if name == "eye" else 1e-10)
    assert law.expect(torch.ones_like) == pytest.approx(1.0, abs=1e-11)
    inside = law.density(torch.linspace(-7.9, 5.9, 400, dtype=F64))
    assert bool((inside >= -1e-12).all()) == found.monotone


def test_dials_by_their_names():
    named = Objective(FLOW, "velocity", "mode(s=0.8)", "sigmoid(bias=-2)")
    made = Objective(FLOW, "velocity", times.Mode(0.8), weights.sigmoid(-2.0))
    lam = torch.linspace(-9, 9, 31, dtype=F64)
    assert torch.equal(named.weight(lam), made.weight(lam)) and torch.equal(named.density(lam), made.density(lam))
    assert torch.equal(Objective(FLOW, weight="plain").weight(lam), Objective(FLOW).weight(lam))
    with pytest.raises(SfumatoError, match="There is no weight 'sigmod': did you mean 'sigmoid'"):
        Objective(FLOW, weight="sigmod")


def test_the_law_of_the_noise_in_closed_form():
    """w = sigmoid(b - lam): p_w is logistic about b, cut; w = exp(-lam/2): exponential; w = 1: an atom at the data."""
    lam = torch.linspace(-7, 5, 25, dtype=F64)
    law = Objective(SPAN, weight=weights.sigmoid(1.0)).augmentation()
    scale = torch.sigmoid(torch.tensor(9.0, dtype=F64))
    torch.testing.assert_close(law.density(lam), torch.sigmoid(1 - lam) * torch.sigmoid(lam - 1) / scale)
    assert law.atom == pytest.approx(float(torch.sigmoid(torch.tensor(-5.0, dtype=F64)) / scale))
    law = Objective(SPAN, weight=weights.v()).augmentation()
    torch.testing.assert_close(law.density(lam), 0.5 * torch.exp(-(lam + 8) / 2))
    torch.testing.assert_close(law.quantile(1 - law.survival(lam)), lam, rtol=1e-9, atol=1e-9)
    law = Objective(SPAN, weight=weights.elbo()).augmentation()
    assert law.atom == 1 and float(law.density(lam).abs().max()) < 1e-12
    assert law.quantile(torch.tensor([0.0, 0.7], dtype=F64)).tolist() == [6.0, 6.0]


def test_drawing_the_noise_is_the_same_expectation():
    law = Objective(FLOW, "velocity", weight=weights.sigmoid(-2.0)).augmentation()
    u = (torch.arange(200_000, dtype=F64) + 0.5) / 200_000
    assert float(torch.tanh(law.quantile(u)).mean()) == pytest.approx(law.expect(torch.tanh), abs=1e-6)


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("curve", "target", "law", "weight", "words"),
    [
        (FLOW, "eps", times.uniform(), weights.min_snr(), "alpha\\(1\\) = 0"),  # min-SNR of an eps-loss at SNR 0
        (CURVES["latent_table_to_zero"], "eps", times.uniform(), weights.min_snr(), "zero signal"),
        (FLOW, "score", times.uniform(), None, "zero signal"),
        (CURVES["sigmoid"], "velocity", times.uniform(), weights.elbo(), "infinite at t = 1"),
        (FLOW, "v", times.uniform(), lambda lam: lam, "non-negative"),
        (FLOW, "v", times.uniform(), lambda lam: snr(lam) / (snr(lam) - snr(lam)), "inf at logsnr"),
        (FLOW, "v", times.uniform(), lambda lam: 0 * lam, "nothing would be learned"),
        (FLOW, "v", times.uniform(), lambda lam: lam.sum(), "one number per noise level"),
        (FLOW, "v", times.uniform(), lambda lam: torch.sqrt(lam), "nan at logsnr"),
        (FLOW, "v", times.uniform(), lambda lam: torch.exp(10 * lam), "beyond float32"),
    ],
)
def test_forbidden_pairs_are_refused_in_one_sentence(curve, target, law, weight, words):
    with pytest.raises(SfumatoError, match=words) as caught:
        check(curve, target, law, weight)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


@every(curve=[*CURVES])
def test_what_is_not_forbidden_is_allowed(curve):
    """Every named weight with x, v and F, under every schedule."""
    for name, make in weights.NAMED.items():
        for target, law in (("x", times.uniform()), ("v", times.edm()), ("F", times.uniform_logsnr())):
            check(CURVES[curve], target, law, make())
        assert bool(Objective(CURVES[curve], "v", weight=make()).factor(torch.zeros(1, dtype=F64)).isfinite()), name


def test_the_loss_refuses_a_level_without_a_finite_factor():
    """At t = 1 of the flow there is no signal: v has a weight of infinity over a density of 0."""
    denoiser = Off(TRAINERS[7])
    x, t = torch.zeros(2, 1, dtype=F64), torch.tensor([0.5, 1.0], dtype=F64)
    with pytest.raises(SfumatoError, match="logsnr -inf"):
        denoising_loss(denoiser, x, t, weights.v(), eps=x)


@pytest.mark.parametrize("target", NAMES)
def test_an_objective_says_before_training_what_cannot_be(target):
    """Published losses are compiled all the same (eps with cosine); `check` and `express` refuse to train them."""
    found = Objective(COSINE, target, factor=torch.ones_like)
    if target in ("eps", "score"):
        with pytest.raises(SfumatoError, match="zero signal"):
            found.check()
        with pytest.raises(SfumatoError, match="zero signal"):
            Objective(FLOW, "v").express(target=target)
    else:
        found.check()


def test_mistakes_of_the_constructor():
    with pytest.raises(SfumatoError, match="There is no target .w."):
        Objective(FLOW, "w")
    with pytest.raises(SfumatoError, match="not both"):
        Objective(FLOW, weight=weights.v(), factor=torch.ones_like)
    with pytest.raises(SfumatoError, match="beyond float32"):
        Objective(FLOW, factor=lambda lam: 1 / (lam - lam))


# -- what it says --------------------------------------------------------------------------------------------------


def test_plain_numbers_go_through_json():
    facts = json.loads(json.dumps(Objective(FLOW, "velocity").to_dict(), allow_nan=False))
    assert facts["nearest"]["name"] == "v" and facts["monotone"] is True and facts["schedule"] == "Flow"
    assert len(facts["levels"]) == 31 and facts["levels"][0]["logsnr"] == -15
    assert all(level["factor"] == 1 for level in facts["levels"])


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_picture_is_drawn(tmp_path, ending):
    path = tmp_path / f"objective.{ending}"
    Objective(FLOW, "velocity", times.logit_normal()).plot(str(path))
    content = path.read_bytes()
    if ending == "png":
        assert content.startswith(b"\x89PNG") and len(content) > 20_000
    else:
        assert b"<svg" in content
    with pytest.raises(SfumatoError, match="must end in one of"):
        Objective(FLOW, "velocity").plot(str(tmp_path / "objective.xyz"))


def test_a_plain_error_that_neglects_levels_is_refused_with_what_to_take():
    """Cases Q4 and Q5: the plain error of the score, and of the velocity of curves that end steeply."""
    curves = {name: schedule_of(name) for name in ("linear", "ve", "edm", "laplace", "cauchy", "log-linear", "flow")}
    refused = {(name, "score") for name in curves if name != "flow"} | {("laplace", "velocity")}
    for (name, curve), target in itertools.product(curves.items(), ("x", "eps", "score", "v", "velocity", "F")):
        if name == "flow" and target in ("eps", "score"):
            continue
        objective = Objective(curve, target, "logit-normal")
        if (name, target) in refused:
            with pytest.raises(SfumatoError, match="times as much as others.*weight='eps-simple'"):
                objective.check()
            Objective(curve, target, "logit-normal", "eps-simple").check()
        else:
            objective.check()
    alone = Objective(VE(), "score", times.NormalLogSNR(7.0, 0.01))  # draws no level where data take shape
    alone.check()


def test_a_density_for_falling_losses_is_refused_for_squared_errors():
    with pytest.raises(SfumatoError, match="warped is for a loss that falls"):
        Objective(schedule_of("linear"), "eps", "warped", "eps-simple").check()
