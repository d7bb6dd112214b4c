"""G3, G4, G7, G8, steps of symbols by the law of their samples: rates, bridges, masks revealed one by one.

The exact belief of a table of 3 symbols, the law of each sampler by transition matrices: no chance in it. One symbol a
call is exact in any order that the belief decides, and biased where the probability of what was drawn does (MaskGIT).
"""

import itertools
from collections.abc import Callable

import torch

import sfumato as sf
from sfumato.solvers import ThetaTrapezoid
from sfumato.solvers.leaping import ForwardBackward, Leap


def joined(sites: torch.Tensor) -> torch.Tensor:
    """Independent draws of three symbols as one matrix: (N, 3, S) -> (N, S^3)."""
    return torch.einsum("na,nb,nc->nabc", *sites.unbind(1)).flatten(1)


def away(table, process, calls: int, step: Callable, corrector: float = 0.0) -> float:
    """The total variation of the samples from the table."""
    states, model, law = table.noisy(process), table.denoiser(process), joined(process.pi.expand(1, 3, -1))[0]
    for t, s in itertools.pairwise([1 - k / calls for k in range(calls)] + [0.0]):
        law = law @ joined(step(model(states, t), s).nan_to_num(0.0))
        if corrector and s > 0:
            law = law @ joined(ForwardBackward(corrector * (t - s)).law(model(states, s)).nan_to_num(0.0))
    wanted = torch.zeros_like(law)
    wanted[table.place(table.states, process.size)] = table.probs
    return float((law - wanted).abs().sum()) / 2


def main() -> float:
    """How far Euler is from the bridge where it has to be the bridge, and a revealing of one a call from the law."""
    table = sf.exact.Table(torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(0)) ** 3)
    gap = 0.0
    for process in (sf.Masked(sf.schedules.Flow(), 3), sf.Uniform(sf.schedules.Flow(), 3)):
        bridge, euler, leap = (
            [away(table, process, calls, step) for calls in (4, 16)]
            for step in (lambda belief, s, p=process: p.bridge(belief, s), Leap(True).law, Leap(False).law)
        )
        better = away(table, process, 16, lambda belief, s, p=process: p.bridge(belief, s), corrector=0.3)
        print(f"{type(process).__name__}: total variation at 4 and 16 steps")
        for name, found in [("ancestral", bridge), ("euler", euler), ("tau-leaping", leap)]:
            print(f"    {name:<12} {found[0]:.4f} {found[1]:.4f}")
        print(f"    with a corrector of 0.3 steps, 31 calls: {better:.4f}")
        gap = max(gap, abs(bridge[1] - euler[1])) if isinstance(process, sf.Masked) else gap
    masked = table.denoiser(sf.Masked(sf.schedules.Flow(), 3))
    for solver in (
        "reveal(order=confidence)",
        "maskgit(sizes=equal, gumbel=0.0)",
        "mask-predict(top_p=1.0)",
        ThetaTrapezoid(),
    ):
        x = sf.sample(masked, 4000, steps=3, solver=solver, batch=4000)
        found = torch.bincount(table.place(x), minlength=27) / 4000
        print(f"{solver}, 3 steps: {float((found - table.probs).abs().sum()) / 2:.3f}, of which chance 0.03")
    return gap


if __name__ == "__main__":
    main()
