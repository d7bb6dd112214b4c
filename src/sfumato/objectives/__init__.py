"""Objectives: the weighted denoising loss, its weights and time densities, and the effective weight of any of them."""

from sfumato.objectives import score_matching, times, weights
from sfumato.objectives.compiler import Objective
from sfumato.objectives.denoising import denoising_loss

__all__ = ["Objective", "denoising_loss", "score_matching", "times", "weights"]
