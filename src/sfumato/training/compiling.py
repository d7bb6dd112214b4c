"""A network that trains as it is until its compiled form is ready, and goes on with whichever is faster.

    python -m sfumato.training.compiling FILE

compiles the network that FILE describes beside the run, on one core, into a cache that is kept between runs (the folder
of `sfumato.data.cache`). Once it is done the run takes it from there, which takes some seconds, compares some
steps with those before, and keeps the faster. Compiled arithmetic rounds otherwise, and when it is ready depends on the
machine: so a run in steps, which is repeatable to the last bit, compiles before its first step or not at all.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from sfumato.data.cache import root
from sfumato.errors import SfumatoError
from sfumato.nets import from_config
from sfumato.nets.energy import Energy
from sfumato.nets.layout import channels_last
from sfumato.registry import ships
from sfumato.training.config import TrainConfig
from sfumato.training.parts import with_net
from sfumato.trees import tree
from sfumato.world import ALONE, World

WORTH = {"cpu": 3600.0, "cuda": 600.0}  # seconds that a run must have left: compiling takes minutes
STEPS = 10  # that are compared, before and after
GAIN = 1.02  # below it the plain network is kept: its memory is less
_PLACE = "TORCHINDUCTOR_CACHE_DIR"


@final
class Switch(nn.Module):
    """A network that is computed by `fast` where there is one, on inputs like the first it saw."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.example: dict[str, Any] | None = None
        self._shapes: list[Any] = []
        self._fast: tuple[Any] | None = None  # in a tuple, since it is a module of the same weights

    @property
    def taken(self) -> bool:
        """Whether another form computes."""
        return self._fast is not None

    def take(self, fast: Any) -> None:
        """Compute by another form from now on; None is the network itself."""
        self._fast = None if fast is None else (fast,)

    def forward(self, *args: Any, **cond: Any) -> Tensor:
        if self.example is None:
            self.example = {"args": [_described(a) for a in args], "cond": {k: _described(v) for k, v in cond.items()}}
            self._shapes = _shapes(args, cond)
        if self._fast is None or _shapes(args, cond) != self._shapes:  # the last part of a batch may be smaller
            return self.net(*args, **cond)
        return self._fast[0](*args, **cond)


def _shapes(args: tuple[Any, ...], cond: dict[str, Any]) -> list[Any]:
    present = cond.get("present") or {}
    return [getattr(value, "shape", None) for value in (*args, *cond.values(), *present.values())]


def _described(value: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    if isinstance(value, dict):
        return {"each": {name: _described(each) for name, each in value.items()}}
    return {
        "shape": list(value.shape),
        "stride": list(value.stride()),
        "dtype": str(value.dtype).removeprefix("torch."),
    }


def _like(described: dict[str, Any] | None, device: str) -> Any:
    if described is None:
        return None
    if "each" in described:
        return {name: _like(each, device) for name, each in described["each"].items()}
    dtype = getattr(torch, described["dtype"])
    return torch.empty_strided(described["shape"], described["stride"], dtype=dtype, device=device).zero_()


def compiled(net: nn.Module) -> Any:
    """The network by torch.compile: fixed shapes, as many threads as torch has when it runs."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    folder = root()
    # torch names its own folder, which is gone with the next start of the machine, in the environment once it looks
    if folder is not None and os.environ.get(_PLACE) in (None, default_cache_dir()):
        os.environ[_PLACE] = str(folder / "inductor")
    return torch.compile(net, dynamic=False, options={"cpp.dynamic_threads": True})


def when(model: Any, config: TrainConfig, elapsed: float = 0.0, world: World = ALONE) -> str:
    """When a run compiles its network: "before" its first step, "beside" it, or "never".

    "auto" is beside a run in minutes with enough of them left, in one process, whose network is one of `sfumato.nets`.
    """
    if config.compile == "always":
        return "before"
    left = 0.0 if config.minutes is None else 60 * config.minutes - elapsed
    long = left >= WORTH.get(torch.device(model.device).type, float("inf"))
    known = ships("network", type(model.net).__name__) and not isinstance(model.net, Energy)
    return "beside" if config.compile == "auto" and world.size == 1 and long and known else "never"


class Compiler:
    """What becomes of `config.compile` in a run: `model` is what trains, `look` is called after each step.

    "never": nothing. "always": the first step compiles, and waits. "auto": as the module says, where `when` does.
    """

    def __init__(self, model: Any, config: TrainConfig, elapsed: float, world: World) -> None:
        self.model, self.switch = model, None
        net, way = model.net, when(model, config, elapsed, world)
        self._child: Child | None = None
        self._waiting, self._before, self._after = way == "beside", list[float](), list[float]()
        self._last: float | None = None
        if way != "never":
            self.switch = Switch(net)
            self.model = with_net(model, self.switch)
        if way == "before":
            if isinstance(net, Energy):
                raise SfumatoError("The gradient of an energy cannot be compiled: leave out compile.")
            if world.size > 1:
                raise SfumatoError("Networks are compiled in one process alone: leave out compile.")
            assert self.switch is not None
            self.switch.take(compiled(net))

    def look(self) -> str | None:
        """Take what is ready; a sentence where something changed."""
        if not self._waiting or self.switch is None or self.switch.example is None:
            return None
        now = time.monotonic()
        took, self._last = 0.0 if self._last is None else now - self._last, now
        if self._child is None:
            self._child = Child(self.model, self.switch)
        elif self.switch.taken:
            return self._compare(took)
        elif self._child.ready is None:
            self._before = [*self._before[-STEPS + 1 :], took]
        else:
            return self._arrive(self._child)
        return None

    def _arrive(self, child: Child) -> str | None:
        if not child.ready:
            self._waiting = False
            return f"The network could not be compiled, and training goes on without: {child.words}"
        assert self.switch is not None
        self.switch.take(compiled(self.switch.net))
        return None

    def _compare(self, took: float) -> str | None:
        """The first step loads what was compiled; the next ones show whether it is worth it."""
        self._after.append(took)
        if len(self._after) <= STEPS:
            return None
        self._waiting = False
        assert self.switch is not None and self._child is not None
        gain = statistics.median(self._before) / statistics.median(self._after[1:])
        spent = f"{self._child.seconds:.0f} s beside training and {self._after[0]:.0f} s to load it"
        if gain < GAIN:
            self.switch.take(None)
            return f"The compiled network is not faster ({gain:.2f}x, {spent}): training goes on without."
        return f"The network is compiled now: a step is {gain:.2f} times as fast ({spent})."

    def close(self) -> None:
        if self._child is not None:
            self._child.close()


class Child:
    """The process that compiles."""

    def __init__(self, model: Any, switch: Switch) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="sfumato-compile-")
        path = Path(self._folder.name) / "network.json"
        low = getattr(model, "compute_dtype", None)
        what = {
            "net": tree(switch.net), "example": switch.example, "device": str(model.device),
            "compute": None if low is None else str(low).removeprefix("torch."),
            "weights": str(next(switch.net.parameters()).dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
        }  # fmt: skip
        path.write_text(json.dumps(what), encoding="utf-8")
        self._start, self.seconds = time.monotonic(), 0.0
        self._said = (Path(self._folder.name) / "said").open("w+", encoding="utf-8", errors="replace")
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(path)], stdout=subprocess.DEVNULL, stderr=self._said,
            stdin=subprocess.DEVNULL, start_new_session=True,  # Ctrl-C is the run's to answer
            env={**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1"},
        )  # fmt: skip

    @property
    def ready(self) -> bool | None:
        """Whether it worked; None until it is done."""
        code = self._process.poll()
        if code is None:
            return None
        self.seconds = self.seconds or time.monotonic() - self._start
        return code == 0

    @property
    def words(self) -> str:
        """The last line of what it said."""
        self._said.seek(0)
        lines = [line.strip() for line in self._said.read().splitlines() if line.strip()]
        return lines[-1][:200] if lines else f"its process ended with code {self._process.poll()}."

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._said.close()
        self._folder.cleanup()


def main(path: str) -> None:
    """Compile the forward and the backward pass of the network that a file describes."""
    what = json.loads(Path(path).read_text(encoding="utf-8"))
    torch.set_num_threads(what["threads"])
    device, example = what["device"], what["example"]
    net = from_config(what["net"]).to(device=device, dtype=getattr(torch, what["weights"])).train()
    channels_last(net)
    args = [_like(a, device) for a in example["args"]]
    cond = {name: _like(value, device) for name, value in example["cond"].items()}
    low = what["compute"]
    with torch.autocast(torch.device(device).type, getattr(torch, low or "bfloat16"), enabled=low is not None):
        y = compiled(net)(*args, **cond)
    y.sum().backward()


if __name__ == "__main__":
    main(sys.argv[1])
