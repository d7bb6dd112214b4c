"""Accuracy per call: this package's default solver beside the best of six public libraries, in one run.

    python benchmarks/solvers.py                              # mixtures whose exact ODE map is known
    python benchmarks/solvers.py --run build/runs/demo-2min-seed0      # a trained network against its own fine solve

Both draw the work-precision plot and write JSON to --out. A library gets, for every number of calls, the best of its
solvers and of the grids below. All (solver, grid) pairs are screened on the first seed's first --screen points, and the
three best by RMS and the two best by median are run on every point of every seed; the figures are those of the run.
Plans of `sf.tune` are taken from the report of tuned.py, which is on the same points: they join the table and the plot.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import sfumato as sf
import solver_peers
import solver_targets as targets
from record import HERE, commit, hardware
from sfumato import noise, solvers
from sfumato.schedules import VE
from sfumato.solvers import Plan, grids
from solver_peers import F64, Denoise, Peer

# Nodes in logsnr; the last two are those of this package.
GRIDS: dict[str, grids.Grid] = {
    "logsnr": grids.LogSNR(), "rho 7": grids.Rho(7.0), "flow time": grids.FlowTime(0.0), "auto": grids.auto(),
}  # fmt: skip
KEPT = {"rms": 3, "median": 2}
OURS, TUNED = "sfumato, default", "sfumato, tuned"
BOLD = {
    OURS: {"color": "black", "linewidth": 2.4, "zorder": 3},
    TUNED: {"color": "black", "linewidth": 2.4, "zorder": 3, "linestyle": "--"},
}  # fmt: skip


class Pair(NamedTuple):
    """A solver of a library on a grid."""

    peer: Peer
    grid: str

    @property
    def name(self) -> str:
        return f"{self.peer.name} on {self.grid}"


class Problem(NamedTuple):
    """Where walks start, and their exact ends: `denoise` x_hat, the noise, the levels, the end at `low` and at 0."""

    denoise: Denoise
    start: Tensor
    high: float
    low: float
    level: Tensor
    clean: Tensor

    def gaps(self, end: Tensor, clean: bool) -> Tensor:
        """Distance to the exact end of each point, divided by sqrt(D)."""
        return (end - (self.clean if clean else self.level)).flatten(1).square().mean(-1).sqrt()


def mixture(target: str, levels: str, seed: int, points: int) -> Problem:
    known, law = targets.ends(target, levels, seed), targets.law(target, seed)
    high, low = targets.RANGES[levels]

    def denoise(w: Tensor, sigma: float) -> Tensor:
        one = torch.ones(len(w), 1, dtype=F64)
        return law.moments(w, one, sigma * one)[0]

    return Problem(denoise, high * known.noise[:points], high, low, known.level[:points], known.clean[:points])


def sigmas(grid: str, high: float, low: float, steps: int) -> list[float]:
    """steps + 1 falling levels from high to low."""
    curve = VE(low / 4, high)
    times = GRIDS[grid].times(curve, steps, 1.0, float(curve.time(-2 * math.log(low))))
    return [high, *(float(curve.sigma(t)) for t in times[1:-1]), low]


@functools.cache
def nodes(peer: Peer, calls: int) -> int:
    """How many sigmas make the library call the model at most `calls` times; 0 where none do."""
    for count in range(calls + 1, 1, -1):
        used = 0

        def counting(w: Tensor, sigma: float) -> Tensor:
            nonlocal used
            used += 1
            return w / (1 + sigma**2)

        peer.run(counting, torch.ones(2, 3, dtype=F64), sigmas("logsnr", 80.0, 0.002, count - 1))
        if used <= calls:
            return count
    return 0


def measure(pair: Pair, calls: int, problems: Iterable[Problem]) -> Tensor | None:
    """The distances of all points, or None where the solver cannot run with so few calls."""
    count = nodes(pair.peer, calls)
    if count < 2:
        return None
    gaps = []
    for p in problems:
        end = pair.peer.run(p.denoise, p.start, sigmas(pair.grid, p.high, p.low, count - 1))
        gaps.append(p.gaps(end, pair.peer.clean))
    found = torch.cat(gaps)
    return found if bool(found.isfinite().all()) else None


def ours(solver: solvers.Solver) -> solver_peers.Run:
    """This package's walk in the form that the other libraries' have: on its own grid, over the same levels."""

    def run(x_hat: Denoise, w: Tensor, levels: list[float]) -> Tensor:
        curve = VE(levels[-1] / 4, levels[0])
        stop = float(curve.time(-2 * math.log(levels[-1])))
        plan = targets_plan(solver, curve, len(levels) - 1, stop)

        class Believed:
            process = sf.Gaussian(curve)

            def __call__(self, z: Tensor, t: float) -> Any:
                return sf.Estimate(z, t, curve, x=x_hat(z, float(curve.sigma(t))))

        *_, last = plan.run(Believed(), w)
        return last.z

    return run


@functools.lru_cache(maxsize=64)
def targets_plan(solver: solvers.Solver, curve: VE, steps: int, stop: float) -> Plan:
    return solver.plan(curve, steps, 1.0, stop)


def own(exact: bool) -> list[Peer]:
    """The default for exact models or for networks, and every deterministic solver that the command line names."""
    found = [Peer(OURS, "default", ours(solvers.default(exact)))]
    for name, make in solvers.NAMES.items():
        if name == "map":  # moves along flow maps alone
            continue
        try:
            plan = make().plan(VE(), 6)
        except sf.SfumatoError:
            continue
        if isinstance(plan, Plan) and not plan.stochastic:
            found.append(Peer("sfumato, named", name, ours(make())))
    return found


class Best(NamedTuple):
    value: float
    pair: str


def summary(gaps: Tensor) -> dict[str, float]:
    rms, median = targets.summary(gaps)
    return {"rms": rms, "median": median}


def cell(pairs: list[Pair], calls: int, small: list[Problem], full: list[Problem]) -> dict[str, dict[str, Best]]:
    """library -> figure -> its best pair; screened on `small`, measured on `full`."""
    screened: dict[str, list[tuple[dict[str, float], Pair]]] = {}
    for pair in pairs:
        gaps = measure(pair, calls, small)
        if gaps is not None:
            screened.setdefault(pair.peer.library, []).append((summary(gaps), pair))
    out: dict[str, dict[str, Best]] = {}
    for library, found in screened.items():
        ranked = {key: sorted(found, key=lambda one, key=key: one[0][key])[:kept] for key, kept in KEPT.items()}
        chosen = {id(pair): pair for some in ranked.values() for _, pair in some}
        results = [(gaps, pair) for pair in chosen.values() if (gaps := measure(pair, calls, full)) is not None]
        if results:
            out[library] = {key: min(Best(summary(gaps)[key], pair.name) for gaps, pair in results) for key in KEPT}
    return out


def pairs_of(peers: list[Peer]) -> list[Pair]:
    """Every peer on every grid; this package's solvers bring their own."""
    return [
        Pair(peer, grid) for peer in peers for grid in (["logsnr"] if peer.library.startswith("sfumato") else GRIDS)
    ]


def joined(args: argparse.Namespace, pairs: list[Pair]) -> Iterator[dict[str, Any]]:
    """The rows of earlier reports."""
    for path in args.join:
        yield from json.loads(path.read_text())["rows"]


def winners(pairs: list[Pair], reports: list[Path] | None) -> list[Pair]:
    """The pairs that were a library's best somewhere in these reports; all without a report."""
    if not reports:
        return pairs
    rows = [row for path in reports for row in json.loads(path.read_text())["rows"]]
    won = {(lib, best["pair"]) for row in rows for lib, some in row["best"].items() for best in some.values()}
    return [pair for pair in pairs if (pair.peer.library, pair.name) in won]


def mixtures(args: argparse.Namespace, pairs: list[Pair]) -> Iterator[dict[str, Any]]:
    for target in args.targets:
        for levels in args.levels:
            small = [mixture(target, levels, targets.SEEDS[0], args.screen)]
            full = [mixture(target, levels, seed, targets.POINTS) for seed in targets.SEEDS]
            for calls in args.calls:
                start = time.perf_counter()
                found = cell(pairs, calls, small, full)
                yield {"target": target, "levels": levels, "calls": calls, "best": jsonable(found)}
                print(f"{target} {levels} {calls}: {time.perf_counter() - start:.0f} s", flush=True)


def trained(args: argparse.Namespace, pairs: list[Pair]) -> Iterator[dict[str, Any]]:
    """The network of a run: labels in turn, sigma/alpha from 80 to 0.002, against the default solver's fine walk."""
    model = sf.load(str(args.run))
    curve, shape = model.process.schedule, model.shape
    guided = model if args.guidance == 1 else sf.Guided(model, args.guidance)
    name = args.run.name + ("" if args.guidance == 1 else f", guidance {args.guidance:g}")
    index = torch.arange(args.images)
    label = index % len(model.spec.classes) if model.spec.classes else None
    high, low = targets.RANGES["edm"]
    start = high * noise.normal(0, index, shape, dtype=F64).flatten(1)

    def denoise(w: Tensor, sigma: float) -> Tensor:
        t = float(curve.time(-2 * math.log(sigma)))
        z = (curve.alpha(t) * w).float().reshape(-1, *shape)
        cond = {} if label is None else {"label": label[: len(w)]}
        with torch.no_grad():
            return guided(z, t, **cond).x.flatten(1).to(F64)

    fine = ours(solvers.default())(denoise, start, [high, *[1.0] * (args.fine - 1), low])
    check = ours(solvers.default())(denoise, start, [high, *[1.0] * (args.fine // 2 - 1), low])
    clean = denoise(fine, low)  # one more call: what a library that ends on the belief is compared with
    whole = Problem(denoise, start, high, low, fine, clean)
    floor = summary(whole.gaps(check, clean=False))
    print(f"the fine solve: {args.fine} calls, {floor['rms']:.1e} RMS from half as many", flush=True)
    small = Problem(
        denoise, start[: args.screen_images], high, low, fine[: args.screen_images], clean[: args.screen_images]
    )
    for calls in args.calls:
        found = cell(pairs, calls, [small], [whole])
        yield {"target": name, "levels": "edm", "calls": calls, "best": jsonable(found), "floor": floor}
        print(f"{name} {calls}", flush=True)


def jsonable(found: dict[str, dict[str, Best]]) -> dict[str, dict[str, dict[str, Any]]]:
    return {library: {key: best._asdict() for key, best in figures.items()} for library, figures in found.items()}


def table(rows: list[dict[str, Any]], figure: str) -> str:
    """Libraries down, calls across; the last line is the best library's figure over the default's."""
    calls = [row["calls"] for row in rows]
    libraries = [*dict.fromkeys(library for row in rows for library in row["best"])]
    lines = [f"| {figure} | {' | '.join(map(str, calls))} |", "|---" * (len(calls) + 1) + "|"]
    for library in libraries:
        cells = [f"{row['best'][library][figure]['value']:.2g}" if library in row["best"] else "" for row in rows]
        lines.append(f"| {library} | {' | '.join(cells)} |")
    ratios = []
    for row in rows:
        rest = [v[figure]["value"] for name, v in row["best"].items() if not name.startswith("sfumato")]
        ratios.append(f"{min(rest) / row['best'][OURS][figure]['value']:.2f}" if rest else "")
    return "\n".join([*lines, f"| best library / default | {' | '.join(ratios)} |"])


def with_tuned(rows: list[dict[str, Any]], report: Path) -> list[dict[str, Any]]:
    """The rows, with the figures of the plans that were fitted to these targets for as many calls."""
    if not report.exists():
        return rows
    known = {(one["target"], one["levels"], one["calls"]): one for one in json.loads(report.read_text())["rows"]}
    out = []
    for row in rows:
        one = known.get((row["target"], row["levels"], row["calls"]))
        best = {name: figures for name, figures in row["best"].items() if name != TUNED}
        if one is not None:
            figures = {key: Best(one[key], "tune")._asdict() for key in KEPT}
            best = {OURS: best[OURS], TUNED: figures, **best}
        out.append({**row, "best": best})
    return out


def grouped(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    out: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        out.setdefault(f"{row['target']}, {row['levels']}", []).append(row)
    return out


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """The work-precision plot: a column for each target and range, RMS above and median below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    groups = grouped(rows)
    figure, axes = plt.subplots(2, len(groups), figsize=(4.2 * len(groups), 7.2), squeeze=False, sharex=True)
    libraries = [*dict.fromkeys(library for row in rows for library in row["best"])]
    for column, (title, some) in enumerate(groups.items()):
        for axis, key in zip(axes[:, column], KEPT, strict=True):
            for i, library in enumerate(libraries):
                line = [(r["calls"], r["best"][library][key]["value"]) for r in some if library in r["best"]]
                if line:
                    style = BOLD.get(library, {"color": f"C{i}", "linewidth": 1})
                    axis.loglog(*zip(*line, strict=True), marker="o", markersize=3, label=library, **style)
            axis.set_ylabel(f"{key} distance to the {'exact' if 'floor' not in some[0] else 'fine'} ODE")
            axis.grid(True, which="both", alpha=0.25)
            axis.set_xticks([r["calls"] for r in some], [str(r["calls"]) for r in some])
            axis.minorticks_off()
        axes[0, column].set_title(title)
        axes[1, column].set_xlabel("calls of the denoiser")
    handles = {label: line for axis in axes.flat for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.legend(handles.values(), handles.keys(), fontsize=8, loc="lower center", ncols=5)
    figure.savefig(path, dpi=110)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a run's folder: its network against its own fine solve")
    parser.add_argument("--guidance", type=float, default=1.0, help="of the network")
    parser.add_argument("--targets", nargs="+", default=list(targets.TARGETS))
    parser.add_argument("--levels", nargs="+", default=list(targets.RANGES))
    parser.add_argument("--calls", type=int, nargs="+", default=list(targets.CALLS))
    parser.add_argument("--screen", type=int, default=250, help="points on which all pairs are screened")
    parser.add_argument("--images", type=int, default=32, help="samples of a trained network")
    parser.add_argument("--screen-images", type=int, default=8)
    parser.add_argument("--fine", type=int, default=400, help="calls of the fine solve")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--like", type=Path, nargs="+", help="only the pairs that were best in these reports")
    parser.add_argument("--join", type=Path, nargs="+", help="run nothing: one table and plot of these reports")
    tuned = HERE / "results" / "tuned.json"
    parser.add_argument("--tuned", type=Path, default=tuned, help="report of tuned.py, for the table and the plot")
    parser.add_argument("--out", type=Path, help="by default benchmarks/results/solvers[-network].json")
    return parser.parse_args()


def main() -> None:
    args = options()
    warnings.simplefilter("ignore")  # the libraries' own deprecations
    torch.set_num_threads(args.threads)
    out = args.out or HERE / "results" / ("solvers-network.json" if args.run else "solvers.json")
    peers = [*own(exact=args.run is None), *solver_peers.peers()]
    for library, why in solver_peers.MISSING.items():
        print(f"{library} is left out: {why}")
    facts = {
        "commit": commit(), "hardware": hardware(), "seeds": list(targets.SEEDS), "points": targets.POINTS,
        "missing": sorted(solver_peers.MISSING), "grids": list(GRIDS),
    }  # fmt: skip
    if args.join:  # what was measured, and where, stands in the reports
        facts = {key: value for key, value in json.loads(args.join[0].read_text()).items() if key in facts}
    rows: list[dict[str, Any]] = []
    work: Callable[..., Iterator[dict[str, Any]]] = joined if args.join else trained if args.run else mixtures
    for row in work(args, winners(pairs_of(peers), args.like)):
        rows.append(row)
        report = {**facts, "rows": rows}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1) + "\n")
    rows = with_tuned(rows, args.tuned)
    for title, some in grouped(rows).items():
        print(f"\n{title}\n" + "\n\n".join(table(some, figure) for figure in KEPT))
    draw(rows, out.with_suffix(".png"))


if __name__ == "__main__":
    main()
