"""D1, flow matching (2210.02747): train a velocity on the straight path and compare it with the exact one.

z = (1 - t) x + t eps,   L = E |u(z, t) - (eps - x)|^2,   u* = E[eps - x | z]
"""

import torch

import sfumato as sf


def main() -> float:
    """E |u - u*|^2 / E |u*|^2 at t = 0.5 after 300 steps."""
    truth = sf.exact.GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], [0.2, 0.1])
    torch.manual_seed(0)
    process = sf.Gaussian(sf.schedules.Flow())
    denoiser = sf.Denoiser(sf.nets.MLP(2, 128, 3), process, target="velocity")
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=3e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    for step in range(300):
        x = truth.sample(256, first=256 * step).float()
        loss = sf.denoising_loss(denoiser, x, index=range(256 * step, 256 * step + 256)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
        if step % 100 == 0:
            print(f"step {step:4d}: loss {loss.item():.4f}")
    z = truth.sample(2000, seed=1, process=process, t=0.5)
    with torch.no_grad():
        learnt = denoiser(z.float(), 0.5).velocity
    exact = truth.denoiser(process)(z, 0.5).velocity
    found = float((learnt - exact).square().mean() / exact.square().mean())
    print(f"E |u - u*|^2 / E |u*|^2 at t = 0.5: {found:.4f}")
    return found


if __name__ == "__main__":
    main()
