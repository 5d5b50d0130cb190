"""Generative means: the slope d x_phi / d lambda that the reverse process assumes, kappa x_hat."""

from diffenc_plugins.generative_means.builtin import VDM, Counterterm

__all__ = ["VDM", "Counterterm"]
