"""G14, CDCD (2211.15089): the score as a mean over symbols, levels drawn by the CDF of the cross-entropy.

    (alpha sum_k p(k | z) E_k - z) / sigma^2 = grad log p_t(z)

for the exact p. The levels of times="warped" follow the slope of the cross-entropy, so that it rises by as much from
each tenth of the draws to the next. Vectors learned along with a network by the cross-entropy stay on their sphere, and
apart.
"""

import torch

import sfumato as sf
from sfumato.objectives.cross_entropy import CrossEntropy
from sfumato.objectives.loss import Batch
from sfumato.process import Embedded

LAW = sf.exact.Table(torch.rand(5, 5, generator=torch.Generator().manual_seed(0)) ** 3)
FLOW = sf.schedules.Flow()


def batch(count: int, first: int, dtype: torch.dtype) -> Batch:
    u = (torch.arange(count).double() + 0.5) / count
    return Batch(LAW.sample(count, first=first).to(dtype), {}, torch.arange(first, first + count), u)


def score_error(process: Embedded) -> float:
    """How far the mean over symbols is from the gradient of log p_t, at t = 0.5."""
    x = process.data(LAW.states.double())
    z = process.corrupt(x, 0.5, sf.Noise(0, torch.arange(25))).requires_grad_()
    squares = (z[:, None] - 0.5 * x).square().sum(2) / (2 * 0.5**2)
    (score,) = torch.autograd.grad((LAW.probs.log() - squares).logsumexp(1).sum(), z)
    return float((LAW.denoiser(process)(z.detach(), 0.5).score - score).abs().max())


def main() -> float:
    """How far the cross-entropy of the warped levels is from a straight line, as a share of its range; 1 more if the
    score is not exact, or two learned vectors have come together."""
    process = Embedded(FLOW, 5, "random")
    error = score_error(process)
    model, loss = LAW.denoiser(process), CrossEntropy(sf.times.warped(floor=0.01))
    for step in range(40):
        part = batch(2000, 2000 * step, torch.float64)
        loss.observe(part, loss.losses(model, part))
    each = loss.losses(model, batch(40_000, 10**6, torch.float64)).reshape(20, -1).mean(1)
    line = each[0] + (each[-1] - each[0]) * torch.linspace(0, 1, 20)
    bend = float((each - line).abs().max() / (each[-1] - each[0]))
    print(f"score: error {error:.1g}; warped cross-entropy: {bend:.3f} of its range from a straight line")
    process = Embedded(FLOW, 5, "learned", dim=4)
    torch.manual_seed(0)
    net = sf.nets.MLP(*process.net_shape((2,)), width=48, depth=2, outputs=process.outputs)
    network, loss = sf.Denoiser(sf.nets.Codebook(net, 5, 4), process), CrossEntropy(sf.times.warped())
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for step in range(300):
        part = batch(256, 256 * step, torch.float32)
        nats = loss.losses(network, part)
        optimizer.zero_grad()
        nats.mean().backward()
        optimizer.step()
        loss.observe(part, nats.detach())
    vectors = network.process.vectors.detach()
    nearest = float(torch.pdist(vectors).min())
    print(
        f"learned vectors: norms {[round(v, 3) for v in vectors.norm(dim=1).tolist()]}, nearest two {nearest:.2f} apart"
    )
    return bend + (error > 1e-10) + (nearest < 1)


if __name__ == "__main__":
    main()
