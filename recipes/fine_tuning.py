"""LoRA: W = W_0 + (alpha / r) U D, the best of rank r in closed form (2106.09685).

min over rank r of |W_0 + U D - W|_F^2  =  sum of s_k^2, k > r,   s the singular values of W - W_0
"""

import torch

import sfumato as sf


def main() -> float:
    """The largest relative difference between trained adapters and the truncated singular value decomposition."""
    draw = torch.Generator().manual_seed(0)
    target = torch.randn(8, 6, generator=draw, dtype=torch.float64)
    worst = 0.0
    for rank in (1, 2, 4):
        layer = torch.nn.Linear(6, 8, bias=False, dtype=torch.float64)
        missing = torch.linalg.svdvals(target - layer.weight.detach())[rank:].square().sum()
        net = sf.nets.Adapted(torch.nn.Sequential(layer), rank)
        search = torch.optim.LBFGS(
            net.own().values(), max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
        )

        def loss(net: sf.nets.Adapted = net, search: torch.optim.LBFGS = search) -> torch.Tensor:
            search.zero_grad()
            value = (net(torch.eye(6, dtype=torch.float64)).T - target).square().sum()
            value.backward()
            return value

        search.step(loss)
        found = loss().detach()
        numbers = sum(p.numel() for p in net.own().values())
        print(f"rank {rank}: {numbers} of 48 numbers trained, |error|^2 {found:.6f}, by the SVD {missing:.6f}")
        worst = max(worst, abs(float(found / missing) - 1))
    return worst


if __name__ == "__main__":
    main()
