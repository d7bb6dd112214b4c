"""K7, the noise schedules: one curve each, told apart by logsnr(t), each with its inverse in closed form.

logsnr = log(alpha^2 / sigma^2),   time(logsnr(t)) = t
"""

import torch

import sfumato as sf

S = sf.schedules
CURVES = {
    "LinearBeta": S.LinearBeta(), "Cosine": S.Cosine(), "SubVP": S.SubVP(), "VE": S.VE(), "EDM": S.EDM(),
    "Flow": S.Flow(), "Trig": S.Trig(), "Sigmoid": S.Sigmoid(), "LogLinear": S.LogLinear(), "Laplace": S.Laplace(),
    "Cauchy": S.Cauchy(), "Cosine, shifted by 4": S.Shifted(S.Cosine(), 4.0), "DDPM's table": S.FromBetas.ddpm(),
}  # fmt: skip


def main() -> float:
    """The largest error of the inverse."""
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    worst = 0.0
    print(f"{'logsnr at t =':>22} {'0.1':>8} {'0.5':>8} {'0.9':>8}   |time(logsnr(t)) - t|")
    for name, curve in CURVES.items():
        gap = float((curve.time(curve.logsnr(t)) - t).abs().max())
        print(f"{name:>22} " + " ".join(f"{curve.logsnr(at):8.3f}" for at in (0.1, 0.5, 0.9)) + f"   {gap:.0e}")
        worst = max(worst, gap)
    return worst


if __name__ == "__main__":
    main()
