"""Encoders: families x_phi(lambda) of representations of an image; the mean of the diffusion process is alpha x_phi."""

from diffenc_plugins.encoders.blurring import Blurring
from diffenc_plugins.encoders.builtin import Identity, Nontrainable, Trainable
from diffenc_plugins.encoders.class_template import ClassTemplate
from diffenc_plugins.encoders.separable import Separable

__all__ = ["Blurring", "ClassTemplate", "Identity", "Nontrainable", "Separable", "Trainable"]
