"""Evaluates bits/dim of a whole split: every image once a pass."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int

from diffenc.config.experiment import Experiment
from diffenc.config.network_precision import network_precision
from diffenc.config.settings import Evaluate
from diffenc.core.discretization import Chain
from diffenc.core.model import Model, SampleTimes, Terms
from diffenc.core.objective import StepRule, noisier_ends
from diffenc.evaluation.batches import (
    EvaluationBatch,
    EvaluationBatches,
    PassDraws,
    compile_on_mesh,
    make_draws,
    map_batches,
    resolve_batch_size,
)
from diffenc.evaluation.evaluated_bound import evaluated_bound
from diffenc.evaluation.evaluation_record import TERMS, ElboTerms
from diffenc.evaluation.loss_over_log_snr import LossDraws, concatenate_draws
from diffenc.evaluation.measured_path import measured_model, warn_if_fitted_on_another
from diffenc.interfaces import Dataset, Images, Params
from diffenc.workdir import loss_curves


class Evaluator:
    """Estimates -ELBO on one split. It compiles once, and `measure` can be called again with other parameters."""

    def __init__(
        self, experiment: Experiment, mesh: Mesh, workdir: Path | None = None, step: int | None = None
    ):
        """Reads fitted times and variances and the loss curve from `workdir`, for the checkpoint of `step`.

        Raises:
          UserError: the batch does not divide over the devices, T is too large for the precision, or something
            that must be fitted first is missing.
        """
        dataset = experiment.dataset
        model, self._path_of = measured_model(experiment, workdir, step)
        settings = resolve_batch_size(experiment.evaluation, experiment.batch_size)
        self._conditioning, self._mesh = model.conditioning, mesh
        self.batches = self._make_batches(dataset, settings)
        self.num_dims = int(np.prod(dataset.image_shape))
        # All checks run here, before anything compiles: T for
        # this precision, missing fits, a missing curve.
        precision = network_precision(experiment)
        self._bound = evaluated_bound(settings, model.schedule, precision, workdir, step)
        # A warning only: times and variances fitted on another path give a valid bound, but not the best one.
        warn_if_fitted_on_another(self._bound.fitted_on, self._path_of)
        sample_times, self._curve_of = loss_curves.bind_curve(settings.time_sampler, workdir)
        self._terms = compile_on_mesh(
            mesh, batch_terms, model, dataset.num_levels, self._bound.rule, sample_times
        )

    def with_images(self, dataset: Dataset, settings: Evaluate) -> "Evaluator":
        """Returns an evaluator of other images, seed and passes that shares the compiled function."""
        # The compiled function depends on the model and the bound, not on which images it is given.
        other = copy.copy(self)
        other.batches = self._make_batches(dataset, settings)
        return other

    @property
    def fitted_on(self) -> dict[str, Any]:
        """Origin of fitted times, variances and paths and of the loss curve, where they are used; entries of the record."""
        return self._bound.fitted_on | self._curve_of | self._path_of

    @property
    def num_batches(self) -> int:
        """Batches in all passes together."""
        return len(self.batches)

    def measure(self, params: Params, after_batch: Callable[[], None] = lambda: None) -> ElboTerms:
        """Returns the terms of -ELBO of all images.

        Args:
          after_batch: called after each batch, to show progress, or to stop by raising.
        """
        # The chain is computed once, outside of the compiled function that runs for every batch.
        bound_params = params, self._bound.chain_of(params)
        results = map_batches(self._terms, bound_params, self.batches, _images_and_draws, after_batch)
        terms: list[Terms] = []
        draws: list[LossDraws] = []
        for result, batch in results:
            batch_terms, batch_draws = batch.without_padding(result)
            # Means and variances over images are taken in float64.
            terms.append(jax.tree.map(lambda nats: nats.astype(np.float64), batch_terms))
            draws.append(batch_draws)
        by_pass = {
            name: self.batches.stack_passes([getattr(batch, name) for batch in terms]) for name in TERMS
        }
        # Made again from the seed: a batch holds the times of its own images alone.
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
        times = draws.t if chain is None else noisier_ends(chain, draws.t)
        return terms, LossDraws(model.log_snr(params, times), terms.diffusion)

    # one time after the other: memory for one draw, whatever times_per_image
    terms, draws = jax.lax.map(estimate, jnp.arange(pass_draws.times.shape[1]))
    return jax.tree.map(lambda nats: nats.mean(axis=0), terms), draws
