"""Objectives: one weighted denoising loss, its weights and its time densities."""

from sfumato.objectives import score_matching, times, weights
from sfumato.objectives.denoising import denoising_loss

__all__ = ["denoising_loss", "score_matching", "times", "weights"]
