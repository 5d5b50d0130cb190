"""Feature summary of a split of a data set, computed once and cached per user for all runs."""

import hashlib
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from diffenc.config.fid_settings import Fid
from diffenc.data.sources import epoch_order, subsample
from diffenc.errors import UserError
from diffenc.evaluation.image_grid import to_uint8
from diffenc.files import atomic
from diffenc.files.directories import cache_directory
from diffenc.interfaces import Dataset, Source
from diffenc.parallel.distributed import main_process_only
from diffenc.runtime.progress import Progress
from diffenc.safe_io import safe_npz
from diffenc.tools.fid import array_cache
from diffenc.tools.fid.extraction import Extractor, FeatureCollector, FeatureSummary
from diffenc.tools.fid.frechet import Gaussian

MAX_BYTES = 1 << 32  # limit of an unpacked summary
FORMAT = 1  # of the cache; raise it when the format, or the conversion of images to uint8, changes
CHUNK = 1024  # images; at most so many are computed again after an interruption


def summarize_split(dataset: Dataset, split: str, settings: Fid, extractor: Extractor) -> FeatureSummary:
    """Returns the summary of `settings.num_images` images, from the cache if possible.

    Raises:
      UserError: there are no images or only one, or writing failed.
    """
    source = subsample(dataset.source(split), settings.num_images, settings.seed)
    if len(source) < 2:
        raise UserError(f"fid.splits: {split} has {len(source)} image(s), and at least 2 are needed")
    file = (
        cache_directory("features")
        / f"{hash_key(cache_key(dataset, split, settings, extractor, source))}.npz"
    )
    found = load_summary(file)
    if found is None:
        found = compute_summary(dataset.num_levels, source, split, settings, extractor, file)
        _save(file, found)
    return found


def cache_key(
    dataset: Dataset, split: str, settings: Fid, extractor: Extractor, source: Source
) -> dict[str, Any]:
    """Returns all inputs that the summary depends on."""
    return {
        "format": FORMAT,
        "fingerprint": dataset.fingerprint(split),
        "image_shape": dataset.image_shape,
        "num_levels": dataset.num_levels,
        "num_images": len(source),
        "seed": settings.seed,
        "kid_images": settings.kid_images,
        "features": extractor.identity,
    }


def hash_key(value: dict[str, Any]) -> str:
    """Returns a name for `value`, the same for equal values."""
    return hashlib.sha256(atomic.to_json(value).encode()).hexdigest()[:32]


def compute_summary(
    num_levels: int, source: Source, split: str, settings: Fid, extractor: Extractor, file: Path
) -> FeatureSummary:
    """Returns the summary of all images; finished chunks are in a folder next to `file` until all are done."""
    # The place of each image in a random order: the kernel distance takes
    # blocks of neighbours, and images of a split are often sorted by class.
    order = np.argsort(epoch_order(len(source), settings.seed, 1))
    collector = FeatureCollector(extractor.size, order, settings.kid_images)
    progress = Progress(f"features of {split}", -(-len(source) // CHUNK))
    for first in range(0, len(source), CHUNK):
        indices = np.arange(first, min(first + CHUNK, len(source)))

        def compute(indices: np.ndarray = indices) -> np.ndarray:
            return extractor(to_uint8(source.__getitems__(indices)["image"], num_levels))

        part = file.with_suffix("") / f"{first:09d}.npy"
        collector.add(array_cache.load_or_compute(part, compute, (len(indices), extractor.size), "float32"))
        progress()
    return collector.summary()


def load_summary(file: Path) -> FeatureSummary | None:
    """Returns the cached summary; None if there is none, or it is corrupt."""
    try:
        held = safe_npz.load(io.BytesIO(file.read_bytes()), str(file), None, MAX_BYTES)
        gaussian = Gaussian(held["mean"], held["covariance"])
        return FeatureSummary(gaussian, int(held["count"]), held["some"])
    except FileNotFoundError:
        return None
    except Exception as error:  # zipfile raises more types than it documents
        logging.warning("%s is corrupt; recomputing (%s)", file, error)
        return None


@main_process_only
def _save(file: Path, found: FeatureSummary) -> None:
    arrays = {
        "mean": found.gaussian.mean,
        "covariance": found.gaussian.covariance,
        "count": np.array(found.count),
        "some": found.some,
    }
    atomic.write_bytes(file, atomic.encode_npz(arrays))
    # Chunks are removed only once the summary is on disk, so that an interruption loses nothing.
    shutil.rmtree(file.with_suffix(""), ignore_errors=True)
