"""M3, the same weights under the VP, VE and flow conventions give the same samples: equal logsnr, equal information.

z_VE = z_VP / alpha,   z_flow = z_VP / (alpha + sigma)
"""

import torch

import sfumato as sf


def main() -> float:
    """The largest difference between samples, relative to their spread."""
    torch.manual_seed(0)
    net = sf.nets.MLP(2, 64, 2)
    with torch.no_grad():
        for p in net.parameters():  # a network that does something, as after training
            p.add_(0.2 * torch.randn_like(p))
    vp = sf.schedules.Cosine()
    base = sf.Denoiser(net, sf.Gaussian(vp), target="v")
    noise, start, stop = torch.randn(100, 2), 0.95, 0.02
    samples = {}
    for schedule in (vp, sf.schedules.VE(), sf.schedules.Flow()):
        t_start, t_stop = (float(schedule.time(vp.logsnr(t))) for t in (start, stop))
        scale_0, scale_1 = (float(schedule.sigma(s) / vp.sigma(t)) for s, t in ((t_start, start), (t_stop, stop)))
        solver = sf.solvers.DDIM(grid=sf.solvers.grids.LogSNR())
        model = sf.Rescheduled(base, schedule)
        z = sf.sample(model, steps=20, solver=solver, z=scale_0 * noise, t_start=t_start, t_stop=t_stop)
        samples[type(schedule).__name__] = z / scale_1
        print(f"{type(schedule).__name__:>7}: first sample {(z / scale_1)[0].tolist()}")
    first, *others = samples.values()
    worst = max(float((other - first).abs().max() / first.std()) for other in others)
    print(f"largest difference: {worst:.1e} of the spread")
    return worst


if __name__ == "__main__":
    main()
