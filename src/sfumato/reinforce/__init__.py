"""Preferences and rewards: likelihood ratios of two models, and the losses and runs that are made of them."""

from sfumato.reinforce.alignment import Aligned, Alignment, align, compare
from sfumato.reinforce.feedback import Preferences, Reward, Rollouts
from sfumato.reinforce.ratio import LogRatio, contraction, log_ratio

__all__ = [
    "Aligned", "Alignment", "LogRatio", "Preferences", "Reward", "Rollouts", "align", "compare", "contraction",
    "log_ratio",
]  # fmt: skip
