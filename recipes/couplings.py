"""D4, couplings within a batch (2302.00482): optimal transport, and why it must stay within the classes."""

import torch

import sfumato as sf
from sfumato.conditions import Conditions
from sfumato.exact import GaussianMixture, Pair
from sfumato.objectives.couplings import Exact, coupled


def main() -> float:
    """|E[x' | class]| of sources N(0, 1) that are coupled within two classes: 0, and sqrt(2 / pi) over both."""
    noise = sf.Noise(0, torch.arange(256))
    for dim in (2, 8, 64):
        spread = torch.linspace(0.2, 2.0, dim, dtype=torch.float64)
        x = GaussianMixture([1.0], torch.zeros(1, dim), spread[None])
        source = GaussianMixture([1.0], torch.zeros(1, dim), 1.0)
        best = Pair.optimal(x, source).joint.covs[0]
        least = float((best[:dim, :dim] + best[dim:, dim:] - 2 * best[:dim, dim:]).trace())
        loose = float(spread.sum()) + dim
        points, start = x.sample(256), source.sample(256, seed=1)
        moved = coupled(Exact(), "input", points, Conditions({"input": start}), noise).given("input").values
        cost = float((points - moved).square().sum(1).mean())
        print(f"{dim:3d} dimensions: a batch of 256 closes {(loose - cost) / (loose - least):.0%} of the gap")
    label = torch.arange(256) % 2
    x = 4.0 * label[:, None].double() - 2 + 0.1 * noise.normal((1,), dtype=torch.float64)
    start = GaussianMixture([1.0], [[0.0]], 1.0).sample(256, seed=1)
    found = []
    for given in ({"input": start}, {"input": start, "label": label}):
        sources = coupled(Exact(), "input", x, Conditions(given), noise).given("input").values
        found.append(float(sources[label == 1].mean()))
    print(f"mean source of a class: {found[0]:.2f} over both classes, {found[1]:.2f} within them")
    return abs(found[1])


if __name__ == "__main__":
    main()
