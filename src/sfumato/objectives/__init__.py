"""Objectives: one weighted denoising loss, its weights and its time densities, and what any of them really weighs."""

from sfumato.objectives import score_matching, times, weights
from sfumato.objectives.compiler import Objective
from sfumato.objectives.denoising import denoising_loss

__all__ = ["Objective", "denoising_loss", "score_matching", "times", "weights"]
