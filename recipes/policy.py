"""L3, a flow policy learns from rewards: advantage-weighted (2509.25050) and FPO++ (Yi et al. 2026).

reference p(a | s) = N(0, 1), reward -(a - 2 s)^2 / 2, beta = 1: the tilted law p e^r / Z is N(s, 1/2)

Reward less KL is largest for it, E[log Z] = -1/3 - log(2) / 2 = -0.68 for s uniform in (-1, 1); the reference has -7/6.
The policy is a network that hears the state s.
"""

import math
import tempfile
from pathlib import Path

import torch

import sfumato as sf
from sfumato.reinforce import Environment, align, explore
from sfumato.training.console import Silent

QUIET = {"sample_every": 0, "snapshots": 0, "console": Silent()}


class Follow(Environment):
    """One action in a state: it should be twice the state."""

    def start(self, seed: int, index: torch.Tensor) -> torch.Tensor:
        return 2 * sf.noise.uniform(seed, index, (1,), sf.noise.DATA) - 1

    def step(self, state: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return state, -((action - 2 * state) ** 2)[:, 0] / 2


def main() -> float:
    """The largest error of the mean and the variance of actions in three states."""
    worst, best = 0.0, -1 / 3 - math.log(2) / 2
    with tempfile.TemporaryDirectory() as folder:
        how = {"batch": 256, **QUIET}
        net = "MLP(width=32, depth=2)"
        start = sf.train(explore(Follow(), 4096), Path(folder) / "start", net=net, steps=200, **how)
        for method in ("advantage-weighted(every=10)", "fpo++(every=10)"):
            out = Path(folder) / method.partition("(")[0]
            model, report = align(start.path, Follow(), method=method, out=out, samples=1024, steps=150, lr=2e-3, **how)
            before, after, kl = (each.value for each in (report.before, report.after, report.kl))
            print(f"{out.name}: reward {before:.3f} before, {after:.3f} after, KL {kl:.3f}")
            print(f"  reward less KL {after - kl:.3f}, of the tilted law {best:.3f}")
            for state in (-0.7, 0.0, 0.7):
                action = sf.sample(model.denoiser, 512, seed=1, state=[state])
                mean, variance = float(action.mean()), float(action.var())
                print(f"  state {state:4}: mean {mean:.3f} for {state}, variance {variance:.3f} for 0.5")
                worst = max(worst, abs(mean - state), abs(variance - 0.5))
    return worst


if __name__ == "__main__":
    main()
