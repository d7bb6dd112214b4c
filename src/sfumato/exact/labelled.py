"""The joint distribution of samples and their classes, as the exact model of a product of two processes.

p(k | z) ~ p(k) p_t(z_x | k) q(z_k | k),   E[x | z] = sum_k p(k | z) E[x | z_x, k]
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from sfumato.belief import Beliefs, Codes, Estimate, Logits, broadcast
from sfumato.errors import SfumatoError
from sfumato.exact.table import without
from sfumato.exact.truth import Truth
from sfumato.process import Embedded, Product
from sfumato.schedule import Time
from sfumato.state import State


@final
class Labelled:
    """The joint distribution of x and its class under a `Truth`: states {"x": (B, *shape), "label": (B, 1)}."""

    def __init__(self, truth: Truth) -> None:
        self.truth, self.classes = truth, truth.classes

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of one sample of each part, for `Product`."""
        return {"x": self.truth.shape, "label": (1, *[1] * (len(self.truth.shape) - 1))}

    def sample(self, n: int, seed: int = 0, first: int = 0) -> State:
        """n samples of both parts. Row i is a function of (seed, first + i) alone."""
        x, label = self.truth.labelled(n, seed, first)
        return {"x": x, "label": label.reshape(n, *self.shapes["label"])}

    def log_prob(self, x: State) -> Tensor:
        """log p(x, label) in nats, (B,)."""
        label, truth = x["label"].reshape(len(x["x"])), self.truth
        shares = torch.stack([truth.log_weights[truth.labels == k].logsumexp(0) for k in range(self.classes)])
        return shares[label] + truth.log_prob(x["x"], label=label)

    def denoiser(self, process: Product) -> LabelledDenoiser:
        """The optimal denoiser under a product of a Gaussian process "x" and one of symbols "label"."""
        return LabelledDenoiser(self, process)


@final
class LabelledDenoiser:
    """model(z, t) -> Beliefs of "x" and "label", float64."""

    exact, spec = True, None

    def __init__(self, law: Labelled, process: Product) -> None:
        if set(process.processes) != {"x", "label"}:
            raise SfumatoError(
                f"This model needs a product with the parts x and label, not {', '.join(process.processes)}."
            )
        self.law, self.process, self.shape = law, process, process.shapes
        self.device = torch.device("cpu")

    def __call__(self, z: State, t: Time, **cond: Any) -> Beliefs:
        without(cond)
        gaussian, symbols = self.process.processes["x"], self.process.processes["label"]
        truth, x = self.law.truth, z["x"].double()
        at: Any = {"process": gaussian, "t": t}
        label_process: Any = symbols
        evidence = label_process.evidence(z["label"], t)
        log_p = truth.classify(x, **at) + evidence.reshape(len(x), -1)
        r = log_p.softmax(-1)
        signal, noise = torch.zeros_like(x), torch.zeros_like(x)
        for k in range(self.law.classes):
            m = truth.moments(x, **at, label=k)
            signal, noise = signal + broadcast(r[:, k], x) * m.x, noise + broadcast(r[:, k], x) * m.eps
        schedule: Any = gaussian
        estimate = Estimate(x, t, schedule.schedule, x=signal, eps=noise)
        label = Logits(log_p.reshape(evidence.shape), z["label"], t, label_process)
        codes = isinstance(symbols, Embedded)
        return Beliefs({"x": estimate, "label": Codes(label, label_process) if codes else label})
