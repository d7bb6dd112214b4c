"""Published losses of symbols on a 3 x 3 x 3 table: which are one, where their minima are, what each weighs (G1-G9)."""

import itertools
import math

import pytest
import torch

import sfumato as sf
from sfumato import schedules
from sfumato.belief import Logits
from sfumato.objectives import weights
from sfumato.objectives.counts import CountedMasks, masked_nats
from sfumato.objectives.loss import Batch
from sfumato.objectives.losses import Denoising, Nonequilibrium
from sfumato.objectives.nonequilibrium import kl
from sfumato.objectives.symbols import RatioMatching, ScoreEntropy, Sundae
from sfumato.objectives.times import UniformTime, adaptive
from sfumato.process import Hybrid, Ladder, Marginal, Masked, Symbols, Uniform
from sfumato.training import TrainConfig, fit
from symbol_cases import F64, TABLE, distance, joined

FLOW, OPEN = schedules.Flow(), schedules.LinearBeta()
MASKED, UNIFORM = Masked(FLOW, 3), Uniform(FLOW, 3)
PROCESSES = [MASKED, UNIFORM, Marginal(FLOW, 3, weights=(5, 2, 3)), Hybrid(schedules.Cosine(), 3), Ladder(FLOW, 3)]
EACH = pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)


def batch(x: torch.Tensor) -> Batch:
    n = len(x)
    return Batch(x, sf.conditions.Conditions({}), torch.arange(n), (torch.arange(n, dtype=F64) + 0.5) / n)


def wrong(process: Symbols, t: float, seed: int = 0, size: float = 0.7) -> Logits:
    """The exact belief about all noisy states with an error that depends on the other symbols."""
    states = TABLE.noisy(process)
    error = size * torch.randn(process.size, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=F64)
    log_h = TABLE.others(process, states, t).log() + error[states.roll(1, 1), torch.arange(3)]
    return Logits(log_h + process.evidence(states, t), states, torch.tensor(t, dtype=F64), process, log_h)


def pairs(belief: Logits) -> tuple[Logits, torch.Tensor, torch.Tensor]:
    """(beliefs, x, p(x) q(z | x)) of every x with every z."""
    n = len(belief.z)
    whole = belief.rows(torch.arange(n).repeat(27))
    return (
        whole,
        TABLE.states.repeat_interleave(n, 0),
        (TABLE.probs[:, None] * TABLE.kernel(belief.process, 0.0, belief.t)).flatten(),
    )


def mean(weight: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The expectation over x and z, of values (N, ...) summed over symbols; what cannot be counts nothing."""
    return (weight * values.flatten(1).sum(1).nan_to_num(0.0, 0.0, 0.0)).sum()


@EACH
def test_score_entropy_is_the_path_kl_and_the_denoising_loss(process: Symbols) -> None:
    belief, x, weight = pairs(wrong(process, 0.4))
    q, z, here = process.marginal(x, 0.4), belief.z[..., None], weight > 0
    s, r = belief.ratio, q / q.gather(-1, z)
    wanted = s - torch.special.xlogy(r, s) + torch.special.xlogy(r, r) - r
    wanted = (process.into(belief.z, 0.4) * wanted.scatter(-1, z, 0.0)).sum(-1)
    torch.testing.assert_close(process.rate(belief, x)[here], wanted[here], rtol=0, atol=1e-12)
    torch.testing.assert_close(process.score_entropy(s, x, belief.z, 0.4)[here], wanted[here], rtol=0, atol=1e-12)
    torch.manual_seed(0)
    model, x = sf.Denoiser(sf.nets.MLP(9, 8, 1), process), batch(TABLE.sample(64))
    torch.nn.init.normal_([*model.net.parameters()][-2])
    losses = [
        ScoreEntropy(UniformTime()),
        Denoising(UniformTime(), weights.elbo(), 0),
        Denoising(UniformTime(), None, 0),
    ]
    one, two, three = (loss.losses(model, x) for loss in losses)
    torch.testing.assert_close(2 * one, two, rtol=1e-5, atol=0)
    torch.testing.assert_close(two, three, rtol=1e-6, atol=0)


def test_a_density_that_learns_is_taught_by_the_score_entropy_and_keeps_its_value() -> None:
    """As by the denoising loss, which it is half of: the same losses draw the same levels, and held-out ones stay."""
    torch.manual_seed(0)
    model, x = sf.Denoiser(sf.nets.MLP(9, 8, 1), UNIFORM), batch(TABLE.sample(512))
    torch.nn.init.normal_([*model.net.parameters()][-2])
    losses = ScoreEntropy(adaptive()), Denoising(adaptive(), weights.elbo(), 0)
    held = [loss.held(model, x) for loss in losses]
    before = losses[0].losses(model, x).mean()
    for loss in losses:
        loss.observe(x, loss.losses(model, x))
    heights = [loss.times.heights / loss.times.heights.mean() for loss in losses]
    torch.testing.assert_close(*heights)
    assert float(heights[0].max() / heights[0].min()) > 2
    assert all(torch.equal(loss.held(model, x), each) for loss, each in zip(losses, held, strict=True))
    after = losses[0].losses(model, x)
    assert not torch.equal(losses[0].times.logsnr(x.u, UNIFORM.clock), adaptive().logsnr(x.u, UNIFORM.clock))
    error = float(after.detach().std()) / math.sqrt(len(after))
    assert abs(float((after.mean() - before).detach())) < 5 * error
    for kind in (RatioMatching, Sundae):
        with pytest.raises(sf.SfumatoError, match="would change with one that learns"):
            kind(adaptive())


def test_ratios_of_no_distribution_cost_more_and_tell_nothing() -> None:
    """At a mask alpha (c - 1 - log c), c = sum_y s_y (1 - alpha) / alpha."""
    process = Masked(FLOW, 3, row="ratio")
    y = torch.randn(1, 3, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    z, x, keep = torch.full((1, 3), 3), torch.tensor([[0, 1, 2]]), 0.6
    said = torch.nn.functional.pad(y.exp(), (0, 1), value=1.0)
    more = process.score_entropy(said, x, z, 0.4) - process.rate(process.read(y, z, 0.4), x)
    c = y.exp().sum(-1) * (1 - keep) / keep
    torch.testing.assert_close(more, keep * (c - 1 - c.log()), rtol=0, atol=1e-14)
    torch.manual_seed(0)
    model = sf.Denoiser(sf.nets.MLP(9, 8, 1), process)
    raw, right = (
        ScoreEntropy(UniformTime(), normalised=each).losses(model, batch(TABLE.sample(64))) for each in (False, True)
    )
    assert bool((raw >= right - 1e-6).all()) and float((raw - right).mean().detach()) > 0.01


@EACH
def test_the_bound_of_rates_has_the_same_differences_between_models(process: Symbols) -> None:
    """E_z[sum_y R'(z -> y) - sum_y R(z -> y) log R'(y -> z)], y a jump of the noise: tauLDR's (2205.14987, Prop. 2)."""
    t, size = 0.4, process.size
    law, states = TABLE.noised(process, t), TABLE.noisy(process)

    def forward(belief: Logits) -> float:
        rate, away = belief.rate.nan_to_num(0.0), process.away(states, t)
        total = (law * rate.sum((1, 2))).sum()
        for i, y in itertools.product(range(3), range(size)):
            jumped = states.clone()
            jumped[:, i] = y
            back = rate[TABLE.place(jumped, size), i, states[:, i]]
            chance = law * torch.where(states[:, i] == y, 0.0, away[:, i, y])
            total -= torch.where(chance > 0, chance * back.clamp_min(1e-300).log(), 0.0).sum()
        return float(total)

    def path(belief: Logits) -> float:
        whole, x, weight = pairs(belief)
        return float(mean(weight, process.rate(whole, x)))

    one, two, exact = wrong(process, t, 1), wrong(process, t, 2), wrong(process, t, size=0.0)
    assert forward(one) - forward(two) == pytest.approx(path(one) - path(two), abs=1e-12)
    assert forward(one) - forward(exact) == pytest.approx(path(one) - path(exact), abs=1e-12) and path(exact) < path(
        one
    )


@EACH
def test_ratio_matching_is_the_divergence_of_the_conditionals(process: Symbols) -> None:
    """E -log zeta'(z_i) = H(z_i | others) + KL(zeta || zeta'): one minimum with the path KL."""
    law, states = TABLE.noised(process, 0.4), TABLE.noisy(process)

    def cost(belief: Logits) -> torch.Tensor:
        return mean(law, -belief.zeta.gather(-1, states[..., None]).log())

    exact, other = wrong(process, 0.4, size=0.0), wrong(process, 0.4)
    possible = exact.zeta > 0
    gap = mean(law, torch.where(possible, exact.zeta * (exact.zeta / other.zeta).log(), 0.0))
    assert float(cost(other) - cost(exact)) == pytest.approx(float(gap), abs=1e-13) and float(gap) > 0.01


def test_a_network_that_hears_its_symbol_would_match_ratios_for_nothing() -> None:
    echo = 40 * UNIFORM.hot(TABLE.noisy(UNIFORM), F64)
    belief = UNIFORM.read(echo, TABLE.noisy(UNIFORM), 1e-9)
    assert float(-belief.zeta.gather(-1, belief.z[..., None]).log().max()) < 1e-8
    for net in (sf.nets.MLP(9, 8, 1), sf.nets.Transformer((3, 3), 16, 1, mask="full")):
        with pytest.raises(sf.SfumatoError, match="does not hear z_i"):
            RatioMatching(UniformTime()).suits(sf.Denoiser(net, UNIFORM))
    torch.manual_seed(0)
    net = sf.nets.Transformer((3, 3), 16, 1, mask="hollow")
    model = sf.Denoiser(net, Uniform(OPEN, 3, row="z"))
    RatioMatching(UniformTime()).suits(model)
    x = batch(TABLE.sample(9)[:, None])
    level = UniformTime().logsnr(x.u, model.process.clock)
    z = model.process.corrupt(x.x, model.process.clock.time(level), sf.Noise(0, x.index, sf.noise.TRAIN_NOISE))
    said = model.predict(z, model.process.clock.time(level)).log_softmax(-1)  # what row "z" means
    found = RatioMatching(UniformTime()).losses(model, x)
    torch.testing.assert_close(found, -said.gather(-1, z[..., None]).flatten(1).mean(1), rtol=1e-5, atol=1e-6)


@EACH
def test_both_terms_of_d3pm_have_one_minimum(process: Symbols) -> None:
    """The gradients of the bound's step and of the cross entropy vanish at the exact h; with h for p they do not."""
    s, t = 0.25, 0.5
    shift = torch.zeros(process.size, 3, 3, dtype=F64, requires_grad=True)
    exact = wrong(process, t, size=0.0)
    log_h = exact.other.nan_to_num(0.0) + shift[exact.z, torch.arange(3)]  # it hears z_i
    evidence = process.evidence(exact.z, t)
    belief, x, weight = pairs(Logits(log_h + evidence, exact.z, exact.t, process, log_h))
    here = weight > 1e-300
    belief, x, weight = belief.rows(here), x[here], weight[here]
    terms = {
        "step": kl(process.posterior(belief.z, x, s, t), process.bridge(belief, s)),
        "cross entropy": belief.nats(x),
        "of the wrong row": Logits(belief.other, belief.z, belief.t).nats(x),
    }
    size = {
        name: float(torch.autograd.grad((weight * term).sum(), shift, retain_graph=True)[0].abs().max())
        for name, term in terms.items()
    }
    assert size["step"] < 1e-14 and size["cross entropy"] < 1e-14
    assert size["of the wrong row"] > 1e-3


def test_the_share_of_the_cross_entropy_is_added_to_every_step() -> None:
    torch.manual_seed(0)
    model, x = sf.Denoiser(sf.nets.MLP(9, 8, 1), UNIFORM), batch(TABLE.sample(40))
    plain, hybrid = Nonequilibrium(4).losses(model, x), Nonequilibrium(4, share=0.5).losses(model, x)
    t = (x.u * 4).ceil() / 4
    z = UNIFORM.corrupt(x.x, t, sf.Noise(0, x.index, sf.noise.TRAIN_NOISE).normal((3,)))
    torch.testing.assert_close(hybrid - plain, 4 * 0.5 * model(z, t).nats(x.x).to(plain) / 3, rtol=1e-4, atol=1e-5)


def test_mask_predict_and_maskgit_weigh_the_counts_of_the_bound() -> None:
    """By sums over all counts and subsets, for a wrong model: 1/n against 1/D each, and the counts of the cosine."""
    model = sf.Denoiser(sf.nets.MLP(9, 8, 1), MASKED)
    torch.nn.init.normal_([*model.net.parameters()][-2], generator=torch.Generator().manual_seed(0))

    def at(n: int, smoothing: float = 0.0) -> float:
        subsets = [torch.tensor([i in chosen for i in range(3)]) for chosen in itertools.combinations(range(3), n)]
        costs = []
        for subset in subsets:
            z = torch.where(subset, 3, TABLE.states)
            belief = model(z, MASKED.time(torch.full((27,), n / 3)))
            hidden, sums = z == 3, torch.full((27,), 3)
            costs.append(masked_nats(belief.logits[hidden], TABLE.states, hidden, sums, smoothing))
        return float(TABLE.probs @ torch.stack(costs).double().mean(0).detach())

    n = 3 * 512
    x = TABLE.states.repeat_interleave(n, 0)[torch.randperm(27 * n, generator=torch.Generator().manual_seed(2))]
    share = {
        "masked": [1 / 3] * 3,
        "mask-predict": [1 / 3] * 3,
        "maskgit": [2 / math.pi * (math.acos((k - 1) / 3) - math.acos(k / 3)) for k in (1, 2, 3)],
    }
    weight = TABLE.probs[TABLE.place(x)] * 27
    for name, law in share.items():
        loss = sf.registry.make("loss", name)
        factor = [1 / k if name == "masked" else 1 / 3 for k in (1, 2, 3)]
        wanted = sum(p * f * at(k, loss.smoothing) for k, p, f in zip((1, 2, 3), law, factor, strict=True))
        with torch.no_grad():
            found = (weight * loss.losses(model, batch(x))).mean()
        assert float(found) == pytest.approx(wanted, rel=0.01), name
    # the weight m is that of the sigmoid in the level: the same sum of nats at every count, but for D + 1 counts to D
    m = torch.linspace(0.01, 0.99, 9, dtype=F64)
    torch.testing.assert_close(weights.sigmoid()(torch.logit(1 - m)), m)


@pytest.mark.parametrize(("process", "wanted"), [(MASKED, (0.0390, 0.1081)), (UNIFORM, (0.0865, 0.1794))])
def test_the_chain_of_sundae_has_another_law_unless_its_draws_are_joint(process: Symbols, wanted: tuple) -> None:
    """The stationary law of z ~ q(z | x), x' ~ prod_i p(x_i | z), at t = 0.2 and 0.5; joint draws leave the data's."""
    for t, error in zip((0.2, 0.5), wanted, strict=True):
        noised, states = TABLE.kernel(process, 0.0, t), TABLE.noisy(process)
        joint = noised @ TABLE.posterior(process, t)
        torch.testing.assert_close(TABLE.probs @ joint, TABLE.probs, rtol=0, atol=1e-15)
        chain = noised @ joined(TABLE.denoiser(process)(states, t).prob.nan_to_num(0.0))
        law = torch.linalg.matrix_power(chain, 4096)[0]
        assert float((law - TABLE.probs).abs().sum()) / 2 == pytest.approx(error, abs=6e-5), t


def test_no_gradient_passes_through_the_samples_of_sundae() -> None:
    """The loss is the mean of two cross entropies, and its gradient theirs with z' held."""
    torch.manual_seed(0)
    model, x = sf.Denoiser(sf.nets.MLP(9, 8, 1), Uniform(FLOW, 3, row="x")), batch(TABLE.sample(32))
    torch.nn.init.normal_([*model.net.parameters()][-2])
    process = model.process
    source = sf.Noise(0, x.index, sf.noise.TRAIN_NOISE)
    t = process.clock.time(UniformTime().logsnr(x.u, process.clock))
    z = process.corrupt(x.x, t, source)
    first = model(z, t)
    second = model(process.draw(first.prob.detach(), source.fold("unrolled").at(0)), t)
    wanted = (first.nats(x.x) + second.nats(x.x)) / 6
    found = Sundae(UniformTime()).losses(model, x)
    torch.testing.assert_close(found, wanted)
    for one, two in zip(
        *(torch.autograd.grad(each.mean(), [*model.parameters()]) for each in (found, wanted)), strict=True
    ):
        torch.testing.assert_close(one, two)


class Hollow(torch.nn.Module):
    """A network of one's own for three symbols of three, whose y_i does not hear z_i."""

    def __init__(self) -> None:
        super().__init__()
        self.shape = (9,)
        self.parts = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(7, 64), torch.nn.GELU(), torch.nn.Linear(64, 3)) for _ in range(3)
        )

    def forward(self, x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        code, said = x.unflatten(1, (3, 3)), []
        for i, part in enumerate(self.parts):
            others = code[:, :, [j for j in range(3) if j != i]].flatten(1)
            said.append(part(torch.cat((others, level[:, None]), 1)))
        return torch.stack(said, 2).flatten(1)


LEARNED = {
    "d3pm": UNIFORM, "score-entropy": UNIFORM, "score-entropy(normalised=False)": Masked(FLOW, 3, row="ratio"),
    "sundae": Uniform(FLOW, 3, row="x"), "mask-predict": MASKED, "maskgit(smoothing=0.0)": MASKED,
    "ratio-matching": UNIFORM,
}  # fmt: skip


CONFIG = TrainConfig(steps=220, batch=256, precision="float32", ema=0.0, lr=5e-3)


@pytest.mark.first(3)
@pytest.mark.parametrize("name", LEARNED)
def test_a_network_learns_by_every_name(name: str) -> None:
    """Its samples come within a distance of the table that independent symbols do not reach."""
    torch.manual_seed(0)
    process = LEARNED[name]
    model = sf.Denoiser(Hollow() if name == "ratio-matching" else sf.nets.MLP(9, 64, 2), process)
    data = TABLE.sample(4096).float()
    loss = sf.registry.make("loss", name, {"times": UniformTime(), "seed": 0})
    loss.suits(model)
    for _ in fit(model, data, CONFIG, loss=loss):
        pass
    x = sf.sample(model.eval(), 4000, steps=24, batch=4000)
    found = torch.bincount(TABLE.place(x), minlength=27).double() / 4000
    alone = joined(TABLE.marginals(TABLE.probs[None]))[0]
    away = float((found - TABLE.probs).abs().sum()) / 2
    assert away < 0.6 * distance(alone, UNIFORM), away


def test_mistakes_are_said() -> None:
    mlp, numbers = sf.nets.MLP(9, 8, 1), sf.Denoiser(sf.nets.MLP(3, 8, 1), sf.Gaussian(FLOW))
    times = UniformTime()
    for attempt, words in [
        (lambda: ScoreEntropy(times).suits(numbers), "needs a process of symbols"),
        (lambda: Sundae(times).suits(sf.Denoiser(mlp, MASKED)), "always right"),
        (lambda: ScoreEntropy(times, normalised=False).suits(sf.Denoiser(mlp, MASKED)), "row='ratio'"),
        (lambda: Sundae(times, steps=0), "at least 1 step"),
        (lambda: CountedMasks(counts="cosin"), "did you mean 'cosine'"),
        (lambda: CountedMasks(smoothing=1.0), "share in"),
        (lambda: sf.registry.make("loss", "maskgit").suits(sf.Denoiser(mlp, UNIFORM)), "need process='masked'"),
    ]:
        with pytest.raises(sf.SfumatoError, match=words):
            attempt()
