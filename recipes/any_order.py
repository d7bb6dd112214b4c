"""G5, order-agnostic autoregression (ARDM, 2110.02037): one network for all orders, and several symbols a call.

On a table of 6 symbols: revealed one a call every order has the exact law, several together lose what the entropies
say, and a dynamic programme finds the sizes of the calls that lose least. A network learns it from counts of masks.
"""

import itertools

import torch

import sfumato as sf
from sfumato.objectives.counts import masked_loss
from sfumato.tuning import masks


def entropies(table: sf.exact.Table, process: sf.Masked) -> torch.Tensor:
    """c(m), the mean entropy of a masked symbol where m of D are masked, over all sets of masks: (D + 1,)."""
    dim, c = table.dim, torch.zeros(table.dim + 1, dtype=torch.float64)
    for m in range(1, dim + 1):
        sets = list(itertools.combinations(range(dim), m))
        for hidden in sets:
            at = torch.isin(torch.arange(dim), torch.tensor(hidden))
            belief = table.denoiser(process)(torch.where(at, process.mask, table.states), 0.5)
            c[m] += table.probs @ belief.entropy[:, at].mean(1) / len(sets)
    return c


def main() -> float:
    """The largest of three: the bound less the entropy, the sum of c less the entropy, a network's distance / 0.25."""
    table = sf.exact.Table(torch.rand([2] * 6, generator=torch.Generator().manual_seed(0)) ** 4)
    process = sf.Masked(sf.schedules.Flow(), 2)
    exact, c = table.denoiser(process), entropies(table, process)
    chain = abs(float(c.sum()) - table.entropy)
    bound = sf.log_prob(exact, table.states, steps=18, probes=8)
    apart = abs(float(table.probs @ bound.value) + table.entropy) / (4 * float((table.probs * bound.stderr).norm()))
    print(f"entropy {table.entropy:.4f} nats = sum of c(m) to {chain:.0e}; the bound within {4 * apart:.1f} errors")
    for calls in (1, 2, 3, 6):
        left, nats = masks.best(c.numpy(), calls)
        even = masks.loss(c.numpy(), masks.even(6, calls))
        print(f"{calls} calls: masks left {left}, KL {nats:.4f} nats; of equal sizes {even:.4f}")

    torch.manual_seed(0)
    model = sf.Denoiser(sf.nets.MLP(*process.net_shape((6,)), width=64, depth=2), process)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(600):
        x = table.sample(256, first=256 * step)
        loss = masked_loss(model, x, seed=step, index=range(256 * step, 256 * (step + 1))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    away = 0.0
    for order in ("left-to-right", "random"):
        drawn = sf.sample(model, 4000, steps=6, solver=f"reveal(order={order})", batch=4000)
        found = torch.bincount(table.place(drawn), minlength=64).double() / 4000
        away = max(away, float((found - table.probs).abs().sum()) / 2)
        print(f"network, {order}: total variation {float((found - table.probs).abs().sum()) / 2:.3f}, of it chance .05")
    return max(chain / 1e-12, apart, away / 0.25)


if __name__ == "__main__":
    main()
