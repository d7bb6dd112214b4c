"""External dashboards besides metrics.jsonl: TensorBoard, Weights & Biases, trackio, MLflow.

Each is an extra of the package, imported only when selected. It receives the numbers of each line of metrics.jsonl, by
name and samples seen, and the grids of samples. One that fails is reported once and dropped; training continues.
"""

from __future__ import annotations

import abc
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any, final

from sfumato import registry
from sfumato.errors import SfumatoError
from sfumato.registry import register
from sfumato.training.config import TrainConfig


class Logger(abc.ABC):
    """One dashboard of one run."""

    @abc.abstractmethod
    def numbers(self, values: dict[str, float], samples: int) -> None:
        """Log values by name, after `samples` samples seen."""

    @abc.abstractmethod
    def picture(self, path: Path, samples: int) -> None:
        """Log a grid of samples, a .png file."""

    @abc.abstractmethod
    def close(self) -> None: ...


@register("logger", "tensorboard")
@final
class TensorBoard(Logger):
    """Event files in RUN/tensorboard: `tensorboard --logdir runs`."""

    def __init__(self, run: Path, config: TrainConfig) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run / "tensorboard"))
        self.writer.add_text("settings", f"```yaml\n{config.to_yaml()}```")

    def numbers(self, values: dict[str, float], samples: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, samples)

    def picture(self, path: Path, samples: int) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            self.writer.add_image("samples", np.asarray(image.convert("RGB")), samples, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


@final
class WandB(Logger):
    """Weights & Biases (WANDB_MODE=offline logs to RUN/wandb only), or trackio, which has the same API.

    step: the name under which the step is logged; trackio reserves the usual one.
    """

    def __init__(self, module: Any, run: Path, config: TrainConfig, step: str = "step", **place: str) -> None:
        self.module, self.step = module, step
        module.init(project="sfumato", name=run.name, config=config.to_dict(), **place)

    def numbers(self, values: dict[str, float], samples: int) -> None:
        self.module.log({self.step if name == "step" else name: value for name, value in values.items()})

    def picture(self, path: Path, samples: int) -> None:
        self.module.log({"grid": self.module.Image(str(path)), "samples": samples})

    def close(self) -> None:
        self.module.finish()


@register("logger", "wandb")
def _wandb(run: Path, config: TrainConfig) -> WandB:
    import wandb

    return WandB(wandb, run, config, dir=str(run))


@register("logger", "trackio")
def _trackio(run: Path, config: TrainConfig) -> WandB:
    import trackio

    return WandB(trackio, run, config, step="steps")


@register("logger", "mlflow")
@final
class MLflow(Logger):
    """MLflow at MLFLOW_TRACKING_URI, by default ./mlruns."""

    def __init__(self, run: Path, config: TrainConfig) -> None:
        import mlflow

        self.mlflow = mlflow
        mlflow.set_experiment("sfumato")
        mlflow.start_run(run_name=run.name)
        mlflow.log_params(config.to_dict())

    def numbers(self, values: dict[str, float], samples: int) -> None:
        self.mlflow.log_metrics(values, step=samples)

    def picture(self, path: Path, samples: int) -> None:
        self.mlflow.log_artifact(str(path), "samples")

    def close(self) -> None:
        self.mlflow.end_run()


@final
class Loggers:
    """All dashboards that the settings name; does nothing if there are none."""

    def __init__(self, run: Path, config: TrainConfig, note: Callable[[str], None]) -> None:
        self.note = note
        self.each: dict[str, Logger] = {}
        for name in names(config.loggers):
            with self._guarded(name):
                self.each[name] = registry.get("logger", name)(run, config)

    def line(self, line: dict[str, Any]) -> None:
        """Log a line of metrics.jsonl."""
        values = {
            name: float(value)
            for name, value in line.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        }
        for name, logger in list(self.each.items()):
            with self._guarded(name):
                logger.numbers(values, int(line["samples"]))

    def picture(self, path: Path, samples: int) -> None:
        for name, logger in list(self.each.items()):
            with self._guarded(name):
                logger.picture(path, samples)

    def close(self) -> None:
        for name, logger in list(self.each.items()):
            with self._guarded(name):
                logger.close()

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """Send a dashboard's output to stderr, since stdout is for results, and drop the dashboard if it fails."""
        try:
            with redirect_stdout(sys.stderr):
                yield
        except Exception as error:  # dashboards may raise anything
            self.each.pop(name, None)
            words = " ".join(str(error).split())
            self.note(f"{name} failed and is switched off for this run ({type(error).__name__}: {words}).")


def names(words: str | None) -> list[str]:
    """The names in a setting such as "tensorboard,wandb"."""
    return [word.strip() for word in (words or "").split(",") if word.strip()]


def check(words: str | None) -> None:
    """Raise SfumatoError for a dashboard whose package is not installed, before the run folder is created."""
    for name in names(words):
        if find_spec(name) is None:
            raise SfumatoError(f"The logger {name} is not installed: pip install 'sfumato[{name}]'.")
