import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from diffenc.tools.fid.extraction import PER_DEVICE, Extractor, FeatureCollector


@dataclasses.dataclass(frozen=True)
class Sums:
    """The sum of an image, and its first pixel."""

    num_features: int = 2

    def metric(self):
        return "fd_sums"

    def identity(self):
        return "sums"

    def load(self):
        def sums(weight, images):
            images = images.astype(jnp.float32)
            return jnp.stack([weight * images.sum(axis=(1, 2, 3)), images[:, 0, 0, 0]], axis=1)

        return Partial(sums, jnp.float32(2))


@pytest.mark.parametrize("count", [0, 1, PER_DEVICE - 1, PER_DEVICE, PER_DEVICE + 1, 3 * PER_DEVICE + 5])
def test_every_image_has_its_features_however_many_there_are(count):
    images = np.random.default_rng(count).integers(0, 256, (count, 3, 4, 1), dtype=np.uint8)
    found = Extractor(Sums())(images)
    wanted = np.stack([2.0 * images.reshape(count, 12).sum(axis=1), images[:, 0, 0, 0]], axis=1)
    np.testing.assert_array_equal(found, wanted)
    assert found.dtype == np.float32


def test_one_program_serves_all_counts():
    extractor = Extractor(Sums())
    for count in (1, 5, PER_DEVICE + 1):
        extractor(np.zeros((count, 2, 2, 1), np.uint8))
    assert extractor._compiled._cache_size() == 1  # pyright: ignore[reportAttributeAccessIssue]


def test_a_summary_is_of_all_that_came_and_keeps_some_in_their_places():
    vectors = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    places = np.array([4, 8, 0, 1, 7, 3, 2, 6, 5])
    collector = FeatureCollector(3, places, 4)
    for part in np.split(vectors, [2, 2, 7]):
        collector.add(part)
    summary = collector.summary()
    assert summary.count == 9
    np.testing.assert_allclose(summary.gaussian.mean, vectors.astype(float).mean(axis=0), rtol=1e-12)
    np.testing.assert_array_equal(summary.some, vectors[[2, 3, 6, 5]])


def test_the_first_to_come_are_the_first_kept():
    vectors = np.arange(12.0, dtype=np.float32).reshape(6, 2)
    collector = FeatureCollector(2, np.arange(6), 4)
    collector.add(vectors[:3])
    early = collector.summary()
    np.testing.assert_array_equal(early.some, vectors[:3])
    collector.add(vectors[3:])
    np.testing.assert_array_equal(collector.summary().some, vectors[:4])
    assert early.count == 3
