"""B1, explicit and implicit score matching (Hyvarinen 2005): the true score is not needed, but open space is.

E[1/2 |s|^2 + tr ds/dz] = E[1/2 |s - grad log p|^2] - 1/2 E|grad log p|^2,   where p s vanishes at the border
"""

import torch

import sfumato as sf

explicit, implicit = sf.score_matching.explicit, sf.score_matching.implicit


def score(z: torch.Tensor) -> torch.Tensor:
    """Some function of the plane that is nobody's gradient."""
    return torch.tanh(z @ torch.tensor([[0.6, -1.1], [0.4, 0.9]], dtype=z.dtype)) - 0.3 * z


def main() -> float:
    """What is missing from the identity, by quadrature over the plane."""
    truth = sf.exact.GaussianMixture([0.3, 0.7], [[-1.0, 0.5], [0.8, 0.0]], [0.4, 0.2])
    axis = torch.linspace(-8, 8, 161, dtype=torch.float64)
    z, cell = torch.cartesian_prod(axis, axis), float(axis[1] - axis[0]) ** 2
    with torch.no_grad():
        p, true = truth.log_prob(z).exp() * cell, truth.score(z)
        sides = [float((p * loss).sum()) for loss in (implicit(score, z), explicit(score, z, true))]
        fisher = float((p * true.square().sum(1)).sum())
        print(f"implicit {sides[0]:+.6f}; explicit {sides[1]:.6f} less half of E|score|^2 = {fisher:.6f}")
        inside = (z.abs() <= 0.8).all(1)  # the same law cut to a box, within which its score stays as it is
        q = p[inside] / p[inside].sum()
        cut = [float((q * loss[inside]).sum()) for loss in (implicit(score, z), explicit(score, z, true))]
        gap = cut[0] - cut[1] + 0.5 * float((q * true[inside].square().sum(1)).sum())
    print(f"cut to a box, the identity misses {gap:+.3f}: what flows through the walls")
    optimum, x = torch.zeros(2, dtype=torch.float64, requires_grad=True), truth.sample(5000, seed=1)
    optimizer = torch.optim.LBFGS([optimum], max_iter=50)

    def closure() -> torch.Tensor:  # s = a + b z has the best a = mean / variance, b = -1 / variance
        optimizer.zero_grad()
        loss = implicit(lambda z: optimum[0] + optimum[1] * z, x[:, :1]).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    mean, variance = float(x[:, 0].mean()), float(x[:, 0].var(correction=0))
    print(
        f"a + b z learned without a score: {optimum.tolist()}, by moments [{mean / variance:.6f}, {-1 / variance:.6f}]"
    )
    return abs(sides[0] - sides[1] + fisher / 2)


if __name__ == "__main__":
    main()
