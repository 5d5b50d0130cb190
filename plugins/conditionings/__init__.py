"""What a model is told of an image."""

from diffenc_plugins.conditionings.by_class import ByClass
from diffenc_plugins.conditionings.none import Nothing

__all__ = ["ByClass", "Nothing"]
