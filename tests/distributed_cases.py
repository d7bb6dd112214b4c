"""Runs of training that any number of processes must end alike; started by torchrun as a script, or called alone.

python tests/distributed_cases.py FOLDER NAME ...  leaves FOLDER/NAME-RANK.safetensors, with what a process has.
"""

import dataclasses
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from sfumato import data, nets, noise
from sfumato.autoencoder import Codec
from sfumato.conditions import MISSING, Conditions
from sfumato.data import DataSpec
from sfumato.diagnostics.validation import validator_for
from sfumato.distributed import World, joined
from sfumato.model import Denoiser
from sfumato.objectives import times, weights
from sfumato.objectives.losses import Autoencoding, Denoising
from sfumato.process import Gaussian
from sfumato.sampling import sample
from sfumato.schedules import Flow
from sfumato.training import State, TrainConfig, fit
from sfumato.training.parallel import gathered

STEPS, BATCH, ROWS = 50, 16, 60


@dataclasses.dataclass(frozen=True)
class Case:
    """net: mlp, unet, dit, energy, vq, or gaps, an mlp of data with missing values.

    density: a time density that learns, or none. broken: a sample is NaN.
    """

    net: str = "mlp"
    micro: int | None = None
    density: str | None = None
    optimizer: str = "adamw"
    parallel: str = "auto"
    steps: int = STEPS
    broken: bool = False


CASES = {
    "mlp": Case(),
    "parts": Case(micro=2),
    "adaptive": Case(micro=4, density="adaptive"),
    "muon": Case(optimizer="muon"),
    "vq": Case(net="vq", steps=12),
    "vq-parts": Case(net="vq", steps=12, micro=3),
    "fsdp": Case(parallel="fsdp"),
    "fsdp-parts": Case(micro=2, parallel="fsdp"),
    "fsdp-unet": Case(net="unet", optimizer="muon", parallel="fsdp", steps=12),
    "fsdp-dit": Case(net="dit", optimizer="muon", parallel="fsdp", steps=12),
    "fsdp-vq": Case(net="vq", parallel="fsdp", steps=12),
    "fsdp-broken": Case(parallel="fsdp", steps=7, broken=True),
    "energy": Case(net="energy", steps=12),
    "gaps": Case(net="gaps", micro=3, steps=12),
}


def model_of(case: Case) -> Denoiser | Codec:
    torch.manual_seed(0)
    if case.net == "vq":
        return Codec(nets.Autoencoder((5,), 2, (16,), bottleneck="vq", codes=8).double())
    shape = (2, 6, 6)
    net: torch.nn.Module = nets.MLP(5, width=16, depth=2, classes=3)
    if case.net == "unet":
        net = nets.UNet(shape, channels=(8, 12), blocks=1, attention=(1,), classes=3, embed_dim=16)
    if case.net == "dit":
        net = nets.DiT(shape, width=12, depth=2, heads=2, classes=3)
    if case.net == "energy":
        net = nets.Energy(nets.MLP(5, width=16, depth=2, classes=3))
    if case.net == "gaps":
        net = nets.MLP(5, width=16, depth=2, classes=3, conditions={MISSING: {"kind": "missing", "shape": [5]}})
    return Denoiser(net.double(), Gaussian(Flow()), "velocity")


def run(case: Case, world: World) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """(all tensors of the state, of shards in the first process; samples, validation; the log) at the end of a case."""
    model = model_of(case)
    shape = model.net.shape
    x = noise.normal(3, range(ROWS), shape, noise.DATA, dtype=torch.float64)
    if case.broken:
        x[30] = torch.nan
    labels = None if case.net == "vq" else torch.arange(ROWS) % 3
    heldout = x[:16], Conditions.of(None if labels is None else {"label": labels[:16]})
    if case.net == "gaps":
        x[noise.uniform(4, range(ROWS), shape, noise.DATA, dtype=torch.float64) < 0.3] = torch.nan
        model.spec = DataSpec.fit(data.open((x, labels)))
        heldout = model.spec.apart(model.spec.normalise(x[:16]).double(), heldout[1])
    config = TrainConfig(
        steps=case.steps, batch=BATCH, micro=case.micro, precision="float32", optimizer=case.optimizer,
        parallel=case.parallel,
    )  # fmt: skip
    goal = Autoencoding() if case.net == "vq" else None
    if case.density is not None:
        goal = Denoising(times.NAMED[case.density](), weights.sigmoid(), 0)
    state = State(model, config, goal, world)
    held = (x[:16], None if labels is None else labels[:16])
    lines = []
    for progress in fit(model, x, config, labels, held, state, world=world):
        lines.append({**progress.to_dict(), "incident": progress.incident and progress.incident.where})
    kept = gathered(state.tensors(), world) if state.sharded else state.tensors()
    found = {name: value.contiguous() for name, value in kept.items()}
    if case.net != "vq":
        found["samples"] = sample(state.best, 7, steps=4, seed=1, world=world, label=[0, 1, 2, 0, 1, 2, 0])
        with state.ema.swapped():
            found["swapped"] = sample(model, 3, steps=4, seed=1, world=world, label=[0, 1, 2])
        found["raw samples"] = sample(model, 3, steps=4, seed=1, world=world, label=[0, 1, 2])
        measure = validator_for(state.loss, model, *heldout, 64, BATCH)
        judged = measure.measure(model, state.best, 5, 1, world)
        columns = {**judged.board, "raw": judged.raw, "ema": judged.ema, "total": list(judged.gradient)}
        for name, column in columns.items():
            values = [float("nan") if value is None else value for value in column]
            found[f"judged.{name}"] = torch.tensor(values, dtype=torch.float64)
    return found, lines


if __name__ == "__main__":
    with joined("cpu", 60) as world:
        for name in sys.argv[2:]:
            tensors, log = run(CASES[name], world)
            save_file(tensors, Path(sys.argv[1]) / f"{name}-{world.rank}.safetensors", {"lines": json.dumps(log)})
