"""B2, sliced score matching (1905.07088): one probe for the trace, whatever the dimension.

v^T (ds/dz) v + 1/2 |s|^2,   E v v^T = I;   signs have the variance 2 sum_{i != j} H_ij^2, H the symmetric part of ds/dz
"""

import itertools

import torch

import sfumato as sf

implicit, sliced = sf.score_matching.implicit, sf.score_matching.sliced


def main() -> float:
    """The largest distance from theory, of the mean and the variance over all sign vectors."""
    truth = sf.exact.GaussianMixture([0.3, 0.7], [[-1.0, 0.5, 0.0], [0.8, 0.0, 0.3]], [0.4, 0.2])
    model, t = truth.denoiser(sf.Gaussian(sf.schedules.Cosine())), 0.3
    z = truth.sample(6, process=model.process, t=t)
    with torch.no_grad():
        signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3)), dtype=z.dtype)
        each = torch.stack([sliced(model, z, t, probes=v.expand(1, 6, 3)) for v in signs])
        plain = torch.stack([sliced(model, z, t, probes=v.expand(1, 6, 3), reduced=False) for v in signs])
        exact = implicit(model, z, t)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda z: truth.score(z[None], process=model.process, t=t)[0]))(z)
    off = jacobian - torch.diag_embed(jacobian.diagonal(dim1=1, dim2=2))
    wanted, found = 2 * off.square().sum((1, 2)), each.var(0, correction=0)
    print(f"all 8 sign vectors: mean {float(each.mean()):.6f}, exact trace {float(exact.mean()):.6f}")
    print(f"variance {float(found.mean()):.6f}, theory {float(wanted.mean()):.6f}")
    print(f"of the form without variance reduction: {float(plain.var(0, correction=0).mean()):.6f}")
    return float(torch.stack(((each.mean(0) - exact).abs().max(), (found - wanted).abs().max())).max())


if __name__ == "__main__":
    main()
