"""B1, a score that is a gradient by construction: y = grad_x <x, f(x)> for any network f; log p_t at one call.

log p_t(z) - log p_t(z') = U_t(z') - U_t(z)   (Salimans and Ho 2021, "Should EBMs model the energy or the score?")
"""

import torch

import sfumato as sf


def asymmetry(denoiser: sf.Denoiser, z: torch.Tensor, t: float) -> float:
    """|J - J^T| / |J| of the score's Jacobian at one point."""
    j = torch.autograd.functional.jacobian(lambda z: denoiser(z, t).score[0], z)[:, 0]
    return float((j - j.T).norm() / j.norm())


def main() -> float:
    """The standard deviation of U_t + log p_t at t = 0.5, in nats; that of log p_t is about one."""
    truth = sf.exact.GaussianMixture([0.4, 0.6], [[-1.0, 0.4], [0.9, -0.2]], [0.15, 0.1])
    process, steps, batch = sf.Gaussian(sf.schedules.Cosine()), 300, 128
    x = truth.sample(steps * batch, seed=1).float()
    for net in (sf.nets.MLP(2, 48, 2), sf.nets.Energy(sf.nets.MLP(2, 48, 2))):
        torch.manual_seed(0)
        denoiser = sf.Denoiser(net, process)
        optimizer = torch.optim.Adam(denoiser.parameters(), lr=4e-3)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 4e-3 * (1 - step / steps)
            index = torch.arange(step * batch, (step + 1) * batch)
            optimizer.zero_grad()
            sf.denoising_loss(denoiser, x[index], index=index).mean().backward()
            optimizer.step()
        z = torch.tensor([[0.3, 0.5]])
        print(f"{type(net).__name__}: the Jacobian of its score is symmetric to {asymmetry(denoiser, z, 0.3):.1e}")
    z = truth.sample(2000, seed=9, process=process, t=0.5)
    with torch.no_grad():
        off = sf.energy(denoiser, z.float(), 0.5) + truth.log_prob(z, process=process, t=0.5)
    found = float(off.std())
    print(
        f"log p_0.5 at one call: {found:.3f} nats, beside {float(truth.log_prob(z, process=process, t=0.5).std()):.2f}"
    )
    return found


if __name__ == "__main__":
    main()
