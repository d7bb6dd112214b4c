"""K6, SD3's ways to draw t (2403.03206, Eq. 19-21, 23), stated in logsnr so that a schedule changes nothing.

logit-normal: logsnr ~ N(-2m, 4s^2);   mode: t = 1 - u - s (cos^2(pi u/2) - 1 + u)
cosmap: t = 1 - 1/(tan(pi u/2) + 1)
shift: t -> f t / (1 + (f - 1) t) is logsnr -> logsnr - 2 log f
"""

import math

import torch

import sfumato as sf


def main() -> float:
    """The largest difference from the published densities p(t), and from the published shift."""
    flow, t = sf.schedules.Flow(), torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    lam = flow.logsnr(t)
    to_time = 2 / (t * (1 - t))  # |dlogsnr/dt| of the flow
    logit = torch.log(t / (1 - t))
    gaps = {
        "logit-normal": sf.times.logit_normal(0.3, 0.8).pdf(lam) * to_time
        - torch.exp(-((logit - 0.3) ** 2) / (2 * 0.64)) / (0.8 * math.sqrt(2 * math.pi) * t * (1 - t)),
        "cosmap": sf.times.cosmap().pdf(lam) * to_time - 2 / (math.pi - 2 * math.pi * t + 2 * math.pi * t**2),
    }
    u = torch.linspace(0.01, 0.99, 99, dtype=torch.float64, requires_grad=True)
    for s in (-0.5, 0.8, 1.29):
        f = 1 - u - s * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u)
        (rate,) = torch.autograd.grad(f.sum(), u)
        at = f.detach()
        gaps[f"mode {s}"] = sf.times.mode(s).pdf(flow.logsnr(at)) * 2 / (at * (1 - at)) - 1 / rate.abs()
    factor = 3.0
    gaps["shift 3"] = sf.schedules.Shifted(flow, factor).logsnr(t) - flow.logsnr(factor * t / (1 + (factor - 1) * t))
    for name, gap in gaps.items():
        print(f"{name:<13} off by {float(gap.abs().max()):.1e}")
    draws = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    levels = [sf.times.mode().logsnr(draws, curve) for curve in (flow, sf.schedules.Trig())]
    gaps["schedule"] = levels[0] - levels[1]
    print(f"levels drawn under another schedule differ by {float(gaps['schedule'].abs().max()):.1e}")
    return max(float(gap.abs().max()) for gap in gaps.values())


if __name__ == "__main__":
    main()
