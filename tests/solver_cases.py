"""What the tests of the solvers share: a smooth mixture, and solvers by name with what they declare."""

from sfumato.exact import GaussianMixture
from sfumato.schedules import EDM, VE, Cosine, Flow, FromBetas, LinearBeta, Shifted, Sigmoid, SubVP
from sfumato.solvers import DDIM, DDPM, Euler, Heun, Multistep, Solver

STRUCTURE = {
    "vp": LinearBeta(),
    "cosine": Cosine(),
    "subvp": SubVP(),
    "ve": VE(),
    "edm": EDM(),
    "flow": Flow(),
    "table": FromBetas.ddpm(),
    "shifted": Shifted(Cosine(), 3.0),
    "sigmoid": Sigmoid(),
}
ROWS = ("flow", "F", "x", "eps")
SOLVERS: dict[str, Solver] = {
    "ddim": DDIM(),
    "ddim_half": DDIM(eta=0.5),
    "ddpm": DDPM(),
    "euler": Euler(),
    **{f"heun_{row}": Heun(row=row) for row in ROWS},
    **{f"multistep_{order}_{row}": Multistep(order, row) for order in (1, 2, 3, 4) for row in ROWS},
}


def mixture():
    covs = [[[0.2, 0.1], [0.1, 0.3]], [[0.4, 0.0], [0.0, 0.15]]]
    return GaussianMixture([0.3, 0.7], [[-1.0, 0.5], [0.8, 0.0]], covs)
