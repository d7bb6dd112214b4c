"""Objectives: the weighted denoising loss, its weights and time densities, and the effective weight of any of them."""

from sfumato.objectives import score_matching, times, weights
from sfumato.objectives.compiler import Objective
from sfumato.objectives.denoising import denoising_loss
from sfumato.objectives.symbol_objective import SymbolObjective

__all__ = ["Objective", "SymbolObjective", "denoising_loss", "score_matching", "times", "weights"]
