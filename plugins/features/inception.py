import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.tree_util import Partial
from jaxtyping import Array, Float, UInt8

from diffenc.data import digests
from diffenc.errors import UserError
from diffenc.files.directories import data_directory
from diffenc.interfaces import Extract
from diffenc.registry import features
from diffenc.safe_io import torch_file
from diffenc.safe_io.safe_pickle import short_repr
from diffenc_plugins.features.layers import (
    Layer,
    Maps,
    Weights,
    centred_positions,
    chain,
    concatenate,
    conv,
    corner_positions,
    global_mean,
    max_pool,
    max_pool_same,
    mean_pool_same,
    resize,
    to_three_channels,
)

FILE = "pt_inception-2015-12-05-6726825d.pth"
SHA256_START = "6726825d"  # as its name says
VERSION = 1  # of the code: to be raised where it comes to give other features of the same weights
SIDE = 299  # pixels
EPSILON = 1e-3  # of all norms
_LIMIT = 2**28  # bytes; the file has 96 million

Preprocess = Callable[[Float[Array, "b h w c"]], Maps]


def preprocess_as_port(images: Float[Array, "b h w c"]) -> Maps:
    """Returns images 0 .. 255 as -1 .. 1, resized with pixels as squares, as pytorch-fid and so most published FIDs do."""
    return 2 * resize(images / 255, SIDE, centred_positions) - 1


def preprocess_as_graph(images: Float[Array, "b h w c"]) -> Maps:
    """Applies the graph's own preprocessing: TensorFlow 1's resize, which shifts the image, with 128 as zero."""
    return (resize(images, SIDE, corner_positions) - 128) / 128


PREPROCESS: dict[str, Preprocess] = {"port": preprocess_as_port, "graph": preprocess_as_graph}


def convs(prefix: str, *names: str) -> Layer:
    """Returns convolutions in sequence; a name that ends in "/2" has stride 2 and no padding."""
    return chain(
        *(
            conv(f"{prefix}.{name[:-2]}", 2, "VALID") if name.endswith("/2") else conv(f"{prefix}.{name}")
            for name in names
        )
    )


def block_5(name: str) -> Layer:
    branch = partial(convs, name)
    return concatenate(
        branch("branch1x1"),
        branch("branch5x5_1", "branch5x5_2"),
        branch("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
        chain(mean_pool_same, branch("branch_pool")),
    )


def block_6a(name: str) -> Layer:
    branch = partial(convs, name)
    return concatenate(
        branch("branch3x3/2"), branch("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3/2"), max_pool
    )


def block_6(name: str) -> Layer:
    branch = partial(convs, name)
    return concatenate(
        branch("branch1x1"),
        branch(*(f"branch7x7_{k}" for k in (1, 2, 3))),
        branch(*(f"branch7x7dbl_{k}" for k in (1, 2, 3, 4, 5))),
        chain(mean_pool_same, branch("branch_pool")),
    )


def block_7a(name: str) -> Layer:
    branch = partial(convs, name)
    return concatenate(
        branch("branch3x3_1", "branch3x3_2/2"),
        branch("branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3", "branch7x7x3_4/2"),
        max_pool,
    )


def block_7(name: str, pool: Layer) -> Layer:
    branch = partial(convs, name)
    return concatenate(
        branch("branch1x1"),
        chain(branch("branch3x3_1"), concatenate(branch("branch3x3_2a"), branch("branch3x3_2b"))),
        chain(
            branch("branch3x3dbl_1", "branch3x3dbl_2"),
            concatenate(branch("branch3x3dbl_3a"), branch("branch3x3dbl_3b")),
        ),
        chain(pool, branch("branch_pool")),
    )


LAYERS: dict[str, Layer] = {  # in their order
    "Conv2d_1a_3x3": conv("Conv2d_1a_3x3", 2, "VALID"),
    "Conv2d_2a_3x3": conv("Conv2d_2a_3x3", 1, "VALID"),
    "Conv2d_2b_3x3": conv("Conv2d_2b_3x3"),
    "maxpool1": max_pool,
    "Conv2d_3b_1x1": conv("Conv2d_3b_1x1"),
    "Conv2d_4a_3x3": conv("Conv2d_4a_3x3", 1, "VALID"),
    "maxpool2": max_pool,
    **{f"Mixed_5{letter}": block_5(f"Mixed_5{letter}") for letter in "bcd"},
    "Mixed_6a": block_6a("Mixed_6a"),
    **{f"Mixed_6{letter}": block_6(f"Mixed_6{letter}") for letter in "bcde"},
    "Mixed_7a": block_7a("Mixed_7a"),
    "Mixed_7b": block_7("Mixed_7b", mean_pool_same),
    "Mixed_7c": block_7("Mixed_7c", max_pool_same),  # as that graph was trained, other than its description
}


@features.register("inception")
@dataclasses.dataclass(frozen=True)
class Inception:
    """The 2,048 pool3 features of the Inception graph of 2015-12-05, which define FID; the user provides the weights.

    Attributes:
      weights: the file pt_inception-2015-12-05-6726825d.pth; None = the one of that name in the data directory.
      preprocess: "port", which resizes and scales as pytorch-fid does, or "graph", as the TensorFlow graph itself does.
    """

    weights: str | None = None
    preprocess: str = "port"

    num_features: ClassVar[int] = 2048

    def __post_init__(self):
        if self.preprocess not in PREPROCESS:
            raise UserError(
                f"features.inception.preprocess = {self.preprocess!r}: must be one of {', '.join(PREPROCESS)}"
            )

    def metric(self) -> str:
        """Returns "fid" for the published weights with the preprocessing of most published figures, else "fd_inception"."""
        published = self._sha256().startswith(SHA256_START)
        return "fid" if published and self.preprocess == "port" else "fd_inception"

    def identity(self) -> str:
        sha256 = self._sha256()
        if not sha256.startswith(SHA256_START):
            logging.warning(
                "%s is not the published %s (its SHA-256 begins with %s): distances are called fd_inception, and are "
                "not FID",
                self._path(),
                FILE,
                sha256[:8],
            )
        return f"{sha256} {self.preprocess} v{VERSION}"

    def load(self) -> Extract:
        path = self._path()
        weights = fold_batch_norms(torch_file.load(path, _LIMIT), str(path))
        extract = Partial(partial(features_of, PREPROCESS[self.preprocess]), weights)
        _check(extract, str(path), self.num_features)
        return extract

    def _sha256(self) -> str:
        return digests.digest_file(self._path())["sha256"]

    def _path(self) -> Path:
        path = Path(self.weights).expanduser() if self.weights else data_directory() / FILE
        if not path.is_file():
            raise UserError(
                f"{path}: no such file; bind features.inception.weights to where {FILE} is (the weights that "
                "pytorch-fid uses, from its releases), or bind fid.features to other features, whose distance is not FID"
            )
        return path


def features_of(
    preprocess: Preprocess, weights: Weights, images: UInt8[Array, "b h w c"]
) -> Float[Array, "b features"]:
    """Returns the mean of the last block's maps over all positions."""
    return global_mean(chain(*LAYERS.values())(weights, preprocess(to_three_channels(images))))


def fold_batch_norms(state: dict[str, np.ndarray], name: str) -> Weights:
    """Returns kernels and biases by layer from a state dict, with each norm folded into its convolution.

    Raises:
      UserError: a parameter is missing or has another shape; `name` stands for the file in the message.
    """
    found = {}
    for key in state:
        if key.endswith(".conv.weight"):
            layer = key.removesuffix(".conv.weight")
            norm = (f"{layer}.bn.{part}" for part in ("weight", "bias", "running_mean", "running_var"))
            try:
                parts = [state[part] for part in norm]
            except KeyError as error:
                raise UserError(f"{name}: has no {short_repr(error.args[0])}, so it is not {FILE}") from error
            if not state[key].ndim == 4 or not all(part.shape == state[key].shape[:1] for part in parts):
                raise UserError(f"{name}: is not {FILE} ({short_repr(layer)} has other shapes)")
            # scale (w x - mean) / sqrt(var + eps) + bias = w' x + b', in float64, so that
            # each folded weight is rounded once.
            scale, bias, mean, variance = (part.astype(np.float64) for part in parts)
            scale = scale / np.sqrt(variance + EPSILON)
            # torch has OIHW, JAX's convolution here HWIO; the
            # scale is per output channel, the last axis of HWIO.
            kernel = state[key].transpose(2, 3, 1, 0) * scale
            found[layer] = tuple(jnp.asarray(part, jnp.float32) for part in (kernel, bias - mean * scale))
    return found


def _check(extract: Extract, name: str, num_features: int) -> None:
    """Raises UserError unless the weights have the network's names and shapes."""
    try:
        # Shapes alone: detects the weights of another network without a forward pass.
        shape = jax.eval_shape(extract, jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.uint8)).shape
    except (KeyError, TypeError, ValueError) as error:
        reason = f"no {error.args[0]}" if isinstance(error, KeyError) else "other shapes"
        raise UserError(f"{name}: is not {FILE} ({reason})") from error
    if shape != (1, num_features):
        raise UserError(f"{name}: is not {FILE} ({shape[1]} features)")
