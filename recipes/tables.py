"""A table of columns, numbers and categories together: trained row by row, and sampled as rows of the same columns.

The law is known: a tree's height depends on its kind, its age on its height, and ages are missing more often for oaks.
"""

import os
import tempfile

import numpy as np

import sfumato as sf

KINDS, SHARES = ("ash", "oak"), (0.7, 0.3)
HEIGHTS, UNKNOWN = np.array([12.0, 20.0]), np.array([0.1, 0.5])


def law(n: int, seed: int = 0) -> "dict[str, list[object]]":
    draw = np.random.default_rng(seed)
    kind = draw.choice(2, n, p=SHARES)
    height = np.round(HEIGHTS[kind] + 2 * draw.normal(size=n), 1)
    age = np.round(5 * height + 4 * draw.normal(size=n))
    known = draw.uniform(size=n) > UNKNOWN[kind]
    ages: list[object] = [int(each) if here else None for each, here in zip(age, known, strict=True)]
    return {"kind": [KINDS[k] for k in kind], "height": height.tolist(), "age": ages}


def main() -> float:
    """How far the means and shares of the samples are from those of the law, in units of what they may be."""
    import pyarrow as pa

    with tempfile.TemporaryDirectory() as folder:
        run = os.path.join(folder, "trees")
        sf.train(pa.table(law(3000)), run, steps=250, batch=256, net="tiny", sample_every=0, snapshots=0)
        model = sf.load(run)
    print(*model.spec.describe(), sep="\n")
    worst = 0.0
    for k, kind in enumerate(KINDS):
        rows = sf.sample(model, 1000, batch=1000, given={"kind": kind})
        height, missing = float(np.mean(rows["height"])), float(np.mean(np.isnan(rows["age"].astype(float))))
        print(f"{kind}: mean height {height:.1f} ({HEIGHTS[k]:g}), {missing:.0%} of ages missing ({UNKNOWN[k]:.0%})")
        worst = max(worst, abs(height - HEIGHTS[k]) / 0.6, abs(missing - UNKNOWN[k]) / 0.08)
    rows = sf.sample(model, 1000, batch=1000)
    share = float(np.mean(rows["kind"] == "oak"))
    print(
        f"oaks: {share:.0%} of all ({SHARES[1]:.0%}); the first row: { {name: row[0] for name, row in rows.items()} }"
    )
    return max(worst, abs(share - SHARES[1]) / 0.06)


if __name__ == "__main__":
    main()
