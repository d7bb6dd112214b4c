"""Preferences and rewards: likelihood ratios of two models, and the losses and runs that are made of them."""

from sfumato.reinforce.ratio import LogRatio, contraction, log_ratio

__all__ = ["LogRatio", "contraction", "log_ratio"]
