"""Generative means: the reverse process's estimates of x_phi and of its slope."""

from diffenc_plugins.generative_means.builtin import VDM, Counterterm, Rescaled
from diffenc_plugins.generative_means.learned_counterterm import LearnedCounterterm
from diffenc_plugins.generative_means.reencoded import Reencoded
from diffenc_plugins.generative_means.two_heads import TwoHeads

__all__ = ["VDM", "Counterterm", "LearnedCounterterm", "Reencoded", "Rescaled", "TwoHeads"]
