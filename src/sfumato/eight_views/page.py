"""`sf.views`: what a model is in eight languages, each with a picture and a number that others must agree with."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import os
from pathlib import Path
from typing import Any

import torch

from sfumato import __version__, noise, serialization
from sfumato.diagnostics import report
from sfumato.diagnostics.plots import chart
from sfumato.diagnostics.samples import NormalisedLaw, evaluation_set, trivial
from sfumato.eight_views import chapters as of
from sfumato.eight_views.chains import COUNT, Scene, forward, gains, principal_axes, similarity, walks
from sfumato.eight_views.chapters import Chapter
from sfumato.errors import SfumatoError, whole
from sfumato.files import write_text
from sfumato.likelihood.bound import elbo
from sfumato.likelihood.flow import ode
from sfumato.machine import default_cpu, outside_inference
from sfumato.noise import Noise
from sfumato.noised import evaluating
from sfumato.pictures import picture
from sfumato.process.gaussian import require_numbers
from sfumato.process.paired import require_heard_source

_STEPS, _PROBES = 32, 4  # of the likelihoods
_GAINS = (3, 7, 11, COUNT - 1)  # levels from which the sensitivity is taken
_SHOWN, _STRIP = 8, (13, 10, 8, 6, 4, 1)  # samples in the strip of pictures, and their levels
_EXACT_DRAWS = 4096


@dataclasses.dataclass(frozen=True)
class Views:
    """The eight chapters; strip: pictures as noise falls, as a data URI, where samples are pictures; notes."""

    chapters: list[Chapter]
    samples: int
    strip: str | None
    notes: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether each number agrees with the others."""
        return all(one.check.agrees for one in self.chapters)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "samples": self.samples, "agrees": self.agrees, "notes": list(self.notes),
            "chapters": [one.to_dict() for one in self.chapters],
        }  # fmt: skip

    def __str__(self) -> str:
        lines = []
        for i, one in enumerate(self.chapters, 1):
            known = "" if one.exact is None else f" (exact {one.exact:.4g})"
            gap = f"{one.check.gap.value:+.3g} +- {one.check.gap.stderr:.1g}"
            lines += [
                f"{i}. {one.name}: {one.of}: {one.number.value:.4g} +- {one.number.stderr:.1g}{known}",
                f"   {'agrees' if one.check.agrees else 'DOES NOT AGREE'}: {one.check.says}: {gap}",
            ]
        return "\n".join([*lines, *self.notes])

    def html(self) -> str:
        """A self-contained page."""
        drawn = [
            one.to_dict() | {"drawing": chart(one.picture.lines, one.picture.across, one.picture.up)}
            for one in self.chapters
        ]
        subtitle = f"One model, {self.samples} samples it has not been trained on · sfumato {__version__}"
        return report.page("Eight views", subtitle, chapters=drawn, strip=self.strip, notes=self.notes)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page to a .html file, and the figures to a .json file beside it; returns the first."""
        path = Path(path).expanduser()
        if path.suffix.lower() != ".html":
            raise SfumatoError(f"The views are written as a page: {path} must end in .html.")
        write_text(path, self.html())
        write_text(path.with_suffix(".json"), json.dumps(self.to_dict(), allow_nan=False))
        return path


@default_cpu()
@outside_inference
def views(
    model: Any,
    data: Any,
    *,
    samples: int = 256,
    labels: Any = None,
    conditional: bool | None = None,
    seed: int = 0,
    batch: int = 256,
    device: str | torch.device = "cpu",
) -> Views:
    """What this very model is as autoencoder, latent-variable model, score, reverse SDE, flow, recurrent network,
    autoregression over frequencies and conditional expectation: `views(...).save("views.html")`.

    Each chapter has a number with its error, the value of the true law where data is one of `sf.exact`, and a check:
    a difference to another chapter that is 0 for an exact model. model, data, labels, conditional, device: as for
    `sf.board`. samples: held-out samples, each noised at 15 levels; half as many are drawn by SDE and by ODE, of an
    eighth the likelihood and the sensitivity are taken. Raises SfumatoError for symbols and for data or numbers that
    cannot be used.
    """
    if isinstance(model, str | os.PathLike):
        model = serialization.load_sampler(model, device=device)
    require_numbers(model, "The page of eight views", "sf.log_prob and sf.sample serve other models")
    require_heard_source(model, "The page of eight views")
    whole("samples", samples, 16)
    whole("batch, the samples at once,", batch)
    notes: list[str] = []
    found = evaluation_set(model, data, labels, conditional, samples, seed, notes)
    if len(found.x) < 16:
        raise SfumatoError(f"The eight views need at least 16 samples, not {len(found.x)}.")
    scene = Scene.of(model, trivial(model, found), found.x, found.cond, seed, batch)
    return Views(_chapters(scene, found.law), len(found.x), _strip(scene), tuple(notes))


def _chapters(scene: Scene, law: NormalisedLaw | None) -> list[Chapter]:
    chains = forward(scene, None if scene.cond else law)
    half, few = scene.few(len(scene.x) // 2), scene.few(len(scene.x) // 8)
    walked, index = walks(half), torch.arange(len(few.x))
    least = float(torch.exp(-scene.logsnr[0] / 2))
    how: dict[str, Any] = {"steps": _STEPS, "probes": _PROBES, "seed": scene.seed, "sigma_min": least}
    clean = few.x.double()
    with evaluating(scene.model):
        bound = elbo(scene.model, clean, index, few.cond, **how)
        flow = ode(scene.model, clean, index, few.cond, **how)
    floor = None if law is None else _floor(scene, law)
    exact = None if law is None else _entropy(few, law)
    bands = "band" if principal_axes(scene) is None else "axis"
    return [
        of.autoencoder(scene, chains, floor),
        of.latent_variables(scene, chains, bound, flow, exact),
        of.score(scene, chains, floor),
        of.reverse_sde(scene, walked, chains),
        of.flow(scene, walked, flow, exact),
        of.recurrent(scene, walked, list(_GAINS), gains(few, list(_GAINS)), similarity(few)),
        of.frequencies(scene, chains, bands),
        of.expectation(scene, chains),
    ]


def _floor(scene: Scene, law: NormalisedLaw) -> list[float]:
    """E tr Cov(x|z) / d at each level, in the model's units."""
    found = []
    for k in range(COUNT):
        alpha, sigma, _ = scene.strength(k)
        total = law.truth.mmse(_EXACT_DRAWS, scene.seed, alpha=alpha, sigma=sigma * law.scale)[0]
        found.append(total / law.truth.dim / law.scale**2)
    return found


def _entropy(scene: Scene, law: NormalisedLaw) -> float:
    """-log p(x) a number of these samples under the law, in the model's units."""
    x = law.scale * scene.x.double().cpu() + law.shift
    value = float(law.truth.log_prob(x).mean()) / law.truth.dim
    return -value - torch.tensor(law.scale).log().item()


@torch.no_grad()
def _strip(scene: Scene) -> str | None:
    """x and x_hat as noise falls, a row a sample, as a picture; None where samples are no pictures."""
    spec = getattr(scene.model, "spec", None)
    if spec is None or spec.kind != "image":
        return None
    few = scene.few(_SHOWN)
    process, columns = scene.model.process, []
    for k in _STRIP:
        t, eps = few.t[k].expand(len(few.x)), Noise(few.seed, torch.arange(len(few.x)), noise.PROBE, 400 + k)
        with evaluating(scene.model):
            columns.append(scene.model(process.corrupt(few.x, t, eps), t, **few.cond).x)
    columns.append(few.x)
    x = torch.stack(columns, 1).flatten(0, 1)
    written = io.BytesIO()
    picture(spec.denormalise(x).cpu(), spec.kind, spec.bounds, len(columns)).save(written, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"
