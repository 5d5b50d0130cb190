"""The plugins that ship with diffenc. Importing the package registers all of them."""

from diffenc_plugins import (
    conditionings,
    datasets,
    encoders,
    features,
    generative_means,
    networks,
    optimizers,
    parameterizations,
    schedules,
    stochasticities,
    time_samplers,
    variances,
    writers,
)

__all__ = [
    "conditionings",
    "datasets",
    "encoders",
    "features",
    "generative_means",
    "networks",
    "optimizers",
    "parameterizations",
    "schedules",
    "stochasticities",
    "time_samplers",
    "variances",
    "writers",
]
