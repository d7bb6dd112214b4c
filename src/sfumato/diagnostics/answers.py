"""What a model answers where the truth is known: noised data, by noise level, each answer beside x and eps.

    z = alpha x + sigma eps,   y = the network's raw answer,   Gram matrix of (y, x, eps, x_g, eps_g) for each draw

x_g and eps_g are what the linear guess says of z (`draws.Trivial`). With a row (a, b) of any target, schedule and
sign, the loss of "y means a x + b eps", its slope and the guess's loss are quadratic forms of that matrix:

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
from sfumato.conditions import Conditions, network_inputs
from sfumato.diagnostics.draws import Trivial, evaluating
from sfumato.errors import SfumatoError
from sfumato.nets.watching import watched
from sfumato.objectives import times as densities
from sfumato.objectives.times import UniformLogSNR
from sfumato.process import Gaussian
from sfumato.schedule import Schedule

LEVELS = 8
DRAWS = 1024  # a level, at most
NUMBERS = 1 << 14  # in the draws of a level that suffice
WIDEST = 8.0  # |logsnr| beyond which nothing is asked
HALF_MAX = 65504.0
DEAD = 1e-8  # of the answers' power: what rounding changes


@final
@dataclasses.dataclass(frozen=True)
class Heard:
    """What another label, or another noise level, changes in the answers.

    response: E|y - y'|^2 over E|y|^2; own, other (n,): mean square error of each sample's answers under its own and
    under another label; moved (n,): mean square of y - y'; untold: the part of the error at the noisier half of the
    levels that the means of the classes explain, estimated without bias. None where there are none.
    others: the response to another sample's value of each condition that is no label.
    """

    level: float
    label: float | None = None
    own: Tensor | None = None
    other: Tensor | None = None
    moved: Tensor | None = None
    untold: float | None = None
    others: dict[str, float] = dataclasses.field(default_factory=dict)


@final
@dataclasses.dataclass(frozen=True)
class Answers:
    """logsnr (K,); gram (K, n, 5, 5) a number of a sample; target and schedule: as the model declares itself.

    cut: the largest |x_hat| at the least noise; piled: the share of predictions that lie right there, beyond: that of
    the data outside it by a twentieth or more. half: whether the network computes in float16; peak: in float32 the
    largest |output| of a part of it, and its name; finite: whether all answers are. held: whether training never saw
    the samples.
    """

    logsnr: Tensor
    gram: Tensor
    target: str
    schedule: Schedule
    sigma_data: float
    heard: Heard
    cut: float
    piled: float
    beyond: float
    half: bool
    peak: tuple[float, str]
    finite: bool
    held: bool


def levels(times: str | None, schedule: Schedule, count: int = LEVELS) -> Tensor:
    """`count` values of logsnr over which a density of this name spreads (1 % to 99 %), cleanest first."""
    density = UniformLogSNR() if times is None else densities.named(times)
    density = UniformLogSNR() if density.moves else density
    u = torch.linspace(0.01, 0.99, count, dtype=torch.float64)
    with torch.no_grad():
        ends = density.logsnr(u, schedule).clamp(-WIDEST, WIDEST)
    return torch.linspace(float(ends[0]), float(ends[-1]), count, dtype=torch.float64)


def draws_for(rows: int, numbers: int) -> int:
    """Draws a level that suffice for samples of so many numbers."""
    return int(min(DRAWS, max(min(rows, 64), NUMBERS // numbers)))


@torch.no_grad()
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
    """The answers of a denoiser about normalised samples x (N, *shape), taken in turn, and their conditions or labels.

    Two calls of the network for each of `count` draws at each level, and one more for each condition. Nothing of the
    model and of the generators of random numbers is changed.
    """
    if not hasattr(model, "predict"):
        raise SfumatoError(f"{type(model).__name__} has no raw prediction to judge: give the denoiser within it.")
    given = Conditions.of(cond)
    label = given.get("label")
    label = label if isinstance(label, Tensor) else None
    with evaluating(model):
        parts = [_level(model, x, given, float(lam), k, count, seed, batch) for k, lam in enumerate(logsnr)]
        half = computes_in_half(model)
        peak = _peak(model, x, given, float(logsnr.mean()), seed) if half else (0.0, "")
        cut = _cut(model, x, given, float(logsnr.max()), seed, min(count, 4 * batch), batch)
    gram = torch.stack([part[0] for part in parts])
    numbers = torch.stack([part[1] for part in parts])  # (K, n, 5)
    heard = _heard(numbers, torch.arange(count) % len(x), label is not None)
    responses = torch.stack([part[3] for part in parts]).mean(0) / numbers[..., 0].mean().clamp_min(1e-30)
    heard = dataclasses.replace(heard, others=dict(zip(_unlabelled(given), responses.tolist(), strict=True)))
    if label is not None and len(label.unique()) > 1:
        heard = dataclasses.replace(heard, untold=_untold(torch.stack([p[2] for p in parts[len(parts) // 2 :]]), label))
    return Answers(
        logsnr, gram, model.target, model.process.schedule, float(model.sigma_data), heard, *cut, half, peak,
        bool(numbers.isfinite().all()), held,
    )  # fmt: skip


def _state(model: Any, x: Tensor, rows: Tensor, lam: float, number: Tensor, seed: int) -> tuple[Tensor, ...]:
    x = x[rows].to(model.device)
    eps = noise.normal(seed, number, tuple(x.shape[1:]), noise.PROBE, device=x.device, dtype=x.dtype)
    t = model.process.schedule.time(lam).expand(len(x))
    return x, eps, model.process.corrupt(x, t, eps), t


def _level(
    model: Any, x: Tensor, given: Conditions, lam: float, k: int, count: int, seed: int, batch: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of one level: Gram matrices (n, 5, 5); (|y|^2, |y - y_level|^2, own, other, |y - y_label|^2) (n, 5); the errors
    y - y* summed over the draws of each sample, (N, D + 1) with their number last; the mean |y - y'|^2 under another
    sample's value of each condition that is no label.
    """
    process: Gaussian = model.process
    guess = Trivial(process, 0.0, model.sigma_data**2)
    grams, numbers = [], []
    errors = torch.zeros(len(x), x[0].numel() + 1, dtype=torch.float64)
    label = given.get("label")
    other = _others(label, seed) if isinstance(label, Tensor) else None
    names, strange = _unlabelled(given), given.rows(noise.permutation(seed, 1, len(x)))
    responses = torch.zeros(len(names), dtype=torch.float64)
    for part in torch.arange(count).split(batch):
        rows = part % len(x)
        clean, eps, z, t = _state(model, x, rows, lam, part + k * count, seed)
        cond = given.rows(rows).to(z.device)
        y = model.predict(z, t, **cond)
        for i, name in enumerate(names):
            swapped = {**cond, name: strange.given(name).rows(rows).to(z.device)}
            responses[i] += _square(y - model.predict(z, t, **swapped)).sum().cpu()
        belief = guess(z, t)
        five = torch.stack([v.flatten(1).double() for v in (y, clean, eps, belief.x, belief.eps)], 1)
        grams.append((five @ five.mT / five.shape[2]).cpu())
        moved = _square(y - _misheard(model, z, t, cond))
        own = wrong = change = torch.zeros_like(moved)
        if other is not None:
            a, b = target.row(model.target, process.schedule, t, model.sigma_data)
            wanted = _times(a, clean) + _times(b, eps)
            y_other = model.predict(z, t, **{**cond, "label": other[rows].to(z.device)})
            error = torch.nn.functional.pad((y - wanted).double().flatten(1).cpu(), (0, 1), value=1.0)
            errors.index_add_(0, rows, error)
            own, wrong, change = _square(y - wanted), _square(y_other - wanted), _square(y - y_other)
        numbers.append(torch.stack((_square(y), moved, own, wrong, change), 1).cpu())
    return torch.cat(grams), torch.cat(numbers), errors, responses / count


def _unlabelled(given: Conditions) -> list[str]:
    """The conditions that are no label: what `Heard.others` is about."""
    return [name for name in given if name != "label" or not given.given(name).is_label]


def _times(coefficient: Tensor, x: Tensor) -> Tensor:
    return coefficient.to(x).reshape(-1, *[1] * (x.ndim - 1)) * x


def _square(values: Tensor) -> Tensor:
    """Mean square of each sample, float64 (B,)."""
    return values.double().flatten(1).square().mean(1)


def _others(label: Tensor, seed: int) -> Tensor:
    """For each sample the label of another class, drawn by how often the classes come."""
    drawn = label[noise.permutation(seed, 1, len(label))]
    for turn in range(2, 8):
        drawn = torch.where(drawn == label, label[noise.permutation(seed, turn, len(label))], drawn)
    return drawn


def _misheard(model: Any, z: Tensor, t: Tensor, cond: Conditions) -> Tensor:
    """The network's answer where it is told another noise level, 4 further on in logsnr."""
    c_in, level = model.process.scaling(t, z.device)
    shifted = torch.where(level > 0, level - 0.5, level + 0.5).expand(len(z))
    low = model.compute_dtype
    with torch.autocast(z.device.type, low or torch.bfloat16, enabled=low is not None):
        y = model.net(_times(c_in.expand(len(z)), z), shifted, **network_inputs(cond, model.net))
    return y.to(z.dtype)[:, : z.shape[1]]


def _heard(numbers: Tensor, rows: Tensor, labelled: bool) -> Heard:
    """Over levels and draws; what belongs to labels by sample, whose draws are no independent witnesses."""
    size, moved, own, other, change = numbers.mean(0).T
    power = float(size.mean().clamp_min(1e-30))
    level = float(moved.mean()) / power
    if not labelled:
        return Heard(level)
    per = torch.zeros(int(rows.max()) + 1, dtype=torch.float64)
    hits = per.index_add(0, rows, torch.ones_like(own))
    own, other, change = (per.index_add(0, rows, each) / hits for each in (own, other, change))
    return Heard(level, float(change.mean()) / power, own, other, change)


def _untold(errors: Tensor, label: Tensor) -> float:
    """sum_c p_c <m_c, m'_c> / d over levels: m and m' are the mean errors of a class over two halves of its samples."""
    seen = errors[..., -1].sum(0) > 0
    mean = errors[..., :-1][:, seen] / errors[..., -1:][:, seen]
    label, total = label[seen], 0.0
    for c in label.unique():
        rows = torch.nonzero(label == c).flatten()
        if len(rows) >= 4:
            halves = mean[:, rows[::2]].mean(1), mean[:, rows[1::2]].mean(1)
            total += len(rows) / len(label) * float((halves[0] * halves[1]).mean())
    return total


def computes_in_half(model: Any) -> bool:
    """Whether the network multiplies in float16, whose largest number is 65,504."""
    return model.compute_dtype == torch.float16 or any(p.dtype == torch.float16 for p in model.parameters())


def _cut(
    model: Any, x: Tensor, given: Conditions, lam: float, seed: int, count: int, batch: int
) -> tuple[float, float, float]:
    """(largest |x_hat|, share of x_hat right there, share of x beyond it by a twentieth) at little noise."""
    hats, cleans = [], []
    for part in torch.arange(count).split(batch):
        rows = part % len(x)
        clean, _, z, t = _state(model, x, rows, lam, part, seed)
        hats.append(model(z, t, **given.rows(rows).to(z.device)).x.double().abs().flatten().cpu())
        cleans.append(clean.double().abs().flatten().cpu())
    hat, clean = torch.cat(hats), torch.cat(cleans)
    most = float(hat.max())
    piled = (hat >= most * (1 - 1e-6)).double().mean()
    return most, float(piled), float((clean > 1.05 * most).double().mean())


def _peak(model: Any, x: Tensor, given: Conditions, lam: float, seed: int) -> tuple[float, str]:
    """The largest |output| of any part of the network in float32, and that part's name."""
    rows = torch.arange(min(16, len(x)))
    _, _, z, t = _state(model, x, rows, lam, rows, seed)
    cond = given.rows(rows).to(z.device)
    found: dict[str, float] = {}

    def look(name: str, out: Any) -> None:
        if isinstance(out, Tensor) and out.is_floating_point():
            found[name] = max(found.get(name, 0.0), float(out.abs().max()))

    with _in_float32(model), watched(model.net, look):
        model.predict(z, t, **cond)
    name = max(found, key=lambda each: found[each])
    return found[name], name


@contextlib.contextmanager
def _in_float32(model: Any) -> Iterator[None]:
    """Within the block the network computes in float32; weights of half precision come back bit by bit."""
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
    """The conditions that a network cannot hear: another sample's value, or none, changes nothing in what it says.

    A network that has learned nothing says 0, whatever it hears: the parameters that are all zero are random in this
    call, and the network itself stays as it is. x: normalised samples (N, *shape), N of 2 or more.
    """
    given, rows = Conditions.of(cond), torch.arange(len(x))
    generator = torch.Generator().manual_seed(seed)
    moved = {
        name: (0.5 * torch.randn(p.shape, generator=generator)).to(p)
        for name, p in model.net.named_parameters()
        if not bool(p.any())
    }
    _, _, z, t = _state(model, x, rows, 0.0, rows, seed)

    def said(heard: Mapping[str, Any]) -> Tensor:
        c_in, level = model.process.scaling(t, z.device)
        inputs = network_inputs(heard, model.net)
        y: Tensor = functional_call(model.net, moved, (_times(c_in, z), level), inputs)
        return y

    found = []
    with evaluating(model):
        own, given = said(given.to(z.device)), given.to(z.device)
        for name in given:
            swapped = given.given(name).rows(rows.roll(1))
            changes = [said({**given, name: other}) - own for other in (swapped, swapped.null())]
            if not any(bool((_square(c) > DEAD * _square(own)).any()) for c in changes):
                found.append(name)
    return tuple(found)
