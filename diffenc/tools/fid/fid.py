"""The Fréchet and the kernel distance between samples of a run and the images of its data set, by --mode=fid.

Samples, and their features, are kept in the workdir as they come: called again, the mode goes on where it was
stopped, and other features are compared on the same samples.
"""

import dataclasses
from collections.abc import Iterator, Mapping
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
from diffenc.config.settings import Evaluate
from diffenc.core.conditioning import conditioned_modules
from diffenc.core.parameters import count_parameters
from diffenc.core.rng import generator, root_key
from diffenc.data.sources import epoch_order
from diffenc.errors import UserError
from diffenc.evaluation.commands import publish_record, restore_ema
from diffenc.evaluation.evaluator import image_metadata, run_metadata
from diffenc.evaluation.image_grid import to_uint8
from diffenc.evaluation.sample_images import ImageSampler, cycle_labels
from diffenc.evaluation.uncertainty_format import MISSING, format_digits, round_to_error
from diffenc.files import atomic
from diffenc.interfaces import Features, Params
from diffenc.parallel import collectives
from diffenc.parallel.distributed import is_main, main_process_only
from diffenc.parallel.sharding import data_mesh
from diffenc.registry import features, variances
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
    """Draw samples, compare them with the splits, print a table, file it; returns what fid.json says.

    Raises:
      UserError: the weights of the features, the data or the run are not there, or images have other than 1 or 3
        channels.
    """
    settings, chosen = experiment.fid, choose_features(experiment)
    extractor = Extractor(chosen)
    mesh = data_mesh(experiment.mesh)
    params, step = restore_ema(experiment, workdir, mesh, experiment.sample.step)
    draws = SampleCache(experiment, mesh, params, workdir, step)
    splits = {
        split: summarize_split(experiment.dataset, split, settings, extractor) for split in settings.splits
    }
    distances = list(
        compare_summaries(summarize_samples(experiment, draws, extractor), splits, settings.kid_block)
    )
    figures = {
        "metric": chosen.metric(),
        "distances": distances,
        "features": features.spell(chosen),
        "features_identity": extractor.identity,
        "num_features": extractor.size,
        "num_images": settings.num_images,
        "kid_images": settings.kid_images,
        "kid_block": settings.kid_block,
        **split_metadata(experiment, splits),
        **draws.of,
        **run_metadata(experiment),
        "num_params": count_parameters(params),
    }
    publish_record(workdir, "fid", figures, {}, fid_table(figures))
    return figures


def choose_features(experiment: Experiment) -> Features:
    """The features that are asked for.

    Raises:
      UserError: they cannot be had of such images.
    """
    channels = experiment.dataset.image_shape[-1]
    if channels not in (1, 3):
        raise UserError(f"--mode=fid is for images of 1 or 3 channels, and these have {channels}")
    return experiment.fid.features or features["inception"]()


class SampleCache:
    """Samples in chunks of `fid.batch_size`, each drawn once for each way of drawing and kept in the workdir.

    Attributes:
      of: the checkpoint and how it is sampled.
      folder: where the chunks are.
    """

    def __init__(self, experiment: Experiment, mesh: Mesh, params: Params, workdir: Path, step: int):
        """Raises UserError as `ImageSampler`."""
        self.size = experiment.fid.batch_size
        self._shape = (self.size, *experiment.dataset.image_shape)
        self._params, self._workdir = params, workdir
        settings = dataclasses.replace(experiment.sample, num=self.size)
        self._sampler = ImageSampler(dataclasses.replace(experiment, sample=settings), mesh, workdir, step)
        self._root = root_key(experiment.fid.seed, "fid")
        self._labels = SampleLabels(experiment)
        self.of = {"step": step, **sampling_metadata(experiment), **self._labels.of, **self._sampler.plan.of}
        decided_by = {
            "config": serialize.config_hash(experiment),
            "precision": serialize.network_precision(experiment),
            "matmul_precision": matmul_precision(),
            "prng": generator(),
        }
        self.folder = workdir / FOLDER / hash_key({**self.of, **decided_by})

    def progress(self, num: int) -> Progress:
        """Of drawing what is not there of the first `num` samples."""
        files = [self._file(index) for index in range(-(-num // self.size))]
        (there,) = collectives.broadcast_ints(sum(file.is_file() for file in files))
        logging.info("%d samples; %d are drawn already, in %s", num, min(num, there * self.size), self.folder)
        return Progress("drawing samples", (len(files) - there) * self._sampler.num_stretches)

    def chunk(self, index: int, progress: Progress) -> UInt8[np.ndarray, "n h w c"]:
        """Levels. All processes have to ask.

        Raises:
          UserError: the disk refused.
        """
        file = self._file(index)
        found = array_cache.load_array(file, self._shape, "uint8") if is_main() else None
        (there,) = collectives.broadcast_ints(int(found is not None))
        if there:
            return collectives.broadcast_array(np.zeros(self._shape, np.uint8) if found is None else found)
        key = jax.random.fold_in(self._root, index)
        new = self._sampler.draw(self._params, progress, key, self._labels(index)).astype(np.uint8)
        array_cache.save_array(file, new)
        main_process_only(atomic.write_json)(self.folder / "of.json", self.of)  # for people
        mirror.push(self._workdir)
        return new

    def _file(self, index: int) -> Path:
        return self.folder / f"{index:06d}.npy"


class SampleLabels:
    """Of which class each sample is: any, drawn by the shares of the train split, or `sample.classes` in turn.

    Attributes:
      of: which of the two, for a model that is told.
    """

    def __init__(self, experiment: Experiment):
        self._dataset, self._classes = experiment.dataset, experiment.sample.classes
        self._size = experiment.fid.batch_size
        self._root = root_key(experiment.fid.seed, "classes of fid")
        self._told = bool(conditioned_modules(experiment.model.network))
        how = "at random, by the shares of train" if self._classes is None else "sample.classes in turn"
        self.of = {"classes_drawn": how} if self._told else {}

    def __call__(self, index: int) -> Int[np.ndarray, " n"] | None:
        """Those of a chunk; None for a model that is told none."""
        if not self._told:
            return None
        if self._classes is None:
            return draw_labels(self._shares, self._size, jax.random.fold_in(self._root, index))
        return cycle_labels(self._dataset, self._classes, (index + 1) * self._size)[-self._size :]

    @cached_property
    def _shares(self) -> Float[np.ndarray, " classes"]:
        return class_shares(self._dataset)


def sampling_metadata(experiment: Experiment) -> dict[str, Any]:
    """How samples are drawn, the checkpoint aside."""
    settings = vars(experiment.sample)
    spelt = {
        name: variances.spell(value) if name == "variance" else value
        for name, value in settings.items()
        if name not in ("num", "seed", "step")
    }
    return {"sampling": spelt, "seed": experiment.fid.seed, "batch_size": experiment.fid.batch_size}


def split_metadata(experiment: Experiment, splits: Mapping[str, FeatureSummary]) -> dict[str, Any]:
    """What the samples are compared with."""
    images = {
        split: image_metadata(experiment, Evaluate(split=split), summary.count)
        for split, summary in splits.items()
    }
    return {"dataset": next(iter(images.values()))["dataset"], "images": images}


def summarize_samples(
    experiment: Experiment, draws: SampleCache, extractor: Extractor
) -> Iterator[FeatureSummary]:
    """Of the first `num` samples, for each of `fid.nums`, the smallest first."""
    nums = np.unique(experiment.fid.nums)
    collector = FeatureCollector(
        extractor.size, subset_order(nums, experiment.fid.seed), experiment.fid.kid_images
    )
    for vectors in extract_sample_features(int(nums[-1]), experiment.dataset.num_levels, draws, extractor):
        ends = nums - collector.count
        for part in np.split(vectors, ends[(ends > 0) & (ends < len(vectors))]):
            collector.add(part)
            if collector.count in nums:
                yield collector.summary()


def subset_order(nums: Int[np.ndarray, " m"], seed: int) -> Int[np.ndarray, " n"]:
    """Where each sample comes among those of the kernel distance, which wants them in random order.

    The first `num` samples have the first `num` places, for each of the increasing `nums`.
    """
    ends = [0, *nums.tolist()]
    parts = [
        first + epoch_order(last - first, seed, 2 + k) for k, (first, last) in enumerate(pairwise(ends))
    ]  # of the epochs of the seed, the splits have the first two
    return np.concatenate(parts)


def extract_sample_features(
    num: int, num_levels: int, draws: SampleCache, extractor: Extractor
) -> Iterator[Vectors]:
    """Of the first `num` samples, chunk by chunk."""
    drawing, folder = draws.progress(num), draws.folder / hash_key({"features": extractor.identity})
    files = [folder / f"{index:06d}.npy" for index in range(-(-num // draws.size))]
    extracting = Progress("features of samples", sum(not file.is_file() for file in files))
    for index, file in enumerate(files):
        levels, first = draws.chunk(index, drawing), index * draws.size

        def made(levels: np.ndarray = levels) -> np.ndarray:
            new = extractor(to_uint8(levels, num_levels))
            extracting()
            return new

        yield array_cache.load_or_compute(file, made, (draws.size, extractor.size), "float32")[: num - first]


def compare_summaries(
    summaries: Iterator[FeatureSummary], splits: Mapping[str, FeatureSummary], block: int
) -> Iterator[dict[str, Any]]:
    """Each set of samples beside each split."""
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


def fid_table(figures: dict[str, Any]) -> Table:
    """The distances, for people."""
    sampling = figures["sampling"]
    title = (
        f"{figures['dataset']}, {sampling['steps']} steps of {sampling['sampler']}, step {figures['step']}"
    )
    result = Table(title=escape(title), caption=f"features {figures['features_identity'][:16]}")
    for column in ("samples", "split", figures["metric"], "kernel distance", "± over blocks", "of samples"):
        result.add_column(column, justify="left" if column == "split" else "right")
    for row in figures["distances"]:
        kid = round_to_error(row["kid"], row["kid_se"])
        cells = format_digits(row["distance"]), kid.mean, kid.error or MISSING, f"{row['kid_num']:,}"
        result.add_row(f"{row['num']:,}", row["split"], *cells)
    return result
