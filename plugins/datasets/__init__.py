"""Images of integer levels."""

from diffenc_plugins.datasets.array_record import ArrayRecord
from diffenc_plugins.datasets.cifar10 import Cifar10
from diffenc_plugins.datasets.digits import Digits
from diffenc_plugins.datasets.imagenet32 import Imagenet32
from diffenc_plugins.datasets.imagenet32_oord import Imagenet32Oord
from diffenc_plugins.datasets.mnist import Mnist

__all__ = ["ArrayRecord", "Cifar10", "Digits", "Imagenet32", "Imagenet32Oord", "Mnist"]
