"""Features of images, and their summary over a set of images."""

import dataclasses

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int, UInt8

from diffenc.interfaces import Features
from diffenc.tools.fid.frechet import Gaussian, Moments

PER_DEVICE = 32  # images at a time: Inception's first maps of one image take ten megabytes

Vectors = Float[np.ndarray, "n size"]


class Extractor:
    """Computes features of images on the devices of this process alone.

    Attributes:
      identity: unique name of these features.
    """

    def __init__(self, features: Features):
        """Loads the weights. Raises UserError if they are missing, damaged or not the expected ones."""
        self.identity = features.identity()
        self.size = features.num_features
        # Local devices only: features are computed by each process
        # for itself, without collectives, and cached in files.
        devices = jax.local_devices()
        mesh = Mesh(np.array(devices), ("images",))
        each, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("images"))
        self._at_a_time = PER_DEVICE * len(devices)
        self._extract = jax.device_put(features.load(), each)
        self._compiled = jax.jit(
            lambda extract, images: extract(images), in_shardings=(each, split), out_shardings=each
        )

    def __call__(self, images: UInt8[np.ndarray, "n h w c"]) -> Vectors:
        """Returns float32 features of images with levels 0 .. 255."""
        parts = [np.zeros((0, self.size), np.float32)]
        for first in range(0, len(images), self._at_a_time):
            part = images[first : first + self._at_a_time]
            # Padded to one shape, so that the network compiles once.
            filled = np.zeros((self._at_a_time, *part.shape[1:]), np.uint8)
            filled[: len(part)] = part
            parts.append(np.asarray(self._compiled(self._extract, filled))[: len(part)])
        return np.concatenate(parts)


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureSummary:
    """Summary of the features of a set of images, from which distances are computed.

    Attributes:
      gaussian: moments of all features.
      count: number of images.
      some: features of some images, drawn at random, in random order.
    """

    gaussian: Gaussian
    count: int
    some: Vectors


class FeatureCollector:
    """Accumulates features group by group."""

    def __init__(self, size: int, places: Int[np.ndarray, " n"], keep: int):
        """Puts the i-th vector to arrive at `places[i]` of `some`, if that is less than `keep`."""
        self._moments = Moments(size)
        self._places, self._keep = places, keep
        self._some = np.zeros((min(keep, len(places)), size), np.float32)

    @property
    def count(self) -> int:
        return self._moments.count

    def add(self, vectors: Vectors) -> None:
        """Adds the next vectors."""
        places = self._places[self.count : self.count + len(vectors)]
        # Vectors at later places count in the moments alone.
        kept = places < self._keep
        self._some[places[kept]] = vectors[kept]
        self._moments.add(vectors)

    def summary(self) -> FeatureSummary:
        """Returns the summary so far; `some` has no gaps if the places so far were 0, 1, 2, ... in any order."""
        return FeatureSummary(self._moments.gaussian, self.count, self._some[: self.count])
