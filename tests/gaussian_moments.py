"""Mean and variance of every state of a walk on Gaussian data, exactly: the walk is affine in its draws.

Each row of the batch follows one draw set to 1 and the others to 0, through the real loop and the real model.
"""

import torch

from sfumato.exact import GaussianMixture
from sfumato.process import Gaussian

MEAN, VARIANCE = 0.7, 0.3


def gaussian(mean=MEAN, variance=VARIANCE):
    return GaussianMixture([1.0], [[mean]], variance)


def marginal(schedule, t, mean=MEAN, variance=VARIANCE):
    """(mean, variance) of z_t."""
    alpha, sigma = (float(c) for c in schedule(t))
    return alpha * mean, alpha**2 * variance + sigma**2


def follow(plan, schedule, start=None, mean=MEAN, variance=VARIANCE):
    """[(mean, variance)] of the state at each call and at the end; `start` is that of the first, or the prior's."""
    model = gaussian(mean, variance).denoiser(Gaussian(schedule))
    first = start or (0.0, float(schedule.sigma(1.0)) ** 2)
    z = torch.full((len(plan.times) + 2, 1), first[0], dtype=torch.float64)
    z[1] += first[1] ** 0.5

    def one(call, like):
        out = torch.zeros_like(like)
        out[2 + call] = 1.0
        return out

    walk = plan.walk if hasattr(plan, "walk") else plan.run
    rows = [state.z[:, 0].clone() for state in walk(model, z, one)]
    return [(float(r[0]), float((r[1:] - r[0]).square().sum())) for r in rows]


def gaps(solver, schedule, counts, t_start=0.9, t_stop=0.1):
    """|error of the mean| + |error of the variance| at t_stop, from the exact law at t_start, for numbers of steps."""
    goal, out = marginal(schedule, t_stop), []
    for steps in counts:
        last = follow(solver.plan(schedule, steps, t_start, t_stop), schedule, marginal(schedule, t_start))[-1]
        out.append(abs(last[0] - goal[0]) + abs(last[1] - goal[1]))
    return out
