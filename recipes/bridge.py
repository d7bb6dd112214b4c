"""D3, a diffusion bridge (2309.16948, 2302.05872): from x' to samples of p(x | x'), for a network that hears x'.

z = alpha x + beta x' + gamma zeta,   gamma^2 = noise^2 alpha beta
"""

import torch

import sfumato as sf
from sfumato.exact import Pair
from sfumato.process import Bridge, RectifiedFlow


def main() -> float:
    """The share of Cov(x, x') that samples of the bridge lose; a flow that does not hear x' loses much of it."""
    a = torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=torch.float64)
    turn = torch.tensor([[-0.8, -0.6], [0.6, -0.8]], dtype=torch.float64)
    cross, b = a @ turn.mT, turn @ a @ turn.mT + 0.1 * torch.eye(2)
    pair = Pair([1.0], [[0.0] * 4], torch.cat((torch.cat((a, cross), 1), torch.cat((cross.mT, b), 1)))[None])
    source, lost = pair.sample(4000)[1], {}
    for process in (Bridge(sf.schedules.Flow(), noise=0.7), RectifiedFlow(sf.schedules.Flow())):
        x = sf.sample(pair.model(process), 4000, 20, "heun", input=source, batch=4000).double()
        found = x.mT @ source / len(x)
        lost[type(process).__name__] = float((found - cross).norm() / cross.norm())
    print("share of Cov(x, x') that is lost:", ", ".join(f"{name} {share:.2f}" for name, share in lost.items()))
    return lost["Bridge"]


if __name__ == "__main__":
    main()
