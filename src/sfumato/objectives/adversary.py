"""An adversary that compares a student's samples with its teacher's, in features of the teacher's network.

    player    mean_l softplus(D_l(x) - D_l(x*))          in the heads D_l
    student   mean_l softplus(D_l(x*) - D_l(x))          in x

x and x* are the ends of one path, the student's and the teacher's, under the same noise of a level m; D_l is a small
head on what stage l of the teacher's encoder says of them, and each has to tell them apart by itself. Content and noise
are alike in such a pair, so that what the heads learn is what a mean square does not weigh: edges and textures that a
student has smoothed away.
Sources: Sauer et al. 2024 (2403.12015), features of the teacher; Jolicoeur-Martineau 2018 (1807.00734), pairs; Kang et
al. 2024 (2405.05967), an adversary beside a regression; Esser et al. 2021 (2012.09841), Eq. 7, its weight.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sfumato import noise
from sfumato.conditions import Conditions, declared
from sfumato.errors import SfumatoError
from sfumato.flow_map import innermost
from sfumato.nets import UNet
from sfumato.nets.blocks import zero
from sfumato.nets.growth import core
from sfumato.nets.watching import outputs
from sfumato.noise import Noise, seeded
from sfumato.process import given
from sfumato.process.angles import angle, time
from sfumato.state import numbers_like

_LEVELS = (0.01, 0.16)  # of the noise, in shares of the largest angle
_WIDTH = 32


def reads(teacher: Any) -> bool:
    """Whether there is an encoder of pictures in the teacher's network."""
    net = core(innermost(teacher).net)
    return isinstance(net, UNet) and len(net.shape) == 3


class Head(nn.Module):
    """(B, C, H, W) -> (B,), 0 at first: a mixture of the channels of h / scale, a convolution, the mean over places.

    scale (C, 1, 1): the root mean square of each channel in the first step, 1 before its end.
    """

    scale: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(channels, 1, 1))
        self.mixture = nn.Conv2d(channels, _WIDTH, 1)
        self.convolution, self.norm = nn.Conv2d(_WIDTH, _WIDTH, 3, stride=2, padding=1), nn.GroupNorm(8, _WIDTH)
        self.last = zero(nn.Conv2d(_WIDTH, 1, 1))

    def forward(self, h: Tensor) -> Tensor:
        h = nn.functional.silu(self.mixture(h / self.scale))
        found: Tensor = self.last(nn.functional.silu(self.norm(self.convolution(h)))).flatten(1).mean(1)
        return found


class Adversary(nn.Module):
    """The heads D_l on the encoder of a teacher of pictures, a U-Net, which is not trained."""

    ratio: Tensor
    heads: Any

    def __init__(self, teacher: Any, seed: int) -> None:
        super().__init__()
        model: Any = innermost(teacher)
        net: Any = core(model.net)
        if not reads(model):
            raise SfumatoError(
                "An adversary reads the encoder of a U-Net of pictures (C, H, W), and the teacher's network is "
                f"{type(model.net).__name__}, of samples {tuple(model.shape)}: leave adversary= out."
            )
        self._model: tuple[Any] = (model,)  # in a tuple, so that its weights are not the loss's state
        self._stages: list[Any] = [stage for level in net.encoder for stage in level]
        with seeded(seed):
            self.heads = nn.ModuleList(Head(stage.block.outputs) for stage in self._stages)
        # the length of the error's gradient over that of the heads' in the step before, as no part of a batch knows it
        self.register_buffer("ratio", torch.zeros(()))
        self._squares = [0.0, 0.0]
        self._sizes: list[Tensor] = []  # of the features of each part of the first step: (mean squares, samples)
        self._made: dict[tuple[int, ...], tuple[list[Tensor], list[Tensor]]] = {}  # features of both samples of a step

    def pull(self, x: Tensor, theirs: Tensor, index: Tensor, seed: int, cond: Conditions) -> Tensor:
        """The gradient in x of the student's part, summed over the samples of these numbers, like x."""
        x = x.detach().requires_grad_()
        told = {name: cond.given(name) for name in cond if name in (declared(self._model[0]) or {})}
        draws = Noise(seed, index, noise.PROBE)
        u = noise.uniform(seed, index, (), noise.PROBE, 1, dtype=torch.float64)
        eps = numbers_like(draws, x)
        mine = self.features(x, u, eps, told)
        with torch.no_grad():
            true = self.features(theirs, u, eps, told)
            judged = self.judge(true)
        loss = nn.functional.softplus(judged - self.judge(mine)).mean(1).sum()
        if bool((self.heads[0].scale == 1).all()):
            squares = torch.cat([each.double().square().mean((0, 2, 3)) for each in true])
            self._sizes.append(torch.cat((squares, squares.new_ones(1))) * len(x))
        self._made[tuple(index.tolist())] = [each.detach() for each in mine], true
        (found,) = torch.autograd.grad(loss, x)
        return found

    def losses(self, index: Tensor) -> Tensor:
        """The player's losses of the samples of these numbers, of which `pull` was asked before, (B,)."""
        mine, true = self._made[tuple(index.tolist())]
        return nn.functional.softplus(self.judge(mine) - self.judge(true)).mean(1)

    def measure(self, own: Tensor, pull: Tensor) -> None:
        """Take note of the gradients of a part of a step: of the error, and of the heads."""
        self._squares = [a + float(b.double().square().sum()) for a, b in zip(self._squares, (own, pull), strict=True)]

    def end(self) -> None:
        """The end of a step."""
        self._made.clear()
        own, pull = self._squares
        if pull > 0:
            self.ratio.fill_(math.sqrt(own / pull))
        self._squares = [0.0, 0.0]
        if self._sizes:
            size = torch.stack(self._sizes).sum(0)
            parts = (size[:-1] / size[-1]).sqrt().float().add(1e-6).split([len(head.scale) for head in self.heads])
            for head, part in zip(self.heads, parts, strict=True):
                head.scale.copy_(part[:, None, None])
            self._sizes = []

    def judge(self, features: list[Tensor]) -> Tensor:
        """D_l, (B, L)."""
        return torch.stack([head(each) for head, each in zip(self.heads, features, strict=True)], 1)

    def features(self, x: Tensor, u: Tensor, eps: Tensor, cond: dict[str, Any]) -> list[Tensor]:
        """What each stage of the teacher's encoder says of x under the noise eps of the levels u, from 0 to 1."""
        model = self._model[0]
        low, high = _LEVELS
        theta = angle(model.process, 1.0) * (low + (high - low) * u)
        m = time(model.process, theta)
        z = given(model.process, cond).corrupt(x, m, eps)
        return outputs(self._stages, lambda: model(z, m, **cond))
