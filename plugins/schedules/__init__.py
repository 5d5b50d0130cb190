"""Schedules: log_snr as a strictly decreasing function of t."""

from diffenc_plugins.schedules.builtin import LearnedEndpoints, Linear, NontrainableSNR
from diffenc_plugins.schedules.monotone import Monotone

__all__ = ["LearnedEndpoints", "Linear", "Monotone", "NontrainableSNR"]
