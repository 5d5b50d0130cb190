"""Optimizers of the parameters."""

from diffenc_plugins.optimizers.adamw import AdamW
from diffenc_plugins.optimizers.chain import Chain

__all__ = ["AdamW", "Chain"]
