"""Policies of one dimension in closed form with few parameters, and their training by a loss alone."""

import torch
from torch import Tensor, nn

import sfumato as sf
from sfumato.conditions import Conditions
from sfumato.objectives.loss import Batch


class Mixture(nn.Module):
    """E[x|z] of sum_k softmax(logits)_k N(means_k, exp(log_v)) at every level of a variance-preserving schedule."""

    shape = (1,)

    def __init__(self, means: list[float], variance: float = 1.0) -> None:
        super().__init__()
        self.means = nn.Parameter(torch.tensor(means))
        self.log_v = nn.Parameter(torch.tensor(variance).log())
        self.logits = nn.Parameter(torch.zeros(len(means)))

    def forward(self, z: Tensor, level: Tensor) -> Tensor:
        alpha, noise = torch.sigmoid(-8 * level).sqrt()[:, None], torch.sigmoid(8 * level)[:, None]
        v = self.log_v.exp()
        total = alpha**2 * v + noise
        off = z - alpha * self.means
        share = torch.softmax(self.logits - off**2 / (2 * total), 1)
        return (share * (self.means + alpha * v / total * off)).sum(1, keepdim=True)


class Joint(nn.Module):
    """The beliefs about two symbols of the law softmax(logits), (K, K), at masks."""

    takes_symbols, shape = True, (2,)

    def __init__(self, states: int = 2) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(states, states))

    def forward(self, z: Tensor, level: Tensor) -> Tensor:
        states, beliefs = len(self.logits), []
        for i, logits in enumerate((self.logits, self.logits.T)):  # rows are this symbol, columns the other
            other = z[:, 1 - i]
            known = logits.T[other.clamp_max(states - 1)]
            beliefs.append(torch.where((other == states)[:, None], logits.logsumexp(1), known))
        return torch.stack(beliefs, 1)


class Law(nn.Module):
    """One symbol whose masked belief is softmax(logits)."""

    takes_symbols = True

    def __init__(self, states: int) -> None:
        super().__init__()
        self.shape = (states,)
        self.logits = nn.Parameter(torch.zeros(states))

    def forward(self, z: Tensor, level: Tensor) -> Tensor:
        return self.logits.expand(*z.shape, len(self.logits))


def policy(means: list[float], variance: float = 1.0) -> sf.Denoiser:
    return sf.Denoiser(Mixture(means, variance), sf.Gaussian("cosine", target="x"))


def moments(model: sf.Denoiser) -> tuple[float, float]:
    """The mean and the variance of a policy of one component."""
    return float(model.net.means.detach()[0]), float(model.net.log_v.detach().exp())


def batch(step: int, size: int, u: Tensor | None = None) -> Batch:
    index = torch.arange(step * size, (step + 1) * size)
    u = (torch.arange(size, dtype=torch.float64) + 0.5) / size if u is None else u
    return Batch(torch.zeros(size, 1), Conditions(), index, u)


def train(loss: nn.Module, model: sf.Denoiser, steps: int, size: int = 128, lr: float = 0.03) -> sf.Denoiser:
    """The model itself, after Adam on the loss with a learning rate that falls to 0."""
    optimizer = torch.optim.Adam(model.parameters(), lr, betas=(0.9, 0.99))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        part = batch(step, size)
        losses = loss.losses(model, part)
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        loss.observe(part, losses.detach())
    return model
