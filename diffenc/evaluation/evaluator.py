"""Bits/dim of a whole split: every image once a pass, with the errors of the figure.

Two errors are stated. `_se`: the standard error over images, by how much another sample of as many images would
differ. `_mc_se`: the Monte-Carlo error over times and noise, which more passes shrink.
"""

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
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
from diffenc.config.figure_settings import Figures
from diffenc.config.settings import Diagnose, Evaluate
from diffenc.core.discretization import Chain
from diffenc.core.model import Model, SampleTimes, Terms
from diffenc.core.objective import StepRule
from diffenc.core.rng import generator
from diffenc.data.sources import dataset_name, source_name
from diffenc.evaluation.batches import EvaluationBatches, PassDraws, compile_on_mesh, make_draws
from diffenc.evaluation.evaluated_bound import bound_metadata, evaluated_bound
from diffenc.evaluation.image_error import ByPass, DrawnTimes, PassValues
from diffenc.evaluation.loss_over_log_snr import LossDraws, concatenate_draws
from diffenc.evaluation.uncertainty_format import MISSING, format_with_errors
from diffenc.interfaces import Images, Params
from diffenc.registry import time_samplers
from diffenc.runtime.matmul_precision import matmul_precision
from diffenc.workdir import loss_curves

TERMS = Terms._fields
TIMES = "times"  # in evaluation.npz
STRATIFIED = "over the pass"
KEYS = ("bpd", *(f"bpd_{term}" for term in TERMS))

PerImage = ByPass


@dataclasses.dataclass(frozen=True)
class ElboTerms:
    """Per-image terms of -ELBO.

    Attributes:
      terms: by name, nats [passes, N] in source order, each the mean over `times_per_image` draws.
      times: [passes, N, times_per_image], the uniform variates that diffusion times were drawn by.
      num_dims: H * W * C.
      draws: the diffusion loss of each draw, and where it fell.
    """

    terms: dict[str, PerImage]
    times: DrawnTimes
    num_dims: int
    draws: LossDraws

    def bits(self) -> dict[str, PerImage]:
        """Bits/dim by KEYS."""
        terms = {f"bpd_{term}": nats / (self.num_dims * np.log(2)) for term, nats in self.terms.items()}
        return {"bpd": np.sum(list(terms.values()), axis=0), **terms}

    def summary(self) -> dict[str, Any]:
        """Returns the `mean_and_errors` of `bpd`, `bpd_diffusion`, ..."""
        bits = {key: PassValues(each, self.times) for key, each in self.bits().items()}
        return {name: value for key in KEYS for name, value in mean_and_errors(key, bits[key]).items()}

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns what is filed beside the record, so that its figures and errors can be computed again."""
        return {**self.terms, TIMES: self.times}


def mean_and_errors(key: str, bits: PassValues) -> dict[str, Any]:
    """Returns the mean of `bits` and its errors.

    `key` is the mean; from two images on `key_se` is its error over images, `key_se_uncertainty` the standard error of
    that, and `key_se_upper` an upper bound of it; the first two are None where Monte-Carlo noise hides them, as it always
    does in a single pass (`diffenc.evaluation.image_error`). From two passes on, `key_mc_se` is the Monte-Carlo error.
    """
    passes, count = bits.values.shape
    figures: dict[str, Any] = {key: bits.mean}
    if count > 1:
        se, uncertainty, upper = bits.over_images
        figures |= {f"{key}_se": se, f"{key}_se_uncertainty": uncertainty, f"{key}_se_upper": upper}
    return figures | ({f"{key}_mc_se": bits.mc_se} if passes > 1 else {})


def evaluation_record(
    experiment: Experiment, measured: ElboTerms, step: int, num_params: int, of: dict[str, Any]
) -> dict[str, Any]:
    """What evaluation.json says: the figures, and all that one must know to compare them.

    Args:
      of: what was fitted or measured before, and used here (`Evaluator.of`).
    """
    settings = experiment.evaluate
    return {
        **measured.summary(),
        **image_metadata(experiment, settings, measured.times.shape[1]),
        **bound_metadata(settings),
        "time_sampler": time_samplers.spell(settings.time_sampler),
        "times_per_image": settings.times_per_image,
        "stratified": STRATIFIED,
        **circumstances(experiment, settings),
        "step": step,
        "num_params": num_params,
        **of,
    }


def circumstances(experiment: Experiment, settings: Evaluate | Diagnose) -> dict[str, Any]:
    """How a figure came about, as far as every measurement shares it."""
    return {
        "passes": settings.passes,
        "batch_size": settings.batch_size or experiment.batch_size,
        "seed": settings.seed,
        **run_metadata(experiment),
    }


def run_metadata(experiment: Experiment) -> dict[str, Any]:
    """Of which run a figure is, and what it was computed on and in."""
    return {
        "config_hash": serialize.config_hash(experiment),
        "precision": serialize.network_precision(experiment),
        "matmul_precision": matmul_precision(),
        "device": jax.devices()[0].device_kind,
        "prng": generator(),
    }


def image_metadata(
    experiment: Experiment, settings: Evaluate | Diagnose | Figures, num_images: int
) -> dict[str, Any]:
    """Which images a figure is of, and given what; without it two figures cannot be compared."""
    dataset = experiment.dataset
    source = source_name(dataset)
    return {
        "dataset": dataset_name(dataset),
        **({} if source is None else {"source": source}),
        "split": settings.split,
        "num_images": num_images,
        "split_images": len(dataset.source(settings.split)),
        "fingerprint": dataset.fingerprint(settings.split),
        **experiment.model.condition_metadata(),
    }


def errors_table(figures: dict[str, Any], keys: Sequence[str], title: str, caption: str) -> Table:
    """Bits/dim and both errors of each of `keys`, for people."""
    result = Table(title=escape(title), caption=escape(caption))
    for column in ("", "bits/dim", "± over images", "± Monte Carlo"):
        result.add_column(column, justify="right" if column else "left")
    for key in keys:
        mean, over_images, monte_carlo = _errors_text(figures, key)
        result.add_row(key, mean, over_images, monte_carlo)
    return result


def format_error_over_images(figures: dict[str, Any], key: str) -> str:
    """Returns the error over images for people: a number, or the upper bound where it is not resolved."""
    return _errors_text(figures, key)[1]


def _errors_text(figures: dict[str, Any], key: str) -> tuple[str, str, str]:
    """Returns a figure and both errors with the digits that the errors leave."""
    error, upper, monte_carlo = (figures.get(f"{key}_{kind}") for kind in ("se", "se_upper", "mc_se"))
    value = math.nan if figures[key] is None else figures[key]
    mean, over_images, draws = format_with_errors(value, [upper if error is None else error, monte_carlo])
    at_most = "<= " if error is None and over_images is not None else ""
    return mean, at_most + (over_images or MISSING), draws or MISSING


class Evaluator:
    """Measures parameters on one split. Compiled once, used at every cadence."""

    def __init__(
        self, experiment: Experiment, mesh: Mesh, workdir: Path | None = None, step: int | None = None
    ):
        """`workdir` is where fits, for the checkpoint of `step`, and the curve of the loss are read from."""
        self.settings: Evaluate = experiment.evaluate
        self.passes = _passes(experiment, mesh)
        self.source, self.batch_size = self.passes.source, self.passes.batch_size
        self.num_dims = int(np.prod(experiment.dataset.image_shape))
        self._depth = evaluated_bound(experiment, workdir, step)
        propose, self.curve_of = loss_curves.bind_curve(self.settings.time_sampler, workdir)
        model, num_levels = experiment.model, experiment.dataset.num_levels
        self._terms = compile_on_mesh(
            mesh, partial(batch_terms, model, num_levels, self._depth.rule, propose)
        )

    def over(self, experiment: Experiment, mesh: Mesh) -> "Evaluator":
        """The same measurement, compiled once for both, of the images, seed and passes of another experiment."""
        other = copy.copy(self)
        other.passes = _passes(experiment, mesh)
        other.source = other.passes.source
        return other

    @property
    def of(self) -> dict[str, Any]:
        """What was fitted or measured before, and is used: its checkpoint, images and seed."""
        return self._depth.of | self.curve_of

    @property
    def num_batches(self) -> int:
        """Batches in all passes together."""
        return len(self.passes)

    def measure(self, params: Params, after_batch: Callable[[], None] = lambda: None) -> ElboTerms:
        """`after_batch` is called after each batch: to show progress, or to raise and so stop."""
        given = params, self._depth.chain_of(params)
        rows: list[Terms] = []
        draws: list[LossDraws] = []
        for visit in self.passes:
            measured = jax.device_get(self._terms(given, visit.images, visit.draws))
            terms, by_draw = jax.tree.map(lambda array, real=visit.real: array[..., real], measured)
            rows.append(jax.tree.map(lambda nats: nats.astype(np.float64), terms))
            draws.append(by_draw)
            after_batch()
        terms = {
            name: np.stack(
                [np.concatenate(one) for one in self.passes.by_pass([getattr(row, name) for row in rows])]
            )
            for name in TERMS
        }
        times = np.stack([self.passes.times(number) for number in range(self.passes.passes)])
        return ElboTerms(terms, times, self.num_dims, concatenate_draws(draws))


def _passes(experiment: Experiment, mesh: Mesh) -> EvaluationBatches:
    settings = experiment.evaluate
    return EvaluationBatches(experiment, settings, mesh, "evaluate", times_per_image=settings.times_per_image)


def batch_terms(
    model: Model,
    num_levels: int,
    rule: Callable[[Any], StepRule],
    propose: SampleTimes,
    given: tuple[Params, Chain | None],
    images: Images,
    pass_draws: PassDraws,
) -> tuple[Terms, LossDraws]:
    """Terms of -ELBO in nats [B], each the mean over the times of an image, and each draw
    by itself [times, B]; no dropout.

    The chain is an argument, so that chains of one length share a program.
    """
    params, chain = given

    def once(index: Int[Array, ""]) -> tuple[Terms, LossDraws]:
        draws = make_draws(pass_draws, images.levels.shape, propose, index)
        terms = model.elbo(
            params,
            images.levels,
            draws,
            num_levels=num_levels,
            condition=images.condition,
            step_rule=rule(chain),
        )
        return terms, LossDraws(model.schedule.apply(params["schedule"], draws.t), terms.diffusion)

    terms, by_draw = jax.lax.map(once, jnp.arange(pass_draws.times.shape[1]))
    return jax.tree.map(lambda nats: nats.mean(axis=0), terms), by_draw
