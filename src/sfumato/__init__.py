"""sfumato: one trained denoiser, every view of diffusion.

>>> import sfumato as sf

Conventions: ``z = alpha(t) x + sigma(t) eps``, t in [0, 1], t = 0 is data and t = 1 is noise; noise levels are stated
in ``logsnr = log(alpha^2 / sigma^2)``; users speak in the units of their own data.

Importing the package loads nothing else, not even torch: every public name is imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sfumato import conditions as conditions
    from sfumato import data as data
    from sfumato import exact as exact
    from sfumato import guidance as guidance
    from sfumato import inverse as inverse
    from sfumato import metrics as metrics
    from sfumato import nets as nets
    from sfumato import reinforce as reinforce
    from sfumato import schedules as schedules
    from sfumato import solvers as solvers
    from sfumato import spectra as spectra
    from sfumato.adapters import merge as merge
    from sfumato.autoencoder import Codec as Codec
    from sfumato.belief import Estimate as Estimate
    from sfumato.calibration import calibrate as calibrate
    from sfumato.cascade import Cascade as Cascade
    from sfumato.certification import certify as certify
    from sfumato.columns import uncalibrated as uncalibrated
    from sfumato.compose import Experts as Experts
    from sfumato.compose import Rescheduled as Rescheduled
    from sfumato.compose import differentiable as differentiable
    from sfumato.coupling_flow import CouplingFlow as CouplingFlow
    from sfumato.denoising_autoencoder import DenoisingAutoencoder as DenoisingAutoencoder
    from sfumato.diagnosis import doctor as doctor
    from sfumato.diagnostics.audit import audit as audit
    from sfumato.diagnostics.board import board as board
    from sfumato.diagnostics.draw_table import draws as draws
    from sfumato.diagnostics.information import Information as Information
    from sfumato.diagnostics.information import information as information
    from sfumato.diagnostics.memorization import memorization as memorization
    from sfumato.distillation import distill as distill
    from sfumato.distributed import joined as joined
    from sfumato.eight_views import views as views
    from sfumato.embedder import Embedder as Embedder
    from sfumato.errors import SfumatoError as SfumatoError
    from sfumato.errors import SfumatoWarning as SfumatoWarning
    from sfumato.flow_map import FlowMap as FlowMap
    from sfumato.guidance import Guided as Guided
    from sfumato.guidance import guide as guide
    from sfumato.guidance_laws import explain_guidance as explain_guidance
    from sfumato.imputation import impute as impute
    from sfumato.inverse import operators as operators
    from sfumato.inverse.posterior import condition_on as condition_on
    from sfumato.inverse.posterior import posterior as posterior
    from sfumato.latent_diffusion import Latent as Latent
    from sfumato.latents import attribute as attribute
    from sfumato.latents import decode as decode
    from sfumato.latents import encode as encode
    from sfumato.latents import interpolate as interpolate
    from sfumato.latents import slerp as slerp
    from sfumato.latents import variations as variations
    from sfumato.likelihood import Measured as Measured
    from sfumato.likelihood import bound_gap as bound_gap
    from sfumato.likelihood import density_gap as density_gap
    from sfumato.likelihood import energy as energy
    from sfumato.likelihood import log_prob as log_prob
    from sfumato.likelihood import rate_split as rate_split
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
    from sfumato.objectives.teacher import GuidedTeacher as GuidedTeacher
    from sfumato.objectives.teacher import StableTarget as StableTarget
    from sfumato.objectives.teacher import Teacher as Teacher
    from sfumato.objectives.vlb import vlb as vlb
    from sfumato.process.gaussian import Gaussian as Gaussian
    from sfumato.process.mixing import Masked as Masked
    from sfumato.process.mixing import Uniform as Uniform
    from sfumato.process.product import Product as Product
    from sfumato.registry import register as register
    from sfumato.regression_prior import RegressionPrior as RegressionPrior
    from sfumato.reinforce import align as align
    from sfumato.reinforce import log_ratio as log_ratio
    from sfumato.sampling import sample as sample
    from sfumato.sampling import trajectory as trajectory
    from sfumato.sampling_error import error_budget as error_budget
    from sfumato.serialization import load as load
    from sfumato.serialization import save as save
    from sfumato.text_samples import sample_text as sample_text
    from sfumato.tilting import tilt as tilt
    from sfumato.training import resume as resume
    from sfumato.training import train as train
    from sfumato.training.forecast import forecast as forecast
    from sfumato.training.ladder import ladder as ladder
    from sfumato.tuning import tune as tune
    from sfumato.unclip import UnCLIP as UnCLIP

__version__ = "0.1.0"

# public name -> its source: "module:attribute", or "module" for a module under its public name
_PUBLIC = {
    "Cascade": "sfumato.cascade:Cascade",
    "Codec": "sfumato.autoencoder:Codec",
    "CouplingFlow": "sfumato.coupling_flow:CouplingFlow",
    "Denoiser": "sfumato.model:Denoiser",
    "DenoisingAutoencoder": "sfumato.denoising_autoencoder:DenoisingAutoencoder",
    "Embedder": "sfumato.embedder:Embedder",
    "RegressionPrior": "sfumato.regression_prior:RegressionPrior",
    "Estimate": "sfumato.belief:Estimate",
    "FlowMap": "sfumato.flow_map:FlowMap",
    "Experts": "sfumato.compose:Experts",
    "Gaussian": "sfumato.process.gaussian:Gaussian",
    "Guided": "sfumato.guidance:Guided",
    "GuidedTeacher": "sfumato.objectives.teacher:GuidedTeacher",
    "Information": "sfumato.diagnostics.information:Information",
    "Latent": "sfumato.latent_diffusion:Latent",
    "Masked": "sfumato.process.mixing:Masked",
    "Measured": "sfumato.likelihood:Measured",
    "Noise": "sfumato.noise:Noise",
    "Objective": "sfumato.objectives:Objective",
    "Product": "sfumato.process.product:Product",
    "Rescheduled": "sfumato.compose:Rescheduled",
    "SfumatoError": "sfumato.errors:SfumatoError",
    "SfumatoWarning": "sfumato.errors:SfumatoWarning",
    "StableTarget": "sfumato.objectives.teacher:StableTarget",
    "Teacher": "sfumato.objectives.teacher:Teacher",
    "UnCLIP": "sfumato.unclip:UnCLIP",
    "Uniform": "sfumato.process.mixing:Uniform",
    "align": "sfumato.reinforce:align",
    "attribute": "sfumato.latents:attribute",
    "audit": "sfumato.diagnostics.audit:audit",
    "board": "sfumato.diagnostics.board:board",
    "bound_gap": "sfumato.likelihood:bound_gap",
    "calibrate": "sfumato.calibration:calibrate",
    "certify": "sfumato.certification:certify",
    "condition_on": "sfumato.inverse.posterior:condition_on",
    "conditions": "sfumato.conditions",
    "data": "sfumato.data",
    "decode": "sfumato.latents:decode",
    "denoising_loss": "sfumato.objectives:denoising_loss",
    "density_gap": "sfumato.likelihood:density_gap",
    "differentiable": "sfumato.compose:differentiable",
    "distill": "sfumato.distillation:distill",
    "doctor": "sfumato.diagnosis:doctor",
    "draws": "sfumato.diagnostics.draw_table:draws",
    "encode": "sfumato.latents:encode",
    "energy": "sfumato.likelihood:energy",
    "error_budget": "sfumato.sampling_error:error_budget",
    "exact": "sfumato.exact",
    "explain_guidance": "sfumato.guidance_laws:explain_guidance",
    "forecast": "sfumato.training.forecast:forecast",
    "guidance": "sfumato.guidance",
    "guide": "sfumato.guidance:guide",
    "hybrid_loss": "sfumato.objectives.hybrid:hybrid_loss",
    "impute": "sfumato.imputation:impute",
    "information": "sfumato.diagnostics.information:information",
    "interpolate": "sfumato.latents:interpolate",
    "inverse": "sfumato.inverse",
    "joined": "sfumato.distributed:joined",
    "ladder": "sfumato.training.ladder:ladder",
    "load": "sfumato.serialization:load",
    "log_prob": "sfumato.likelihood:log_prob",
    "log_ratio": "sfumato.reinforce:log_ratio",
    "memorization": "sfumato.diagnostics.memorization:memorization",
    "merge": "sfumato.adapters:merge",
    "metrics": "sfumato.metrics",
    "nets": "sfumato.nets",
    "nonequilibrium": "sfumato.objectives.nonequilibrium",
    "operators": "sfumato.inverse.operators",
    "posterior": "sfumato.inverse.posterior:posterior",
    "prior_kl": "sfumato.objectives.prior:prior_kl",
    "rate_split": "sfumato.likelihood:rate_split",
    "register": "sfumato.registry:register",
    "reinforce": "sfumato.reinforce",
    "resume": "sfumato.training:resume",
    "sample": "sfumato.sampling:sample",
    "sample_text": "sfumato.text_samples:sample_text",
    "save": "sfumato.serialization:save",
    "schedules": "sfumato.schedules",
    "score_matching": "sfumato.objectives.score_matching",
    "slerp": "sfumato.latents:slerp",
    "solvers": "sfumato.solvers",
    "tilt": "sfumato.tilting:tilt",
    "spectra": "sfumato.spectra",
    "times": "sfumato.objectives.times",
    "train": "sfumato.training:train",
    "trajectory": "sfumato.sampling:trajectory",
    "tune": "sfumato.tuning:tune",
    "uncalibrated": "sfumato.columns:uncalibrated",
    "vae": "sfumato.objectives.vae",
    "variations": "sfumato.latents:variations",
    "views": "sfumato.eight_views:views",
    "vlb": "sfumato.objectives.vlb:vlb",
    "vlb_loss": "sfumato.objectives.hybrid:vlb_loss",
    "weights": "sfumato.objectives.weights",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> object:
    """Import the public name `name` and cache it (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sfumato' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    found = import_module(module)
    value: object = getattr(found, attribute) if attribute else found
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
