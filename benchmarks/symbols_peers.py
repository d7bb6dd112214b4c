"""Masked symbols beside the libraries that install: one training step, and samples of 64 x 256 symbols.

    python benchmarks/symbols_peers.py          # needs bionemo-moco and flow_matching

Each library computes its own corruption, loss and steps around the same network: none at all (fixed logits, so that
the cost of the library alone is seen) and a transformer of 2 blocks of 64 channels. Processor time on one thread,
medians of alternating runs. Peers get the mask as a symbol of their own, as their code asks. Results:
results/symbols_peers.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import sfumato as sf
from record import HERE, commit, hardware
from sfumato.objectives.counts import masked_loss

K, LENGTH, BATCH, STEPS, TRAINED = 28, 256, 64, 64, 16
X = torch.randint(0, K, (TRAINED, LENGTH), generator=torch.Generator().manual_seed(0))


class Fixed(nn.Module):
    """No network: the same logits for all z, which have a gradient."""

    takes_symbols, shape = True, (K, LENGTH)

    def __init__(self) -> None:
        super().__init__()
        self.said = nn.Parameter(torch.randn(BATCH, 1, LENGTH, K, generator=torch.Generator().manual_seed(1)))

    def forward(self, z: Tensor, noise_level: Tensor) -> Tensor:
        return self.said[: len(z)]


def network() -> nn.Module:
    torch.manual_seed(0)
    return sf.nets.Transformer((K, LENGTH), 64, 2)


def with_mask(net: nn.Module, z: Tensor, t: Tensor) -> Tensor:
    """The logits of K + 1 symbols (B, L, K + 1) that peers ask for; those of the mask are low."""
    logits = net(z[:, None], t.expand(len(z)))[:, 0]
    return torch.cat([logits, logits.new_full((*logits.shape[:2], 1), -30.0)], 2)


def ours(net: nn.Module) -> dict[str, Callable[[], Any]]:
    model = sf.Denoiser(net, sf.Masked(sf.schedules.Flow(), K))
    model.spec = None

    def sampled(**how: Any) -> Any:
        start = torch.full((BATCH, 1, LENGTH), K)
        return sf.sample(model, steps=STEPS, z=start, **how)

    return {
        "train": lambda: masked_loss(model, X[:, None]).mean().backward(),
        "sample": lambda: sampled(solver="reveal"),
        "sample, ancestral": lambda: sampled(solver="ancestral"),
    }


def moco(net: nn.Module) -> dict[str, Callable[[], Any]]:
    from bionemo.moco.distributions.prior.discrete.mask import DiscreteMaskedPrior
    from bionemo.moco.distributions.time.uniform import UniformTimeDistribution
    from bionemo.moco.interpolants import MDLM
    from bionemo.moco.schedules.noise.continuous_noise_transforms import LogLinearExpNoiseTransform

    prior = DiscreteMaskedPrior(num_classes=K + 1, mask_dim=K)
    mdlm = MDLM(UniformTimeDistribution(discrete_time=False), prior, LogLinearExpNoiseTransform())

    def train() -> None:
        t = mdlm.sample_time(TRAINED)
        z = mdlm.interpolate(X, t)
        mdlm.loss(with_mask(net, z, t), X, z, t).mean().backward()

    @torch.no_grad()
    def sample() -> Tensor:
        z, dt = torch.full((BATCH, LENGTH), K), torch.full((BATCH,), 1 / STEPS)
        for k in range(STEPS, 0, -1):
            t = torch.full((BATCH,), k / STEPS)
            z = mdlm.step(with_mask(net, z, t), t, z, dt)
        return z

    return {"train": train, "sample": sample}


def flow_matching(net: nn.Module) -> dict[str, Callable[[], Any]]:
    from flow_matching.loss import MixturePathGeneralizedKL
    from flow_matching.path import MixtureDiscreteProbPath
    from flow_matching.path.scheduler import PolynomialConvexScheduler
    from flow_matching.solver import MixtureDiscreteEulerSolver
    from flow_matching.utils import ModelWrapper

    path = MixtureDiscreteProbPath(PolynomialConvexScheduler(n=1.0))
    loss = MixturePathGeneralizedKL(path)

    class Law(ModelWrapper):
        def forward(self, x: Tensor, t: Tensor, **extras: Any) -> Tensor:
            return with_mask(self.model, x, t.reshape(-1)).softmax(-1)

    solver = MixtureDiscreteEulerSolver(Law(net), path, K + 1)

    def train() -> None:
        t = torch.rand(TRAINED) * (1 - 1e-3)
        z = path.sample(t=t, x_0=torch.full_like(X, K), x_1=X).x_t
        loss(logits=with_mask(net, z, t), x_1=X, x_t=z, t=t).backward()

    def sample() -> Tensor:
        return solver.sample(torch.full((BATCH, LENGTH), K), step_size=1 / STEPS)

    return {"train": train, "sample": sample}


def timed(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return 1e3 * (time.process_time() - start)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    table: dict[str, dict[str, float]] = {}
    for kind, make in (("no network", Fixed), ("transformer", network)):
        runs = {
            f"{library}: {what}": run
            for library, peer in (("sfumato", ours), ("bionemo-moco", moco), ("flow_matching", flow_matching))
            for what, run in peer(make()).items()
        }
        spent: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(repeats + 1):
            for name, run in runs.items():
                passed = timed(run)
                if turn:
                    spent[name].append(passed)
        table[kind] = {name: statistics.median(each) for name, each in spent.items()}
        for name, each in table[kind].items():
            step = f"{each / STEPS:8.3f} ms a step" if "sample" in name else f"{each:8.2f} ms"
            print(f"{kind:12s} {name:36s} {step}", flush=True)
    found = {"hardware": hardware(), "commit": commit(), "milliseconds": table}
    (HERE / "results/symbols_peers.json").write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
