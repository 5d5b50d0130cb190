"""The densities that diffusion times are drawn from."""

from diffenc_plugins.time_samplers.importance import Importance
from diffenc_plugins.time_samplers.uniform import Uniform

__all__ = ["Importance", "Uniform"]
