from diffenc.core.discretization import EqualVariance
from diffenc.registry import variances

Equal = variances.register("equal")(EqualVariance)
