"""Samplers of symbols against a correlated 3 x 3 x 3 table: their laws by sums over all states, not by samples."""

import itertools

import pytest
import torch
from scipy import stats

import sfumato as sf
from sfumato import noise, schedules
from sfumato.belief import Logits
from sfumato.exact import Table
from sfumato.process import Hybrid, Ladder, Masked, Symbols, Uniform
from sfumato.solvers import Ancestral, Reveal
from sfumato.solvers.reveal import DRAWN, ORDERS, SIZES, hidden, hitting_time, within
from symbol_cases import F64, TABLE, distance, revealed, sampled

MASKED = Masked(schedules.Flow(), 3)


@pytest.mark.parametrize("order", [order for order in ORDERS if order not in DRAWN])
@pytest.mark.parametrize("sizes", SIZES)
def test_one_symbol_a_call_is_exact_in_every_order(order: str, sizes: str) -> None:
    away = [
        distance(revealed(TABLE, MASKED, Reveal(order=order, sizes=sizes), calls), MASKED) for calls in (1, 2, 3, 5)
    ]
    assert away[2] < 1e-14 and away[3] < 1e-14
    assert away[0] == pytest.approx(distance(revealed(TABLE, MASKED, Reveal(order="random"), 1), MASKED), abs=1e-14)
    assert 0.01 < away[1] < away[0]


def bridged(process: Symbols, calls: int, eta: float = 1.0, restart: float = 0.0, table: Table = TABLE) -> float:
    """The total variation of `Ancestral` with this many calls."""
    return sampled(process, calls, lambda belief, s: process.bridge(belief, s, eta, restart), table)


def drawn(solver: Reveal, calls: int) -> torch.Tensor:
    """The law of the samples, (64,), of an order of what was drawn without noise, by all draws of all calls."""
    z, score, weight = torch.full((1, 3), MASKED.mask), torch.zeros(1, 3, dtype=F64), torch.ones(1, dtype=F64)
    y = TABLE.states
    for left in range(calls, 0, -1):
        masked, belief = z == MASKED.mask, TABLE.denoiser(MASKED)(z, 0.5)
        if not masked.any():
            break
        rest = solver.rest(belief, masked, masked.sum(1), score, left, calls).repeat_interleave(27)
        p, filled = belief.prob[:, torch.arange(3), y].flatten(0, 1), y.repeat(len(z), 1)  # every draw in every row
        masked, z, score = (each.repeat_interleave(27, 0) for each in (masked, z, score))
        weight = weight.repeat_interleave(27) * torch.where(masked, p, 1 / 3).prod(1)
        score = torch.where(masked, p.log(), score)
        z = torch.where(hidden(solver.order, score, masked, rest), MASKED.mask, torch.where(masked, filled, z))
    return torch.zeros(64, dtype=F64).index_add(0, TABLE.place(z, 4), weight)


def test_choosing_by_what_was_drawn_is_biased_with_any_number_of_calls() -> None:
    """MaskGIT without noise: a symbol is revealed more often if it is probable; as with one call a symbol."""
    for order, calls, error in [
        ("maskgit", 1, 0.2537), ("maskgit", 2, 0.2440), ("maskgit", 3, 0.3874), ("maskgit", 9, 0.3874),
        ("mask-predict", 2, 0.2440), ("mask-predict", 3, 0.3660),
    ]:  # fmt: skip
        assert distance(drawn(Reveal(order=order), calls), MASKED) == pytest.approx(error, abs=6e-5), (order, calls)
    assert distance(drawn(Reveal(order="maskgit", sizes="cosine"), 2), MASKED) == pytest.approx(0.2964, abs=6e-5)


def test_gumbel_noise_takes_the_bias_away() -> None:
    """One symbol a call: of draws with probabilities p, i is first with p_i^(1 / tau) / sum, tau = gumbel left / T."""
    n, model = 20_000, TABLE.denoiser(MASKED)
    for gumbel, error in [(1.0, 0.1719), (4.5, 0.0498), (100.0, 0.0023)]:  # by that formula
        x = sf.sample(model, n, steps=3, solver=Reveal(order="maskgit", gumbel=gumbel), batch=n, seed=1)
        share = torch.bincount(TABLE.place(x), minlength=27) / n
        assert float((share - TABLE.probs).abs().sum()) / 2 == pytest.approx(error, abs=0.02), gumbel


@pytest.mark.parametrize("gamma", [0.0, 0.8, 1.2])
def test_an_entropy_bound_bounds_the_divergence(gamma: float) -> None:
    """KL(p || samples) <= gamma a call, and 0 with none."""
    law = revealed(TABLE, MASKED, Reveal(order="entropy", gamma=gamma), 3)[TABLE.place(TABLE.states, 4)]
    kl = float((TABLE.probs * (TABLE.probs / law).log()).sum())
    assert kl <= 3 * gamma + 1e-14 and (kl > 0.01) == (gamma > 1)
    masked = torch.tensor([[True, True, True, False], [False, True, True, True]])
    entropy = torch.tensor([[0.5, 0.1, 0.3, 0.0], [9.0, 2.0, 1.0, 3.0]])
    assert within(entropy, masked, 0.39).tolist() == [2, 1] and within(entropy, masked, 0.41).tolist() == [3, 1]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("order", ["random", "maskgit", "mask-predict"])
def test_as_many_calls_as_asked_for_and_none_without_a_symbol(order: str, sizes: str) -> None:
    for count, calls in [(10, 1), (10, 3), (10, 4), (10, 10), (3, 8)]:
        z = torch.full((2, 12), 1)
        z[0, :count], z[1, 12 - count // 2 :] = 2, 2  # rows with masks of their own
        process = Masked(schedules.Flow(), 2)
        plan = Reveal(order=order, sizes=sizes).plan(process, calls)
        left = [
            (state.z == 2).sum(1).tolist()
            for state in plan.run(
                sf.Denoiser(sf.nets.MLP(12, 8, 1), process), z, sf.Noise(1, torch.arange(2), sf.noise.STEP)
            )
        ]
        assert plan.spent == min(count, calls) and left[-1] == [0, 0]
        assert all(after < before for before, after in itertools.pairwise([row[0] for row in left]) if before)
        if (count, calls, order, sizes) == (10, 4, "random", "cosine"):
            assert [row[0] for row in left] == [10, 9, 7, 3, 0]


def test_each_row_has_positions_of_its_own() -> None:
    z = torch.tensor([[3, 1, 3], [1, 3, 3], [3, 3, 3], [2, 1, 0]])
    plan = Reveal(order="left-to-right").plan(MASKED, 3)
    walk = plan.start(TABLE.denoiser(MASKED), z, sf.Noise(1, torch.arange(4), sf.noise.STEP))
    walk.advance()
    assert (walk.z == 3).tolist() == [[False, False, True], [False, False, True], [False, True, True], [False] * 3]


def test_nothing_that_is_suppressed_is_drawn_and_nothing_given_is_changed() -> None:
    class Suppressed:
        process, shape, device, spec = MASKED, (3,), torch.device("cpu"), None
        logits = torch.tensor([0.0, -torch.inf, 1.0]).expand(200, 3, 3).clone()

        def __call__(self, z, t):
            return self.process.read(self.logits, z, t)

    for solver in ("reveal(order=confidence)", "maskgit", "mask-predict", "reveal(temperature=3.0, top_p=0.99)"):
        model = Suppressed()
        x = sf.sample(model, 200, steps=2, batch=200, solver=solver)
        assert not bool((x == 1).any()) and bool((x == 2).any())
        assert torch.equal(model.logits, Suppressed.logits) and model.logits[0, 0].tolist() == [0, -torch.inf, 1]


def test_mask_predict_masks_again_what_is_least_probable() -> None:
    score = torch.tensor([[-0.1, -3.0, -1.0, torch.inf]])
    rest, masked = torch.tensor([1]), torch.tensor([[True, False, True, False]])
    assert hidden("mask-predict", score, masked, rest).tolist() == [[False, True, False, False]]
    assert hidden("maskgit", score, masked, rest).tolist() == [[False, False, True, False]]
    cold = sf.sample(TABLE.denoiser(MASKED), 50, steps=6, solver="mask-predict")
    assert bool((cold == cold[0]).all())  # the most probable symbols, whatever the noise


def test_mask_predict_climbs_to_a_mode() -> None:
    """The least probable symbol made the most probable one given the others, again and again: log p never falls, every
    chain comes to rest, and the mode of the law is such an end."""
    model, plan = TABLE.denoiser(MASKED), Reveal(order="mask-predict", top_p=1e-9).plan(MASKED, 1)
    source = sf.Noise(1, torch.arange(27), noise.STEP)

    def bettered(x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        *_, last = plan.run(model, x.scatter(1, i[:, None], MASKED.mask), source)
        return last.z

    x, place = TABLE.states, torch.arange(3)
    for _ in range(9):
        hollow = [model(x.index_fill(1, place[i], MASKED.mask), 0.5).prob[:, i] for i in range(3)]
        own = torch.stack(hollow, 1).gather(-1, x[..., None])[..., 0]  # p(x_i | x_j for j != i)
        after = bettered(x, own.argmin(1))
        assert bool((TABLE.log_prob(after) >= TABLE.log_prob(x)).all())
        x = after
    ends = TABLE.place(x).unique()
    assert torch.equal(bettered(x, own.argmin(1)), x) and int(TABLE.probs.argmax()) in ends.tolist()
    assert len(ends) < 9


def test_many_samples_of_one_symbol_a_call_agree_with_the_law() -> None:
    n = 200_000
    for order in ("first-hitting", "confidence"):
        x = sf.sample(TABLE.denoiser(MASKED), n, steps=3, solver=Reveal(order=order), batch=n, seed=2)
        found = torch.bincount(TABLE.place(x), minlength=27).numpy()
        assert stats.chisquare(found, (n * TABLE.probs).numpy()).pvalue > 1e-3, order


@pytest.mark.parametrize(("order", "sizes"), [("maskgit", "equal"), ("maskgit", "cosine"), ("mask-predict", "equal")])
def test_samples_have_the_law_of_their_draws(order: str, sizes: str) -> None:
    solver, n = Reveal(order=order, sizes=sizes), 20_000
    x = sf.sample(TABLE.denoiser(MASKED), n, steps=2, solver=solver, batch=n, seed=1)
    share = torch.bincount(TABLE.place(x, 4), minlength=64) / n
    assert float((share - drawn(solver, 2)).abs().sum()) / 2 < 0.015


def test_ancestral_sampling_errs_by_what_symbols_say_of_each_other_alone() -> None:
    """The error falls as 1 / calls, and of one symbol there is none, whatever the process and the number of calls."""
    for process in (MASKED, Uniform(schedules.Flow(), 3), Hybrid(schedules.Flow(), 3), Ladder(schedules.Flow(), 3)):
        few, many = bridged(process, 16), bridged(process, 32)
        assert few / many == pytest.approx(2, rel=0.15), process
        assert bridged(process, 16, 0.0) / bridged(process, 32, 0.0) == pytest.approx(2, rel=0.15), process
        one = Table(torch.tensor([0.6, 0.3, 0.1], dtype=F64))
        for eta in (0.0, 1.0):
            assert bridged(process, 3, eta, table=one) < 1e-13, process
    assert bridged(MASKED, 8, 0.0) == pytest.approx(bridged(MASKED, 8, 1.0), abs=1e-14)
    uniform = Uniform(schedules.Flow(), 3)
    assert bridged(uniform, 16, 0.0) < bridged(uniform, 16, 1.0)
    # fresh draws help no exact model at equal calls: they are for errors of a network
    assert bridged(MASKED, 16) < bridged(MASKED, 16, restart=0.1) < bridged(MASKED, 16, restart=1.0)


def test_a_restart_masks_what_is_visible_as_often_as_remdm() -> None:
    """sigma = w (1 - alpha_s)."""
    z, s, t, w = torch.tensor([[0, 3, 2]]), 0.4, 0.6, 0.3
    belief = MASKED.read(torch.randn(1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=F64), z, t)
    law = MASKED.bridge(belief, s, 1.0, w)
    assert law[0, [0, 2], 3].tolist() == pytest.approx([w * s] * 2, abs=1e-15)
    assert float(law[0, 0, 0]) == pytest.approx(1 - w * s, abs=1e-15)


def test_first_hitting_calls_at_the_times_of_the_reverse_process() -> None:
    """The share of noise at call k is the k-th largest of D uniform numbers, for each row its own."""
    rows, size = 4000, 5
    model = sf.Denoiser(torch.nn.Identity(), Masked(schedules.Cosine(), 2))
    model.net.forward = lambda x, level: torch.zeros_like(x)  # type: ignore[method-assign]
    times = []
    plan = Reveal().plan(model.process, size)

    class Heard:
        process = model.process

        def __call__(self, z, t):
            times.append(t)
            return model(z, t)

    source = noise.Noise(3, torch.arange(rows), noise.STEP)
    *_, last = plan.run(Heard(), torch.full((rows, size), 2), source)
    assert int(last.z.max()) < 2
    share = torch.stack([1 - model.process.keep(t) for t in times], 1)
    assert bool((share.diff(dim=1) < 0).all())
    wanted = torch.arange(size, 0, -1) / (size + 1)
    torch.testing.assert_close(share.mean(0), wanted.double(), rtol=0, atol=0.01)
    part = plan.run(Heard(), torch.full((3, size), 2), source.rows(torch.tensor([5, 0, 9])))
    assert torch.equal([*part][-1].z, last.z[[5, 0, 9]])  # a row is a function of its number alone
    late = hitting_time(model.process, torch.tensor([0.0, -9.0]), 1.0)
    assert float(1 - model.process.keep(late[0])) == pytest.approx(0.5) and float(late[1]) < 1e-5


@pytest.mark.parametrize("order", ORDERS)
def test_samples_keep_what_is_known_and_end_without_masks(order: str) -> None:
    model, known = TABLE.denoiser(MASKED), torch.tensor([[3, 1, 3]]).expand(400, 3)
    plan = Reveal(order=order).plan(MASKED, 2)
    *_, last = plan.run(model, known, sf.Noise(1, torch.arange(400), noise.STEP))
    assert bool((last.z[:, 1] == 1).all()) and int(last.z.max()) < 3
    if order not in DRAWN:
        given = TABLE.probs.reshape(3, 3, 3)[:, 1].flatten()
        share = torch.bincount(last.z[:, 0] * 3 + last.z[:, 2], minlength=9) / 400
        assert float((share - given / given.sum()).abs().sum()) / 2 < 0.1
    assert plan.spent == 2 and "Reveal" in str(plan)
    assert sf.sample(model, 5, solver=(plan := Reveal(order=order).plan(MASKED, 9))).shape == (5, 3) and plan.spent == 3


def test_the_grid_gives_each_call_an_equal_share() -> None:
    for curve in (schedules.Flow(), schedules.Cosine()):
        process = Masked(curve, 3)
        keep = process.keep(torch.tensor(Reveal().plan(process, 5).times, dtype=F64))
        torch.testing.assert_close(keep, torch.linspace(0, 0.8, 5, dtype=F64), rtol=0, atol=1e-9)


def test_temperature_and_top_p_are_of_the_belief_and_not_of_the_reveal() -> None:
    z = torch.tensor([[3, 0, 3]])
    h = torch.tensor([0.5, 0.3, 0.2], dtype=F64).log().expand(1, 3, 3)
    belief, reveal = MASKED.read(h, z, 0.8), 0.5
    for law in (belief, belief.tempered(0.5), belief.tempered(1.0, 0.6)):
        step_law = MASKED.bridge(law, 0.4)
        assert float(step_law[0, 0, 3]) == pytest.approx(1 - reveal, abs=1e-14)
        assert step_law[0, 1].tolist() == pytest.approx([1, 0, 0, 0])
    sharp = torch.tensor([0.25, 0.09, 0.04], dtype=F64)
    torch.testing.assert_close(belief.tempered(0.5).prob[0, 0], sharp / sharp.sum())
    assert belief.tempered(1.0, 0.6).prob[0, 0].tolist() == pytest.approx([0.625, 0.375, 0])
    assert belief.tempered(1.0, 0.5).prob[0, 0].tolist() == pytest.approx([1, 0, 0])
    assert belief.tempered(1.0, 0.1).prob[0, 1].tolist() == [1, 0, 0]
    hidden = Logits(MASKED.read(h, torch.tensor([[3, 2, 3]]), 0.8).logits, torch.tensor([[3, 2, 3]]), 0.8, MASKED)
    assert hidden.tempered(0.5, 0.1).prob[0, 1].tolist() == [0, 0, 1]  # what is seen stays, however improbable
    uniform = Uniform(schedules.Flow(), 3)
    own = uniform.read(h, torch.tensor([[0, 1, 2]]), 0.4)
    wanted = (2 * h + uniform.evidence(own.z, 0.4)).softmax(-1)  # the evidence of a symbol's own z is not tempered
    torch.testing.assert_close(own.tempered(0.5).prob, wanted)


def test_no_token_of_a_large_vocabulary_is_out_of_reach() -> None:
    """A float32 race between a mask and 50,257 tokens loses those of weight 2^-24; quantiles in float64 do not."""
    size, steps = 50257, 1024
    process = Masked(schedules.Flow(), size)
    zipf = 1 / torch.arange(1, size + 1)
    belief = process.read(zipf.log()[None, None], torch.full((1, 1), process.mask), 1.0)
    law = process.bridge(belief, 1 - 1 / steps)
    assert law.dtype == torch.float32
    cdf = law[0, 0].double().cumsum(0)
    tokens = torch.arange(size - 1, -1, -501)  # from the rarest
    middle = torch.special.ndtri((cdf - law[0, 0].double() / 2) / cdf[-1])[tokens].float()
    assert torch.equal(process.draw(law.expand(len(tokens), 1, -1), middle[:, None])[:, 0], tokens)


@pytest.mark.parametrize("solver", ["reveal(order=entropy, top_p=0.01)", "ancestral(temperature=0.01)"])
def test_a_cold_belief_is_the_most_probable(solver: str) -> None:
    alone = torch.tensor([0.2, 0.5, 0.3], dtype=F64)
    law = Table(alone[:, None] * alone)
    assert bool((sf.sample(law.denoiser(MASKED), 50, steps=4, solver=solver) == 1).all())


def test_restarts_sample_by_name_and_for_every_process() -> None:
    for process in (MASKED, Hybrid(schedules.Flow(), 3), Ladder(schedules.Flow(), 3)):
        x = sf.sample(TABLE.denoiser(process), 500, steps=8, solver="ancestral(restart=0.2)")
        share = torch.bincount(TABLE.place(x), minlength=27) / 500
        assert float((share - TABLE.probs).abs().sum()) / 2 < 0.2


def test_what_cannot_be_revealed_is_said() -> None:
    model = TABLE.denoiser(Uniform(schedules.Flow(), 3))
    for attempt, words in [
        (lambda: sf.sample(model, 3, solver="reveal"), "Only masked symbols are revealed"),
        (lambda: Reveal().plan(MASKED, 3, t_stop=0.2), "ends with all symbols"),
        (lambda: Reveal(order="best"), "in the order 'best'"),
        (lambda: Reveal(sizes="cosin"), "did you mean 'cosine'"),
        (lambda: Reveal(gumbel=1.0), "Gumbel noise is for"),
        (lambda: Reveal(order="random", gamma=1.0), "needs order='entropy'"),
        (lambda: sf.sample(model, 3, solver="ancestral(temperature=-1)"), "temperature above 0"),
        (lambda: sf.sample(model, 3, solver="ancestral(restart=2)"), "between 0 and 1"),
        (lambda: Ancestral(restart=0.5).plan(schedules.Flow(), 3), "for a process of symbols"),
        (
            lambda: [*Reveal().plan(MASKED, 2).run(TABLE.denoiser(MASKED), torch.full((2, 3), 3), torch.rand)],
            "sf.Noise",
        ),
    ]:
        with pytest.raises(sf.SfumatoError, match=words):
            attempt()
