"""Small runs with a fault each, made as a user would make it, and healthy ones of six kinds: what the doctor is shown.

A case trains for at most 500 steps on a processor and gives the report of `sf.doctor`. `FAULTS` maps a name to the case
and the only code that it may be given; `HEALTHY` are the runs that may be given none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import sfumato as sf
from sfumato.diagnostics.checks import Report
from sfumato.objectives.flow_maps import Lagrangian, Semigroup
from sfumato.objectives.losses import Plain
from sfumato.process.angles import moved
from sfumato.training import State, TrainConfig, fit
from sfumato.training.console import Silent
from sfumato.training.ema import EMA

STEPS = 200
QUICK = {"steps": STEPS, "batch": 32, "net": "tiny", "sample_every": 0, "snapshots": 0, "precision": "float32"}


def moons(count: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """Two arcs, one a class, around (1000, 1000) with deviations near 100."""
    draw = np.random.default_rng(0)
    angle, side = draw.uniform(0, math.pi, count), draw.integers(0, 2, count)
    x = np.stack([np.cos(angle) * (1 - 2 * side) + side, np.sin(angle) * (1 - 2 * side) + 0.5 * side], 1)
    return (1000 + 100 * (x + 0.05 * draw.normal(size=x.shape))).astype(np.float32), side


def table(count: int = 1500) -> tuple[np.ndarray, np.ndarray]:
    """Five columns of different units about three centres, one of them skewed; labels by name."""
    draw = np.random.default_rng(1)
    label = draw.integers(0, 3, count)
    x = (2 * draw.normal(size=(3, 5)))[label] + 0.5 * draw.normal(size=(count, 5)) @ draw.normal(size=(5, 5))
    x[:, 2] = np.exp(x[:, 2] / 2)
    return x * [1, 10, 100, 1000, 1], np.array(["low", "middle", "high"])[label]


def signals(count: int = 1200) -> tuple[np.ndarray, np.ndarray]:
    """Sines of three frequencies and any phase: the means of the classes are the same."""
    draw = np.random.default_rng(2)
    frequency, phase = draw.integers(1, 4, count), draw.uniform(0, 2 * math.pi, count)
    place = np.linspace(0, 1, 24)
    wave = np.sin(2 * math.pi * frequency[:, None] * place + phase[:, None])
    return (3 + 0.2 * wave)[:, None].astype(np.float32), frequency


def pictures(count: int = 600, side: int = 12) -> np.ndarray:
    """Blobs of any colour and place on grey, float32 (N, 3, side, side) in [0, 1]."""
    draw = np.random.default_rng(3)
    centre, colour = draw.uniform(2, side - 2, (count, 2, 1, 1)), draw.uniform(0, 1, (count, 3, 1, 1))
    rows, columns = np.mgrid[:side, :side]
    blob = np.exp(-((rows - centre[:, 0]) ** 2 + (columns - centre[:, 1]) ** 2) / 6)[:, None]
    return (0.5 + (colour - 0.5) * blob + 0.01 * draw.normal(size=(count, 3, side, side))).astype(np.float32)


def train(folder: Path, x: Any, labels: Any = None, begin: Callable[[Any], None] | None = None, **changes: Any) -> Path:
    """A run folder; `begin` is given the session before the first step, and puts a fault into it."""
    out = folder / "run"
    with contextlib.suppress(sf.SfumatoError):  # some faults stop the run
        sf.train(x, out, labels=labels, console=Silent(), on_start=begin, **{**QUICK, **changes})
    return out


def trained(folder: Path, **changes: Any) -> tuple[Path, np.ndarray, np.ndarray]:
    """A healthy run of the moons, with its data."""
    x, labels = moons()
    return train(folder, x, labels, **changes), x, labels


# Faults of data


def scaled(folder: Path) -> Report:
    """The array is multiplied by 255 after the spec was fitted."""
    x, labels = moons()
    return sf.doctor(train(folder, x, labels, lambda session: session.source.x.mul_(255)))


def scaled_at_use(folder: Path) -> Report:
    """A model of numbers is asked about the same numbers times 255."""
    run, x, labels = trained(folder)
    return sf.doctor(run / "model.safetensors", data=255 * x, labels=labels)


def normalised_twice(folder: Path) -> Report:
    """The training array is normalised by hand after the spec was fitted, and by the loop again."""
    x, labels = moons()

    def begin(session: Any) -> None:
        session.source.x.copy_(session.denoiser.spec.normalise(session.source.x))

    return sf.doctor(train(folder, x, labels, begin))


def one_image(folder: Path) -> Report:
    """An index that never moved: one picture, 400 times."""
    x = np.repeat(pictures()[:1], 400, 0)
    return sf.doctor(train(folder, x, steps=60), data=x)


def channels_last(folder: Path) -> Report:
    """Floats (N, H, W, C), which are read as H channels."""
    x = np.ascontiguousarray(pictures().transpose(0, 2, 3, 1))
    return sf.doctor(train(folder, x, steps=60), data=x)


def reshaped(folder: Path) -> Report:
    """A channels-last array that was reshaped to (N, C, H, W) in place of being transposed."""
    x = pictures()
    x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).reshape(x.shape)
    return sf.doctor(train(folder, x), data=x)


def two_units(folder: Path) -> Report:
    """A fifth of the pictures in [0, 1], the others in [0, 255]."""
    x = pictures()
    x[: len(x) // 5 * 4] *= 255
    return sf.doctor(train(folder, x), data=x)


def still_column(folder: Path) -> Report:
    """A column that never changes."""
    x, labels = table()
    x[:, 3] = 7
    return sf.doctor(train(folder, x, labels), data=x, labels=labels)


def shuffled(folder: Path) -> Report:
    """Labels in another order than the samples."""
    x, labels = moons()
    wrong = np.random.default_rng(5).permutation(labels)
    return sf.doctor(train(folder, x, wrong), data=x, labels=wrong)


def shuffled_on_the_way(folder: Path) -> Report:
    """The data set is right, and the pipeline shuffles the labels before training."""
    x, labels = moons()
    return sf.doctor(train(folder, x, np.random.default_rng(5).permutation(labels)), data=x, labels=labels)


# Faults of training


def fast(folder: Path) -> Report:
    """A hundred times the usual rate."""
    x, labels = moons()
    return sf.doctor(train(folder, x, labels, lr=0.4), data=x, labels=labels)


def fast_adam(folder: Path) -> Report:
    """The same with AdamW."""
    x, labels = moons()
    return sf.doctor(train(folder, x, labels, lr=0.2, optimizer="adamw"), data=x, labels=labels)


def slow(folder: Path) -> Report:
    """A ten-thousandth of the usual rate."""
    x, labels = moons()
    return sf.doctor(train(folder, x, labels, lr=4e-7), data=x, labels=labels)


class Constant(EMA):
    """The average of a constant factor, 0.99999 a step, begun at the initial weights."""

    def __init__(self, denoiser: Any) -> None:
        super().__init__(denoiser, 0.06)
        self.trained = denoiser.net

    @torch.no_grad()
    def update(self, before: int, after: int) -> None:
        for mean, now in zip(self.denoiser.net.parameters(), self.trained.parameters(), strict=True):
            mean.lerp_(now, 1e-5)


def long_average(folder: Path) -> Report:
    """An EMA of 0.99999 on a run of hundreds of steps."""
    x, labels = moons()

    def begin(session: Any) -> None:
        session.state.ema = Constant(session.denoiser)

    return sf.doctor(train(folder, x, labels, begin), data=x, labels=labels)


def half(folder: Path) -> Report:
    """float16 on 16-bit numbers that nobody has scaled: the first product passes 65,504."""
    x, labels = moons()

    def begin(session: Any) -> None:
        session.denoiser.compute_dtype = torch.float16
        session.denoiser.net.register_forward_pre_hook(lambda net, given: (65535 * given[0], *given[1:]))

    return sf.doctor(train(folder, x, labels, begin), data=x, labels=labels)


def half_in_a_loop(folder: Path) -> Report:
    """The same in a loop of one's own, which is told of the denoiser alone."""
    x, denoiser = own_denoiser()
    denoiser.net.register_forward_pre_hook(lambda net, given: (65535 * given[0], *given[1:]))
    denoiser.compute_dtype = torch.float16
    with contextlib.suppress(sf.SfumatoError):
        own_loop(denoiser, x)
    return sf.doctor(denoiser, x)


def spoiled_rows(folder: Path) -> Report:
    """A few rows become infinite on their way to the network."""
    x, labels = moons()

    def begin(session: Any) -> None:
        session.source.x[session.train[:1]] = math.inf

    return sf.doctor(train(folder, x.copy(), labels, begin, steps=80), data=x, labels=labels)


def part_frozen(folder: Path) -> Report:
    """The hidden layers do not learn."""
    x, labels = moons()
    freeze = lambda session: session.denoiser.net.layers.requires_grad_(False)  # noqa: E731
    return sf.doctor(train(folder, x, labels, freeze), data=x, labels=labels)


def all_frozen(folder: Path) -> Report:
    """Nothing learns but the last layer's bias."""
    x, labels = moons()

    def begin(session: Any) -> None:
        for name, p in session.denoiser.net.named_parameters():
            p.requires_grad_(name == "output.bias")

    return sf.doctor(train(folder, x, labels, begin), data=x, labels=labels)


def deaf(folder: Path) -> Report:
    """The labels are lost before the network."""
    x, labels = moons()

    def begin(session: Any) -> None:
        session.denoiser.net.register_forward_pre_hook(lambda net, given, named: (given, {}), with_kwargs=True)

    return sf.doctor(train(folder, x, labels, begin), data=x, labels=labels)


def dropped(folder: Path) -> Report:
    """Every label is hidden in training."""
    x, labels = moons()
    return sf.doctor(train(folder, x, labels, drop=1.0), data=x, labels=labels)


def unrelated(folder: Path) -> Report:
    """A number beside the samples has nothing to do with them."""
    x, _ = moons()
    given = {"x": x, "moon": np.random.default_rng(5).normal(size=len(x))}
    return sf.doctor(train(folder, given), data=given)


# Faults of what is said of a network


def own_denoiser(target: str = "velocity") -> tuple[np.ndarray, sf.Denoiser]:
    """The moons and a denoiser of them for a loop of one's own."""
    x, _ = moons()
    spec = sf.data.DataSpec.fit(sf.data.open(x))
    torch.manual_seed(0)
    net = sf.nets.MLP(2, width=64, depth=2)
    return x, sf.Denoiser(net, sf.Gaussian(sf.schedules.Flow()), target, 1.0, spec)


def own_loop(denoiser: Any, x: np.ndarray, losses: Any = None, **changes: Any) -> State:
    """A loop of one's own over the library's steps."""
    config = TrainConfig(steps=300, batch=64, precision="float32", snapshots=0, **changes)
    state = State(denoiser, config, None if losses is None else Plain(losses))
    for _ in fit(denoiser, torch.from_numpy(x), config, state=state):
        pass
    return state


def flipped(folder: Path) -> Report:
    """The loop trains on x - eps, and the file declares the velocity, eps - x."""
    x, denoiser = own_denoiser()

    def losses(model: Any, batch: Any) -> torch.Tensor:
        t = 0.02 + 0.96 * batch.u
        eps = sf.Gaussian(sf.schedules.Flow())
        noise = torch.from_numpy(np.random.default_rng(int(batch.index[0])).normal(size=batch.x.shape)).float()
        z = eps.corrupt(batch.x, t, noise)
        return (model.predict(z, t) - (batch.x - noise)).square().mean(1)

    own_loop(denoiser, x, losses)
    return sf.doctor(sf.save(denoiser, folder / "model.safetensors"), data=x)


def other_schedule(folder: Path) -> Report:
    """Trained under Flow, and sampled under the cosine."""
    run, x, labels = trained(folder)
    denoiser = sf.load(run)
    denoiser.process = dataclasses.replace(denoiser.process, schedule=sf.schedules.Cosine())
    return sf.doctor(sf.save(denoiser, folder / "model.safetensors"), data=x, labels=labels)


def other_target(folder: Path) -> Report:
    """Trained to say EDM's F, and declared to say the clean signal."""
    x, denoiser = own_denoiser("F")
    own_loop(denoiser, x)
    denoiser.process = dataclasses.replace(denoiser.process, target="x")
    return sf.doctor(sf.save(denoiser, folder / "model.safetensors"), data=x)


def deaf_to_noise(folder: Path) -> Report:
    """The network is always told one noise level."""
    x, denoiser = own_denoiser()
    denoiser.net.register_forward_pre_hook(lambda net, given: (given[0], torch.zeros_like(given[1])))
    own_loop(denoiser, x)
    return sf.doctor(denoiser, x)


class Clamped(sf.Denoiser):
    """A denoiser whose predictions are kept within [-1, 1], as if the data were."""

    def forward(self, z: torch.Tensor, t: Any, **cond: Any) -> sf.Estimate:
        belief = super().forward(z, t, **cond)
        return sf.Estimate(z, t, self.process.schedule, x=belief.x.clamp(-1, 1))


def clamped(folder: Path) -> Report:
    """Default clipping to [-1, 1] on standardised data."""
    x, denoiser = own_denoiser()
    own_loop(denoiser, x)
    tight = Clamped(denoiser.net, denoiser.process, denoiser.target, 1.0, denoiser.spec)
    return sf.doctor(tight, x)


def other_data(folder: Path) -> Report:
    """A model of pictures is asked about the same pictures with height and width exchanged."""
    x = sf.data.open("digits").x.float().numpy()
    run = train(folder, x)
    return sf.doctor(run / "model.safetensors", data=np.ascontiguousarray(x.swapaxes(2, 3)))


def regressed_on_samples(folder: Path) -> Report:
    """The end of a map's path is regressed on the sample behind the state."""
    x, denoiser = own_denoiser("F")
    student = sf.FlowMap.student(denoiser)

    def losses(model: Any, batch: Any) -> torch.Tensor:
        t, end = 0.02 + 0.98 * batch.u, torch.zeros_like(batch.u)
        z = model.process.corrupt(batch.x, t, sf.Noise(0, batch.index, sf.noise.TRAIN_NOISE))
        return (moved(model.process, z, t, end, model.mean(z, t, end)) - batch.x).square().mean(1)

    own_loop(student, x, losses)
    return sf.doctor(student, x)


def never_moved(folder: Path) -> Report:
    """A map that was trained at s = t alone, as a denoiser is."""
    x, denoiser = own_denoiser("F")
    own_loop(denoiser, x)
    return sf.doctor(sf.save(sf.FlowMap.student(denoiser), folder / "model.safetensors"), data=x)


class InHalf(torch.nn.Module):
    """A network whose weights are in bfloat16, which it casts its inputs to."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net.bfloat16()

    def forward(self, x: torch.Tensor, level: torch.Tensor, until: torch.Tensor | None = None) -> torch.Tensor:
        told = {} if until is None else {"until": until.bfloat16()}
        return self.net(x.bfloat16(), level.bfloat16(), **told).float()


def halved(folder: Path) -> Report:
    """A map is put into bfloat16, and trained further by a loss of derivatives."""
    x, denoiser = own_denoiser("F")
    own_loop(denoiser, x)
    student = sf.FlowMap.student(denoiser)
    own_loop(student, x, Semigroup(denoiser, "teacher", cut=0.1).losses)
    student.inner.net = InHalf(student.inner.net)
    own_loop(student, x, Lagrangian(denoiser).losses, lr=1e-3, optimizer="adamw")
    return sf.doctor(student, x)


def driven_away(folder: Path) -> Report:
    """A student's loss has the wrong sign, so that its targets drift with it."""
    x, _ = moons()

    def begin(session: Any) -> None:
        own = session.state.loss.losses
        session.state.loss.losses = lambda model, batch: 1 / (1 + own(model, batch))

    quick = {name: value for name, value in QUICK.items() if name != "net"}
    teacher = train(folder / "teacher", x, steps=120)
    with contextlib.suppress(sf.SfumatoError):
        sf.distill(teacher, folder / "run", samples=256, console=Silent(), on_start=begin, **quick)
    return sf.doctor(folder / "run")


def infinite_loss(folder: Path) -> Report:
    """A loop of one's own goes on after a loss that was infinite."""
    x, denoiser = own_denoiser()
    optimizer = torch.optim.SGD(denoiser.parameters(), lr=1e-3)
    rows = torch.from_numpy(x[:64].copy()).float()
    rows[0] = torch.inf
    for _ in range(2):
        optimizer.zero_grad()
        sf.denoising_loss(denoiser, rows).mean().backward()
        optimizer.step()
    return sf.doctor(denoiser, data=x)


class Fault(NamedTuple):
    """code: the only one that the case may be given; fast: whether the usual tests make it."""

    case: Callable[[Path], Report]
    code: str
    fast: bool = True

    @property
    def words(self) -> str:
        return " ".join((self.case.__doc__ or "").split())


FAULTS = {
    each.case.__name__: each
    for each in (
        Fault(fast, "lr-high"), Fault(fast_adam, "lr-high", False), Fault(scaled, "range"),
        Fault(scaled_at_use, "range", False), Fault(long_average, "ema-stale"), Fault(flipped, "sign-flipped"),
        Fault(other_schedule, "schedule"), Fault(shuffled, "labels-shuffled"),
        Fault(shuffled_on_the_way, "labels-shuffled", False), Fault(half, "half-overflow"),
        Fault(half_in_a_loop, "half-overflow", False), Fault(deaf, "condition-dead"),
        Fault(dropped, "condition-dead", False), Fault(unrelated, "condition-uninformative", False),
        Fault(part_frozen, "frozen"), Fault(all_frozen, "frozen", False),
        Fault(normalised_twice, "double-normalised"), Fault(one_image, "identical"), Fault(channels_last, "axes"),
        Fault(reshaped, "axes", False), Fault(other_target, "target", False), Fault(slow, "lr-low", False),
        Fault(deaf_to_noise, "level-dead", False), Fault(clamped, "clipped"), Fault(two_units, "mixed-units", False),
        Fault(still_column, "constant", False), Fault(spoiled_rows, "not-finite"),
        Fault(other_data, "worse-than-guess", False), Fault(infinite_loss, "weights-not-finite"),
        Fault(regressed_on_samples, "map-collapsed"), Fault(never_moved, "until-dead"),
        Fault(halved, "half-derivative", False),  # half precision is slow where processors lack it
        Fault(driven_away, "distance-rising", False),
    )
}  # fmt: skip


def healthy(x: Any, labels: Any = None, **changes: Any) -> Callable[[Path], Report]:
    def case(folder: Path) -> Report:
        given = {} if isinstance(x, str) else {"data": x, "labels": labels}
        return sf.doctor(train(folder, x, labels, **changes), **given)

    return case


HEALTHY: dict[str, Callable[[Path], Report]] = {
    "points": healthy(moons()[0]),
    "a table with classes": healthy(*table(), optimizer="adamw", lr=2e-3),
    "signals with classes": healthy(*signals()),
    "digits with classes": healthy("digits", size=None),
    "colour pictures in bfloat16": healthy("emoji", size=16, precision="bfloat16", steps=120),
    "volumes": healthy(pictures()[:, :1, None].repeat(4, 2), target="v", schedule="cosine", steps=120),
}
