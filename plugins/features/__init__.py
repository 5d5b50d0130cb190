"""Fixed networks, by whose features images are compared."""

from diffenc_plugins.features.inception import Inception
from diffenc_plugins.features.squeezenet import SqueezeNet

__all__ = ["Inception", "SqueezeNet"]
