"""What training costs above a bare loop of the same network: noise, objective, averages, guards, log.

    python benchmarks/overhead.py

The bare loop takes ready samples, adds noise that is drawn once, calls the same network in the same precision, takes a
mean square, the gradient, clips it and steps the same optimiser. Both loops take turns in one process, with the same
memory and one thread; a figure is the ratio of medians of the processor's time, which other work on the machine blurs
less than the clock's.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

import sfumato as sf
from record import HERE, commit, hardware
from sfumato import nets
from sfumato.cli.process import keep_freed_memory
from sfumato.nets import UNet
from sfumato.nets.layout import channels_last
from sfumato.schedule import schedule_of
from sfumato.training import State, TrainConfig
from sfumato.training.loop import fit
from sfumato.training.precision import compute_dtype
from sfumato.training.state import optimizer

TURNS, STEPS = 8, 3
NETS: dict[str, Callable[[], nn.Module]] = {
    "U-Net 8.1 M, 3x32x32": lambda: UNet((3, 32, 32), channels=(96, 128, 192), blocks=2, attention=(2,), middle=0),
    "the demo's network, 1x28x28": lambda: nets.build((1, 28, 28), classes=10, samples=60_000),
}


def ours(net: nn.Module, config: TrainConfig, dtype: torch.dtype | None) -> Callable[[], object]:
    shape = net.shape
    model = sf.Denoiser(net, sf.Gaussian(schedule_of(config.schedule)), config.target, 1.0)
    model.compute_dtype = dtype
    state = State(model, config)
    classes = net.config["args"]["classes"]
    labels = torch.randint(classes, (20 * config.batch,)) if classes else None
    steps = fit(model, torch.randn(20 * config.batch, *shape), config, labels, state=state)
    return lambda: next(steps)


def bare(net: nn.Module, config: TrainConfig, dtype: torch.dtype | None) -> Callable[[], object]:
    channels_last(net)
    x = torch.randn(20, config.batch, *net.shape)
    level, target = torch.randn(config.batch), torch.randn(config.batch, *net.shape)
    stepper, at = optimizer(net, config, dtype), iter(range(10**9))

    def step() -> None:
        z = 0.8 * x[next(at) % 20] + 0.6 * target
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            y = net(z, level)
        nn.functional.mse_loss(y.float(), target).backward()
        nn.utils.clip_grad_norm_(net.parameters(), config.clip or 1.0)
        stepper.step()
        stepper.zero_grad()

    return step


def main() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()  # as the command line does
    config, dtype = TrainConfig(steps=10**6), compute_dtype("auto", torch.device("cpu"))
    result = {"commit": commit(), "hardware": hardware(), "batch": config.batch, "networks": {}}
    print(f"{'':32}{'bare ms':>10}{'ours ms':>10}{'above':>8}")
    for name, make in NETS.items():
        torch.manual_seed(0)
        loops = [bare(make(), config, dtype), ours(make(), config, dtype)]
        times: list[list[float]] = [[], []]
        for turn in range(TURNS + 1):
            for loop, found in zip(loops, times, strict=True):
                for _ in range(STEPS):
                    start = time.process_time()
                    loop()
                    if turn:  # the first steps make room
                        found.append(time.process_time() - start)
        plain, whole = map(statistics.median, times)
        result["networks"][name] = {"bare": plain, "ours": whole, "overhead": whole / plain - 1}
        print(f"{name:32}{1e3 * plain:10.1f}{1e3 * whole:10.1f}{whole / plain - 1:8.2%}")
    (HERE / "results" / "overhead.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
