"""Posteriors that are known, beside every method: error of the mean, of the covariance and of the law, with calls.

    python benchmarks/inverse.py
    pip install azula==0.11.1 deepinv==0.5.0     python benchmarks/inverse.py --peers azula deepinv

A Gaussian field (16 x 16, power f^-2) of which half or the means of 2 x 2 entries are measured, and a mixture of four
Gaussians in eight dimensions with three measurements. The floor is what as many exact draws of the posterior score.
Peers are given the same exact denoiser and the same measurement.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sfumato as sf
from inverse_peers import PEERS, Draw
from record import HERE, commit, hardware

PROCESS = sf.Gaussian(sf.schedules.Cosine())
DRAWS = {"field": 200, "mixture": 500}
ANCESTRAL = "ddim(eta=1)"
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "mmps, 10 products, multistep": ("mmps(iterations=10)", {"steps": 20, "solver": "multistep"}),
    "mmps, 5 products, multistep": ("mmps(iterations=5)", {"steps": 20, "solver": "multistep"}),
    "mmps, 1 product, multistep": ("mmps(iterations=1)", {"steps": 20, "solver": "multistep"}),
    "mmps (4 products, churn)": ("mmps", {"steps": 10}),
    "mmps, 4 products, ancestral": ("mmps", {"steps": 30, "solver": ANCESTRAL}),
    "pigdm": ("pigdm", {"steps": 100, "solver": ANCESTRAL}),
    "tmpd": ("tmpd", {"steps": 100, "solver": ANCESTRAL}),
    "ddnm": ("ddnm", {"steps": 100, "solver": ANCESTRAL}),
    "ddrm": ("ddrm", {"steps": 100}),
    "dps, scale 1": ("dps", {"steps": 100}),
    "dps, scale 0.3": ("dps(scale=0.3)", {"steps": 100}),
    "daps": ("daps", {"steps": 100}),
    "replacement": ("replacement", {"steps": 100}),
    "repaint": ("repaint(repeats=10)", {"steps": 25}),
}
PARTICLES: dict[str, tuple[str, dict[str, Any]]] = {
    "smc, 1,024": ("smc", {"steps": 50, "particles": 1024}),
    "smc, 4,096": ("smc", {"steps": 50, "particles": 4096}),
    "smc, pigdm twist, 1,024": ("smc(twist=pigdm)", {"steps": 50, "particles": 1024}),
}


class Counted:
    """A model that counts its calls."""

    def __init__(self, model: Any) -> None:
        self.model, self.calls, self.exact = model, 0, True
        self.process, self.shape = model.process, model.shape

    def __call__(self, z: Tensor, t: Any, **cond: Any) -> Any:
        self.calls += len(z)
        return self.model(z, t, **cond)


def matrix(operator: Any, shape: tuple[int, ...]) -> Tensor:
    one = torch.eye(math.prod(shape), dtype=torch.float64)
    return operator(one.reshape(-1, *shape)).flatten(1).T


def field_case(operator: Any, s: float) -> dict[str, Any]:
    """One measurement of a field, with mean and covariance of the posterior."""
    truth = sf.exact.GaussianField((1, 16, 16))
    covariance = truth.components.basis.matrix(truth.components.spectra[None])[0]
    A = matrix(operator, truth.shape)
    y = operator(truth.sample(1, 5))[0]
    y = y + s * torch.randn(y.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gain = covariance @ A.T @ torch.linalg.inv(A @ covariance @ A.T + s**2 * torch.eye(len(A)))
    law = sf.exact.GaussianMixture([1.0], (gain @ y.flatten())[None], symmetric(covariance - gain @ A @ covariance))
    return {"truth": truth, "operator": operator, "y": y, "s": s, "law": law, "evidence": None}


def symmetric(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh((covariance + covariance.mT) / 2)
    covariance = (vectors * values.clamp_min(0)) @ vectors.mT
    return ((covariance + covariance.mT) / 2)[None]


def mixture_cases(s: float) -> list[dict[str, Any]]:
    """Six measurements of a mixture, D = 8, K = 4, by three numbers, with the law of x given each."""
    draw = torch.Generator().manual_seed(3)
    means = torch.randn(4, 8, generator=draw, dtype=torch.float64)
    root = 0.35 / math.sqrt(8) * torch.randn(4, 8, 8, generator=draw, dtype=torch.float64)
    covs, A = (
        root @ root.mT + 0.02 * torch.eye(8),
        torch.randn(3, 8, generator=draw, dtype=torch.float64) / math.sqrt(8),
    )
    truth = sf.exact.GaussianMixture([0.4, 0.3, 0.2, 0.1], 0.9 * means / means.std(), covs)
    noise = torch.randn(6, 3, generator=draw, dtype=torch.float64)
    S = A @ covs @ A.T + s**2 * torch.eye(3)
    gain = covs @ A.T @ torch.linalg.inv(S)
    rest = covs - gain @ A @ covs
    cases = []
    for y in truth.sample(6, 100) @ A.T + s * noise:
        r = y - truth.means @ A.T
        square = torch.einsum("ki,kij,kj->k", r, torch.linalg.inv(S), r)
        log_weights = truth.log_weights - 0.5 * (square + torch.logdet(2 * math.pi * S))
        moved = truth.means + torch.einsum("kij,kj->ki", gain, r)
        law = sf.exact.GaussianMixture(log_weights.softmax(0), moved, (rest + rest.mT) / 2)
        case = {"truth": truth, "operator": sf.operators.Linear(A), "y": y, "s": s, "law": law}
        cases.append(case | {"evidence": float(log_weights.logsumexp(0))})
    return cases


def sliced(a: Tensor, b: Tensor) -> float:
    """Sliced W2 over 200 directions."""
    directions = torch.randn(a.shape[1], 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    directions = torch.nn.functional.normalize(directions, dim=0)
    return float(((a @ directions).sort(0).values - (b @ directions).sort(0).values).square().mean().sqrt())


def scores(x: Tensor, case: dict[str, Any]) -> dict[str, float]:
    """x (n, *shape) beside the law of the posterior."""
    law, x = case["law"], x.double().flatten(1)
    mean = law.mean
    between = (law.means - mean).mT @ (law.weights[:, None] * (law.means - mean))
    covariance = torch.einsum("k,kij->ij", law.weights, law.covs) + between
    std = covariance.diagonal().clamp_min(1e-12).sqrt()
    found = {
        "mean": float(((x.mean(0) - mean) / std).square().mean().sqrt()),
        "covariance": float((x.T.cov() - covariance).norm() / covariance.norm()),
        "variance ratio": float(x.var(0).sum() / covariance.diagonal().sum()),
        "sliced W2": sliced(x, law.sample(len(x), 99)),
    }
    if len(law.weights) > 1:
        found["mode weights"] = float((law.responsibilities(x).mean(0) - law.weights).abs().sum() / 2)
    return found


def ours(method: str, how: dict[str, Any]) -> Draw:
    def draw(case: dict[str, Any], n: int, seed: int) -> tuple[Tensor, dict[str, float]]:
        model = Counted(case["truth"].denoiser(PROCESS))
        found = sf.posterior(model, case["y"], case["operator"], case["s"], method, n, seed=seed, batch=4096, **how)
        facts = {"calls": model.calls / how.get("particles", n)}
        if found.log_evidence is not None:
            facts |= {"log p(y) error": abs(found.log_evidence - case["evidence"]), "its own error": found.error}
            facts |= {"effective": found.effective, "ancestors": found.ancestors}
        return found.samples, facts

    return draw


def exact(case: dict[str, Any], n: int, seed: int) -> tuple[Tensor, dict[str, float]]:
    return case["law"].sample(n, 1000 + seed), {"calls": 0}


def measure(draw: Draw, cases: list[dict[str, Any]], n: int) -> dict[str, float]:
    """The mean over the measurements, and the processor time of all."""
    started, rows = time.process_time(), []
    for seed, case in enumerate(cases):
        x, facts = draw(case, n, seed)
        rows.append(scores(x, case) | facts)
    found = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
    return found | {"seconds": time.process_time() - started}


def table(title: str, rows: dict[str, dict[str, float]]) -> None:
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    print(f"\n{title}\n\n| method | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(f'{row[key]:.3g}' if key in row else '' for key in columns)} |", flush=True)


def wanted(name: str, rows: list[str] | None) -> bool:
    return rows is None or any(row in name for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=(), help="libraries, installed, to measure beside")
    parser.add_argument("--out", default=str(HERE / "results/inverse.json"))
    parser.add_argument("--suite", default="", help="measure only what has this in its name, such as mixture")
    parser.add_argument("--rows", nargs="*", help="methods with this in their name; the record keeps the others")
    options = parser.parse_args()
    half = sf.operators.Mask(torch.arange(16) < 8)
    suites = {
        "field, half": ([field_case(half, 0.05)], OURS),
        "field, 2 x 2": ([field_case(sf.operators.Pool(2), 0.05)], OURS),
        "mixture, s = 0.05": (mixture_cases(0.05), OURS | PARTICLES),
        "mixture, s = 0.3": (mixture_cases(0.3), OURS | PARTICLES),
    }
    kept = json.loads(Path(options.out).read_text("utf-8")) if options.rows is not None or options.suite else {}
    results: dict[str, Any] = kept.get("results", {})
    for title, (cases, methods) in suites.items():
        if options.suite not in title:
            continue
        n = DRAWS[title.split(",")[0]]
        runs: dict[str, Draw] = {"exact draws (floor)": exact}
        runs |= {name: ours(method, how) for name, (method, how) in methods.items()}
        for name in options.peers:
            runs |= PEERS[name](PROCESS, matrix, title.startswith("mixture"))
        found = {name: measure(draw, cases, n) for name, draw in runs.items() if wanted(name, options.rows)}
        results[title] = results.get(title, {}) | found
        table(f"{title}: {n} samples of {len(cases)} measurement(s)", found)
        facts = {"commit": commit(), "hardware": hardware(), "draws": DRAWS, "results": results}
        Path(options.out).write_text(json.dumps(facts, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
