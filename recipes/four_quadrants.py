"""M4: one variable of 8 levels, with time and data each discrete or continuous, in one unit: bits a symbol.

                    data as numbers                         data as symbols
time in T steps     DDPM's bound, above H by c / T          D3PM's bound, exactly H for a single symbol at any T
continuous time     the variational bound (VDM), H          the path bound of a Markov chain, H

Numbers are noised with Gaussian noise, and their last term is the probability of a level's cell; -log2 p is then a code
length, as for symbols.
"""

import math

import torch

import sfumato as sf


class Levels:
    """The exact model of the levels as numbers, with the data spec that a trained model carries."""

    def __init__(self, prob: torch.Tensor) -> None:
        counts = (prob * 1000).round().long()
        x = torch.arange(8).repeat_interleave(counts)[:, None].to(torch.uint8)
        self.spec = sf.data.DataSpec.fit(sf.data.open(x), torch.arange(len(x)))
        levels = self.spec.normalise(torch.arange(8)[:, None].to(torch.uint8)).double()
        self.inner = sf.exact.Empirical(levels, weights=prob).denoiser(sf.Gaussian(sf.schedules.Cosine()))
        self.process, self.shape = self.inner.process, self.inner.shape

    def __call__(self, z: torch.Tensor, t: float, **cond: torch.Tensor) -> sf.Estimate:
        return self.inner(z, t, **cond)


def main() -> float:
    """The largest distance from H of a bound that should be H, in bits; of an estimate beyond three standard errors."""
    prob = torch.tensor([0.3, 0.05, 0.2, 0.1, 0.02, 0.08, 0.15, 0.1], dtype=torch.float64)
    entropy = float(torch.special.entr(prob).sum()) / math.log(2)
    print(f"entropy {entropy:.4f} bits")
    numbers, each = torch.arange(8)[:, None].to(torch.uint8), prob.repeat(40) / 40  # 40 draws of noise a level
    many, model = numbers.repeat(40, 1), Levels(prob)
    for steps in (50, 200):
        bits = sf.vlb(model, many, steps).bits_per_dim
        print(f"DDPM, {steps} steps: {float(bits @ each):.3f}")
    # down to noise at which the exact belief knows the level, so that the normal around it loses nothing
    bits, error = mean(sf.log_prob(model, many, "elbo", steps=64, probes=2, sigma_min=0.05), each)
    print(f"continuous time, numbers (VDM): {bits:.3f} +- {error:.3f}")
    table, worst = sf.exact.Table(prob), abs(bits - entropy) - 3 * error
    for process in (sf.Masked(sf.schedules.Cosine(), 8), sf.Uniform(sf.schedules.Cosine(), 8)):
        name, denoiser, x = type(process).__name__, table.denoiser(process), table.states
        for steps in (1, 10):
            d3pm = float(prob @ chain(denoiser, table, steps)) / math.log(2)
            print(f"D3PM, {name}, {steps} steps: {d3pm:.6f}")
            worst = max(worst, abs(d3pm - entropy))
        bits, error = mean(sf.log_prob(denoiser, x, steps=64, probes=64), prob)
        print(f"continuous time, {name}: {bits:.4f} +- {error:.4f}")
        worst = max(worst, abs(bits - entropy) - 3 * error)
    return worst


def mean(found: sf.Measured, weights: torch.Tensor) -> tuple[float, float]:
    """(bits, standard error) of the weighted mean."""
    return float(found.bits_per_dim @ weights), float((found.stderr * weights).norm()) / math.log(2)


def chain(model: sf.exact.TableDenoiser, table: sf.exact.Table, steps: int) -> torch.Tensor:
    """The bound of `steps` steps in nats for each level, (8,): a sum over all states."""
    process, x = model.process, table.states
    states, bound = torch.arange(process.size)[:, None].repeat(8, 1), sf.nonequilibrium.terminal_kl(model.process, x)
    for i in range(1, steps + 1):
        terms = sf.nonequilibrium.step_kl(
            model, x.repeat_interleave(process.size, 0), states, (i - 1) / steps, i / steps
        )  # fmt: skip
        kernel = table.kernel(process, 0.0, i / steps)
        bound = bound + torch.where(kernel > 0, kernel * terms.reshape(8, -1), 0.0).sum(1)
    return bound


if __name__ == "__main__":
    main()
