"""The densities that diffusion times are drawn from."""

from diffenc_plugins.proposals.importance import Importance
from diffenc_plugins.proposals.uniform import Uniform

__all__ = ["Importance", "Uniform"]
