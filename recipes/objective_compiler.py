"""K1, the objective compiler (2303.00848): what any (schedule, target, time density, weight) really minimises.

L = 1/2 E_p[factor |y - y_hat|^2] = 1/2 int w(logsnr) E|eps - eps_hat|^2 dlogsnr,   w = factor p |deps|^-2 |dy|^2
"""

import math

import torch

import sfumato as sf


def main() -> float:
    """The largest distance of four published losses from the weight that they are known to have."""
    flow, cosine = sf.Objective(sf.schedules.Flow(), "velocity"), sf.Objective(sf.schedules.Cosine(s=0.0), "v")
    known = {
        "flow matching, uniform t": (flow, sf.weights.flow()),
        "v-prediction, cosine": (cosine, sf.weights.v()),
        "rectified flow of SD3": (
            sf.Objective(sf.schedules.Flow(), "velocity", sf.times.logit_normal()), sf.weights.sd3_logit_normal(),
        ),
        "EDM": (sf.Objective(sf.schedules.EDM(), "F", sf.times.edm(), sigma_data=0.5), sf.weights.edm()),
    }  # fmt: skip
    worst = flow.distance(cosine)
    print(f"flow matching and v-prediction with cosine: {worst:.1e} apart")
    for words, (objective, weight) in known.items():
        near, law = objective.nearest(), "never rises" if objective.monotone else "rises: no evidence bound"
        print(f"{words:<26} weight {' = '.join((near.name, *near.aliases)):<18} {law}")
        worst = max(worst, objective.distance(weight))
    lam = torch.tensor([0.0], dtype=torch.float64)
    print(f"w(0): flow {float(flow.weight(lam)):.4f} (1/2), cosine {float(cosine.weight(lam)):.4f} (1/pi)")
    # the same gradient from a network of another kind: eps-prediction on a variance-exploding path
    same = cosine.express(sf.schedules.VE(6e-4, 1800.0), "eps", sf.times.edm())
    print(f"v with cosine, told as eps with VE and EDM's levels: |eps - eps_hat|^2 times {float(same.factor(lam)):.3f}")
    return max(worst, same.distance(cosine), abs(float(same.weight(lam)) / float(cosine.weight(lam)) - 1))


if __name__ == "__main__":
    assert math.isfinite(main())
