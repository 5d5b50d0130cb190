"""The plugins that ship with diffenc. Importing the package registers all of them."""

from diffenc_plugins import (
    datasets,
    encoders,
    means,
    networks,
    optimizers,
    parameterizations,
    proposals,
    schedules,
    variances,
)

__all__ = [
    "datasets",
    "encoders",
    "means",
    "networks",
    "optimizers",
    "parameterizations",
    "proposals",
    "schedules",
    "variances",
]
