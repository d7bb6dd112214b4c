"""Runs with a fault each that any number of processes must be told of alike; started by torchrun, in shards, or called.

torchrun --nproc-per-node 2 tests/shard_faults.py FOLDER NAME ...  leaves the run folders FOLDER/NAME.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

import sfumato as sf
from fault_cases import QUICK, moons
from sfumato.distributed import World, joined
from sfumato.nets import MLP
from sfumato.training import TrainConfig
from sfumato.training.console import Silent
from sfumato.training.hooks import usual
from sfumato.training.run import prepared
from sfumato.training.session import Session
from sfumato.training.state import State

# the network is asked once a run is long enough: for 8 draws a level of three thousandths of a process's work
CASES: dict[str, dict[str, Any]] = {
    "healthy": {"steps": 170, "batch": 512},
    "lr-high": {"steps": 20, "lr": 0.4},
    "condition-dead": {"steps": 170, "batch": 512},
    "frozen": {"steps": 40},
    "lr-low": {"steps": 120, "batch": 256, "lr": 4e-7},
    "labels-shuffled": {"steps": 20},
}


@sf.register("network", "deaf")
class Deaf(MLP):
    """A network that is told conditions and ignores them."""

    def forward(self, x: Any, noise_level: Any, **cond: Any) -> Any:
        return super().forward(x, noise_level)


def data(name: str) -> tuple[np.ndarray, np.ndarray]:
    x, labels = moons(1000)
    return x, np.random.default_rng(5).permutation(labels) if name == "labels-shuffled" else labels


def harm(name: str, net: Any) -> None:
    """Put the fault into the network, in every process."""
    if name == "condition-dead":
        net.__class__ = Deaf
    if name == "frozen":
        net.layers.requires_grad_(False)


def run(name: str, folder: Path, world: World) -> Path:
    """The run folder of a case."""
    config = TrainConfig(**{**QUICK, "parallel": "fsdp", **CASES[name]})
    config, source, denoiser = prepared(*data(name), config, world.device)
    harm(name, denoiser.net)
    path = folder / name
    if world.leads:
        for part in ("samples", "checkpoints"):
            (path / part).mkdir(parents=True)
    session = usual(Session(path, config, source, State(denoiser, config, world=world), Silent(), world=world))
    if world.leads:
        (path / "config.yaml").write_text(config.to_yaml())
    world.broadcast(None)
    session.go()
    session.close()
    return path


if __name__ == "__main__":
    with joined("cpu", 60) as world:
        for name in sys.argv[2:]:
            run(name, Path(sys.argv[1]), world)
