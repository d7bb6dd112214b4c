"""The eight chapters: what a model is in each language, with a picture and a number that others must agree with."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from sfumato.diagnostics.draws import plain
from sfumato.diagnostics.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, Line
from sfumato.eight_views.chains import COUNT, Scene
from sfumato.intervals import Interval, around
from sfumato.likelihood.measured import Measured

_AXIS = "logsnr (noise on the left, data on the right)"
_ERRORS = 3.0  # standard errors within which two numbers agree
_PATHS = 12
_SHADES = ("#08306b", "#1c5fa3", "#3f8fc5", "#7db8da", "#d9a441", "#d66028", "#a63a1c", "#6e1d10")  # coarse to fine
Columns = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Check:
    """A difference that is 0 for an exact model, or above 0 if `least`; slack: what the solvers' steps may add."""

    says: str
    gap: Interval
    least: bool = False
    slack: float = 0.0

    @property
    def agrees(self) -> bool:
        """Whether the difference lies within three standard errors and the slack of what it should be."""
        room = _ERRORS * self.gap.stderr + self.slack
        return self.gap.value >= -room and (self.least or self.gap.value <= room)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A chart: curves over an axis."""

    lines: list[Line]
    across: str = _AXIS
    up: str = ""

    def to_dict(self) -> dict[str, Any]:
        curves = [
            {"name": line.name, "x": list(map(float, line.x)), "y": list(map(float, line.y))} for line in self.lines
        ]
        return {"across": self.across, "up": self.up, "curves": curves}


@dataclasses.dataclass(frozen=True)
class Chapter:
    """name: of the language; says: what the model is in it; number, called `of`; exact: its value for the true law."""

    name: str
    says: str
    of: str
    number: Interval
    exact: float | None
    check: Check
    picture: Picture

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        check = {"says": self.check.says, "gap": self.check.gap.to_dict(), "agrees": self.check.agrees}
        own = {"name": self.name, "says": self.says, "of": self.of, "number": self.number.to_dict()}
        return own | {"exact": self.exact, "check": check, "picture": self.picture.to_dict()}


def interval(values: Tensor) -> Interval:
    """The mean of independent samples (N,)."""
    n = len(values)
    return around(float(values.double().mean()), float(values.double().std()) / math.sqrt(n), n - 1)


def difference(a: Interval, b: Interval) -> Interval:
    """a - b of two independent estimates."""
    stderr = math.hypot(a.stderr, b.stderr)
    return Interval(a.value - b.value, a.value - b.value - 2 * stderr, a.value - b.value + 2 * stderr, stderr)


def ratio(above: Tensor, below: Tensor) -> Interval:
    """E[above] / E[below] of independent pairs (N,), its error to first order."""
    value = float(above.mean() / below.mean())
    return around(value, interval((above - value * below) / below.mean()).stderr, len(above) - 1)


def _curve(name: str, scene: Scene, values: Tensor, colour: str, dashes: str = "-", errors: bool = True) -> Line:
    """The mean over samples of columns (N, K), by level."""
    stderr = plain(values.std(0) / math.sqrt(len(values))) if errors else None
    return Line(name, scene.logsnr.tolist(), values.mean(0).tolist(), colour, errors, stderr, dashes)


def autoencoder(scene: Scene, chains: Columns, floor: list[float] | None) -> Chapter:
    variance, k = scene.guess.variance, COUNT // 2
    alpha, sigma = (each.double() for each in scene.model.process.schedule(scene.t))
    linear = (variance * sigma**2 / (alpha**2 * variance + sigma**2)).tolist()
    x = scene.logsnr.tolist()
    lines = [
        _curve("model", scene, chains["error"] / variance, BLUE),
        Line("linear guess", x, [v / variance for v in linear], GREY, dashes="--"),
    ]
    if floor is not None:
        lines.append(Line("exact", x, [v / variance for v in floor], PURPLE, dashes=":"))
    left = (chains["error"][:, -1] - chains["error"][:, 0] - chains["grown"].sum(1)) / variance
    return Chapter(
        "autoencoder",
        "It restores what noise has hidden: from z it makes x_hat, with the least error that it could find.",
        f"E|x - x_hat|^2 over the variance of the data, at logsnr {x[k]:.2g}",
        interval(chains["error"][:, k] / variance),
        None if floor is None else floor[k] / variance,
        Check("less noise lowers the error by what x_hat changes (8), squared", interval(left)),
        Picture(lines, up="error over variance"),
    )  # fmt: skip


def latent_variables(scene: Scene, chains: Columns, bound: Measured, flow: Measured, exact: float | None) -> Chapter:
    snr, error = scene.logsnr.exp(), chains["error"].mean(0)
    pieces = (snr * error)[1:] + (snr * error)[:-1]
    rate = (pieces * -scene.logsnr.diff() / 4).flip(0).cumsum(0).flip(0)  # 1/2 int snr mmse dlogsnr from the noise on
    lines = [Line("model", error[:-1].sqrt().tolist(), rate.tolist(), BLUE, True)]
    return Chapter(
        "latent-variable model",
        "Each noisy state is a latent variable of the one before: the decoder has to say, level by level, what noise "
        "took away. The picture is its code: how many nats are sent for how small an error.",
        "the bound of -log p(x), nats a number",
        interval(-bound.value / scene.size), exact,
        Check("the bound lies above the -log p of the flow (5), by the error of the model",
              interval((flow.value - bound.value) / scene.size), least=True, slack=0.02),
        Picture(lines, "root mean square error of x_hat (distortion)", "rate, nats a number"),
    )  # fmt: skip


def score(scene: Scene, chains: Columns, floor: list[float] | None) -> Chapter:
    k = COUNT // 2
    lines = [
        _curve("|eps_hat|^2, the score in units of the noise", scene, chains["eps"], BLUE),
        _curve("1 - E|eps - eps_hat|^2", scene, 1 - chains["missed"], ORANGE, "--", errors=False),
    ]
    gap = (chains["eps"] + chains["missed"] - chains["noise"]).mean(1)
    exact = None if floor is None else 1 - math.exp(float(scene.logsnr[k])) * floor[k]
    return Chapter(
        "score",
        "-eps_hat / sigma points to where noisy data are denser. Its mean square is their Fisher information: near 1 "
        "noise stands by itself, below it the data hide it.",
        f"sigma^2 E|score|^2 a number, at logsnr {float(scene.logsnr[k]):.2g}",
        interval(chains["eps"][:, k]), exact,
        Check("the score explains what the denoiser does (1): E|eps_hat|^2 = 1 - E|eps - eps_hat|^2", interval(gap)),
        Picture(lines, up="a number, 1 for pure noise"),
    )  # fmt: skip


def path_kl(scene: Scene, chains: Columns) -> float:
    """KL of the paths of the exact reverse SDE to the model's, nats a number: 1/2 int snr E|x_hat - E[x|z]|^2 dlogsnr
    over the levels (Song et al. 2021, 2101.09258, Thm. 1). It bounds the KL of the samples."""
    excess = scene.logsnr.exp() * chains["excess"].mean(0)
    return float(-torch.trapezoid(excess, scene.logsnr) / 2)


def reverse_sde(scene: Scene, walked: Columns, chains: Columns) -> Chapter:
    whole = scene.rms(scene.x - scene.centre).double().cpu() / scene.guess.variance
    lines = [
        _curve("walks of the reverse SDE", scene, walked["sde"], ORANGE),
        Line("noised data", scene.logsnr.tolist(), [1.0] * COUNT, GREY, dashes="--"),
    ]
    number = interval(walked["sde end"])
    kl = ""
    if "excess" in chains:
        kl = f" The KL of the true paths to those of the model is {path_kl(scene, chains):.2g} nats a number."
    return Chapter(
        "reverse SDE",
        "Noise is taken away at random, a little at a time, until data are left. At each level the walks should "
        f"spread as noised data do.{kl}",
        "variance of its samples over that of the data", number, 1.0,
        Check("its samples spread as the data do", difference(number, interval(whole)), slack=0.03),
        Picture(lines, up="spread of z, 1 as noised data"),
    )  # fmt: skip


def flow(scene: Scene, walked: Columns, measured: Measured, exact: float | None) -> Chapter:
    x, straight = scene.logsnr.tolist(), 1 - float(walked["chord"].mean() / walked["way"].mean())
    paths = walked["path"][:_PATHS].tolist()
    lines = [Line("" if i else f"{len(paths)} samples", x, path, GREEN) for i, path in enumerate(paths)]
    return Chapter(
        "flow",
        "The same change without chance: each noise has one sample, and each sample a density. The picture follows "
        f"the first number of {len(lines)} samples; 1 - straight line / way = {straight:.2g} of their motion is bent.",
        "-log p(x) by the change of variables, nats a number",
        interval(-measured.value / scene.size), exact,
        Check("flow and SDE (4) have samples of one law: the difference of their variances",
              difference(interval(walked["ode end"]), interval(walked["sde end"])), slack=0.03),
        Picture(lines, up="first number of z"),
    )  # fmt: skip


def recurrent(
    scene: Scene, walked: Columns, levels: list[int], gained: Tensor, alike: tuple[float, float] | None
) -> Chapter:
    variance = scene.guess.variance
    x, stderr = scene.logsnr[levels].tolist(), plain(gained.std(0) / variance / math.sqrt(len(gained)))
    lines = [Line("|dx_0/dz|^2", x, (gained.mean(0) / variance).tolist(), PURPLE, True, stderr)]
    number = interval(gained[:, -1] / variance)
    inside = ""
    if alike is not None:
        inside = (
            f" What its layers make of samples at one level is like what they make at the next by {alike[0]:.2f}, and "
            f"at the first and the last by {alike[1]:.2f} (CKA, 1 for the same up to rotation)."
        )
    return Chapter(
        "recurrent network",
        "One network is applied again and again to what it has made. Like that of any recurrent network its gradient "
        f"may grow: how far the sample moves when a state does.{inside}",
        "S^2 E|dx_0/dz|^2 over the variance of the data, from pure noise", number, None,
        Check("samples of one condition spread by no more than that (4 and 5; Poincare's inequality)",
              difference(number, interval(walked["apart"])), least=True, slack=0.03),
        Picture(lines, up="gain, 1 for a linear map"),
    )  # fmt: skip


def frequencies(scene: Scene, chains: Columns, bands: str) -> Chapter:
    written = chains["power"].mean(0) / chains["whole"].mean(0)  # (K, R)
    half = torch.tensor([_crossing(scene.logsnr, written[:, r]) for r in range(written.shape[1])])
    lines = [
        Line(f"{bands} {r + 1}", scene.logsnr.tolist(), written[:, r].tolist(), _SHADES[r * 8 // written.shape[1]])
        for r in range(written.shape[1])
    ]
    order = _rank_correlation(half)
    left = (chains["power"][:, 0] / chains["whole"].mean(0) - chains["whole"] / chains["whole"].mean(0)).mean(1)
    return Chapter(
        f"autoregression over {'frequencies' if bands == 'band' else 'principal axes'}",
        "What is strong is written first, what is weak last, each given what is there already. The picture shows how "
        f"much of each {bands} x_hat holds; half of it at logsnr " + ", ".join(f"{v:.1f}" for v in half) + ".",
        f"rank correlation of the order of writing with that of the {'frequencies' if bands == 'band' else 'axes'}",
        Interval(order, order, order, 0.0), 1.0,
        Check("at the least noise all of it is there: the power of x_hat less that of the data", interval(left),
              slack=0.02),
        Picture(lines, up="share of the power in x_hat"),
    )  # fmt: skip


def _crossing(logsnr: Tensor, share: Tensor) -> float:
    """The logsnr at which a share that rises from the noise (the last level) to the data reaches a half."""
    for k in range(len(share) - 1, 0, -1):
        if share[k] < 0.5 <= share[k - 1]:
            part = (0.5 - share[k]) / (share[k - 1] - share[k])
            return float(logsnr[k] + part * (logsnr[k - 1] - logsnr[k]))
    return float(logsnr[-1] if share[-1] >= 0.5 else logsnr[0])


def _rank_correlation(values: Tensor) -> float:
    """Spearman's correlation of values with their places; 1 for a single one."""
    if len(values) < 2:
        return 1.0
    ranks = torch.stack((values.argsort().argsort(), torch.arange(len(values)))).double()
    return float(torch.corrcoef(ranks)[0, 1])


def expectation(scene: Scene, chains: Columns) -> Chapter:
    variance = scene.guess.variance
    grown = chains["grown"].flip(1).cumsum(1).flip(1)  # from the noise to each level
    gain = chains["spread"][:, 0] - chains["spread"][:, -1]
    lines = [
        _curve("variance of x_hat", scene, chains["spread"] / variance, BLUE),
        _curve(
            "sum of its changes, squared", scene, (grown + chains["spread"][:, -1:]) / variance, ORANGE, "--", False
        ),
    ]
    return Chapter(
        "conditional expectation",
        "x_hat is the mean of all that could have been x. As noise falls it changes by surprises alone: the variances "
        "of its steps add up to its own (a martingale).",
        "sum of E|x_hat_s - x_hat_t|^2 over the growth of the variance of x_hat", ratio(grown[:, 0], gain), 1.0,
        Check("the sum less the growth, over the variance of the data", interval((grown[:, 0] - gain) / variance)),
        Picture(lines, up="variance"),
    )  # fmt: skip
