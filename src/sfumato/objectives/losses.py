"""The losses by name: the functions of this package as modules for `sf.train(loss=...)` and `--loss`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from sfumato import features as named
from sfumato import noise
from sfumato.autoencoder import Codec
from sfumato.conditions import CARRIED, PREVIOUS, Given
from sfumato.denoising_autoencoder import DenoisingAutoencoder, GaussianNoise, Masking
from sfumato.errors import SfumatoError, an, suggest
from sfumato.nets import QuantisedCode
from sfumato.noise import Noise
from sfumato.objectives import score_matching
from sfumato.objectives.denoising import denoising_loss
from sfumato.objectives.history import LossHistory
from sfumato.objectives.hybrid import STEPS, Defensive, hybrid_loss, vlb_loss
from sfumato.objectives.loss import LearnsLevels, Levels, Loss
from sfumato.objectives.nonequilibrium import nonequilibrium_loss, require_symbols
from sfumato.objectives.teacher import Clean
from sfumato.objectives.times import TimeDensity, UniformLogSNR, UniformTime
from sfumato.objectives.vae import COMMITMENT, amplitude_error, elbo_loss, perceptual_error, vq_loss
from sfumato.objectives.weights import Weight
from sfumato.process import Embedded
from sfumato.process.gaussian import require_numbers
from sfumato.registry import register
from sfumato.schedule import Schedule
from sfumato.state import numbers_like


def fixed(times: TimeDensity) -> TimeDensity:
    """The density for held-out samples: uniform in logsnr if `times` changes, since levels must stay the same."""
    return UniformLogSNR() if times.moves else times


@register("loss", "denoising")
class Denoising(LearnsLevels):
    """w(logsnr) / p(logsnr) |eps - eps_hat|^2 / D; for w None the mean squared error of the target.

    times: p, which may learn from the losses, and then needs a weight. clean: targets with less variance than the
    sample itself, from a teacher or a reference (`objectives.teacher`); held-out samples use the plain targets. Missing
    values are left out of the mean, but for `clean`.
    """

    def __init__(self, times: TimeDensity, weight: Weight | None, seed: int, clean: Clean | None = None) -> None:
        if times.moves and weight is None:
            raise SfumatoError(
                "An adaptive time density needs a weight, since the plain error of a target would change with it: "
                "pass one, such as weight='sigmoid' or 'elbo', or use another density."
            )
        super().__init__()
        self.times, self.weight, self.seed, self.clean = times, weight, seed, clean
        self.skips = clean is None

    def losses(self, model: Any, batch: Any) -> Tensor:
        self.clock = model.process.clock
        return self._errors(model, batch, self.times)

    def held(self, model: Any, batch: Any) -> Tensor:
        return self._errors(model, batch, fixed(self.times))

    def _errors(self, model: Any, batch: Any, times: TimeDensity) -> Tensor:
        schedule = model.process.clock
        t = schedule.time(times.logsnr(batch.u, schedule))
        losses = denoising_loss(
            model, batch.x, t, weight=self.weight, times=times, seed=self.seed, index=batch.index, clean=self.clean,
            cond=self.told(model, batch, t),
        )  # fmt: skip
        return losses * (2 / batch.x[0].numel())

    def told(self, model: Any, batch: Any, t: Tensor) -> Mapping[str, Any]:
        """The conditions that the model is told."""
        conditions: Mapping[str, Any] = batch.cond
        return conditions

    def suits(self, model: Any) -> None:
        if not hasattr(model, "process"):
            raise SfumatoError(
                f"The denoising loss needs a model with noise levels, and {an(type(model).__name__)} has none: use "
                "another loss, such as loss='autoencoding' for a Codec."
            )
        if getattr(model.process, "codebook", None) == "learned":
            raise SfumatoError(
                "Learned vectors would fall together under the denoising loss, which is then 0: train them by "
                "loss='cross-entropy'."
            )

    def levels(self) -> Levels | None:
        return Levels(fixed(self.times), self.weight, self.times)


@register("loss", "self-conditioned")
@final
class SelfConditioned(Denoising):
    """`Denoising` of a network that in a share of the samples hears its own x of a first call, without gradients.

    x_hat = D(z, t, previous), previous = stopped D(z, t, none) with probability `share`, else none; sampling then
    carries x_hat from call to call. A network that `carries` latents, as `nets.RIN`, hears these of the first call
    instead. Sources: Chen et al. 2022 (2208.04202), Algorithm 1, with share 0.5; Jabri et al. 2022 (2212.11972),
    Algorithm 1, with 0.9.
    """

    carries = True

    def __init__(self, times: TimeDensity, weight: Weight | None, seed: int, share: float = 0.5) -> None:
        super().__init__(times, weight, seed)
        if not 0 < share <= 1:
            raise SfumatoError(f"The share of self-conditioned samples is above 0 and at most 1, not {share!r}.")
        self.share = share

    def told(self, model: Any, batch: Any, t: Tensor) -> Mapping[str, Any]:
        process = model.process
        z = process.corrupt(process.data(batch.x), t, Noise(self.seed, batch.index, noise.TRAIN_NOISE))
        return {**batch.cond, **own_estimate(model, z, t, batch.cond, self.share, self.seed, batch.index)}

    def suits(self, model: Any) -> None:
        super().suits(model)
        require_remembering(model)


def own_estimate(
    model: Any, z: Tensor, t: Tensor, cond: Mapping[str, Any], share: float, seed: int, index: Tensor
) -> dict[str, Given]:  # fmt: skip
    """What a call about z leaves to the next, without gradients, in a share of the samples: {name: value}."""
    with torch.no_grad():
        first = model(z, t, **cond)
    heard = (Noise(seed, index, noise.DROP).fold(PREVIOUS).uniform() < share).to(z.device)
    name, value = (CARRIED, first.carried) if first.carried is not None else (PREVIOUS, first.x)
    return {name: Given(value, heard).masked()}


def require_remembering(model: Any) -> None:
    """Raise SfumatoError unless the states are numbers and the network hears its estimate before."""
    if not isinstance(getattr(model, "process", None), Embedded):
        require_numbers(model, "Self-conditioning", "take loss='denoising'")
    if not (getattr(model, "remembers", False) or getattr(model, "carries", False)):
        raise SfumatoError(
            "Self-conditioning trains a network that hears its estimate before: leave net to a name such as "
            "'small' or 'RIN', or give it the condition 'previous', a field of the shape of a state."
        )


@register("loss", "hybrid")
@final
class Hybrid(Loss):
    """`Denoising` at the levels k / T, plus share times the bound that trains the variance of the steps.

    A quarter of the levels is uniform in t whatever `times`, since the bound needs all of them.
    steps: T. The model needs variance="learned". Source: Nichol and Dhariwal 2021 (2102.09672), Eq. 16.
    """

    def __init__(
        self, times: TimeDensity, weight: Weight | None, seed: int, share: float = 1e-3, steps: int = STEPS
    ) -> None:
        if times.moves:
            raise SfumatoError("A learned variance needs a fixed time density, such as times='uniform'.")
        super().__init__()
        self.times, self.weight, self.seed, self.share, self.steps = Defensive(times), weight, seed, share, steps
        self._requested = times

    def losses(self, model: Any, batch: Any) -> Tensor:
        schedule = model.process.schedule
        t = schedule.time(self.times.logsnr(batch.u, schedule))
        losses = hybrid_loss(
            model, batch.x, t, self.weight, self.times, self.seed, batch.index, steps=self.steps, share=self.share,
            cond=batch.cond,
        )  # fmt: skip
        return losses * (2 / batch.x[0].numel())

    def levels(self) -> Levels:
        """The denoising loss under the requested density."""
        return Levels(self._requested, self.weight, self._requested)

    def suits(self, model: Any) -> None:
        require_numbers(model, "The hybrid loss", "take loss='denoising'")
        if getattr(model, "variance", "fixed") != "learned":
            raise SfumatoError("The hybrid loss trains a learned variance: pass variance='learned' with it.")


@register("loss", "vlb")
@final
class VariationalBound(Loss):
    """T L_k / (p(t) D), in nats per element: an unbiased estimate of the bound of T levels without its prior term.

    steps: T. variance: posterior, beta or learned; by default learned if the model has it, else posterior. history: the
    loss history that draws the levels (2102.09672, Eq. 18), of T levels by default, stored in checkpoints. Held-out
    samples use uniform levels.
    """

    def __init__(
        self, steps: int = STEPS, variance: str | None = None, history: LossHistory | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        self.steps, self.variance, self.seed = steps, variance, seed
        self.history = LossHistory(steps) if history is None else history
        self._schedule: Schedule | None = None

    def losses(self, model: Any, batch: Any) -> Tensor:
        self._schedule = model.process.schedule
        return self._nats(model, batch, self.history)

    def held(self, model: Any, batch: Any) -> Tensor:
        return self._nats(model, batch, UniformTime())

    def _nats(self, model: Any, batch: Any, times: TimeDensity) -> Tensor:
        schedule = model.process.schedule
        variance = self.variance or ("learned" if model.variance == "learned" else "posterior")
        t = schedule.time(times.logsnr(batch.u, schedule))
        nats = vlb_loss(
            model, batch.x, t, times, self.seed, batch.index, steps=self.steps, variance=variance, cond=batch.cond
        )
        return nats / batch.x[0].numel()

    def observe(self, batch: Any, losses: Tensor) -> None:
        assert self._schedule is not None
        self.history.observe(self.history.logsnr(batch.u, self._schedule).detach(), losses)

    def tensors(self) -> dict[str, Tensor]:
        return self.history.tensors()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self.history.load(dict(tensors))

    def suits(self, model: Any) -> None:
        require_numbers(model, "The bound of T Gaussian steps", "take loss='denoising'")


FORMS = ("sliced", "implicit", "denoising")


@register("loss", "score-matching")
@final
class ScoreMatching(Loss):
    """w(logsnr) / p(logsnr) sigma^2 times score matching of p_t, times 2 / D.

    form: "sliced" (with `probes` of `law`), "implicit" (an exact trace, D passes) or "denoising". Their means differ by
    terms that do not depend on the model, so all share the minimum of the denoising loss; w None means 1.
    Sources: Hyvarinen 2005; Song et al. 2019 (1905.07088), Eq. 7 and 8; Vincent 2011, Eq. 11.
    """

    def __init__(
        self,
        times: TimeDensity,
        weight: Weight | None = None,
        seed: int = 0,
        form: str = "sliced",
        probes: int = 1,
        law: str = "rademacher",
    ) -> None:
        super().__init__()
        if form not in FORMS:
            raise SfumatoError(f"Unknown form {form!r} of score matching: {suggest(form, FORMS)}")
        self.times, self.weight, self.seed = fixed(times), weight, seed
        self.form, self.probes, self.law = form, probes, law

    def losses(self, model: Any, batch: Any) -> Tensor:
        x, schedule = batch.x, model.process.schedule
        logsnr = self.times.logsnr(batch.u, schedule)
        t = schedule.time(logsnr)
        eps = numbers_like(noise.Noise(self.seed, batch.index, noise.TRAIN_NOISE), x)
        z, sigma = model.process.corrupt(x, t, eps), schedule.sigma(t)
        if self.form == "denoising":
            found = score_matching.denoising(model, x, t=t, eps=eps, **batch.cond)
        elif self.form == "implicit":
            found = score_matching.implicit(model, z, t, **batch.cond)
        else:
            found = score_matching.sliced(
                model, z, t, self.probes, self.law, seed=self.seed, index=batch.index, **batch.cond
            )
        weight = sigma**2 / self.times.density(logsnr, schedule)
        weight = weight if self.weight is None else weight * self.weight(logsnr)
        return found * weight.to(found) * (2 / x[0].numel())

    def suits(self, model: Any) -> None:
        require_numbers(model, "Score matching", "take loss='denoising'")


@register("loss", "denoising-autoencoder")
@final
class DenoisingAutoencoding(Loss):
    """|x - D(z)|^2 / D at one noise level: z = x + sigma eps, or a share `masking` of the elements of x set to 0.

    Under Gaussian noise the trained model is a `Denoiser` of one level, for Langevin sampling
    (`DenoisingAutoencoder.from_denoiser` converts it); with masking it is a `DenoisingAutoencoder`.
    """

    def __init__(self, sigma: float = 0.5, masking: float | None = None, seed: int = 0) -> None:
        super().__init__()
        self.noise = GaussianNoise(sigma) if masking is None else Masking(masking)
        self.seed = seed

    def model(self, net: nn.Module, spec: Any) -> Any:
        model = DenoisingAutoencoder(net, self.noise, spec=spec)
        return model.denoiser if isinstance(self.noise, GaussianNoise) else model

    def suits(self, model: Any) -> None:
        if not isinstance(model, DenoisingAutoencoder):
            require_numbers(model, "A denoising autoencoder", "take loss='denoising'")
            DenoisingAutoencoder.from_denoiser(model)  # raises for a model of many levels

    def losses(self, model: Any, batch: Any) -> Tensor:
        if isinstance(model, DenoisingAutoencoder):
            found = model.losses(batch.x, seed=self.seed, index=batch.index, **batch.cond)
        else:
            found = denoising_loss(model, batch.x, 1.0, seed=self.seed, index=batch.index, cond=batch.cond)
        return found * (2 / batch.x[0].numel())


@register("loss", "autoencoding")
@final
class Autoencoding(Loss):
    """(-fit + beta KL) / D, or (-fit + commitment |f - sg(e)|^2) / D, in nats per element, for a `Codec`.

    spectral: the weight of a second error of the reconstruction, that of its amplitudes (`vae.amplitude_error`), over
    the deviation of the decoder as the first: it does not reward blur. The reconstruction is that of the code's mean.
    perceptual: the weight of a third one, that of its `features` (`vae.perceptual_error`): "convolutions", a file of
    Inception weights, the folder of a CLIP model, or a function of your own that can be differentiated.
    The codebook, part of the network, is updated after each optimiser step; `restarted` counts the codes reset so far.
    With several processes each learns from the codes of all, so that the codebooks stay equal.
    """

    network = "Autoencoder"

    def __init__(
        self,
        beta: float = 1.0,
        free_bits: float = 0.0,
        commitment: float = COMMITMENT,
        seed: int = 0,
        spectral: float = 0.0,
        perceptual: float = 0.0,
        features: Any = "convolutions",
    ) -> None:
        super().__init__()
        for name, weight in (("spectral", spectral), ("perceptual", perceptual)):
            if not weight >= 0:
                raise SfumatoError(f"The weight of the {name} error must be at least 0, got {weight!r}.")
        self.beta, self.free_bits, self.commitment, self.seed = beta, free_bits, commitment, seed
        self.spectral, self.perceptual = spectral, perceptual
        self._word, self._seeing = (features,), tuple[Any, ...]()  # the features once made; both no part of the loss
        self.restarted = 0
        self._seen: dict[int, QuantisedCode] = {}  # number of the first sample of a part -> the codes of the part
        self._quantiser: tuple[Any, ...] = ()  # in a tuple, so that it is not registered as a submodule

    def model(self, net: nn.Module, spec: Any) -> Any:
        return Codec(net, spec)  # type: ignore[arg-type]

    def suits(self, model: Any) -> None:
        if not isinstance(model, Codec):
            raise SfumatoError(
                f"The autoencoding loss needs a Codec, but the model is {an(type(model).__name__)}: leave out "
                "model, or "
                "use loss='denoising'."
            )
        if not hasattr(model.net, "log_variance"):
            raise SfumatoError(
                f"The autoencoding loss trains an Autoencoder, and the network is {an(type(model.net).__name__)}: "
                "leave "
                "net out, or take loss='denoising'."
            )

    def losses(self, model: Any, batch: Any) -> Tensor:
        net, size = model.net, batch.x[0].numel()
        more = self.spectral * amplitude_error(net, batch.x) if self.spectral else 0.0
        if self.perceptual:
            spec, seen = model.spec, self._seen_by(model, batch.x)
            units = None if spec is None else spec.normaliser.denormalise
            more = more + self.perceptual * perceptual_error(net, batch.x, seen, units)
        if net.quantiser is None:
            return elbo_loss(net, batch.x, self.beta, self.free_bits, self.seed, batch.index) / size + more
        found = vq_loss(net, batch.x, self.commitment)
        if model.training:
            self._quantiser, self._seen[int(batch.index[0])] = (net.quantiser,), found.code
        return found.loss / size + more

    def _seen_by(self, model: Any, x: Tensor) -> Any:
        """The features, made at the first batch."""
        if not self._seeing:
            bounds = None if model.spec is None else model.spec.bounds
            made = named.build(self._word[0], tuple(x.shape[1:]), bounds, x.device)
            if made is None:
                raise SfumatoError("The perceptual error compares features, not the numbers: name some.")
            fixed = isinstance(made, nn.Module)
            self._seeing = (copy.deepcopy(made).eval().requires_grad_(False) if fixed else made,)
        return self._seeing[0]

    def observe(self, batch: Any, losses: Tensor) -> None:
        first, last = int(batch.index[0]), int(batch.index[-1])
        parts = [code for start, code in sorted(self._seen.items()) if first <= start <= last]
        if parts:
            code = QuantisedCode(*(batch.world.all_gather(torch.cat(each)) for each in zip(*parts, strict=True)))
            self.restarted += self._quantiser[0].learn(code)
        self._seen.clear()


@register("loss", "nonequilibrium")
@register("loss", "d3pm", steps=1000, share=1e-3)
@final
class Nonequilibrium(Loss):
    """-K in nats per symbol, the bound of `steps` levels of a symbol process (1503.03585, 2107.03006).

    Each sample uses one level, chosen by its number u in (0, 1), so that a batch spreads over all levels. share: of the
    cross entropy of x that D3PM adds to every step (`nonequilibrium_loss`).
    """

    def __init__(self, steps: int = 32, seed: int = 0, share: float = 0.0) -> None:
        super().__init__()
        self.steps, self.seed, self.share = steps, seed, share

    def losses(self, model: Any, batch: Any) -> Tensor:
        x = model.process.data(batch.x)
        nats = nonequilibrium_loss(
            model, x, self.steps, batch.u, self.seed, batch.index, self.share, cond=batch.cond
        )  # fmt: skip
        return nats / x[0].numel()

    def suits(self, model: Any) -> None:
        require_symbols(model, self.steps)


@final
class Plain(Loss):
    """Any function (model, batch) -> (B,)."""

    def __init__(self, losses: Callable[[Any, Any], Tensor], seed: int = 0) -> None:
        super().__init__()
        self._losses, self.seed = losses, seed

    def losses(self, model: Any, batch: Any) -> Tensor:
        return self._losses(model, batch)
