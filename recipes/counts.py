"""G10, Blackout diffusion (2305.11089): counts lose their units one by one, and are born again from nothing.

Poisson counts miss a Poisson number whatever is left of them, so that one step samples them exactly. Of a mixture of
them the exact belief makes the bound int -alpha' / (1 - alpha) E[m log(m / mu) - m + mu] dt, m = x - z, an equality.
"""

import torch

import sfumato as sf
from sfumato.process import Counts


def main() -> float:
    """The largest of three differences, each over what it may be: one step, the bound, a network's samples."""
    states = 20
    process = Counts(sf.schedules.Flow(), states)
    k = torch.arange(states, dtype=torch.float64)
    few, many = (torch.exp(k * torch.tensor(rate).log() - rate - torch.lgamma(k + 1)) for rate in (1.5, 7.0))

    poisson = sf.exact.Table(few)
    belief = poisson.denoiser(process)(torch.zeros(1, 1, dtype=torch.int64), 1.0)
    step = float((process.bridge(belief, 0.0)[0, 0] - poisson.probs).abs().max())
    print(f"Poisson counts by one step: off by {step:.0e}")

    law = sf.exact.Table(0.5 * few[:, None] * many + 0.5 * many[:, None] * few)
    x = law.sample(200)
    found = sf.log_prob(law.denoiser(process), x, steps=16, probes=4)
    apart, error = float((found.value - law.log_prob(x)).mean()), float(found.stderr.square().mean().sqrt()) / 200**0.5
    print(f"exact belief: log p >= {float(found.value.mean()):.3f} nats, {apart:+.3f} +- {error:.3f} from log p itself")

    torch.manual_seed(0)
    model = sf.Denoiser(sf.nets.MLP(*process.net_shape((2,)), width=64, depth=1), process)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for i in range(300):
        loss = sf.denoising_loss(model, law.sample(256, first=256 * i), seed=i).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    drawn = sf.sample(model, 4000, steps=30, batch=4000)
    away = float((torch.bincount(law.place(drawn), minlength=states**2) / 4000 - law.probs).abs().sum()) / 2
    print(f"network: total variation of its samples from the law {away:.3f}, half of it chance")
    return max(step / 1e-12, abs(apart) / (4 * error), away / 0.2)


if __name__ == "__main__":
    main()
