"""Results of an evaluation: the metrics of a split with both errors, their record, and the printed table.

Two errors are stated. `_se`: the standard error over images, the spread of the mean over other samples of as many images.
`_mc_se`: the Monte-Carlo error over times and noise, which more passes reduce. The record and the columns of
the table are shared by `--mode=evaluate`, `k_sample` and `likelihood`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from rich.markup import escape
from rich.table import Table

from diffenc.config import serialize
from diffenc.config.experiment import Experiment
from diffenc.config.network_precision import network_precision
from diffenc.config.settings import Diagnose, Evaluate
from diffenc.core.model import Model, Terms
from diffenc.core.rng import generator
from diffenc.data.sources import dataset_name, source_name
from diffenc.evaluation.batches import resolve_batch_size
from diffenc.evaluation.evaluated_bound import bound_metadata
from diffenc.evaluation.image_error import ByPass, DrawnTimes, PassValues
from diffenc.evaluation.loss_over_log_snr import LossDraws
from diffenc.evaluation.uncertainty_format import format_estimate
from diffenc.interfaces import Dataset
from diffenc.registry import time_samplers
from diffenc.runtime.matmul_precision import matmul_precision
from diffenc.workdir.fitted_chains import MEASURED_PATH, measured_path

TERMS = Terms._fields
TIMES = "times"  # in evaluation.npz
STRATIFIED = "over the pass"
TRAINED_AT = "trained_at"  # T of the bound that was trained; absent = in continuous time
KEYS = ("bpd", *(f"bpd_{term}" for term in TERMS))


@dataclasses.dataclass(frozen=True)
class ElboTerms:
    """Terms of -ELBO of each image in each pass.

    Attributes:
      terms: by name, nats [passes, N] in source order, each the mean over `times_per_image` draws.
      times: [passes, N, times_per_image], the uniform variates of the diffusion times.
      num_dims: H * W * C.
      draws: the diffusion loss of each draw, and its log-SNR.
    """

    terms: dict[str, ByPass]
    times: DrawnTimes
    num_dims: int
    draws: LossDraws

    def bits_per_dim(self) -> dict[str, ByPass]:
        """Returns bits/dim by KEYS."""
        terms = {f"bpd_{term}": nats / (self.num_dims * np.log(2)) for term, nats in self.terms.items()}
        return {"bpd": np.sum(list(terms.values()), axis=0), **terms}

    def metrics(self) -> dict[str, Any]:
        """Returns the mean and the errors of `bpd`, `bpd_diffusion`, ... (see `mean_and_errors`)."""
        # With the times: the error over images then excludes the
        # dependence on the drawn time, which all images share.
        bits = {key: PassValues(values, self.times) for key, values in self.bits_per_dim().items()}
        return {name: value for key in KEYS for name, value in mean_and_errors(key, bits[key]).items()}

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the content of evaluation.npz, from which the metrics can be computed again."""
        return {**self.terms, TIMES: self.times}


def mean_and_errors(key: str, values: PassValues) -> dict[str, Any]:
    """Returns the mean of `values` and its errors, as entries of a record.

    `key` is the mean; from two images on `key_se` is its error over images, `key_se_uncertainty` the standard error of
    that, and `key_se_upper` an upper bound of it; the first two are None where Monte-Carlo noise hides them, as it always
    does in a single pass (`diffenc.evaluation.image_error`). From two passes on, `key_mc_se` is the Monte-Carlo error.
    """
    passes, count = values.values.shape
    metrics: dict[str, Any] = {key: values.mean}
    if count > 1:
        se, uncertainty, upper = values.over_images
        metrics |= {f"{key}_se": se, f"{key}_se_uncertainty": uncertainty, f"{key}_se_upper": upper}
    return metrics | ({f"{key}_mc_se": values.mc_se} if passes > 1 else {})


def evaluation_record(
    experiment: Experiment, terms: ElboTerms, step: int, num_params: int, fitted_on: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the content of evaluation.json: the metrics, and everything needed to compare them with others.

    Args:
      fitted_on: `Evaluator.fitted_on`.
    """
    settings = resolve_batch_size(experiment.evaluation, experiment.batch_size)
    return {
        **terms.metrics(),
        **image_metadata(experiment.dataset, experiment.model, settings.split, terms.times.shape[1]),
        **bound_metadata(settings),
        "time_sampler": time_samplers.spell(settings.time_sampler),
        "times_per_image": settings.times_per_image,
        "stratified": STRATIFIED,
        **pass_metadata(settings),
        **run_metadata(experiment),
        **measured_path(experiment),
        "step": step,
        "num_params": num_params,
        **fitted_on,
    }


def pass_metadata(settings: Evaluate | Diagnose) -> dict[str, Any]:
    """Returns the number of passes, the batch size (see `resolve_batch_size`) and the seed, for a record."""
    # The batch size too: noise that is drawn by the key of a batch depends on it.
    return {"passes": settings.passes, "batch_size": settings.batch_size, "seed": settings.seed}


def run_metadata(experiment: Experiment) -> dict[str, Any]:
    """Returns the run that a record belongs to, its path, and the device and precision of the computation.

    The path, `stochasticity`, is a part of the model, as its encoder is: bounds on different paths may be compared.
    """
    return {
        "config_hash": serialize.config_hash(experiment),
        **model_metadata(experiment),
        # Precision and generator change the numbers: records that differ in them are not comparable.
        "precision": network_precision(experiment),
        "matmul_precision": matmul_precision(),
        "device": jax.devices()[0].device_kind,
        "prng": generator(),
    }


def model_metadata(experiment: Experiment) -> dict[str, Any]:
    """Returns a record's entries for the model: its path, and the T of training.

    There is no entry for the paper's path, nor for training in continuous time.
    """
    depth = {TRAINED_AT: experiment.num_timesteps} if experiment.num_timesteps else {}
    return {**experiment.model.path_metadata(), **depth}


def image_metadata(dataset: Dataset, model: Model, split: str, num_images: int) -> dict[str, Any]:
    """Returns a record's entries for its images, and for the condition given to the model with them.

    Metrics can be compared only where these agree.
    """
    # A name does not identify the pixels (two data sets are called ImageNet32): the fingerprint does.
    source = source_name(dataset)
    return {
        "dataset": dataset_name(dataset),
        **({} if source is None else {"source": source}),
        "split": split,
        "num_images": num_images,
        "split_images": len(dataset.source(split)),
        "fingerprint": dataset.fingerprint(split),
        **model.condition_metadata(),
    }


def describe_path(record: Mapping[str, Any]) -> str:
    """Returns ", measured on the path NAME" if that is not the path of training; else nothing."""
    return f", measured on the path {record[MEASURED_PATH]}" if record.get(MEASURED_PATH) else ""


def errors_table(record: Mapping[str, Any], keys: Sequence[str], title: str, caption: str) -> Table:
    """Returns a table of bits/dim and both errors of each of `keys`."""
    # rich would read square brackets in a text as markup.
    table = Table(title=escape(title), caption=escape(caption))
    for column in ("", "bits/dim", "± over images", "± Monte Carlo"):
        table.add_column(column, justify="right" if column else "left")
    for key in keys:
        mean, over_images, monte_carlo = _format_errors(record, key)
        table.add_row(key, mean, over_images, monte_carlo)
    return table


def format_error_over_images(record: Mapping[str, Any], key: str) -> str:
    """Returns the error over images as text: a number, or the upper bound where the error is not resolved."""
    return _format_errors(record, key)[1]


def _format_errors(record: Mapping[str, Any], key: str) -> tuple[str, str, str]:
    """Returns a mean and both errors as text, rounded to the digits that the errors leave."""
    error, upper, monte_carlo = (record.get(f"{key}_{kind}") for kind in ("se", "se_upper", "mc_se"))
    return format_estimate(record[key], error, upper, monte_carlo)
