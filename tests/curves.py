"""The noise schedules that the tests of the core run over."""

from sfumato.schedules import (
    EDM,
    VE,
    Cauchy,
    Cosine,
    Flow,
    FromBetas,
    Laplace,
    LinearBeta,
    LogLinear,
    Shifted,
    Sigmoid,
    SubVP,
    Trig,
)

CURVES = {
    "linear_beta": LinearBeta(),
    "subvp": SubVP(),
    "cosine": Cosine(),
    "cosine_s0": Cosine(s=0.0),
    "trig": Trig(),
    "flow": Flow(),
    "ve": VE(),
    "edm": EDM(),
    "log_linear": LogLinear(),
    "laplace": Laplace(),
    "cauchy": Cauchy(),
    "sigmoid": Sigmoid(),
    "sigmoid_skewed": Sigmoid(start=0.0, end=3.0, tau=0.7),
    "shifted_cosine": Shifted(Cosine(), 2.0),
    "shifted_flow": Shifted(Flow(), 3.0),
    "shifted_ve": Shifted(VE(), 0.5),
    "ddpm_table": FromBetas.ddpm(),
    "latent_table": FromBetas.scaled_linear(),
}
