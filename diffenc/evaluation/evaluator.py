"""Bits/dim of a whole split: every image once a pass, with standard errors.

Two errors are stated. `_se`: the standard error over images, by how much another sample of as many images would
differ. `_mc_se`: the Monte-Carlo error over times and noise, which more passes shrink.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int
from rich.markup import escape
from rich.table import Table

from diffenc.config import serialize
from diffenc.config.experiment import Experiment
from diffenc.config.settings import Diagnose, Evaluate
from diffenc.core.discretization import Chain
from diffenc.core.model import Model, SampleTimes, Terms
from diffenc.core.objective import StepRule
from diffenc.core.rng import generator
from diffenc.data.sources import dataset_name, source_name
from diffenc.evaluation.batches import (
    EvaluationBatch,
    EvaluationBatches,
    PassDraws,
    compile_on_mesh,
    make_draws,
    map_batches,
    resolve_batch_size,
)
from diffenc.evaluation.evaluated_bound import bound_metadata, evaluated_bound
from diffenc.evaluation.image_error import ByPass, DrawnTimes, PassValues
from diffenc.evaluation.loss_over_log_snr import LossDraws, concatenate_draws
from diffenc.evaluation.uncertainty_format import format_estimate
from diffenc.interfaces import Dataset, Images, Params
from diffenc.registry import time_samplers
from diffenc.runtime.matmul_precision import matmul_precision
from diffenc.workdir import loss_curves

TERMS = Terms._fields
TIMES = "times"  # in evaluation.npz
STRATIFIED = "over the pass"
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
        bits = {key: PassValues(values, self.times) for key, values in self.bits_per_dim().items()}
        return {name: value for key in KEYS for name, value in mean_and_errors(key, bits[key]).items()}

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the content of evaluation.npz, of which the metrics can be computed again."""
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
    settings = resolve_batch_size(experiment.evaluate, experiment.batch_size)
    return {
        **terms.metrics(),
        **image_metadata(experiment.dataset, experiment.model, settings.split, terms.times.shape[1]),
        **bound_metadata(settings),
        "time_sampler": time_samplers.spell(settings.time_sampler),
        "times_per_image": settings.times_per_image,
        "stratified": STRATIFIED,
        **pass_metadata(settings),
        **run_metadata(experiment),
        "step": step,
        "num_params": num_params,
        **fitted_on,
    }


def pass_metadata(settings: Evaluate | Diagnose) -> dict[str, Any]:
    """Returns the number of passes, the batch size (see `resolve_batch_size`) and the seed, for a record."""
    return {"passes": settings.passes, "batch_size": settings.batch_size, "seed": settings.seed}


def run_metadata(experiment: Experiment) -> dict[str, Any]:
    """Returns the run that a record belongs to, and the device and precision of the computation."""
    return {
        "config_hash": serialize.config_hash(experiment),
        "precision": serialize.network_precision(experiment),
        "matmul_precision": matmul_precision(),
        "device": jax.devices()[0].device_kind,
        "prng": generator(),
    }


def image_metadata(dataset: Dataset, model: Model, split: str, num_images: int) -> dict[str, Any]:
    """Returns the images that a record is about, and the condition given to the model with them.

    Metrics can be compared only where these agree.
    """
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


def errors_table(record: Mapping[str, Any], keys: Sequence[str], title: str, caption: str) -> Table:
    """Returns a table of bits/dim and both errors of each of `keys`."""
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


class Evaluator:
    """Estimates -ELBO on one split. It compiles once, and can be called again with other parameters."""

    def __init__(
        self, experiment: Experiment, mesh: Mesh, workdir: Path | None = None, step: int | None = None
    ):
        """Reads fitted times and variances and the loss curve from `workdir`, for the checkpoint of `step`.

        Raises:
          UserError: the batch does not divide over the devices, T is too large for the precision, or something
            that must be fitted first is missing.
        """
        model, dataset = experiment.model, experiment.dataset
        settings = resolve_batch_size(experiment.evaluate, experiment.batch_size)
        self._conditioning, self._mesh = model.conditioning, mesh
        self.batches = self._make_batches(dataset, settings)
        self.num_dims = int(np.prod(dataset.image_shape))
        precision = serialize.network_precision(experiment)
        self._bound = evaluated_bound(settings, model.schedule, precision, workdir, step)
        sample_times, self._curve_of = loss_curves.bind_curve(settings.time_sampler, workdir)
        terms = partial(batch_terms, model, dataset.num_levels, self._bound.rule, sample_times)
        self._terms = compile_on_mesh(mesh, terms)

    def with_images(self, dataset: Dataset, settings: Evaluate) -> "Evaluator":
        """Returns an evaluator of other images, seed and passes that shares the compiled function."""
        other = copy.copy(self)
        other.batches = self._make_batches(dataset, settings)
        return other

    @property
    def fitted_on(self) -> dict[str, Any]:
        """Origin of fitted times and variances and of the loss curve, where they are used; entries of the record."""
        return self._bound.fitted_on | self._curve_of

    @property
    def num_batches(self) -> int:
        """Batches in all passes together."""
        return len(self.batches)

    def measure(self, params: Params, after_batch: Callable[[], None] = lambda: None) -> ElboTerms:
        """Returns the terms of -ELBO of all images.

        Args:
          after_batch: called after each batch, to show progress, or to stop by raising.
        """
        bound_params = params, self._bound.chain_of(params)
        results = map_batches(self._terms, bound_params, self.batches, _images_and_draws, after_batch)
        terms: list[Terms] = []
        draws: list[LossDraws] = []
        for result, batch in results:
            batch_terms, batch_draws = batch.without_padding(result)
            terms.append(jax.tree.map(lambda nats: nats.astype(np.float64), batch_terms))
            draws.append(batch_draws)
        by_pass = {
            name: self.batches.stack_passes([getattr(batch, name) for batch in terms]) for name in TERMS
        }
        times = np.stack([self.batches.times(number) for number in range(self.batches.passes)])
        return ElboTerms(by_pass, times, self.num_dims, concatenate_draws(draws))

    def _make_batches(self, dataset: Dataset, settings: Evaluate) -> EvaluationBatches:
        return EvaluationBatches(
            dataset,
            self._conditioning,
            settings,
            self._mesh,
            "evaluate",
            times_per_image=settings.times_per_image,
        )


def _images_and_draws(batch: EvaluationBatch) -> tuple[Images, PassDraws]:
    return batch.images, batch.draws


def batch_terms(
    model: Model,
    num_levels: int,
    rule: Callable[[Any], StepRule],
    sample_times: SampleTimes,
    bound_params: tuple[Params, Chain | None],
    images: Images,
    pass_draws: PassDraws,
) -> tuple[Terms, LossDraws]:
    """Returns the terms of -ELBO in nats [B], each the mean over the times of an image, and each draw [times, B].

    No dropout. The chain is an argument of the compiled function, so that chains of equal length share it.
    """
    params, chain = bound_params

    def estimate(index: Int[Array, ""]) -> tuple[Terms, LossDraws]:
        draws = make_draws(pass_draws, images.levels.shape, sample_times, index)
        terms = model.elbo(
            params,
            images.levels,
            draws,
            num_levels=num_levels,
            condition=images.condition,
            step_rule=rule(chain),
        )
        return terms, LossDraws(model.log_snr(params, draws.t), terms.diffusion)

    # one time after the other: memory for one draw, whatever times_per_image
    terms, draws = jax.lax.map(estimate, jnp.arange(pass_draws.times.shape[1]))
    return jax.tree.map(lambda nats: nats.mean(axis=0), terms), draws
