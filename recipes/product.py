"""Two processes at once: a number and its class are corrupted together, and each tells of the other.

The exact belief about both makes the sum of their losses a bound that is an equality: -log p(x, class).
"""

import sfumato as sf


def main() -> float:
    """How far the bound of the exact belief is from log p(x, class) in the mean, in units of what it may be."""
    law = sf.exact.Labelled(sf.exact.GaussianMixture([0.5, 0.3, 0.2], [[-1.0], [0.5], [2.0]], [0.1, 0.3, 0.05]))
    flow = sf.schedules.Flow()
    process = sf.Product({"x": sf.Gaussian(flow), "label": sf.Masked(flow, 3)})
    model, both = law.denoiser(process), law.sample(64)
    found, wanted = sf.log_prob(model, both, steps=64, probes=16), law.log_prob(both)
    apart, error = float((found.value - wanted).mean()), float(found.stderr.square().mean().sqrt()) / 8
    print(f"bound {float(found.value.mean()):.3f} +- {error:.3f}, log p {float(wanted.mean()):.3f} nats")
    for state in sf.trajectory(model, 1, steps=5, seed=3):
        label = int(state.z["label"])
        print(f"t = {state.t:.1f}: x = {float(state.z['x']):+.2f}, label {'hidden' if label == 3 else label}")
    drawn = sf.sample(model, 2000, steps=60, batch=2000)
    for k in range(3):
        own = drawn["x"][drawn["label"] == k]
        print(f"label {k}: {len(own) / 2000:.2f} of all, mean {float(own.mean()):+.2f}, std {float(own.std()):.2f}")
    return abs(apart) / (4 * error + 0.01)


if __name__ == "__main__":
    main()
