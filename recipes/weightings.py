"""K2, the weighting dictionary (2303.00848, Table 1): what a trainer implies, counted, against the closed form.

w(logsnr): draw a trainer's t, and add up what its loss puts on |eps - eps_hat|^2 in bins of logsnr
"""

import torch

import sfumato as sf

N, BINS = 60_000, 20


def counted(objective: sf.Objective, edges: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The histogram of w over the bins, and how often each was drawn."""
    law = sf.times.low_discrepancy(objective.times)
    lam = law.logsnr(law.levels(0, torch.arange(N), sf.noise.TRAIN_TIME), objective.schedule)
    schedule, t = objective.schedule, objective.schedule.time(lam)
    row, (alpha, sigma) = sf.target.row(objective.target, schedule, t, objective.sigma_data), schedule(t)
    dy = row.b - row.a * sigma / alpha  # an error of 1 in eps is one of -sigma/alpha in x: this in y
    i = torch.bucketize(lam, edges) - 1
    inside = (i >= 0) & (i < BINS)
    total = torch.zeros(BINS, dtype=torch.float64)
    total.index_add_(0, i[inside], (objective.factor(lam) * dy**2)[inside])
    return total / (N * float(edges[1] - edges[0])), torch.bincount(i[inside], minlength=BINS)


def main() -> float:
    """The largest relative difference in any bin that a trainer fills."""
    cosine, flow = sf.schedules.Cosine(s=0.0), sf.schedules.Flow()
    trainers = {
        "eps-simple": sf.Objective(cosine, "eps"),
        "x-simple": sf.Objective(cosine, "x"),
        "v": sf.Objective(cosine, "v"),
        "flow": sf.Objective(flow, "velocity"),
        "indi": sf.Objective(flow, "x"),
        "sd3-logit-normal": sf.Objective(flow, "velocity", sf.times.logit_normal()),
        "sd3-mode": sf.Objective(flow, "velocity", sf.times.mode()),
        "sd3-cosmap": sf.Objective(flow, "velocity", sf.times.cosmap()),
        "edm": sf.Objective(sf.schedules.EDM(), "F", sf.times.edm(), sigma_data=0.5),
        "ncsn": sf.Objective(sf.schedules.VE(), "eps"),
        "p2": sf.Objective(cosine, "eps", factor=lambda lam: 1 / (1 + lam.exp())),
        "min-snr": sf.Objective(cosine, "x", factor=lambda lam: lam.exp().clamp_max(5.0)),
        "truncated-snr": sf.Objective(cosine, "x", factor=lambda lam: lam.exp().clamp_min(1.0)),
    }
    edges, worst = torch.linspace(-6, 6, BINS + 1, dtype=torch.float64), 0.0
    fine = torch.linspace(-6, 6, BINS * 64 + 1, dtype=torch.float64)
    for name, objective in trainers.items():
        found, drawn = counted(objective, edges)
        w = objective.named(name)((fine[1:] + fine[:-1]) / 2).reshape(BINS, 64).mean(1) * objective.nearest().scale
        off = float((found / w - 1).abs()[drawn > 400].max())
        print(f"{name:<17} {int((drawn > 400).sum()):2d} bins, off by {off:.2%} at most; falls: {objective.monotone}")
        worst = max(worst, off)
    return worst


if __name__ == "__main__":
    main()
