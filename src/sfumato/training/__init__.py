"""Training: settings, the loop (a generator), moving averages, checkpoints, run folders, reports.

To read in this order:

    config, precision               settings, device and dtype
    parts, batches, waiting         what is trained by which loss, and on what
    ema, averages, muon, players    what a step changes beside the weights
    state                           all of that, as a checkpoint holds it
    evaluation_schedule, validation
    guard, parallel, compiling      steps that are skipped, several processes, torch.compile
    loop                            the steps
    checkpoint, shards              files to resume from
    session, control, hooks         a run: steps, files, and hooks for all else
    grids, health, final_report, loggers, console
    run                             train and resume
    forecast                        what a run will take

Names are looked up when first used, so that `TrainConfig` (which flags are made from) loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sfumato.training.config import TrainConfig as TrainConfig
    from sfumato.training.ema import EMA as EMA
    from sfumato.training.loop import Progress as Progress
    from sfumato.training.loop import fit as fit
    from sfumato.training.run import Run as Run
    from sfumato.training.run import resume as resume
    from sfumato.training.run import train as train
    from sfumato.training.state import State as State

_HOME = {
    "TrainConfig": "config", "EMA": "ema", "State": "state", "Progress": "loop", "fit": "loop",
    "Run": "run", "train": "run", "resume": "run",
}  # fmt: skip

__all__ = ["EMA", "Progress", "Run", "State", "TrainConfig", "fit", "resume", "train"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'sfumato.training' has no attribute {name!r}")
    return getattr(import_module(f"sfumato.training.{_HOME[name]}"), name)
