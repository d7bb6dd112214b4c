"""A7, the forward jump and the posterior (2006.11239, Eq. 6-7), beside Bayes' rule on a grid.

q(z_s | z_t, x) ~ q(z_t | z_s) q(z_s | x)
"""

import torch

import sfumato as sf


def main() -> float:
    """The largest error of the posterior's mean and standard deviation."""
    worst = 0.0
    for schedule in (sf.schedules.LinearBeta(), sf.schedules.VE(), sf.schedules.Flow()):
        process, x, s, t = sf.Gaussian(schedule), 0.7, 0.4, 0.6
        (alpha_s, sigma_s), jump, step = schedule(s), process.jump(s, t), process.posterior(s, t)
        z_t = float(jump.alpha * alpha_s * x + jump.sigma)
        mean = float(step.z * z_t + step.x * x)
        z_s = mean + float(step.std) * torch.linspace(-12, 12, 20001, dtype=torch.float64)
        log = -0.5 * ((z_t - jump.alpha * z_s) / jump.sigma) ** 2 - 0.5 * ((z_s - alpha_s * x) / sigma_s) ** 2
        p = torch.softmax(log, 0)
        bayes = float((p * z_s).sum())
        std = float((p * (z_s - bayes) ** 2).sum().sqrt())
        name = type(schedule).__name__
        print(f"{name:>10}: mean {mean:.9f}, by Bayes {bayes:.9f}; std {step.std:.9f}, by Bayes {std:.9f}")
        worst = max(worst, abs(mean - bayes), abs(float(step.std) - std))
    return worst


if __name__ == "__main__":
    main()
