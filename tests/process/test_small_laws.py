"""Two to five symbols, and other lengths than three: what `test_family` proves on one table, on correlated others."""

import itertools

import pytest
import torch

from sfumato import schedules
from sfumato.exact import Table
from sfumato.objectives.counts import masked_loss
from sfumato.process import Hybrid, Ladder, Marginal, Masked, Uniform
from sfumato.solvers.reveal import DRAWN, ORDERS, SIZES, Reveal
from symbol_cases import F64, distance, path_kl, revealed, sampled

FLOW, COSINE = schedules.Flow(), schedules.Cosine()
KINDS = {
    "masked": lambda k: Masked(COSINE, k),
    "uniform": lambda k: Uniform(FLOW, k),
    "marginal": lambda k: Marginal(COSINE, k, weights=tuple(range(1, k + 1))),
    "hybrid": lambda k: Hybrid(FLOW, k),
    "ladder": lambda k: Ladder(COSINE, k),
}
SIZED = pytest.mark.parametrize(("symbols", "dim"), [(2, 4), (3, 3), (4, 2), (5, 2)])


def law(symbols: int, dim: int) -> Table:
    generator = torch.Generator().manual_seed(symbols)
    return Table(torch.rand([symbols] * dim, generator=generator, dtype=F64) ** 3)


@SIZED
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_and_the_path_kl_are_exact(kind: str, symbols: int, dim: int) -> None:
    """bridge = p(z_s,i | z_t) of the joint chain, and int E rate dlevel = -log p(x) for every x."""
    table, process = law(symbols, dim), KINDS[kind](symbols)
    states = table.noisy(process)
    step = process.bridge(table.denoiser(process)(states, 0.6), 0.2).nan_to_num(0.0)
    torch.testing.assert_close(step, table.marginals(table.reverse(process, 0.2, 0.6)), rtol=0, atol=1e-13)
    wanted, atol = -table.log_prob(table.states), 1e-11 if kind == "masked" else 1e-7
    torch.testing.assert_close(path_kl(table, process), wanted, rtol=0, atol=atol)


@SIZED
def test_exact_counts_of_masks_are_log_p_and_one_a_call_is_the_law(symbols: int, dim: int) -> None:
    table, process = law(symbols, dim), Masked(FLOW, symbols)
    orders = torch.tensor(list(itertools.permutations(range(dim))), dtype=F64)
    each = dim * len(orders)
    u = ((torch.arange(dim, dtype=F64) + 0.5) / dim).repeat_interleave(len(orders)).repeat(len(table.states))
    x, eps = table.states.repeat_interleave(each, 0), orders.repeat(dim * len(table.states), 1)
    nats = masked_loss(table.denoiser(process), x, u, eps=eps).reshape(-1, each).mean(1)
    torch.testing.assert_close(nats, -table.log_prob(table.states), rtol=0, atol=1e-12)
    for order in [order for order in ORDERS if order not in DRAWN]:
        assert distance(revealed(table, process, Reveal(order=order), dim), process, table) < 1e-14, order


@pytest.mark.parametrize("order", [order for order in ORDERS if order not in DRAWN])
@pytest.mark.parametrize("sizes", SIZES)
def test_independent_symbols_are_exact_in_any_number_of_calls(order: str, sizes: str) -> None:
    alone = torch.tensor([0.5, 0.3, 0.2], dtype=F64)
    table, process = Table(torch.einsum("i,j,k->ijk", alone, alone.flip(0), alone.roll(1))), Masked(FLOW, 3)
    for calls in (1, 2, 3):
        assert distance(revealed(table, process, Reveal(order=order, sizes=sizes), calls), process, table) < 1e-14


@pytest.mark.parametrize("curve", [FLOW, COSINE])
def test_a_pair_errs_by_the_chance_that_one_step_reveals_both(curve: schedules.Schedule) -> None:
    """TV = TV(p, p_1 p_2) sum over steps of (alpha_s - alpha_t)^2, which is 1 / T for alpha = 1 - t."""
    table, process = law(3, 2), Masked(curve, 3)
    apart = torch.einsum("i,j->ij", *(table.marginals(table.probs[None])[0])).flatten()
    most = float((apart - table.probs).abs().sum()) / 2
    for calls in (1, 3, 8):
        keep = process.keep(torch.linspace(1, 0, calls + 1, dtype=F64))
        together = float(keep.diff().square().sum())
        assert together == pytest.approx(1 / calls) or curve is COSINE
        error = sampled(process, calls, process.bridge, table)
        assert error == pytest.approx(most * together, abs=1e-14)
