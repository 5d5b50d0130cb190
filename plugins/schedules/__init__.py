"""How log_snr falls with t."""

from diffenc_plugins.schedules.learned_endpoints import LearnedEndpoints
from diffenc_plugins.schedules.linear import Linear
from diffenc_plugins.schedules.monotone import Monotone

__all__ = ["LearnedEndpoints", "Linear", "Monotone"]
