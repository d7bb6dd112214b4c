"""The log-likelihood ratio of two models by their bounds, on common random numbers.

    log p(x) / p_ref(x)  =~  int E[L_ref(x, z, t) - L(x, z, t)] dlevel

L is the loss rate in nats (`Process.loss` with weight 1): for real numbers 1/2 |eps - eps_hat|^2. Both models hear the
same z at the same levels, one in each stratum of equal probability, and each level has eps and -eps, so that the noise
of the two losses cancels: on a shift of 0.1 in 16 dimensions one draw varies 90 times less than by separate draws.
For two Gaussians the bounds are tight, and the ratio is exact but for its sampling error.

    KL(p || p_ref) <= int E[L_ref(x', z, t) - L(x', z, t)] dlevel,   x from p, x' from the model's belief about z

is the KL of the two reverse walks (Girsanov): 1/2 |eps_hat - eps_ref|^2, never below 0, where the mean log-ratio of x
itself has E[(eps - eps_hat) (eps_hat - eps_ref)] besides, which is 0 only for a model that is the denoiser of its own
samples. For such a model both are KL(p || p_ref).

Another weight w is another objective. For N(m, v) its surrogate of log p is, up to a constant,

    -q_w(v) (x - m)^2,   q_w(v) = 1/2 int w(l) e^l / (1 + v e^l)^2 dl:   1 / (2 v) for w = 1 alone

so that learning from rewards or preferences ends at another variance than that of the tilted law (`contraction`).
Sources: Kingma and Gao 2023 (2303.00848), Eq. 6; the closed forms are derived in `tests/reinforce/test_ratio.py`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sfumato import noise
from sfumato.belief import Beliefs, Estimate, Logits, drawn_symbols
from sfumato.compose import alike
from sfumato.conditions import Conditions, resolve
from sfumato.errors import SfumatoError, whole
from sfumato.likelihood.bound import Strata, places
from sfumato.machine import default_cpu, outside_inference
from sfumato.model import compute_dtype, usable
from sfumato.noise import Noise
from sfumato.objectives.weights import Weight, chosen
from sfumato.process import Gaussian
from sfumato.roots import bisection
from sfumato.sampling import refuse_arguments
from sfumato.state import State, first_leaf, map_state, numbers_like, rows_of, samples

_ROWS = 1 << 10  # states of a model call
_EDGE = 1e-12  # how near to 0 and 1 the shares of the strata come
_REACH = 60.0  # of logsnr, beyond which the integral of a contraction holds nothing


@dataclasses.dataclass(frozen=True)
class LogRatio:
    """log p(x) / p_ref(x) of B samples, float64 (B,) each, in nats; with gradients where those were enabled.

    value: the mean of `draws` independent estimates. variance: that of the mean, estimated from them.
    """

    value: Tensor
    variance: Tensor
    draws: int

    @property
    def stderr(self) -> Tensor:
        """The standard error of value, (B,)."""
        return self.variance.detach().sqrt()

    @property
    def ratio(self) -> Tensor:
        """exp(value - variance / 2), (B,): exp(value) alone is too large by half the variance on average."""
        return (self.value - self.variance / 2).exp()

    def __str__(self) -> str:
        mean, error = float(self.value.mean()), float(self.stderr.square().mean().sqrt())
        return f"log ratio {mean:.4g} nats in the mean of {len(self.value)} samples, each +- {error:.2g}"


@default_cpu()
@outside_inference
def log_ratio(
    model: Any,
    reference: Any,
    x: Any,
    draws: int = 8,
    levels: int = 16,
    weight: Weight | str = "elbo",
    seed: int = 0,
    index: Sequence[int] | Tensor | None = None,
    **cond: Any,
) -> LogRatio:
    """log p(x) / p_ref(x) of x (B, *shape) in user units under two models of the same process -> `LogRatio`, in nats.

    draws: independent estimates, at least 2, each of `levels` noise levels with two opposite noises, so that a sample
    costs 2 draws * levels calls of each model. weight: w(level) or its name; any but the ELBO's is another objective
    (`contraction`). The draws depend on (seed, number of the sample in `index`) alone. label=... as in `sample`.
    The exact ratio of real numbers, by the ODE: log_prob(model, x).value - log_prob(reference, x).value.
    """
    draws = whole("draws", draws, 2)
    each = _estimates(log_ratio, model, reference, x, draws, levels, weight, seed, index, cond, differences)
    value = each.mean(1)
    return LogRatio(value, (each - value[:, None]).square().sum(1) / (draws * (draws - 1)), draws)


@default_cpu()
@outside_inference
@torch.no_grad()
def path_kl(
    model: Any,
    reference: Any,
    x: Any,
    levels: int = 16,
    seed: int = 0,
    index: Sequence[int] | Tensor | None = None,
    **cond: Any,
) -> Tensor:
    """1/2 int |eps_hat - eps_ref|^2 dlogsnr at noised samples x (B, *shape) of the model, float64 (B,), in nats.

    Its mean is the KL of the model's reverse walk to the reference's, at least that of their samples, and equal to it
    for exact denoisers. Of real numbers no value is below 0; of symbols each is an estimate by one draw of the belief
    a level, and the mean alone is at least 0. Arguments as of `log_ratio`; 2 levels calls of each model.
    """
    return _estimates(path_kl, model, reference, x, 1, levels, "elbo", seed, index, cond, divergences)[:, 0]


def _estimates(
    asked: Callable[..., Any], model: Any, reference: Any, x: Any, draws: int, levels: int, weight: Weight | str,
    seed: int, index: Any, cond: dict[str, Any], each: Callable[..., Tensor],
) -> Tensor:  # fmt: skip
    """`each` (`differences`, `divergences`) of samples in user units, in parts, float64 (B, draws)."""
    name = asked.__name__
    refuse_arguments(asked, usable(model, name), cond)
    if isinstance(usable(reference, name).process, Gaussian):
        alike(reference, model)
    z, levels = clean(model, x), whole("levels", levels)
    count = len(first_leaf(z))
    numbers = torch.arange(count) if index is None else torch.as_tensor(index, dtype=torch.int64)
    conditions = resolve(model, cond, count)
    device, w = getattr(model, "device", first_leaf(z).device), chosen(weight) or torch.ones_like
    parts = []
    for rows in torch.arange(count).split(max(1, _ROWS // (2 * draws * levels))):
        some, own = map_state(lambda v, rows=rows: v[rows].to(device), z), conditions.rows(rows).to(device)
        parts.append(each(model, reference, some, own, numbers[rows], draws, levels, w, seed).double().cpu())
    return torch.cat(parts)


def clean(model: Any, x: Any) -> State:
    """Clean states of the model for x in user units; real numbers as float64."""
    spec = getattr(model, "spec", None)
    if spec is not None:
        spec.check(x)
    x = x if isinstance(x, dict) else samples(x, "log_ratio")
    real = isinstance(model.process, Gaussian)
    x = x.double() if real else x
    with torch.no_grad():
        return model.process.data(x if spec is None else spec.normalise(x))


def differences(
    model: Any, reference: Any, x: State, cond: Conditions, index: Tensor, draws: int, levels: int, weight: Weight,
    seed: int,
) -> Tensor:  # fmt: skip
    """`draws` estimates of log p(x) / p_ref(x) for clean states x (B, ..) numbered by `index`, (B, draws); the
    reference is called without gradients."""
    drawn = Pairs.of(model.process, x, cond, index, draws, levels, seed)
    with torch.no_grad():
        before = drawn.losses(reference, weight)
    return before - drawn.losses(model, weight)


def divergences(
    model: Any, reference: Any, x: State, cond: Conditions, index: Tensor, draws: int, levels: int, weight: Weight,
    seed: int,
) -> Tensor:  # fmt: skip
    """The same for what the model believes of its noised samples, in place of the samples (B, ..): (B, draws)."""
    drawn = Pairs.of(model.process, x, cond, index, draws, levels, seed)
    belief, other = (drawn.belief(each) for each in (model, reference))
    each = len(drawn.t) // len(index)
    source = Noise(seed, index.repeat_interleave(each), noise.STEP, torch.arange(each).repeat(len(index)))
    drawn.x, drawn.eps = believed(belief, drawn.x, drawn.eps, source)
    return drawn.judged(other, weight) - drawn.judged(belief, weight)


def believed(belief: Any, x: State, eps: State, source: Noise) -> tuple[State, State]:
    """(x, eps) by a belief about their z: its means of numbers, drawn symbols; x itself of strings."""
    if isinstance(belief, Beliefs):
        both = {k: believed(part, x[k], eps[k], source.fold(k)) for k, part in belief.items()}
        return {k: pair[0] for k, pair in both.items()}, {k: pair[1] for k, pair in both.items()}
    if isinstance(belief, Estimate):
        return belief.x, belief.eps
    return (drawn_symbols(belief.prob, source), eps) if isinstance(belief, Logits) else (x, eps)


class Pairs:
    """Noised samples on which models are compared: each level of a stratum with eps and with -eps."""

    def __init__(self, process: Any, x: State, eps: State, t: Tensor, cond: Conditions, strata: Strata, shape: Any):
        self.process, self.x, self.eps, self.t, self.cond, self.strata = process, x, eps, t, cond, strata
        self.shape = shape
        self.z = process.corrupt(x, t, eps)

    @classmethod
    def of(
        cls, process: Any, x: State, cond: Conditions, index: Tensor, draws: int, levels: int, seed: int
    ) -> Pairs:  # fmt: skip
        """The draws of samples x (B, ..) with these numbers; they depend on (seed, number) alone."""
        strata = Strata(process, None)
        u = places(seed, index, draws, levels).clamp(_EDGE, 1 - _EDGE)
        t = strata.times(u).repeat_interleave(2, 2)
        each = t[0].numel()
        row, stream = torch.arange(len(index)).repeat_interleave(each), torch.arange(each).repeat(len(index))
        clean, sign = rows_of(x, row.to(first_leaf(x).device)), 1 - 2 * (stream % 2)
        eps = numbers_like(Noise(seed, index[row], noise.BOUND, stream // 2), clean)
        eps = map_state(lambda e: e * sign.to(e).reshape(-1, *[1] * (e.ndim - 1)), eps)
        times = t.flatten().to(first_leaf(x).device)
        return cls(process, clean, eps, times, cond.rows(row), strata, (len(index), draws, -1))

    def losses(self, model: Any, weight: Weight) -> Tensor:
        """The weighted bound's integral, (B, draws), without the terms that two models have in common."""
        return self.judged(self.belief(model), weight)

    def belief(self, model: Any) -> Any:
        """What a model believes of z."""
        dtype = compute_dtype(model)
        z = map_state(lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf, self.z)
        return model(z, self.t, **self.cond)

    def judged(self, belief: Any, weight: Weight) -> Tensor:
        """The same for the belief about z, (B, draws)."""
        losses: Tensor = self.process.loss(belief, self.x, self.eps, weight, self.strata)
        return losses.reshape(self.shape).mean(2)


def contraction(weight: Weight | str, k: float = 1.0) -> float:
    """The variance at which learning from the reward -k/2 (x - a)^2 ends, from the reference N(0, 1), under a weight.

    It solves q_w(v) / q_w(1) = 1 + k, the temperature scaled to the curvature of the reference. The tilted law has
    1 / (1 + k), which only weight "elbo" reaches; "flow" ends at 1 / (1 + k)^2.
    """
    if not k > 0:
        raise SfumatoError(f"The reward's curvature k must be positive, not {k:g}.")
    w = chosen(weight) or torch.ones_like
    level = torch.linspace(-_REACH, _REACH, 24_001, dtype=torch.float64)

    def q(log_v: Tensor) -> Tensor:
        v = log_v.exp()[:, None]
        return torch.trapezoid(w(level) * torch.exp(level - 2 * torch.log1p(v * level.exp())), level) / 2

    aim = (1 + k) * q(torch.zeros(1, dtype=torch.float64))
    low, high = torch.full((1,), -20.0, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    return math.exp(float(bisection(lambda log_v: q(log_v) > aim, low, high, rounds=60)))
