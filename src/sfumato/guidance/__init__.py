"""Model -> Model: guidance, each way of it a class whose docstring has its formula, its space and its law on Gaussians.

Every sampler, plan, likelihood and file accepts the result.
"""

from .autoguidance import Autoguided
from .by_condition import SCALE, GuidedByCondition, guided, is_range
from .classifier import ClassifierGuided, NoisyClassifier
from .directions import APG, CFGZero, FrequencyDecoupled, PerpNeg, Rescaled
from .guided import Guided, Scale, guide
from .plan_scale import CFGPlusPlus
from .threshold import Thresholded
from .zigzag import Zigzag

__all__ = [
    "APG", "SCALE", "Autoguided", "CFGPlusPlus", "CFGZero", "ClassifierGuided", "FrequencyDecoupled", "Guided",
    "GuidedByCondition", "NoisyClassifier", "PerpNeg", "Rescaled", "Scale", "Thresholded", "Zigzag", "guide",
    "guided", "is_range",
]  # fmt: skip
