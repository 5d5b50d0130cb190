"""--mode=fid: Fréchet and kernel distance (FID, KID) between samples of a run and the images of its data set.

Samples and their features are written to the workdir as they are computed: an interrupted mode resumes when called
again, and other features are compared on the same samples.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Float, Int, UInt8
from rich.markup import escape
from rich.table import Table

from diffenc.config import serialize
from diffenc.config.experiment import Experiment
from diffenc.config.fid_settings import Fid
from diffenc.config.network_precision import network_precision
from diffenc.config.settings import ResolvedSample
from diffenc.core.model import Model
from diffenc.core.parameters import count_parameters
from diffenc.core.rng import generator, root_key
from diffenc.data.sources import epoch_order
from diffenc.errors import UserError
from diffenc.evaluation.commands import publish_record
from diffenc.evaluation.evaluation_record import image_metadata, run_metadata
from diffenc.evaluation.image_grid import to_uint8
from diffenc.evaluation.restore_params import restore_ema
from diffenc.evaluation.sample_images import ImageSampler, cycle_labels, settings_metadata
from diffenc.evaluation.uncertainty_format import MISSING, format_digits, round_to_error
from diffenc.files import atomic
from diffenc.interfaces import Dataset, Features, Params
from diffenc.parallel import collectives
from diffenc.parallel.distributed import is_main, main_process_only
from diffenc.parallel.sharding import data_mesh
from diffenc.registry import features
from diffenc.runtime.matmul_precision import matmul_precision
from diffenc.runtime.progress import Progress
from diffenc.tools.fid import array_cache
from diffenc.tools.fid.class_labels import class_shares, draw_labels
from diffenc.tools.fid.extraction import Extractor, FeatureCollector, FeatureSummary, Vectors
from diffenc.tools.fid.frechet import frechet_distance
from diffenc.tools.fid.kid import kernel_distance
from diffenc.tools.fid.split_features import hash_key, summarize_split
from diffenc.workdir import mirror

FOLDER = "fid"


@mirror.on_local_copy
def fid(experiment: Experiment, workdir: Path) -> dict[str, Any]:
    """Draws samples, compares them with the splits, prints a table and writes fid.json; returns the record.

    Raises:
      UserError: the weights of the features, the data or the run are missing, or images have other than 1 or 3
        channels.
    """
    model, dataset, settings = experiment.model, experiment.dataset, experiment.fid
    chosen = choose_features(settings, dataset.image_shape)
    # Weights are loaded before sampling starts, so that a missing file fails at once.
    extractor = Extractor(chosen)
    mesh = data_mesh(experiment.mesh)
    params, step = restore_ema(experiment, workdir, mesh, experiment.sample.step)
    samples = SampleCache(experiment, mesh, params, workdir, step)
    splits = {split: summarize_split(dataset, split, settings, extractor) for split in settings.splits}
    summaries = summarize_samples(settings, dataset.num_levels, samples, extractor)
    record = {
        "metric": chosen.metric(),
        "distances": list(compare_summaries(summaries, splits, settings.kid_block)),
        "features": features.spell(chosen),
        "features_identity": extractor.identity,
        "num_features": extractor.size,
        "num_images": settings.num_images,
        "kid_images": settings.kid_images,
        "kid_block": settings.kid_block,
        **split_metadata(dataset, model, splits),
        **samples.metadata,
        **run_metadata(experiment),
        "num_params": count_parameters(params),
    }
    publish_record(workdir, "fid", record, {}, fid_table(record))
    return record


def choose_features(settings: Fid, image_shape: Sequence[int]) -> Features:
    """Returns the features of the settings, by default Inception's.

    Raises:
      UserError: features are not defined for images with this number of channels.
    """
    channels = image_shape[-1]
    if channels not in (1, 3):
        raise UserError(f"--mode=fid is for images of 1 or 3 channels, and these have {channels}")
    return settings.features or features["inception"]()


class SampleCache:
    """Samples in chunks of `fid.batch_size`, each drawn once for given sampling settings and kept in the workdir.

    Attributes:
      metadata: the checkpoint and the sampling settings, as entries of the record.
      folder: the folder of the chunks.
    """

    def __init__(self, experiment: Experiment, mesh: Mesh, params: Params, workdir: Path, step: int):
        """Draws nothing yet.

        Raises:
          UserError: as `ImageSampler`.
        """
        model, dataset, settings = experiment.model, experiment.dataset, experiment.fid
        self.size = settings.batch_size
        self._shape = (self.size, *dataset.image_shape)
        self._params, self._workdir = params, workdir
        chunk = dataclasses.replace(experiment.sampling, num=self.size)
        self._sampler = ImageSampler(
            model, dataset, chunk, mesh, workdir, step, trained_at=experiment.num_timesteps
        )
        self._root = root_key(settings.seed, "fid")
        conditional = bool(model.reverse_modules)
        self._labels = SampleLabels(dataset, experiment.sample.classes, settings, conditional)
        self.metadata = {
            "step": step,
            **sampling_metadata(experiment.sampling, settings),
            **self._labels.metadata,
            **self._sampler.fitted_on,
        }
        computation = {
            "config": serialize.config_hash(experiment),
            "precision": network_precision(experiment),
            "matmul_precision": matmul_precision(),
            "prng": generator(),
        }
        # Named by everything that determines the samples: other settings never reuse these chunks.
        self.folder = workdir / FOLDER / hash_key({**self.metadata, **computation})

    def progress(self, num: int) -> Progress:
        """Returns the progress of drawing the missing ones of the first `num` samples."""
        files = [self._file(index) for index in range(-(-num // self.size))]
        # By the first process's view of the disk: processes that
        # count differently would not draw the same chunks together.
        (there,) = collectives.broadcast_ints(sum(file.is_file() for file in files))
        logging.info("%d samples; %d are drawn already, in %s", num, min(num, there * self.size), self.folder)
        return Progress("drawing samples", (len(files) - there) * self._sampler.num_stretches)

    def chunk(self, index: int, progress: Progress) -> UInt8[np.ndarray, "n h w c"]:
        """Returns a chunk of samples as levels. All processes must call this.

        Raises:
          UserError: writing failed.
        """
        file = self._file(index)
        # The main process alone decides whether to draw: drawing is collective, so all must take the same branch.
        found = array_cache.load_array(file, self._shape, "uint8") if is_main() else None
        (there,) = collectives.broadcast_ints(int(found is not None))
        if there:
            return collectives.broadcast_array(np.zeros(self._shape, np.uint8) if found is None else found)
        # A chunk depends on its number alone: a resumed run, or
        # one with more samples, continues the same sequence.
        key = jax.random.fold_in(self._root, index)
        new = self._sampler.draw(self._params, progress, key, self._labels(index)).astype(np.uint8)
        array_cache.save_array(file, new)
        main_process_only(atomic.write_json)(
            self.folder / "of.json", self.metadata
        )  # for people who look into the folder
        mirror.push(self._workdir)
        return new

    def _file(self, index: int) -> Path:
        return self.folder / f"{index:06d}.npy"


class SampleLabels:
    """Class of each sample: drawn in the proportions of the train split, or `sample.classes` in turn.

    Attributes:
      metadata: entries of the record that name the choice; empty for an unconditional model.
    """

    def __init__(self, dataset: Dataset, classes: tuple[int, ...] | None, settings: Fid, conditional: bool):
        """Stores the settings.

        Args:
          classes: `sample.classes`.
          conditional: whether the network takes a class.
        """
        self._dataset, self._classes, self._conditional = dataset, classes, conditional
        self._size = settings.batch_size
        self._root = root_key(settings.seed, "classes of fid")
        how = "at random, by the shares of train" if classes is None else "sample.classes in turn"
        self.metadata = {"classes_drawn": how} if conditional else {}

    def __call__(self, index: int) -> Int[np.ndarray, " n"] | None:
        """Returns the labels of a chunk; None for an unconditional model."""
        if not self._conditional:
            return None
        if self._classes is None:
            return draw_labels(self._shares, self._size, jax.random.fold_in(self._root, index))
        # The cycle goes on from chunk to chunk.
        return cycle_labels(self._dataset, self._classes, (index + 1) * self._size)[-self._size :]

    @cached_property
    def _shares(self) -> Float[np.ndarray, " classes"]:
        return class_shares(self._dataset)


def sampling_metadata(sample: ResolvedSample, settings: Fid) -> dict[str, Any]:
    """Returns how samples are drawn from a given checkpoint, as entries of the record."""
    sampling = settings_metadata(sample)
    del sampling["num"], sampling["seed"]  # fid has its own
    return {"sampling": sampling, "seed": settings.seed, "batch_size": settings.batch_size}


def split_metadata(dataset: Dataset, model: Model, splits: Mapping[str, FeatureSummary]) -> dict[str, Any]:
    """Returns the images that the samples are compared with, as entries of the record."""
    images = {
        split: image_metadata(dataset, model, split, summary.count) for split, summary in splits.items()
    }
    return {"dataset": next(iter(images.values()))["dataset"], "images": images}


def summarize_samples(
    settings: Fid, num_levels: int, samples: SampleCache, extractor: Extractor
) -> Iterator[FeatureSummary]:
    """Yields the feature summary of the first `num` samples, for each of `fid.nums` in ascending order."""
    nums = np.unique(settings.nums)
    collector = FeatureCollector(extractor.size, subset_order(nums, settings.seed), settings.kid_images)
    for vectors in extract_sample_features(int(nums[-1]), num_levels, samples, extractor):
        # Number of vectors still missing for each of `nums`: a chunk is split where a summary is due.
        ends = nums - collector.count
        for part in np.split(vectors, ends[(ends > 0) & (ends < len(vectors))]):
            collector.add(part)
            if collector.count in nums:
                yield collector.summary()


def subset_order(nums: Int[np.ndarray, " m"], seed: int) -> Int[np.ndarray, " n"]:
    """Returns a position for each sample, in the random order that the kernel distance needs.

    The first `num` samples have the first `num` positions, for each of the increasing `nums`.
    """
    ends = [0, *nums.tolist()]
    parts = [
        first + epoch_order(last - first, seed, 2 + k) for k, (first, last) in enumerate(pairwise(ends))
    ]  # epochs 0 and 1 of the seed order the splits
    return np.concatenate(parts)


def extract_sample_features(
    num: int, num_levels: int, samples: SampleCache, extractor: Extractor
) -> Iterator[Vectors]:
    """Yields the features of the first `num` samples, chunk by chunk."""
    drawing, folder = samples.progress(num), samples.folder / hash_key({"features": extractor.identity})
    files = [folder / f"{index:06d}.npy" for index in range(-(-num // samples.size))]
    extracting = Progress("features of samples", sum(not file.is_file() for file in files))
    for index, file in enumerate(files):
        # in every process, also where the features exist: drawing is a collective computation
        levels, first = samples.chunk(index, drawing), index * samples.size

        def compute(levels: np.ndarray = levels) -> np.ndarray:
            vectors = extractor(to_uint8(levels, num_levels))
            extracting()
            return vectors

        vectors = array_cache.load_or_compute(file, compute, (samples.size, extractor.size), "float32")
        yield vectors[: num - first]


def compare_summaries(
    summaries: Iterator[FeatureSummary], splits: Mapping[str, FeatureSummary], block: int
) -> Iterator[dict[str, Any]]:
    """Yields the distances of each set of samples to each split."""
    for drawn in summaries:
        for split, summary in splits.items():
            kernel = kernel_distance(drawn.some, summary.some, block)
            yield {
                "num": drawn.count,
                "split": split,
                "distance": frechet_distance(drawn.gaussian, summary.gaussian),
                "kid": kernel.value,
                "kid_se": kernel.error,
                "kid_num": kernel.num,
            }


def fid_table(record: Mapping[str, Any]) -> Table:
    """Returns a table of the distances."""
    sampling = record["sampling"]
    title = f"{record['dataset']}, {sampling['num_timesteps']} steps of {sampling['sampler']}, step {record['step']}"
    table = Table(title=escape(title), caption=f"features {record['features_identity'][:16]}")
    for column in ("samples", "split", record["metric"], "kernel distance", "± over blocks", "of samples"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for row in record["distances"]:
        kid = round_to_error(row["kid"], row["kid_se"])
        cells = format_digits(row["distance"]), kid.mean, kid.error or MISSING, f"{row['kid_num']:,}"
        table.add_row(f"{row['num']:,}", row["split"], *cells)
    return table
