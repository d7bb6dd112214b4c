"""Every process of symbols against sums over all states of a correlated 3 x 3 x 3 table, in float64, without chance."""

import dataclasses
import itertools
import math

import pytest
import torch

import sfumato as sf
from sfumato import noise, schedules
from sfumato.belief import Logits
from sfumato.exact import Table
from sfumato.objectives.nonequilibrium import kl
from sfumato.process import Counts, Hybrid, Ladder, Marginal, Masked, Mixing, Rates, Symbols, Uniform, from_config
from symbol_cases import path_kl

F64 = torch.float64
FLOW, COSINE, OPEN = schedules.Flow(), schedules.Cosine(), schedules.LinearBeta()
JUMPS = ((0.0, 1.0, 2.0), (3.0, 0.0, 0.5), (1.0, 1.0, 0.0))
PROCESSES: dict[str, Symbols] = {
    "masked": Masked(FLOW, 3),
    "uniform": Uniform(COSINE, 3),
    "marginal": Marginal(FLOW, 3, weights=(5, 2, 3)),
    "hybrid": Hybrid(COSINE, 3),
    "constant hybrid": Hybrid(FLOW, 3, share=0.3, power=0.0),
    "ladder": Ladder(FLOW, 3),
    "ladder with a law": Ladder(COSINE, 3, weights=(5, 2, 3)),
    "rates": Rates(FLOW, 3, jumps=JUMPS),
    "counts": Counts(COSINE, 3),
}
EACH = pytest.mark.parametrize("name", PROCESSES)
STEPS = [(0.0, 0.3), (0.2, 0.5), (0.4, 0.999), (0.5, 1.0)]
TRUTH = Table(torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(7), dtype=F64) ** 3)


@EACH
def test_jumps_compose_and_end_at_the_prior(name: str) -> None:
    process = PROCESSES[name]
    for s, t in STEPS:
        first, second = process.matrix(0.0, s), process.matrix(s, t)
        torch.testing.assert_close(first @ second, process.matrix(0.0, t), rtol=0, atol=1e-14)
        torch.testing.assert_close(second.sum(1), torch.ones(process.size, dtype=F64), rtol=0, atol=1e-13)
    torch.testing.assert_close(process.matrix(0.0, 1.0), process.pi.expand(process.size, -1), rtol=0, atol=1e-13)
    assert float(process.matrix(0.3, 0.8).min()) >= 0


def test_the_kernels_are_what_the_words_say() -> None:
    keep, hot = 0.7, torch.eye(3, dtype=F64)
    wanted = {
        "marginal": keep * hot + 0.3 * torch.tensor([0.5, 0.2, 0.3], dtype=F64),
        "constant hybrid": torch.cat((keep * hot + 0.3 * 0.3 / 3, torch.full((3, 1), 0.3 * 0.7, dtype=F64)), 1),
        "ladder": torch.matrix_exp(-math.log(keep) * torch.tensor([[-1, 1, 0], [1, -2, 1], [0, 1, -1.0]], dtype=F64)),
    }
    for name, matrix in wanted.items():
        torch.testing.assert_close(PROCESSES[name].matrix(0.0, 0.3)[:3], matrix, rtol=0, atol=1e-14)
    near, share = PROCESSES["hybrid"], 0.8 * float(PROCESSES["hybrid"].keep(0.5))
    left = 1 - float(near.keep(0.5))
    row = (
        torch.tensor([left * share / 3] * 3 + [left * (1 - share)], dtype=F64)
        + float(near.keep(0.5)) * torch.eye(4, dtype=F64)[0]
    )
    torch.testing.assert_close(near.matrix(0.0, 0.5)[0], row, rtol=0, atol=1e-14)


@EACH
def test_rates_are_the_slope_of_the_kernel(name: str) -> None:
    process, t, h = PROCESSES[name], 0.4, 1e-7
    step = float(process.level(t - h) - process.level(t + h))
    slope = process.matrix(t - h, t + h) / step
    into = process.into(torch.arange(process.size), t).expand(process.size, process.size).mT  # (y, z)
    away = 1 - torch.eye(process.size, dtype=F64)
    torch.testing.assert_close(slope * away, into * away, rtol=0, atol=2e-6)


@EACH
@pytest.mark.parametrize(("eta", "restart"), [(0.0, 0.0), (0.4, 0.0), (1.0, 0.0), (0.0, 1.0), (0.7, 0.2)])
def test_every_bridge_keeps_the_marginal_of_each_symbol(name: str, eta: float, restart: float) -> None:
    """sum_z q(z_t | x) C(z_s | z_t, x) = q(z_s | x)."""
    process, s, t = PROCESSES[name], 0.3, 0.7
    z = torch.arange(process.size)[:, None]
    for x in range(3):
        known = torch.full((process.size, 1, 3), -torch.inf, dtype=F64)
        known[..., x] = 0.0
        step = process.bridge(Logits(known, z, t, process), s, eta, restart)[:, 0]
        assert float(step.min()) >= -1e-15
        torch.testing.assert_close(process.matrix(0.0, t)[x] @ step, process.matrix(0.0, s)[x], rtol=0, atol=1e-13)


@EACH
def test_the_least_jump_is_the_one_of_the_marginals(name: str) -> None:
    """C keeps z with min(1, q_s / q_t), else draws from what has grown: written out for every x and z."""
    process, n = PROCESSES[name], PROCESSES[name].size
    prob = torch.rand(n, 2, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    prob = prob / prob.sum(-1, keepdim=True)
    z = torch.stack((torch.arange(n), torch.arange(n).flip(0)), 1)
    s, t = torch.linspace(0, 0.4, n, dtype=F64), torch.linspace(0.41, 0.9, n, dtype=F64)
    wanted = torch.zeros(n, 2, n, dtype=F64)
    for b, i, k in itertools.product(range(n), range(2), range(3)):
        after, before = process.matrix(0.0, s[b])[k], process.matrix(0.0, t[b])[k]
        if before[z[b, i]] == 0:
            prob[b, i, k] = 0.0  # z rules k out
            continue
        stay = min(1.0, float(after[z[b, i]] / before[z[b, i]]))
        grown = (after - before).clamp_min(0)
        wanted[b, i] += prob[b, i, k] * (1 - stay) * grown / grown.sum().clamp_min(1e-300)
        wanted[b, i, z[b, i]] += prob[b, i, k] * stay
    wanted, prob = wanted / prob.sum(-1, keepdim=True), prob / prob.sum(-1, keepdim=True)
    found = process.bridge(Logits(prob.log(), z, t, process), s, 0.0)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-13)


@EACH
def test_a_step_of_the_exact_belief_is_the_law_of_each_symbol(name: str) -> None:
    """eta = 1: p(z_s,i | z_t) of the joint chain, summed over all states."""
    process, s, t = PROCESSES[name], 0.2, 0.6
    model, states = TRUTH.denoiser(process), TRUTH.noisy(process)
    wanted = TRUTH.marginals(TRUTH.reverse(process, s, t))
    torch.testing.assert_close(process.bridge(model(states, t), s, 1.0), wanted, rtol=0, atol=1e-14)


@EACH
def test_the_table_says_what_the_others_know(name: str) -> None:
    """h_i q is the posterior, and the ratios are those of p_t itself."""
    process, t = PROCESSES[name], 0.6
    states, p_t = TRUTH.noisy(process), TRUTH.noised(process, t)
    belief = TRUTH.denoiser(process)(states, t)
    torch.testing.assert_close(belief.prob, TRUTH.marginals(TRUTH.posterior(process, t)), rtol=0, atol=1e-14)
    for i, y in itertools.product(range(3), range(process.size)):
        swapped = states.clone()
        swapped[:, i] = y
        ratio = p_t[TRUTH.place(swapped, process.size)] / p_t
        torch.testing.assert_close(belief.ratio[:, i, y], ratio, rtol=1e-11, atol=0)


ROWS = {"other": "other", "x": "log_prob", "z": "zeta", "ratio": "ratio", "rate": "rate"}
UNSAID = {("ladder", "rate"), ("ladder with a law", "rate"), *(("counts", row) for row in ("z", "ratio", "rate"))}
WORDS = [(name, row) for name in PROCESSES for row in ROWS if (name, row) not in UNSAID]


@pytest.mark.parametrize(("name", "row"), WORDS)
def test_every_row_says_the_same(name: str, row: str) -> None:
    """What the exact belief says in a row, up to a constant where the row is free, is read as the exact belief."""
    curve = FLOW if isinstance(PROCESSES[name], Masked) or name in ("hybrid", "counts") else OPEN
    process = dataclasses.replace(PROCESSES[name], schedule=curve)
    speaker = dataclasses.replace(process, row=row)
    states = TRUTH.noisy(process)
    t = torch.linspace(0.05, 0.6, len(states), dtype=F64)
    belief = TRUTH.denoiser(process)(states, t)
    said = getattr(belief, ROWS[row])[..., :3]
    said = said.log() if row in ("z", "ratio", "rate") else said + (1.7 if row == "other" else 0.0)
    found = speaker.read(said, states, t)
    torch.testing.assert_close(found.prob, belief.prob, rtol=0, atol=1e-10)
    if row != "rate" and (row != "x" or name not in ("masked", "counts")):  # else of visible symbols nothing is said
        torch.testing.assert_close(found.other.softmax(-1), belief.other.softmax(-1), rtol=0, atol=1e-10)
        torch.testing.assert_close(found.rate, belief.rate, rtol=1e-8, atol=1e-10)


@EACH
def test_the_path_kl_of_the_exact_belief_is_the_entropy(name: str) -> None:
    """int E rate dlevel = -log p(x) for every single x."""
    wanted, atol = -TRUTH.log_prob(TRUTH.states), 1e-12 if name == "masked" else 1e-8
    torch.testing.assert_close(path_kl(TRUTH, PROCESSES[name]), wanted, rtol=0, atol=atol)


def test_the_posterior_in_the_place_of_the_others_loses_a_nat() -> None:
    excess = TRUTH.probs @ path_kl(TRUTH, PROCESSES["uniform"], posterior=True) - TRUTH.entropy
    assert float(excess) > 1.0


@pytest.mark.parametrize("name", [name for name, process in PROCESSES.items() if isinstance(process, Mixing)])
def test_the_rate_is_the_closed_form(name: str) -> None:
    """R(z) / q(z | x) [KL(q(. | x) || q(. | h)) + d - 1 - log d], for any belief."""
    process, t = PROCESSES[name], 0.45
    x = torch.arange(3).repeat_interleave(process.size)[:, None]
    z = torch.arange(process.size).repeat(3)[:, None]
    h = torch.randn(len(z), 1, 3, generator=torch.Generator().manual_seed(3), dtype=F64)
    belief = process.read(h, z, t)
    q, p = process.marginal(x, t), process.spread(h.softmax(-1), t)
    possible = q.gather(-1, z[..., None])[..., 0] > 0
    d = (q / p).gather(-1, z[..., None])[..., 0]
    kl = torch.where(q > 0, q * (q / p).log(), 0.0).sum(-1)
    wanted = process.into(z, t)[..., 0] / q.gather(-1, z[..., None])[..., 0] * (kl + d - 1 - d.log())
    torch.testing.assert_close(process.rate(belief, x)[possible], wanted[possible], rtol=0, atol=1e-13)


@EACH
def test_the_bound_of_steps_loses_what_independent_draws_lose(name: str) -> None:
    """VLB of T steps - H = sum over steps of the dependence of p(z_s | z_t), for the exact belief (2107.03006)."""
    process, model, steps = PROCESSES[name], TRUTH.denoiser(PROCESSES[name]), 4
    states, vlb, lost = TRUTH.noisy(process), TRUTH.probs @ process.prior_kl(TRUTH.states), 0.0
    z, x = states.repeat(27, 1), TRUTH.states.repeat_interleave(len(states), 0)
    for i in range(steps):
        s, t = i / steps, (i + 1) / steps
        belief = model(states, t)
        step = process.bridge(belief, s).nan_to_num(0.0).repeat(27, 1, 1)
        nats = kl(process.posterior(z, x, s, t), step).reshape(27, -1)
        vlb = vlb + TRUTH.probs @ (TRUTH.kernel(process, 0.0, t) * nats).sum(1)
        lost += TRUTH.dependence(process, s, t)
    assert float(vlb) - TRUTH.entropy == pytest.approx(lost, abs=1e-11) and lost > 0.01


@EACH
def test_single_precision_is_right_near_the_data_and_near_the_prior(name: str) -> None:
    process, x = PROCESSES[name], torch.tensor([[0, 1], [2, 0]])
    y = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))
    for t in (1e-8, 1e-6, 1e-3, 1 - 1e-7):
        z = torch.tensor([[0, process.size - 1], [1, 2]])
        low, high = process.read(y, z, t), process.read(y.double(), z, t)
        torch.testing.assert_close(low.log_prob.double(), high.log_prob, rtol=1e-4, atol=1e-4)
        for eta in (0.0, 1.0):
            steps = process.bridge(low, t / 2, eta).double(), process.bridge(high, t / 2, eta)
            torch.testing.assert_close(*steps, rtol=0, atol=1e-5)
        possible = process.marginal(x, t).gather(-1, z[..., None])[..., 0] > 1e-100
        rates = process.rate(low, x).double()[possible], process.rate(high, x)[possible]
        torch.testing.assert_close(*rates, rtol=1e-4, atol=1e-6)


@EACH
def test_draws_have_the_laws_they_are_drawn_from(name: str) -> None:
    process, n = PROCESSES[name], 1 << 16
    even = torch.special.ndtri((torch.arange(n, dtype=F64)[:, None] + 0.5) / n)  # every quantile once
    for x, t in itertools.product(range(3), (0.2, 0.7, 1.0)):
        drawn = process.corrupt(torch.full((n, 1), x), t, even)
        share = torch.bincount(drawn[:, 0], minlength=process.size) / n
        torch.testing.assert_close(share.double(), process.matrix(0.0, t)[x], rtol=0, atol=4 / n)
        times = torch.full((n,), t, dtype=F64)
        assert torch.equal(process.corrupt(torch.full((n, 1), x), times, even), drawn)
    start = torch.bincount(process.prior(even)[:, 0], minlength=process.size) / n
    torch.testing.assert_close(start.double(), process.pi, rtol=0, atol=4 / n)
    source = noise.Noise(1, torch.arange(64), noise.TRAIN_NOISE)
    assert torch.equal(process.corrupt(torch.full((64, 1), 2), 0.0, source), torch.full((64, 1), 2))


@EACH
def test_times_of_their_own_are_those_of_one(name: str) -> None:
    process = PROCESSES[name]
    z = torch.arange(process.size)[:, None] * torch.ones(1, 2, dtype=torch.int64)
    y = torch.randn(process.size, 2, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    t, s = torch.linspace(0.3, 1.0, process.size, dtype=F64), torch.linspace(0.0, 0.29, process.size, dtype=F64)
    x = torch.full_like(z, 1)
    belief = process.read(y, z, t)
    for b in range(process.size):
        one = process.read(y[b : b + 1], z[b : b + 1], float(t[b]))
        for eta in (0.0, 1.0):
            found, alone = process.bridge(belief, s, eta)[b : b + 1], process.bridge(one, float(s[b]), eta)
            torch.testing.assert_close(found, alone, rtol=0, atol=1e-14)
        torch.testing.assert_close(process.rate(belief, x)[b : b + 1], process.rate(one, x[:1]), rtol=1e-12, atol=1e-14)


@EACH
def test_a_file_rebuilds_it(name: str, tmp_path) -> None:
    process = PROCESSES[name]
    assert from_config(process.config()) == process and hash(process) is not None
    torch.manual_seed(0)
    model = sf.Denoiser(sf.nets.MLP(9, 8, 1), process)
    sf.save(model, tmp_path / "model.safetensors")
    assert sf.load(tmp_path / "model.safetensors").process == process


def test_what_is_no_process_is_refused() -> None:
    for wrong, words in [
        (lambda: Hybrid(FLOW, 3, power=2.0), "is no process"),
        (lambda: Hybrid(FLOW, 3, share=1.2), "share between 0 and 1"),
        (lambda: Hybrid(OPEN, 3), "must replace all"),
        (lambda: Marginal(FLOW, 3, weights=(1, 2)), "weights of 3 symbols"),
        (lambda: Marginal(OPEN, 3, weights=(1, 0, 2)), "must replace all"),
        (lambda: Ladder(FLOW, 3, weights=(1, 0, 2)), "must all be above 0"),
        (lambda: Rates(FLOW, 3, jumps=((0, 1), (1, 0))), "rows of 3 rates"),
        (lambda: Rates(FLOW, 4, jumps=((0, 1, 0, 0), (1, 0, 0, 0), (0, 0, 0, 1), (0, 0, 1, 0))), "never meet"),
        (lambda: Uniform(FLOW, 3, row="z"), "does not tell symbols apart"),
        (lambda: Ladder(FLOW, 50_000), "too many of 50,000 .*take process='uniform'"),
        (lambda: Ladder(OPEN, 3, row="rate"), "do not reach all symbols"),
        (lambda: Counts(FLOW, 3, row="ratio"), "apart: use row='other'\\.$"),
        (lambda: Counts(OPEN, 3), "must replace all"),
        (lambda: Uniform(FLOW, 3, row="logits"), "cannot say 'logits'"),
    ]:
        with pytest.raises(sf.SfumatoError, match=words):
            wrong()
    assert Hybrid(FLOW, 3, share=0.0).pi.tolist() == [0, 0, 0, 1]
