"""Training and sampling throughput of U-Nets and DiTs, ours beside public libraries', in one run.

    python benchmarks/training.py [train sample compiled batches] [--threads 1] [--rounds 2]

3x32x32, one training step at batch 64. Ours is a whole step of `sfumato train` by its default settings: batch and
noise drawn, network, loss, gradients clipped, Muon, three moving averages, the guard. A peer's is the network, a mean
square, gradients clipped and AdamW: in float32 as it comes (default), and in bfloat16 with channels last (best).
The networks have like parameters and FLOPs; FLOPs are counted alike (torch's counter, attention by its products), so
that FLOP/s compare. Each candidate has a process of its own, the processes take turns in several rounds, and a figure
is a median. The peak is that of convolutions and products in bfloat16, measured in the same run. Peak memory is what
training adds to a process that has torch, the libraries and the network.
"""

from __future__ import annotations

import argparse
import functools
import json
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import sfumato as sf
import training_peers as peers
from record import HERE, commit, hardware
from sfumato.cli.process import keep_freed_memory
from sfumato.nets import DiT, UNet
from sfumato.schedule import schedule_of
from sfumato.training import TrainConfig
from sfumato.training.loop import fit
from sfumato.training.precision import compute_dtype

SHAPE, BATCH, CALLS = (3, 32, 32), 64, 4
OURS: dict[str, Callable[[], nn.Module]] = {
    "sfumato UNet": lambda: UNet(SHAPE, channels=(96, 128, 192), blocks=2, attention=(2,), middle=0),
    "sfumato DiT": lambda: DiT(SHAPE, patch=4, width=384, depth=12, heads=6),
}
Step = Callable[[], Any]
EAGER = ("default", "best")
# part -> (work, modes, names or all)
PARTS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "train": ("train", EAGER, ()),
    "sample": ("sample", EAGER, ()),
    "compiled": ("train", ("compiled",), ("sfumato UNet", "sfumato DiT", "azula")),
    "batches": ("train", EAGER, ("sfumato UNet", "azula")),
}


def flops(net: nn.Module, call: Callable[[Any, Tensor, Tensor], Tensor]) -> float:
    """FLOPs of a forward and a backward pass for one sample."""
    count = 4
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        call(net, torch.randn(count, *SHAPE), torch.rand(count)).float().square().mean().backward()
    return counter.get_total_flops() / count


def denoiser(net: nn.Module) -> sf.Denoiser:
    config = TrainConfig()
    found = sf.Denoiser(net, sf.Gaussian(schedule_of(config.schedule)), config.target, 1.0)
    found.compute_dtype = compute_dtype("auto", found.device)
    return found


def trainer(net: nn.Module, batch: int, mode: str) -> Step:
    """A step of the loop: what `sfumato train` does between two lines of its log."""
    config = TrainConfig(steps=100_000, batch=batch, compile=mode == "compiled")
    steps = fit(denoiser(net), torch.randn(20 * batch, *SHAPE), config)
    return lambda: next(steps)


def sampler(net: nn.Module, batch: int) -> Step:
    model = denoiser(net.eval())
    return lambda: sf.sample(model, n=batch, steps=CALLS, solver=sf.solvers.Euler())


def candidates(modes: tuple[str, ...], names: tuple[str, ...]) -> list[tuple[str, str]]:
    """(name, mode) of what is to be measured and is installed; ours by default is its best."""
    pairs = []
    for name in (*OURS, *peers.PEERS):
        for mode in modes:
            if (name in names or not names) and (mode != "best" if name in OURS else peers.installed(name)):
                pairs.append((name, mode))
    return pairs


def made(name: str, mode: str, batch: int, work: str) -> tuple[Step, dict[str, Any]]:
    """(work, what it is) of a candidate."""
    torch.manual_seed(0)
    if name in OURS:
        keep_freed_memory()  # as the command line does
        net, call = OURS[name](), lambda net, x, t: net(x, t)
        step = trainer(net, batch, mode) if work == "train" else sampler(net, batch)
        title = name
    else:
        case = title, net, call = peers.PEERS[name]()
        step = peers.trainer(case, batch, mode) if work == "train" else peers.sampler(case, batch, mode, CALLS)
    per_sample = flops(OURS[name]() if name in OURS else peers.PEERS[name]()[1], call)
    if work == "sample":
        per_sample *= CALLS / 3
    return step, {"name": title, "mode": mode, "parameters": sum(p.numel() for p in net.parameters()),
                  "gflop": per_sample * batch / 1e9, "batch": batch}  # fmt: skip


def seconds(work: Step, repeats: int) -> list[float]:
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return found


def peak() -> dict[str, float]:
    """GFLOP/s of the best of some convolutions and products, by dtype."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(2048, 2048, dtype=dtype) for _ in range(2))
        best = 2 * 2048**3 / min(seconds(functools.partial(torch.matmul, a, b), 6))
        for channels, side in ((128, 16), (256, 8), (256, 16)):
            conv = nn.Conv2d(channels, channels, 3, padding=1).to(dtype).to(memory_format=torch.channels_last)
            x = torch.randn(BATCH, channels, side, side).to(dtype).contiguous(memory_format=torch.channels_last)
            with torch.no_grad():
                best = max(best, 2 * 9 * channels**2 * BATCH * side**2 / min(seconds(functools.partial(conv, x), 6)))
        found[str(dtype).removeprefix("torch.")] = best / 1e9
    return found


def one(name: str, mode: str, batch: int, work: str, repeats: int) -> dict[str, Any]:
    """The figures of one candidate in this process."""
    step, row = made(name, mode, batch, work)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (row["first"],) = seconds(step, 1)
    row["times"] = seconds(step, repeats)
    row["memory"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return row


def measured(chosen: list[tuple[str, str]], batch: int, work: str, threads: int, rounds: int) -> list[dict[str, Any]]:
    """Rows of all candidates, each round a process of each."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for _ in range(rounds):
        for name, mode in chosen:
            words = ["--one", name, mode, str(batch), work, "--threads", str(threads)]
            done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, timeout=1200)
            if done.returncode:
                sys.exit(f"{name} {mode}: {done.stderr[-2000:]}")
            row = json.loads(done.stdout.splitlines()[-1])
            known = rows.setdefault((name, mode), row)
            if known is not row:
                known["times"] += row["times"]
                known["memory"] = max(known["memory"], row["memory"])
    for row in rows.values():
        row["seconds"] = statistics.median(row["times"])
        row["gflops"] = row["gflop"] / row["seconds"]
        row["rate"] = batch / row["seconds"]
    return list(rows.values())


def show(title: str, rows: list[dict[str, Any]], best: float) -> None:
    print(f"\n{title}")
    print(f"{'':34}{'mode':>10}{'M par.':>8}{'GFLOP':>8}{'s':>9}{'images/s':>10}{'GFLOP/s':>9}{'of peak':>9}{'MB':>7}")
    for row in rows:
        print(
            f"{row['name']:34}{row['mode']:>10}{row['parameters'] / 1e6:8.1f}{row['gflop']:8.0f}{row['seconds']:9.3f}"
            f"{row['rate']:10.1f}{row['gflops']:9.0f}{row['gflops'] / best:9.0%}{row['memory']:7.0f}"
        )


def draw(result: dict[str, Any]) -> None:
    """results/training.png: GFLOP/s of training and of sampling on one thread, a bar a candidate."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    wanted = {"train": "Training", "sample": f"Sampling, {CALLS} network calls"}
    found = {title: result.get(f"{part}, threads 1, batch {BATCH}") for part, title in wanted.items()}
    figure, axes = pyplot.subplots(1, 2, figsize=(13, 4.4), sharex=True)
    for axis, (title, part) in zip(axes, found.items(), strict=True):
        if part is None:
            continue
        rows = sorted(part["rows"], key=lambda row: row["gflops"])
        colours = ["#b5503c" if row["name"].startswith("sfumato") else "#8a94a6" for row in rows]
        bars = axis.barh([f"{r['name']}, {r['mode']}" for r in rows], [r["gflops"] for r in rows], color=colours)
        axis.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
        axis.axvline(part["peak"]["bfloat16"], color="black", linewidth=0.8, linestyle=":")
        axis.set_title(f"{title}: GFLOP/s on one thread", fontsize=9)
        axis.set_xlabel(f"batch {BATCH}; dotted: what products reach in bfloat16", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(HERE / "results" / "training.png", dpi=130)
    pyplot.close(figure)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"of {', '.join(PARTS)}; all without")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 4, 16, 256])
    parser.add_argument("--one", nargs=4, metavar=("NAME", "MODE", "BATCH", "WORK"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    warnings.filterwarnings("ignore")
    options = arguments()
    torch.set_num_threads(options.threads)
    if options.one:
        name, mode, batch, work = options.one
        print(json.dumps(one(name, mode, int(batch), work, 3 if int(batch) >= BATCH else 10)))
        return
    best = peak()
    for part in options.parts:
        work, modes, names = PARTS[part]
        chosen = candidates(modes, names)
        for batch in options.batches if part == "batches" else [BATCH]:
            rows = measured(chosen, batch, work, options.threads, options.rounds)
            title = f"{part}: batch {batch}, threads {options.threads}, peak {best['bfloat16']:.0f} GFLOP/s in bfloat16"
            show(title, rows, best["bfloat16"])
            save(f"{part}, threads {options.threads}, batch {batch}", best, rows)


def save(key: str, best: dict[str, float], rows: list[dict[str, Any]]) -> None:
    """One part of results/training.json."""
    path = HERE / "results" / "training.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known[key] = {"commit": commit(), "hardware": hardware(), "peak": best, "rows": rows}
    path.write_text(json.dumps(known, indent=1) + "\n")
    draw(known)


if __name__ == "__main__":
    main()
