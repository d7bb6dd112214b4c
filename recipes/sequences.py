"""Sequences of several lengths: padded with missing values, and sampled at lengths drawn from those of the data.

The law is known: x_k = rho x_(k - 1) + sqrt(1 - rho^2) e_k, so that the covariance of two steps is rho^|i - j| at any
length.
"""

import os
import tempfile

import numpy as np

import sfumato as sf

RHO, LENGTHS, SHARES = 0.8, (3, 5, 8), (0.2, 0.3, 0.5)


def law(n: int, seed: int = 0) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    made = []
    for length in draw.choice(LENGTHS, n, p=SHARES):
        x = draw.normal(size=length)
        for k in range(1, length):
            x[k] = RHO * x[k - 1] + np.sqrt(1 - RHO**2) * x[k]
        made.append(x)
    return made


def main() -> float:
    """The largest error of a share of lengths or of a covariance of neighbours."""
    with tempfile.TemporaryDirectory() as folder:
        run = os.path.join(folder, "walks")
        how = {"steps": 400, "batch": 128, "lr": 5e-3, "sample_every": 0, "snapshots": 0}
        sf.train(law(6000), run, net="DiT(width=32, depth=2, patch=1)", **how)
        model = sf.load(run)
    print(*model.spec.describe(), sep="\n")
    samples = [np.asarray(each) for each in sf.sample(model, 2000)]
    worst = 0.0
    for length, share in zip(LENGTHS, SHARES, strict=True):
        own = np.stack([each for each in samples if len(each) == length])
        near = float((own[:, 1:] * own[:, :-1]).mean())
        print(f"{length} steps: {len(own) / 2000:.0%} ({share:.0%}), covariance of neighbours {near:.2f} ({RHO})")
        worst = max(worst, abs(near - RHO), abs(len(own) / 2000 - share))
    return worst


if __name__ == "__main__":
    main()
