"""What the network estimates: p x_phi + q eps."""

from diffenc_plugins.parameterizations.epsilon import Epsilon
from diffenc_plugins.parameterizations.v import V
from diffenc_plugins.parameterizations.x import X

__all__ = ["Epsilon", "V", "X"]
