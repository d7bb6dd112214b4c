"""Text to image: pictures and captions -> a model that draws what a caption says, also one that it never saw.

x | caption ~ a bar of one colour on one side;   one pair of colour and side is left out of training
"""

import tempfile

import numpy as np
import torch

import sfumato as sf

COLOURS, SIDES = ("red", "green", "blue"), ("left", "right", "top", "bottom")
UNSEEN = ("green", "top")


def bar(colour: str, side: str) -> np.ndarray:
    """A picture (3, 8, 8) of bytes."""
    x = np.zeros((8, 8), np.uint8)
    x[{"left": np.s_[:, :4], "right": np.s_[:, 4:], "top": np.s_[:4], "bottom": np.s_[4:]}[side]] = 255
    return np.stack([x if name == colour else 0 * x for name in COLOURS])


def data(count: int = 600) -> dict:
    draw, pairs = np.random.default_rng(0), [(c, s) for c in COLOURS for s in SIDES if (c, s) != UNSEEN]
    chosen = [pairs[i] for i in draw.integers(0, len(pairs), count)]
    noise = draw.integers(0, 40, (count, 3, 8, 8), dtype=np.uint8)
    return {
        "x": np.maximum(np.stack([bar(*pair) for pair in chosen]), noise),
        "caption": [f"A {colour} bar, at the {side}." for colour, side in chosen],
    }


def agreement(model: sf.Denoiser, colour: str, side: str) -> float:
    """The share of samples that are nearest to the picture that the caption names."""
    x = sf.sample(sf.guide(model, 2.0), 16, steps=8, caption=f"a {colour} bar at the {side}").float()
    every = {(c, s): torch.from_numpy(bar(c, s)).float() for c in COLOURS for s in SIDES}
    far = torch.stack([(x - mean).square().flatten(1).sum(1) for mean in every.values()], 1)
    return float((far.argmin(1) == list(every).index((colour, side))).float().mean())


def main() -> float:
    """The share of samples that show something else than their caption of the training set says."""
    with tempfile.TemporaryDirectory() as folder:
        run = sf.train(data(), folder + "/run", steps=200, batch=32, net="tiny", sample_every=0, snapshots=0)
    seen = [agreement(run.denoiser, colour, side) for colour, side in (("red", "left"), ("blue", "top"))]
    print(f"captions of training: {np.mean(seen):.0%} of the samples show what they say")
    print(f"{' '.join(UNSEEN)}, a pair that training never had: {agreement(run.denoiser, *UNSEEN):.0%}")
    return 1.0 - float(np.mean(seen))


if __name__ == "__main__":
    main()
