"""G13, SED (2211.04236): symbols as fixed random vectors of equal length, a network that says which symbol it was.

A network of 8 numbers a symbol is trained by the cross-entropy alone; what Gaussian solvers are given is the mean
vector, sum_k p(k) E_k. Where the noise ends, the most probable symbol of the exact belief is the right one.
"""

import torch

import sfumato as sf
from sfumato.objectives.cross_entropy import CrossEntropy
from sfumato.objectives.loss import Batch
from sfumato.process import Embedded


def main() -> float:
    """What a trained network misses in total variation; 1 more if a symbol is read wrong at the end."""
    law = sf.exact.Table(torch.rand(6, 6, generator=torch.Generator().manual_seed(1)) ** 3)
    process = Embedded(sf.schedules.Flow(), 6, "random", dim=8)
    wrong = {}
    for t in (0.9, 0.5, 0.1, 0.001):
        z = process.corrupt(process.data(law.states.double()), t, sf.Noise(0, torch.arange(36)))
        wrong[t] = int((law.denoiser(process)(z, t).prob.argmax(-1) != law.states).sum())
        print(f"t = {t}: {wrong[t]} of 72 symbols are not the most probable of the exact belief")
    torch.manual_seed(0)
    net = sf.nets.MLP(*process.net_shape((2,)), width=64, depth=2, outputs=process.outputs)
    model, loss = sf.Denoiser(net, process), CrossEntropy(sf.times.uniform())
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(400):
        x, u = law.sample(256, first=256 * step), (torch.arange(256).double() + 0.5) / 256
        nats = loss.losses(model, Batch(x.float(), {}, torch.arange(256) + 256 * step, u)).mean()
        optimizer.zero_grad()
        nats.backward()
        optimizer.step()
    drawn = sf.sample(model, 4000, steps=30, batch=4000)
    away = float((torch.bincount(law.place(drawn), minlength=36) / 4000 - law.probs).abs().sum()) / 2
    print(f"network: total variation of its samples from the table {away:.3f}, a third of it chance")
    return away + (wrong[0.001] > 0)


if __name__ == "__main__":
    main()
