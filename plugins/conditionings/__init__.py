"""Conditioning: an optional class label per image."""

from diffenc_plugins.conditionings.builtin import ByClass, Nothing

__all__ = ["ByClass", "Nothing"]
