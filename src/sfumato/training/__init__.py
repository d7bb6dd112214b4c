"""Training: settings, the loop (a generator), moving averages, checkpoints, run folders, reports.

Reading order:

    config, precision               settings, device and dtype
    codes                           the codes that a latent model is trained on
    parts, batches, waiting         model, loss and training batches
    ema, averages, muon, players    what a step updates besides the weights
    state                           all of it, in the form that checkpoints save
    evaluation_schedule, validation
    guard, parallel, compiling      skipped steps, several processes, torch.compile
    loop                            the training steps
    checkpoint, shards              files to resume from
    session, control, hooks         a run: steps, files, and hooks for everything else
    grids, health, final_report, loggers, console
    teacher_samples                 what a student learns from, where no data are given
    run, stages                     train and resume, one model or two stages
    forecast                        time, memory and disk that a run will need

Names are imported on first use, so that importing `TrainConfig` (from which flags are made) loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sfumato.training.config import TrainConfig as TrainConfig
    from sfumato.training.ema import EMA as EMA
    from sfumato.training.loop import Progress as Progress
    from sfumato.training.loop import fit as fit
    from sfumato.training.run import Run as Run
    from sfumato.training.stages import resume as resume
    from sfumato.training.stages import train as train
    from sfumato.training.state import State as State

_HOME = {
    "TrainConfig": "config", "EMA": "ema", "State": "state", "Progress": "loop", "fit": "loop",
    "Run": "run", "train": "stages", "resume": "stages",
}  # fmt: skip

__all__ = ["EMA", "Progress", "Run", "State", "TrainConfig", "fit", "resume", "train"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'sfumato.training' has no attribute {name!r}")
    return getattr(import_module(f"sfumato.training.{_HOME[name]}"), name)
