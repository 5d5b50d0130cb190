"""Fixed feature networks, for distances between sets of images."""

from diffenc_plugins.features.inception import Inception

__all__ = ["Inception"]
