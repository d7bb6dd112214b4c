"""Preferences and rewards: likelihood ratios of two models, and the losses and runs that are made of them."""

from sfumato.reinforce.alignment import AIM, Aligned, Alignment, align, compare, resume
from sfumato.reinforce.control import Environment, Grid, PointMass, TwoTargets, explore, play
from sfumato.reinforce.feedback import Preferences, Reward, RewardError, Rollouts
from sfumato.reinforce.gym import Gymnasium
from sfumato.reinforce.ratio import LogRatio, contraction, log_ratio, path_kl

__all__ = [
    "AIM", "Aligned", "Alignment", "Environment", "Grid", "Gymnasium", "LogRatio", "PointMass", "Preferences", "Reward",
    "RewardError", "Rollouts", "TwoTargets", "align", "compare", "contraction", "explore", "log_ratio", "path_kl",
    "play", "resume",
]  # fmt: skip
