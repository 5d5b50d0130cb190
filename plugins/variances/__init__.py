"""How wide the reverse steps are: sigma_P^2."""

from diffenc_plugins.variances.equal import Equal
from diffenc_plugins.variances.fitted import Fitted
from diffenc_plugins.variances.fixed import Fixed

__all__ = ["Equal", "Fitted", "Fixed"]
