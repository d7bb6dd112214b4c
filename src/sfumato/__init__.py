"""sfumato: one trained denoiser, every view of diffusion.

>>> import sfumato as sf

Conventions: ``z = alpha(t) x + sigma(t) eps``, t in [0, 1], t = 0 is data and t = 1 is noise; noise levels are stated
in ``logsnr = log(alpha^2 / sigma^2)``; users speak in the units of their own data.

Importing the package loads nothing else, not even torch: what the imports below name is loaded when it is first used.
"""

import ast
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sfumato import conditions as conditions
    from sfumato import data as data
    from sfumato import exact as exact
    from sfumato import nets as nets
    from sfumato import schedules as schedules
    from sfumato import solvers as solvers
    from sfumato.autoencoder import Codec as Codec
    from sfumato.belief import Estimate as Estimate
    from sfumato.certification import certify as certify
    from sfumato.compose import Guided as Guided
    from sfumato.compose import Rescheduled as Rescheduled
    from sfumato.compose import differentiable as differentiable
    from sfumato.compose import guide as guide
    from sfumato.denoising_autoencoder import DenoisingAutoencoder as DenoisingAutoencoder
    from sfumato.diagnosis import doctor as doctor
    from sfumato.diagnostics.board import board as board
    from sfumato.diagnostics.information import Information as Information
    from sfumato.diagnostics.information import information as information
    from sfumato.diagnostics.memorization import memorization as memorization
    from sfumato.distributed import joined as joined
    from sfumato.errors import SfumatoError as SfumatoError
    from sfumato.errors import SfumatoWarning as SfumatoWarning
    from sfumato.latents import attribute as attribute
    from sfumato.latents import decode as decode
    from sfumato.latents import encode as encode
    from sfumato.latents import interpolate as interpolate
    from sfumato.latents import slerp as slerp
    from sfumato.likelihood import Measured as Measured
    from sfumato.likelihood import bound_gap as bound_gap
    from sfumato.likelihood import energy as energy
    from sfumato.likelihood import log_prob as log_prob
    from sfumato.model import Denoiser as Denoiser
    from sfumato.noise import Noise as Noise
    from sfumato.objectives import Objective as Objective
    from sfumato.objectives import denoising_loss as denoising_loss
    from sfumato.objectives import nonequilibrium as nonequilibrium
    from sfumato.objectives import score_matching as score_matching
    from sfumato.objectives import times as times
    from sfumato.objectives import vae as vae
    from sfumato.objectives import weights as weights
    from sfumato.objectives.hybrid import hybrid_loss as hybrid_loss
    from sfumato.objectives.hybrid import vlb_loss as vlb_loss
    from sfumato.objectives.prior import prior_kl as prior_kl
    from sfumato.objectives.teacher import StableTarget as StableTarget
    from sfumato.objectives.teacher import Teacher as Teacher
    from sfumato.objectives.vlb import vlb as vlb
    from sfumato.process.gaussian import Gaussian as Gaussian
    from sfumato.process.masked import Masked as Masked
    from sfumato.process.product import Product as Product
    from sfumato.process.uniform import Uniform as Uniform
    from sfumato.registry import register as register
    from sfumato.sampling import sample as sample
    from sfumato.sampling import trajectory as trajectory
    from sfumato.sampling_error import error_budget as error_budget
    from sfumato.serialization import load as load
    from sfumato.serialization import save as save
    from sfumato.training import resume as resume
    from sfumato.training import train as train
    from sfumato.training.forecast import forecast as forecast
    from sfumato.tuning import tune as tune

__version__ = "0.1.0"


def _public() -> dict[str, tuple[str, str]]:
    """Public name -> (module, name in it), read from the imports above."""
    tree = ast.parse(Path(__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name: (str(node.module), alias.name) for node in imports for alias in node.names}


_PUBLIC = _public()
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> object:
    """The public name `name`, its module loaded now and the result kept (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sfumato' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    home = None if module == "sfumato" else import_module(module)
    value: object = getattr(home, attribute, None) or import_module(f"{module}.{attribute}")  # which is a module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
