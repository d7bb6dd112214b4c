"""A network's outputs on noised data with known x and eps, by noise level.

    z = alpha x + sigma eps,   y = the network's raw output,   Gram matrix of (y, x, eps, x_g, eps_g) for each draw

x_g and eps_g are the linear guess from z (`draws.Trivial`). For the row (a, b) of any target, schedule and sign, the
loss of reading y as a x + b eps, its slope and the guess's loss are quadratic forms of that matrix:

    loss = E|y - (a x + b eps)|^2,   guess = E|a x_g + b eps_g - (a x + b eps)|^2,   skill = 1 - loss / guess
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, final

import torch
from torch import Tensor
from torch.func import functional_call

from sfumato import noise, target
from sfumato.conditions import Conditions, named, network_inputs, over_present, present
from sfumato.diagnostics.draws import Trivial
from sfumato.errors import SfumatoError
from sfumato.model import running_in
from sfumato.nets.watching import watched
from sfumato.noise import Noise
from sfumato.noised import Noised, NoisedBatch, evaluating
from sfumato.objectives import times as densities
from sfumato.objectives.times import UniformLogSNR
from sfumato.schedule import Schedule

LEVELS = 8
DRAWS = 1024  # most draws per level
NUMBERS = 1 << 14  # values per level that are enough
WIDEST = 8.0  # largest |logsnr| examined
HALF_MAX = 65504.0
DEAD = 1e-8  # relative change of the outputs' power that rounding alone explains


@final
@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """How the outputs change when the network receives another noise level or another condition.

    level, label: the response E|y - y'|^2 / E|y|^2 to a wrong noise level and to another label. own, other (n,): mean
    square error of each sample's outputs under its own and under another label; moved (n,): mean square of y - y';
    by_class: the part of the error, at the noisier half of the levels, that class means explain (unbiased). None
    without labels. others: the response to another sample's value of each condition other than the label.
    """

    level: float
    label: float | None = None
    own: Tensor | None = None
    other: Tensor | None = None
    moved: Tensor | None = None
    by_class: float | None = None
    others: dict[str, float] = dataclasses.field(default_factory=dict)


@final
@dataclasses.dataclass(frozen=True)
class Answers:
    """logsnr (K,); gram (K, n, 5, 5), divided by the sample's size; target and schedule: those that the model declares.

    cut: the largest |x_hat| at the lowest noise level; piled: the share of predictions that equal it; beyond: the share
    of the data that exceed it by 5 % or more. half: whether the network computes in float16; peak: if so, the largest
    |output| of any of its modules in float32, and that module's name. finite: whether all outputs are. held: whether
    the samples were held out of training.
    """

    logsnr: Tensor
    gram: Tensor
    target: str
    schedule: Schedule
    sigma_data: float
    sensitivity: Sensitivity
    cut: float
    piled: float
    beyond: float
    half: bool
    peak: tuple[float, str]
    finite: bool
    held: bool


def levels(times: str | None, schedule: Schedule, count: int = LEVELS) -> Tensor:
    """`count` evenly spaced logsnr between the 1 % and 99 % quantiles of the named density, cleanest first."""
    density = UniformLogSNR() if times is None else densities.named(times)
    density = UniformLogSNR() if density.moves else density
    u = torch.linspace(0.01, 0.99, count, dtype=torch.float64)
    with torch.no_grad():
        ends = density.logsnr(u, schedule).clamp(-WIDEST, WIDEST)
    return torch.linspace(float(ends[0]), float(ends[-1]), count, dtype=torch.float64)


def draws_for(rows: int, numbers: int) -> int:
    """How many draws per level are enough for `rows` samples of `numbers` values each."""
    return int(min(DRAWS, max(min(rows, 64), NUMBERS // numbers)))


def ask(
    model: Any,
    x: Tensor,
    cond: Tensor | Mapping[str, Any] | None,
    logsnr: Tensor,
    count: int,
    seed: int = 0,
    batch: int = 256,
    held: bool = True,
) -> Answers:
    """A denoiser's outputs on normalised samples x (N, *shape), used in turn, with their conditions or labels.

    Calls the network twice for each of `count` draws at each level, and once more for each condition. The model and
    torch's random state stay unchanged.
    """
    if not hasattr(model, "predict"):
        raise SfumatoError(f"{type(model).__name__} has no raw prediction to judge: pass the denoiser inside it.")
    given = Conditions.of(cond)
    swapped = _of_others(named(given), len(x), seed).to(model.device)
    draws = _draws(model, x, given, logsnr, count, seed, batch)
    found = draws.table(model, lambda part: _answered(model, draws.take(part), swapped.rows(draws.row[part])))
    found = {name: column.unflatten(0, (len(logsnr), count)) for name, column in found.items()}
    change = _sensitivity(found, draws.row[:count], given)
    half, peak = computes_in_half(model), (0.0, "")
    if half:
        peak = _peak(model, _draws(model, x, given, logsnr.mean()[None], min(16, len(x)), seed, batch))
    cut = _cut(model, _draws(model, x, given, logsnr.max()[None], min(count, 4 * batch), seed, batch))
    finite = all(bool(column.isfinite().all()) for column in found.values())
    return Answers(
        logsnr, found["gram"], model.target, model.process.schedule, float(model.sigma_data), change, *cut, half, peak,
        finite, held,
    )  # fmt: skip


def _draws(model: Any, x: Tensor, cond: Conditions, logsnr: Tensor, count: int, seed: int, batch: int) -> Noised:
    """`count` draws at each level, level after level; each level uses the samples in turn."""
    number, device = torch.arange(count * len(logsnr)), model.device
    t = model.process.schedule.time(logsnr.double()).repeat_interleave(count)
    source = Noise(seed, number, noise.PROBE)
    return Noised(model.process, x.to(device), cond.to(device), number % count % len(x), t, source, batch)


def _answered(model: Any, drawn: NoisedBatch, swapped: Conditions) -> dict[str, Tensor]:
    """For each draw: the Gram matrix (5, 5) of (y, x, eps, x_g, eps_g); |y|^2; |y - y'|^2 under another noise level and
    under another sample's value of each condition; with labels also the error y - y*, its square, and the square of the
    error under another label.
    """
    (x, eps, z, t, cond), process = drawn, model.process
    y = model.predict(z, t, **cond)
    belief = Trivial(process, 0.0, model.sigma_data**2)(z, t)
    here = present(cond)
    five = torch.stack([v.flatten(1).double() for v in (y, x, eps, belief.x, belief.eps)], 1)
    weighed = five if here is None else five * over_present(torch.ones_like(here), here).double().flatten(1)[:, None]
    columns = {"gram": weighed @ five.mT / five.shape[2], "answer": _square(y)}
    columns["level"] = _square(y - _at_wrong_level(model, z, t, cond))
    for name in swapped:
        other = model.predict(z, t, **{**cond, name: swapped[name]})
        columns[f"condition {name}"] = _square(y - other)
        if name == "label" and swapped.given(name).is_label:
            a, b = target.row(model.target, process.schedule, t, model.sigma_data)
            wanted, known = _times(a, x) + _times(b, eps), 1.0 if here is None else here
            error = (y - wanted) * known
            columns |= {"error": error.double().flatten(1), "own": _square(error)}
            columns["other"] = _square((other - wanted) * known)
    return columns


def _of_others(given: Conditions, count: int, seed: int) -> Conditions:
    """For each of `count` samples, every condition's value from another sample, and the label of another class."""
    strange = given.rows(noise.permutation(seed, 1, count))
    label = given.get("label")
    return Conditions({**strange, **({"label": _others(label, seed)} if isinstance(label, Tensor) else {})})


def _times(coefficient: Tensor, x: Tensor) -> Tensor:
    return coefficient.to(x).reshape(-1, *[1] * (x.ndim - 1)) * x


def _square(values: Tensor) -> Tensor:
    """Mean square of each sample, float64 (B,)."""
    return values.double().flatten(1).square().mean(1)


def _others(label: Tensor, seed: int) -> Tensor:
    """A label of another class for each sample, drawn by class frequency."""
    drawn = label[noise.permutation(seed, 1, len(label))]
    for turn in range(2, 8):
        drawn = torch.where(drawn == label, label[noise.permutation(seed, turn, len(label))], drawn)
    return drawn


def _at_wrong_level(model: Any, z: Tensor, t: Tensor, cond: Conditions) -> Tensor:
    """The network's output for a noise level that is wrong by 4 in logsnr."""
    c_in, level = model.scaling(t, z.device)
    shifted = torch.where(level > 0, level - 0.5, level + 0.5).expand(len(z))
    with running_in(model.compute_dtype, z.device):
        y = model.net(_times(c_in.expand(len(z)), z), shifted, **network_inputs(cond, model.net))
    return y.to(z.dtype)[:, : z.shape[1]]


def _sensitivity(found: Mapping[str, Tensor], rows: Tensor, given: Conditions) -> Sensitivity:
    """Summarise columns (K, n, ...) of draws of the samples `rows` at each level.

    Figures about labels are averaged over the draws of each sample first, since those are not independent.
    """
    power = float(found["answer"].mean().clamp_min(1e-30))
    response = {name: float(found[f"condition {name}"].mean()) / power for name in named(given)}
    level = float(found["level"].mean()) / power
    label = given.get("label")
    if not isinstance(label, Tensor):
        return Sensitivity(level, others=response)
    own, other, moved = (_by_sample(found[n].mean(0), rows) for n in ("own", "other", "condition label"))
    by_class = None
    if len(label.unique()) > 1:
        noisier = found["error"][len(found["error"]) // 2 :]
        by_class = _by_class(torch.stack([_by_sample(error, rows) for error in noisier]), label[: len(own)])
    return Sensitivity(level, response.pop("label"), own, other, moved, by_class, response)


def _by_sample(values: Tensor, rows: Tensor) -> Tensor:
    """Mean over the draws of each sample: (n, ...) -> (N, ...)."""
    sums = torch.zeros(int(rows.max()) + 1, *values.shape[1:], dtype=torch.float64).index_add(0, rows, values)
    return sums / rows.bincount().reshape(-1, *[1] * (values.ndim - 1))


def _by_class(mean: Tensor, label: Tensor) -> float:
    """sum_c p_c <m_c, m'_c> / d over levels: m and m' are the mean errors of a class over two halves of its samples.

    mean (K, N, d): the mean error of each sample.
    """
    total = 0.0
    for c in label.unique():
        rows = torch.nonzero(label == c).flatten()
        if len(rows) >= 4:
            halves = mean[:, rows[::2]].mean(1), mean[:, rows[1::2]].mean(1)
            total += len(rows) / len(label) * float((halves[0] * halves[1]).mean())
    return total


def computes_in_half(model: Any) -> bool:
    """Whether the network computes in float16, whose largest number is 65,504."""
    return model.compute_dtype == torch.float16 or any(p.dtype == torch.float16 for p in model.parameters())


def _cut(model: Any, draws: Noised) -> tuple[float, float, float]:
    """(largest |x_hat|, share of x_hat equal to it, share of x that exceeds it by 5 %) at low noise."""

    def sizes(part: Tensor) -> dict[str, Tensor]:
        drawn = draws.take(part)
        here = present(drawn.cond)
        hat = model(drawn.z, drawn.t, **drawn.cond).x.abs() * (1.0 if here is None else here)
        return {"hat": hat, "clean": drawn.x.abs()}

    hat, clean = draws.table(model, sizes).values()
    most = float(hat.max())
    piled = (hat >= most * (1 - 1e-6)).double().mean()
    return most, float(piled), float((clean > 1.05 * most).double().mean())


@torch.no_grad()
def _peak(model: Any, draws: Noised) -> tuple[float, str]:
    """The largest |output| of any module of the network in float32, and that module's name."""
    drawn = draws.take(draws.index)
    found: dict[str, float] = {}

    def look(name: str, out: Any) -> None:
        if isinstance(out, Tensor) and out.is_floating_point():
            found[name] = max(found.get(name, 0.0), float(out.abs().max()))

    with evaluating(model), _in_float32(model), watched(model.net, look):
        model.predict(drawn.z, drawn.t, **drawn.cond)
    name = max(found, key=lambda each: found[each])
    return found[name], name


@contextlib.contextmanager
def _in_float32(model: Any) -> Iterator[None]:
    """Run the network in float32 within the block; half-precision weights are restored bit for bit."""
    low, kept = model.compute_dtype, {p: p.data for p in model.parameters() if p.dtype == torch.float16}
    model.compute_dtype = None
    for p in kept:
        p.data = p.data.float()
    try:
        yield
    finally:
        model.compute_dtype = low
        for p, data in kept.items():
            p.data = data


@torch.no_grad()
def deaf(model: Any, x: Tensor, cond: Mapping[str, Any], seed: int = 0) -> tuple[str, ...]:
    """The conditions that a network ignores: another sample's value, or none, leaves the output unchanged.

    A new network outputs 0 for every input, so parameters that are all zero are replaced by random ones for this call;
    the network itself is not changed. x: normalised samples (N, *shape), N >= 2.
    """
    draws = _draws(model, x, Conditions.of(cond), torch.zeros(1), len(x), seed, len(x))
    _, _, z, t, given = draws.take(draws.index)
    generator = torch.Generator().manual_seed(seed)
    moved = {
        name: (0.5 * torch.randn(p.shape, generator=generator)).to(p)
        for name, p in model.net.named_parameters()
        if not bool(p.any())
    }
    c_in, level = model.scaling(t, z.device)

    def output(cond: Mapping[str, Any]) -> Tensor:
        y: Tensor = functional_call(model.net, moved, (_times(c_in, z), level), network_inputs(cond, model.net))
        return y

    found = []
    with evaluating(model):
        own = output(given)
        for name in named(given):
            swapped = given.given(name).rows(draws.index.roll(1))
            changes = [output({**given, name: other}) - own for other in (swapped, swapped.null())]
            if not any(bool((_square(c) > DEAD * _square(own)).any()) for c in changes):
                found.append(name)
    return tuple(found)
