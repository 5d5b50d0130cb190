"""Fixed networks, by whose features images are compared."""

from diffenc_plugins.features.inception import Inception

__all__ = ["Inception"]
