"""Samplers of symbols against a correlated 3 x 3 x 3 table: their laws by sums over all states, not by samples."""

import itertools

import pytest
import torch

import sfumato as sf
from sfumato import noise, schedules
from sfumato.belief import Logits
from sfumato.exact import Table
from sfumato.process import Hybrid, Ladder, Masked, Symbols, Uniform
from sfumato.solvers import Ancestral, Reveal
from sfumato.solvers.reveal import ORDERS, chosen, hitting_time

F64 = torch.float64
TRUTH = Table(torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(7), dtype=F64) ** 3)
MASKED = Masked(schedules.Flow(), 3)


def step(sites: torch.Tensor) -> torch.Tensor:
    """The transition matrix of independent draws: (S^d, d, S) -> (S^d, S^d)."""
    n, dim, _ = sites.shape
    whole = sites[:, 0]
    for i in range(1, dim):
        whole = (whole[:, :, None] * sites[:, i, None, :]).reshape(n, -1)
    return whole


def distance(law: torch.Tensor, process: Symbols) -> float:
    """The total variation of a law of noisy states from the table."""
    wanted = torch.zeros_like(law)
    wanted[TRUTH.place(TRUTH.states, process.size)] = TRUTH.probs
    return float((law - wanted).abs().sum()) / 2


def revealed(order: str, calls: int) -> float:
    """The total variation of the samples of `calls` calls, averaged over the orders where they are drawn."""
    states = TRUTH.noisy(MASKED)
    masked, belief = states == MASKED.mask, TRUTH.denoiser(MASKED)(states, 0.5)
    law = torch.zeros(len(states), dtype=F64)
    law[-1] = 1.0  # all masks
    numbers = [torch.tensor(each, dtype=F64).expand_as(states) for each in itertools.permutations(range(3))]
    for left in range(calls, 0, -1):
        found = torch.zeros_like(law)
        for each in numbers:
            shown = chosen(order, belief, masked, left, each)
            sites = torch.where(shown[..., None], torch.nn.functional.pad(belief.prob, (0, 1)), MASKED.hot(states, F64))
            found += law @ step(sites) / len(numbers)
        law = found
    return distance(law, MASKED)


@pytest.mark.parametrize("order", ORDERS)
def test_one_symbol_a_call_is_exact_in_every_order(order: str) -> None:
    assert revealed(order, 3) < 1e-14 and revealed(order, 5) < 1e-14
    assert revealed(order, 1) == pytest.approx(revealed("random", 1), abs=1e-14)
    assert 0.01 < revealed(order, 2) < revealed(order, 1)


def bridged(process: Symbols, calls: int, eta: float = 1.0, restart: float = 0.0, table: Table = TRUTH) -> float:
    """The total variation of `Ancestral` with this many calls."""
    states, model = table.noisy(process), table.denoiser(process)
    law = step(process.pi.expand(1, table.dim, -1))[0]
    for t, s in itertools.pairwise([1 - k / calls for k in range(calls)] + [0.0]):
        sites = process.bridge(model(states, t), s, eta, restart)
        law = law @ step(sites.nan_to_num(0.0))
    wanted = torch.zeros_like(law)
    wanted[table.place(table.states, process.size)] = table.probs
    return float((law - wanted).abs().sum()) / 2


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
    masked = torch.tensor([[True, False], [False, False]])
    late = hitting_time(model.process, masked, torch.tensor([[0.0, 9.0], [0.0, 0.0]]), 1.0)
    assert float(1 - model.process.keep(late[0])) == pytest.approx(0.5) and float(late[1]) < 1e-5


@pytest.mark.parametrize("order", ORDERS)
def test_samples_keep_what_is_known_and_end_without_masks(order: str) -> None:
    model, known = TRUTH.denoiser(MASKED), torch.tensor([[3, 1, 3]]).expand(400, 3)
    plan = Reveal(order=order).plan(MASKED, 2)
    *_, last = plan.run(model, known, sf.Noise(1, torch.arange(400), noise.STEP))
    assert bool((last.z[:, 1] == 1).all()) and int(last.z.max()) < 3
    given = TRUTH.probs.reshape(3, 3, 3)[:, 1].flatten()
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
        x = sf.sample(TRUTH.denoiser(process), 500, steps=8, solver="ancestral(restart=0.2)")
        share = torch.bincount(TRUTH.place(x), minlength=27) / 500
        assert float((share - TRUTH.probs).abs().sum()) / 2 < 0.2


def test_what_cannot_be_revealed_is_said() -> None:
    model = TRUTH.denoiser(Uniform(schedules.Flow(), 3))
    for attempt, words in [
        (lambda: sf.sample(model, 3, solver="reveal"), "Only masked symbols are revealed"),
        (lambda: Reveal().plan(MASKED, 3, t_stop=0.2), "ends with all symbols"),
        (lambda: Reveal(order="best"), "in the order 'best'"),
        (lambda: sf.sample(model, 3, solver="ancestral(temperature=-1)"), "temperature above 0"),
        (lambda: sf.sample(model, 3, solver="ancestral(restart=2)"), "between 0 and 1"),
        (lambda: Ancestral(restart=0.5).plan(schedules.Flow(), 3), "for a process of symbols"),
        (
            lambda: [*Reveal().plan(MASKED, 2).run(TRUTH.denoiser(MASKED), torch.full((2, 3), 3), torch.rand)],
            "sf.Noise",
        ),
    ]:
        with pytest.raises(sf.SfumatoError, match=words):
            attempt()
