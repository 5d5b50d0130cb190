"""What is known of a split's features: computed in chunks, kept, and taken from there as long as nothing differs."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from jax.tree_util import Partial

from diffenc.config.fid_settings import Fid
from diffenc.data.sources import ArraySource
from diffenc.errors import UserError
from diffenc.tools.fid import split_features
from diffenc.tools.fid.extraction import Extractor

IMAGES = np.random.default_rng(0).integers(0, 5, (23, 4, 4, 1)).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Corners:
    """Three pixels."""

    name: str = "corners"

    num_features: int = 3

    def metric(self):
        return "fd_corners"

    def identity(self):
        return self.name

    def load(self):
        def corners(places, images):
            return images.reshape(len(images), -1)[:, places].astype(jnp.float32)

        return Partial(corners, jnp.array([0, 3, 15]))


@dataclasses.dataclass(frozen=True)
class Set:
    """Images of 5 levels."""

    images: str = "the usual"
    image_shape: tuple[int, int, int] = (4, 4, 1)
    num_levels: int = 5
    num_classes: int = 3

    def source(self, split):
        count = {"train": 23, "test": 9, "validation": 1}[split]
        return ArraySource(IMAGES[:count], np.zeros(count, np.int32))

    def fingerprint(self, split):
        return f"{split} of {self.images}"


class Counting(Extractor):
    """Counts the images it has seen, and can be made to stop."""

    seen, stop_after = 0, 10**9

    def __call__(self, images):
        if self.seen >= self.stop_after:
            raise KeyboardInterrupt
        self.seen += len(images)
        return super().__call__(images)


class Of:
    """`of_split` with a cache of its own; `seen` images were looked at the last time."""

    def __init__(self, cache):
        self.cache, self.seen = cache, 0

    def __call__(self, split="train", features=Corners(), dataset=Set(), stop_after=10**9, **settings):
        extractor = Counting(features)
        extractor.stop_after = stop_after
        try:
            return split_features.summarize_split(dataset, split, Fid(**settings), extractor)
        finally:
            self.seen = extractor.seen


@pytest.fixture
def of(tmp_path, monkeypatch):
    """With chunks of 4 images."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(split_features, "CHUNK", 4)
    return Of(tmp_path / "diffenc" / "features")


def wanted(count=23):
    """Levels 0 .. 4 spread over 0 .. 255, rounded."""
    flat = IMAGES[:count].reshape(count, 16)[:, [0, 3, 15]]
    return np.array([0, 64, 128, 191, 255])[flat].astype(float)


def test_moments_are_those_of_all_images_and_some_are_kept_in_random_order(of):
    found = of(kid_images=11)
    assert found.count == of.seen == 23
    np.testing.assert_allclose(found.gaussian.mean, wanted().mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.gaussian.covariance, np.cov(wanted(), rowvar=False), rtol=1e-12)
    assert len(found.some) == 11
    rows = {tuple(row): k for k, row in enumerate(wanted())}
    places = [rows[tuple(row)] for row in found.some]
    assert sum(a > b for a, b in itertools.pairwise(places)) > 2, "not in the order of the source"
    assert max(places) > 11


@pytest.mark.parametrize("kid_images", [2, 23, 1000])
def test_each_image_is_kept_once_if_all_are(of, kid_images):
    some = of(kid_images=kid_images).some
    assert len(some) == min(kid_images, 23)
    if kid_images >= 23:
        np.testing.assert_array_equal(np.sort(some, axis=0), np.sort(wanted(), axis=0))


def test_the_second_time_no_image_is_looked_at(of):
    first = of()
    again = of()
    assert of.seen == 0
    for one, other in (
        (first.gaussian.mean, again.gaussian.mean),
        (first.gaussian.covariance, again.gaussian.covariance),
        (first.some, again.some),
    ):
        np.testing.assert_array_equal(one, other, strict=True)
    assert again.count == 23
    assert [path.suffix for path in of.cache.iterdir()] == [".npz"]


@pytest.mark.parametrize(
    "other",
    [
        {"split": "test"},
        {"features": Corners("others")},
        {"dataset": Set("others")},
        {"dataset": Set(num_levels=9)},
        {"num_images": 12},
        {"kid_images": 7},
        {"seed": 1},
    ],
)
def test_of_anything_else_it_is_computed_anew(of, other):
    of(num_images=22)
    of(**{"num_images": 22, **other})
    assert of.seen > 0


def test_what_an_older_version_has_kept_is_computed_anew(of, monkeypatch):
    of()
    monkeypatch.setattr(split_features, "FORMAT", split_features.FORMAT + 1)
    of()
    assert of.seen == 23


def test_stopped_it_goes_on_from_the_last_whole_chunk(of):
    with pytest.raises(KeyboardInterrupt):
        of(stop_after=12)
    assert of.seen == 12
    found = of()
    assert of.seen == 23 - 12
    np.testing.assert_allclose(found.gaussian.covariance, np.cov(wanted(), rowvar=False), rtol=1e-12)


def test_a_damaged_cache_is_made_anew(of, monkeypatch):
    warnings = []
    monkeypatch.setattr(logging, "warning", lambda line, *values: warnings.append(line % values))
    first = of()
    (file,) = of.cache.iterdir()
    file.write_bytes(file.read_bytes()[:300])
    again = of()
    assert of.seen == 23
    assert "is corrupt; recomputing" in warnings[0]
    np.testing.assert_array_equal(first.gaussian.mean, again.gaussian.mean)


def test_some_images_are_those_drawn_by_the_seed(of):
    found = of(num_images=6, kid_images=6, seed=3)
    assert found.count == of.seen == 6
    rows = {tuple(row) for row in wanted()}
    assert all(tuple(row) in rows for row in found.some)
    other = of(num_images=6, kid_images=6, seed=4)
    assert (np.sort(found.some, axis=0) != np.sort(other.some, axis=0)).any()


def test_a_single_image_has_no_covariance(of):
    with pytest.raises(
        UserError, match=r"fid\.splits: validation has 1 image\(s\), and at least 2 are needed"
    ):
        of("validation")
