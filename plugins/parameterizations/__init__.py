"""Parameterizations: the network estimates p x_phi + q eps."""

from diffenc_plugins.parameterizations.builtin import Epsilon, V, X

__all__ = ["Epsilon", "V", "X"]
