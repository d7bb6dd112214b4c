"""Text to image: pictures and captions -> a model that draws what a caption says.

x | caption ~ a pattern of one colour, and noise;   one pair of colour and pattern is left out of training
"""

import tempfile

import numpy as np
import torch

import sfumato as sf

COLOURS, PATTERNS = ("red", "green", "blue"), ("rows", "columns", "nothing else")
UNSEEN = ("green", "rows")


def pattern(colour: str, kind: str) -> np.ndarray:
    """A picture (3, 8, 8) of bytes."""
    row, column = np.indices((8, 8)) // 2 % 2
    x = {"rows": row, "columns": column, "nothing else": np.ones_like(row)}[kind].astype(np.uint8) * 255
    return np.stack([x if name == colour else 0 * x for name in COLOURS])


def data(count: int = 600) -> dict:
    draw, pairs = np.random.default_rng(0), [(c, p) for c in COLOURS for p in PATTERNS if (c, p) != UNSEEN]
    chosen = [pairs[i] for i in draw.integers(0, len(pairs), count)]
    noise = draw.integers(0, 40, (count, 3, 8, 8), dtype=np.uint8)
    return {
        "x": np.maximum(np.stack([pattern(*pair) for pair in chosen]), noise),
        "caption": [f"A picture in {colour}, with {kind}." for colour, kind in chosen],
    }


def agreement(model: sf.Denoiser, colour: str, kind: str) -> float:
    """The share of samples that are nearest to the picture that the caption names."""
    x = sf.sample(sf.guide(model, 2.0), 16, steps=8, caption=f"picture in {colour} with {kind}").float()
    every = {(c, p): torch.from_numpy(pattern(c, p)).float() for c in COLOURS for p in PATTERNS}
    far = torch.stack([(x - mean).square().flatten(1).sum(1) for mean in every.values()], 1)
    return float((far.argmin(1) == list(every).index((colour, kind))).float().mean())


def main() -> float:
    """The share of samples that show something else than their caption of the training set says."""
    with tempfile.TemporaryDirectory() as folder:
        run = sf.train(data(), folder + "/run", steps=200, batch=32, net="tiny", sample_every=0, snapshots=0)
    seen = [agreement(run.denoiser, *pair) for pair in (("red", "rows"), ("blue", "columns"))]
    print(f"captions of training: {np.mean(seen):.0%} of the samples show what they say")
    print(f"{' '.join(UNSEEN)}, a pair that training never had: {agreement(run.denoiser, *UNSEEN):.0%}")
    return 1.0 - float(np.mean(seen))


if __name__ == "__main__":
    main()
