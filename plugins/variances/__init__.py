"""Variances sigma_P^2 of the reverse steps."""

from diffenc_plugins.variances.builtin import Equal, Fitted, Fixed, Learned

__all__ = ["Equal", "Fitted", "Fixed", "Learned"]
