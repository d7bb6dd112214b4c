"""G12, Analog Bits (2208.04202): symbols as their bits, -1 and 1, under Gaussian noise, with the loss of numbers.

Five symbols have three bits, and three of the eight patterns stand for none: the belief is a law over the five, so that
no sample is one of these. With the exact belief the bound of numbers is -log p of the symbols in the mean.
"""

import torch

import sfumato as sf
from sfumato.process import Embedded


def main() -> float:
    """How far the mean bound of the exact belief is from -entropy, in standard errors, and what a network misses."""
    law = sf.exact.Table(torch.rand(5, 5, generator=torch.Generator().manual_seed(0)) ** 3)
    process = Embedded(sf.schedules.Flow(), states=5)
    exact = sf.log_prob(law.denoiser(process), law.states, steps=64, probes=16)
    mean, error = law.probs @ exact.value, (law.probs * exact.stderr).square().sum().sqrt()
    print(f"exact belief: E log p >= {float(mean):.3f} +- {float(error):.3f}, and is {-law.entropy:.3f} nats")
    torch.manual_seed(0)
    net = sf.nets.MLP(*process.net_shape((2,)), width=64, depth=2, outputs=process.outputs)
    model = sf.Denoiser(net, process)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(400):
        loss = sf.denoising_loss(model, law.sample(256, first=256 * step), seed=step).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    drawn = sf.sample(model, 4000, steps=30, solver="heun", batch=4000)
    away = float((torch.bincount(law.place(drawn), minlength=25) / 4000 - law.probs).abs().sum()) / 2
    print(
        f"network: total variation of its samples from the table {away:.3f}; the largest symbol is {int(drawn.max())}"
    )
    return max(abs(float(mean) + law.entropy) / (4 * float(error)), away / 0.15)


if __name__ == "__main__":
    main()
