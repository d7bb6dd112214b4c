"""G11, masked diffusion in continuous time (2406.07524, 2406.04329): symbols are hidden, and revealed again.

On a table of 3 symbols the exact belief makes the bound int -alpha' / (1 - alpha) E sum_masked -log p(x_i | z) dt an
equality; a network trained on it draws the table's law.
"""

import torch

import sfumato as sf


def main() -> float:
    """How far the mean bound of the exact belief is from -entropy, in standard errors, and what a network misses."""
    law = sf.exact.Table(torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(0)) ** 3)
    process = sf.Masked(sf.schedules.Flow(), states=3)
    exact = sf.log_prob(law.denoiser(process), law.states, steps=32, probes=16)
    mean, error = law.probs @ exact.value, (law.probs * exact.stderr).square().sum().sqrt()
    print(f"exact belief: E log p >= {float(mean):.3f} +- {float(error):.3f}, and is {-law.entropy:.3f} nats")
    torch.manual_seed(0)
    model = sf.Denoiser(sf.nets.MLP(*process.net_shape((3,)), width=64, depth=2), process)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(400):
        x = law.sample(256, first=256 * step)
        loss = sf.denoising_loss(model, x, seed=step).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    drawn = sf.sample(model, 4000, steps=50, batch=4000)
    found = torch.bincount(law.place(drawn), minlength=27).double() / 4000
    away = float((found - law.probs).abs().sum()) / 2
    print(f"network: total variation of its samples from the table {away:.3f}, half of it chance")
    print(sf.log_prob(model, drawn[:200], steps=16))
    return max(abs(float(mean) + law.entropy) / (4 * float(error)), away / 0.15)


if __name__ == "__main__":
    main()
