"""What the reverse process takes the encoder's slope to be: kappa x_hat."""

from diffenc_plugins.generative_means.counterterm import Counterterm
from diffenc_plugins.generative_means.vdm import VDM

__all__ = ["VDM", "Counterterm"]
