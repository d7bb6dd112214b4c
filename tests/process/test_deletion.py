"""Strings that lose symbols and get them back, against sums over all strings of up to three symbols."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

import sfumato as sf
from sfumato import schedules
from sfumato.exact.strings import Strings
from sfumato.process import Deletion, from_config

F64 = torch.float64
FLOW, COSINE = schedules.Flow(), schedules.Cosine()


def strings(symbols: int, length: int) -> list[tuple[int, ...]]:
    return [string for n in range(length + 1) for string in itertools.product(range(symbols), repeat=n)]


def law(symbols: int = 2, length: int = 3, seed: int = 3) -> Strings:
    every = strings(symbols, length)
    probs = torch.rand(len(every), generator=torch.Generator().manual_seed(seed), dtype=F64) ** 2
    return Strings(dict(zip(every, probs.tolist(), strict=True)), symbols)


TRUTH = law()


def matrix(process: Deletion, truth: Strings, t: float) -> torch.Tensor:
    """q(z_t | x) for all pairs: rows x, columns z."""
    x, z = torch.broadcast_tensors(truth.states[:, None], truth.states)
    return process.log_marginal(z, x, t).exp()


def test_the_kernel_sums_over_all_that_may_be_lost_and_composes() -> None:
    process, a = Deletion(COSINE, 4), 0.6
    truth = law(3)
    wanted = torch.zeros(len(truth.states), len(truth.states), dtype=F64)
    t = float(process.clock.time(torch.tensor(math.log(a / (1 - a)), dtype=F64)))
    every = strings(3, 3)
    for i, x in enumerate(every):
        for kept in itertools.product((0, 1), repeat=len(x)):
            z = tuple(itertools.compress(x, kept))
            wanted[i, every.index(z)] += a ** sum(kept) * (1 - a) ** (len(x) - sum(kept))
    torch.testing.assert_close(matrix(process, truth, t), wanted, rtol=0, atol=1e-14)
    # alpha is the product of those of two steps: a chain
    root = float(process.clock.time(torch.tensor(math.log(a**0.5 / (1 - a**0.5)), dtype=F64)))
    step = matrix(process, truth, root)
    torch.testing.assert_close(step @ step, wanted, rtol=0, atol=1e-14)


def test_what_is_missing_is_the_mean_over_all_embeddings() -> None:
    process, end = Deletion(FLOW, 3), 2
    x = torch.tensor([[0, 1, 0, 0, 1, end]])
    for kept in ((0, 4), (2,), (), (0, 1, 2, 3, 4), (1, 3)):
        part = [int(x[0, i]) for i in kept]
        z = torch.tensor([[*part, *[end] * (6 - len(part))]])
        wanted, ways = torch.zeros(6, 2, dtype=F64), 0
        for places in itertools.combinations(range(5), len(part)):
            if [int(x[0, i]) for i in places] == part:
                ways += 1
                for i in set(range(5)) - set(places):
                    wanted[sum(place < i for place in places), x[0, i]] += 1
        torch.testing.assert_close(process.missing(x, z)[0], wanted / ways, rtol=0, atol=1e-15)
    assert float(process.missing(x, torch.tensor([[1, 1, 1, end, end, end]])).abs().sum()) == 0  # no part of x


@pytest.mark.parametrize("curve", [FLOW, COSINE])
def test_the_path_kl_of_the_exact_belief_is_the_entropy(curve: schedules.Schedule) -> None:
    """int E rate dlevel = -log p(x) for every single string."""
    process, truth, n = Deletion(curve, 3), TRUTH, len(TRUTH.states)
    model, total = truth.denoiser(process), torch.zeros(n, dtype=F64)
    node = torch.linspace(-34, 34, 250, dtype=F64)
    x = truth.states.repeat_interleave(n, 0)
    for level in node.tolist():
        t = float(process.clock.time(torch.tensor(level, dtype=F64)))
        belief = model(truth.states, t).rows(torch.arange(n).repeat(n))
        rate = process.rate(belief, x).sum(1).reshape(n, n)
        total += float(node[1] - node[0]) * (matrix(process, truth, t) * rate).sum(1)
    torch.testing.assert_close(total, -truth.log_prob(truth.states), rtol=0, atol=1e-8)


def law_of_samples(process: Deletion, truth: Strings, steps: int) -> torch.Tensor:
    """The exact law of samples by so many steps, over all insertions."""
    model, length = truth.denoiser(process), truth.states.shape[1]
    every = torch.cartesian_prod(*[torch.arange(process.states)] * length).reshape(-1, length)
    reached = torch.zeros(len(truth.states), dtype=F64)
    reached[0] = 1.0
    for i in range(steps, 0, -1):
        each = process.law(model(truth.states, i / steps), (i - 1) / steps)
        after = torch.zeros_like(reached)
        for z, gaps, here in zip(truth.states, each, reached, strict=True):
            chance = gaps[torch.arange(length), every].prod(1)
            both = torch.stack((every, z.expand_as(every)), -1).flatten(1)
            full = process._joined(both)[:, :length]
            after.index_add_(0, truth.place(full), here * chance)
        reached = after
    return reached


def test_samples_approach_the_law_with_the_steps() -> None:
    process = Deletion(FLOW, 3)
    away = [float((law_of_samples(process, TRUTH, n) - TRUTH.probs).abs().sum()) / 2 for n in (4, 16, 64, 128)]
    assert away[0] > 2 * away[1] > 4 * away[2] and 1.8 < away[2] / away[3] < 2.2 and away[3] < 0.02
    short = law(3, 1)
    torch.testing.assert_close(law_of_samples(Deletion(FLOW, 4), short, 1), short.probs, rtol=0, atol=1e-14)


def test_draws_have_the_laws_they_are_drawn_from() -> None:
    process, n = Deletion(FLOW, 3), 100_000
    x = torch.tensor([[0, 1, 1]]).expand(n, 3)
    z = process.corrupt(x, 0.4, sf.Noise(1, torch.arange(n)))
    wanted = matrix(process, TRUTH, 0.4)[TRUTH.place(x[:1])[0]]
    found = torch.bincount(TRUTH.place(z), minlength=len(wanted))
    some = wanted > 0
    assert int(found[~some].sum()) == 0 and stats.chisquare(found[some], n * wanted[some]).pvalue > 0.01
    assert torch.equal(process.corrupt(x, 0.0, sf.Noise(1, torch.arange(n))), x)
    drawn = sf.sample(TRUTH.denoiser(process), 20_000, steps=8, seed=2, batch=20_000)
    exact = law_of_samples(process, TRUTH, 8)
    found = torch.bincount(TRUTH.place(drawn), minlength=15)
    some = exact > 0
    assert int(found[~some].sum()) == 0 and stats.chisquare(found[some], 20_000 * exact[some]).pvalue > 0.01


def test_several_insertions_in_a_gap_are_as_many_as_are_missing_on_average() -> None:
    n, length, mean = 20_000, 6, torch.tensor([1.75, 0.5], dtype=F64)  # 2.25 symbols, of which 7 of 9 are 0
    noise, z = sf.Noise(4, torch.arange(n)), torch.full((n, length), 2)
    y = torch.cat([mean.log(), torch.zeros(1, dtype=F64)]).expand(n, length, 3)
    process = Deletion(FLOW, 3, insertions=4)
    drawn = process.inserted(process.read(y, z, 1.0), 0.0, noise)
    count = (drawn != 2).sum(1)
    assert set(count.tolist()) == {2, 3} and abs(float((count == 3).double().mean()) - 0.25) < 0.015
    assert abs(float((drawn == 0).sum() / count.sum()) - 7 / 9) < 0.01
    half = process.inserted(process.read(y, z, 1.0), 0.6, noise)  # rho = 0.4: 0.9 of a symbol
    assert abs(float((half != 2).sum(1).double().mean()) - 0.9) < 0.01 and int((half != 2).sum(1).max()) == 1
    some = torch.arange(3)
    part = process.inserted(process.read(y, z, 1.0).rows(some), 0.0, noise.rows(some))
    assert torch.equal(part, drawn[:3])  # whatever the batch
    assert bool(
        ((Deletion(FLOW, 3, insertions=2).inserted(process.read(y, z, 1.0), 0.0, noise) != 2).sum(1) == 2).all()
    )
    assert from_config(process.config()) == process
    plain = Deletion(FLOW, 3).config()
    del plain["args"]["insertions"]  # as files of before say
    assert from_config(plain) == Deletion(FLOW, 3)
    with pytest.raises(sf.SfumatoError, match="several numbers a gap"):
        process.inserted(process.read(y, z, 1.0), 0.0, torch.zeros(n, length))
    with pytest.raises(sf.SfumatoError, match="insertions in a gap"):
        Deletion(FLOW, 3, insertions=0)


def test_nothing_behind_the_end_matters() -> None:
    process = Deletion(COSINE, 3)
    z, x = torch.tensor([[0, 2, 2, 2]]), torch.tensor([[1, 0, 2, 2]])
    y = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0))
    other = y.clone()
    other[:, 2:] += 1.0
    beliefs = [process.read(each, z, 0.5) for each in (y, other)]
    assert torch.equal(process.rate(beliefs[0], x), process.rate(beliefs[1], x))
    assert torch.equal(process.law(beliefs[0], 0.2), process.law(beliefs[1], 0.2))
    assert float(process.rate(beliefs[0], x)[:, 2:].abs().max()) == 0
    full = process.read(y + 50, torch.tensor([[0, 1, 0, 1]]), 0.5)
    assert process.inserted(full, 0.0, torch.zeros(1, 4)).shape == (1, 4)


def test_a_reconstruction_is_that_of_poisson_insertions() -> None:
    process, truth = Deletion(FLOW, 4), law(3, 1)
    belief = truth.denoiser(process)(torch.full((4, 1), 3), 0.3)
    mean = belief.mean[0, 0]
    torch.testing.assert_close(belief.nats(truth.states), mean.sum() - torch.cat((mean.new_zeros(1), mean.log())))


def test_log_prob_is_a_bound_and_an_equality_for_the_exact_belief() -> None:
    process = Deletion(FLOW, 3)
    found = sf.log_prob(TRUTH.denoiser(process), TRUTH.states, steps=32, probes=16)
    mean, error = TRUTH.probs @ found.value, (TRUTH.probs * found.stderr).square().sum().sqrt()
    assert float(error) < 0.1 and abs(float(mean) + TRUTH.entropy) < 4 * float(error)


def test_what_are_no_strings_is_refused() -> None:
    process = Deletion(FLOW, 3)
    for x in ([[0, 2, 1]], [[2, 0, 2]]):
        with pytest.raises(sf.SfumatoError, match="with 2 behind their end alone"):
            process.data(torch.tensor(x))
    with pytest.raises(sf.SfumatoError, match="integers from 0 to 2"):
        process.data(torch.tensor([[0, 3]]))
    with pytest.raises(sf.SfumatoError, match="must replace all"):
        Deletion(schedules.LinearBeta(), 3)
    assert from_config(process.config()) == process


@pytest.mark.first(1)
@pytest.mark.parametrize("net", ["MLP(width=32, depth=1)", "Transformer(width=32, depth=1)"])
def test_a_network_learns_strings(net: str, tmp_path) -> None:
    """Words of up to three symbols, of which the lengths are far from those of independent symbols."""
    truth = Strings({(): 0.1, (0, 1): 0.3, (1, 1, 0): 0.3, (0,): 0.05, (0, 0, 1): 0.25}, 2)
    x = truth.sample(3000)
    x = x[:, None] if "Transformer" in net else x
    run = sf.train(
        x.numpy(), tmp_path / "run", process="deletion", net=net, steps=300, batch=128, precision="float32", lr=0.01
    )
    drawn = sf.sample(sf.load(tmp_path / "run"), 3000, steps=64, batch=3000)
    assert drawn.shape[1:] == x.shape[1:] and run.denoiser.process.states == 3
    found = {tuple(row) for row in truth.states.tolist()}
    rows = [tuple(row) for row in drawn.flatten(1).tolist()]
    share = torch.tensor([rows.count(tuple(row)) for row in truth.states.tolist()], dtype=F64) / len(rows)
    wrong = sum(row not in found for row in rows) / len(rows)
    assert wrong < 0.1 and float((share - truth.probs).abs().max()) < 0.06


def test_data_that_are_no_strings_leave_no_folder(tmp_path) -> None:
    rows = np.tile([[0, 2, 1, 2]], (40, 1))
    rows[35:] = [2, 0, 2, 2]  # a symbol behind the end, in the last rows alone
    with pytest.raises(sf.SfumatoError, match="The data of a deletion process are strings"):
        sf.train(rows, tmp_path / "run", process="deletion", net="MLP(width=16, depth=1)", steps=2, batch=8)
    assert not (tmp_path / "run").exists()
