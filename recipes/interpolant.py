"""D3, a stochastic interpolant (2303.08797): one model, an ODE and every SDE between two laws of data.

z = (1 - t) x + t x' + noise sqrt(t (1 - t)) zeta,   dz = (u - e score) dt + sqrt(2 e) dw,   2 e = (eta noise)^2
"""

import torch

import sfumato as sf
from sfumato.exact import GaussianMixture, Pair
from sfumato.process import Interpolant


def main() -> float:
    """The largest sliced Wasserstein distance to the law of x for eta 0, 0.5 and 1."""
    x = GaussianMixture([0.5, 0.3, 0.2], [[0.0, 2.0], [2.0, -1.0], [-2.0, -1.0]], 0.1)
    source = GaussianMixture([0.6, 0.4], [[-1.0, 0.0], [1.0, 1.0]], 0.2)
    pair = Pair.independent(x, source)
    model, start = pair.model(Interpolant(sf.schedules.Flow())), pair.sample(2000)[1]
    metric, found = sf.metrics.SlicedWasserstein(), []
    real, floor = x.sample(2000, seed=1), x.sample(2000, seed=2)
    for eta in (0.0, 0.5, 1.0):
        made = sf.sample(model, 2000, 60, sf.solvers.Ancestral(eta=eta), input=start, batch=2000)
        found.append(metric(made, real).value)
        print(
            f"eta {eta:3.1f}: sliced distance {found[-1]:.3f} ({metric(floor, real).value:.3f} between two real sets)"
        )
    coupled = torch.corrcoef(torch.stack((made[:, 0].double(), start[:, 0])))[0, 1]
    print(f"correlation of x and x': {float(coupled):.2f}")
    return max(found)


if __name__ == "__main__":
    main()
