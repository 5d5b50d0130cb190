"""Destinations of metrics besides the workdir."""

from diffenc_plugins.writers.weights_and_biases import WeightsAndBiases

__all__ = ["WeightsAndBiases"]
