"""Time samplers: the densities on [0, 1] that diffusion times are drawn from."""

from diffenc_plugins.time_samplers.builtin import Importance, ImportanceByGradient, Uniform

__all__ = ["Importance", "ImportanceByGradient", "Uniform"]
