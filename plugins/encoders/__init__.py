"""What the mean of the diffusion process is made of."""

from diffenc_plugins.encoders.blurring import Blurring
from diffenc_plugins.encoders.class_template import ClassTemplate
from diffenc_plugins.encoders.identity import Identity
from diffenc_plugins.encoders.nontrainable import Nontrainable
from diffenc_plugins.encoders.trainable import Trainable

__all__ = ["Blurring", "ClassTemplate", "Identity", "Nontrainable", "Trainable"]
