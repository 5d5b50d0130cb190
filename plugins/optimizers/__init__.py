"""How parameters follow gradients."""

from diffenc_plugins.optimizers.adamw import AdamW

__all__ = ["AdamW"]
