"""C10, a continuous normalising flow (1806.07366, 1810.01367): one field, trained through the ODE or without a solve.

max log p(x) = log N(z_1; 0, sigma_1^2) + D log(alpha_0 S_1 / S_0) + int tr(dy/dw) dtau   against   E |u - (eps - x)|^2
"""

import torch

import sfumato as sf
from sfumato.conditions import Conditions
from sfumato.objectives.loss import Batch
from sfumato.objectives.max_likelihood import MaximumLikelihood

TRUTH = sf.exact.GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], [0.2, 0.1])


def trained(loss, steps: int, rate: float):
    """A network of the flow after so many steps of loss(model, batch)."""
    torch.manual_seed(0)
    model = sf.Denoiser(sf.nets.MLP(2, 48, 2), sf.Gaussian(sf.schedules.Flow(), "velocity"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for step in range(steps):
        index = torch.arange(64 * step, 64 * step + 64)
        batch = Batch(TRUTH.sample(64, first=64 * step).float(), Conditions({}), index, torch.empty(0))
        optimizer.zero_grad()
        loss(model, batch).mean().backward()
        optimizer.step()
    return model


def main() -> float:
    """How far either is from the entropy of the law, the larger, in nats."""
    likelihood = MaximumLikelihood(steps=8)
    through = trained(likelihood.losses, 60, 0.005)
    without = trained(lambda model, batch: sf.denoising_loss(model, batch.x, index=batch.index), 400, 0.003)
    x = TRUTH.sample(500, seed=1).float()
    best = float(TRUTH.log_prob(x.double()).mean())
    gaps = [best - float(sf.log_prob(model, x, steps=24).value.mean()) for model in (through, without)]
    print(f"below the law's log p: {gaps[0]:.3f} nats after 60 steps of {4 * likelihood.steps} calls each, "
          f"{gaps[1]:.3f} after 400 steps of one call")  # fmt: skip
    return max(gaps)


if __name__ == "__main__":
    main()
