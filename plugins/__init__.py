"""The plugins that ship with diffenc. Importing the package registers all of them."""

from diffenc_plugins import (
    conditionings,
    datasets,
    encoders,
    features,
    means,
    networks,
    optimizers,
    parameterizations,
    proposals,
    schedules,
    variances,
    writers,
)

__all__ = [
    "conditionings",
    "datasets",
    "encoders",
    "features",
    "means",
    "networks",
    "optimizers",
    "parameterizations",
    "proposals",
    "schedules",
    "variances",
    "writers",
]
