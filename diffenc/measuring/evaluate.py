"""Bits/dim of a whole split: every image once a pass, with the errors of the figure.

Two errors are stated. `_se`: the standard error over images, which says how far another sample of as
many images would lie. `_mc_se`: the Monte-Carlo error over times and noise, which more passes shrink.
"""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int
from rich.markup import escape
from rich.table import Table

from diffenc import classes
from diffenc.chain import Chain
from diffenc.configs import describe
from diffenc.data.sources import source_name
from diffenc.devices.matmul_precision import matmul_precision
from diffenc.experiment import Experiment
from diffenc.figure_settings import Figures
from diffenc.interfaces import Dataset, Images, Key, Params
from diffenc.measuring.depth import depth, depth_of
from diffenc.measuring.loss_over_log_snr import ByDraw, gather
from diffenc.measuring.passes import Passes, compile_over
from diffenc.model import Model, Propose, Terms, draw
from diffenc.objective import StepRule
from diffenc.randomness import generator
from diffenc.registry import datasets, proposals
from diffenc.settings import Diagnose, Evaluate
from diffenc.workdirs import curves

TERMS = Terms._fields
KEYS = ("bpd", *(f"bpd_{term}" for term in TERMS))

PerImage = Float[np.ndarray, "passes images"]


@dataclasses.dataclass(frozen=True)
class Measured:
    """Per-image terms of -ELBO.

    Attributes:
      terms: by name, nats [passes, N] in source order, each the mean over `times_per_image` draws.
      batch: [N], the batch each image was in; images of one batch share their stratified times.
      num_dims: H * W * C.
      draws: the diffusion loss of each draw, and where it fell.
    """

    terms: dict[str, PerImage]
    batch: Int[np.ndarray, " images"]
    num_dims: int
    draws: ByDraw

    def bits(self) -> dict[str, PerImage]:
        """Bits/dim by KEYS."""
        terms = {f"bpd_{term}": nats / (self.num_dims * np.log(2)) for term, nats in self.terms.items()}
        return {"bpd": np.sum(list(terms.values()), axis=0), **terms}

    def summary(self) -> dict[str, float]:
        """`bpd`, `bpd_diffusion`, ... with `_se` and, from two passes on, `_mc_se`."""
        bits = self.bits()
        return {name: value for key in KEYS for name, value in statistics(key, bits[key], self.batch).items()}


def statistics(key: str, bits: PerImage, batch: Int[np.ndarray, " images"]) -> dict[str, float]:
    """The mean as `key`; from two images on `key_se`, from two passes on `key_mc_se`.

    Args:
      batch: which batch an image was in, if images of one batch share draws; else a number for each.
    """
    passes, count = bits.shape
    figures = {key: float(bits.mean())}
    if count > 1:
        figures[f"{key}_se"] = float(bits.mean(axis=0).std(ddof=1) / np.sqrt(count))
    if passes > 1:
        figures[f"{key}_mc_se"] = monte_carlo_error(bits, batch)
    return figures


def monte_carlo_error(bits: PerImage, batch: Int[np.ndarray, " images"]) -> float:
    """Standard error, over times and noise, of the mean of `bits`.

    From the spread of each batch's sum over passes: images of a batch share stratified times, so their
    errors are not independent; those of different batches and passes are.
    """
    passes, count = bits.shape
    sums = np.stack([np.bincount(batch, weights=row) for row in bits])
    return float(np.sqrt(sums.var(axis=0, ddof=1).sum() / passes) / count)


def record(
    experiment: Experiment, measured: Measured, step: int, num_params: int, of: dict[str, Any]
) -> dict[str, Any]:
    """What evaluation.json says: the figures, and all that one must know to compare them.

    Args:
      of: what was fitted or measured before, and used here (`Evaluator.of`).
    """
    settings = experiment.evaluate
    return {
        **measured.summary(),
        **identity(experiment, settings, len(measured.batch)),
        **depth(settings),
        "proposal": proposals.spell(settings.proposal),
        "times_per_image": settings.times_per_image,
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
        **surroundings(experiment),
    }


def surroundings(experiment: Experiment) -> dict[str, Any]:
    """Of which run a figure is, and what it was computed on and in."""
    return {
        "config_hash": describe.config_hash(experiment),
        "precision": describe.precision(experiment),
        "matmul_precision": matmul_precision(),
        "device": jax.devices()[0].device_kind,
        "prng": generator(),
    }


def identity(
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
        **classes.stated(experiment.model),
    }


def dataset_name(dataset: Dataset) -> str:
    """As registered, else its class's own."""
    return datasets.name_of(type(dataset)) or type(dataset).__name__


def errors_table(figures: dict[str, Any], keys: Sequence[str], title: str, caption: str) -> Table:
    """Bits/dim and both errors of each of `keys`, for people."""
    result = Table(title=escape(title), caption=escape(caption))
    for column in ("", "bits/dim", "± over images", "± Monte Carlo"):
        result.add_column(column, justify="right" if column else "left")
    for key in keys:
        errors = (figures.get(f"{key}_{kind}") for kind in ("se", "mc_se"))
        result.add_row(key, f"{figures[key]:.4f}", *("-" if e is None else f"{e:.4f}" for e in errors))
    return result


class Evaluator:
    """Measures parameters on one split. Compiled once, used at every cadence."""

    def __init__(
        self, experiment: Experiment, mesh: Mesh, workdir: Path | None = None, step: int | None = None
    ):
        """`workdir` is where fits, for the checkpoint of `step`, and the curve of the loss are read from."""
        self.settings: Evaluate = experiment.evaluate
        self.passes = Passes(experiment, self.settings, mesh, "evaluate")
        self.source, self.batch_size = self.passes.source, self.passes.batch_size
        self.num_dims = int(np.prod(experiment.dataset.image_shape))
        self._depth = depth_of(experiment, workdir, step)
        propose, self.curve_of = curves.propose(self.settings.proposal, workdir)
        model, num_levels = experiment.model, experiment.dataset.num_levels
        times, rule = self.settings.times_per_image, self._depth.rule
        self._terms = compile_over(mesh, partial(batch_terms, model, num_levels, times, rule, propose))

    def over(self, experiment: Experiment, mesh: Mesh) -> "Evaluator":
        """The same measurement, compiled once for both, of the images, seed and passes of another experiment."""
        other = copy.copy(self)
        other.passes = Passes(experiment, experiment.evaluate, mesh, "evaluate")
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

    def measure(self, params: Params, after_batch: Callable[[], None] = lambda: None) -> Measured:
        """`after_batch` is called after each batch: to show progress, or to raise and so stop."""
        given = params, self._depth.chain_of(params)
        rows: list[Terms] = []
        draws: list[ByDraw] = []
        for visit in self.passes:
            measured = jax.device_get(self._terms(given, visit.images, visit.key))
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
        batch = np.arange(len(self.source)) // self.batch_size
        return Measured(terms, batch, self.num_dims, gather(draws))


def batch_terms(
    model: Model,
    num_levels: int,
    times_per_image: int,
    rule: Callable[[Any], StepRule],
    propose: Propose,
    given: tuple[Params, Chain | None],
    images: Images,
    key: Key,
) -> tuple[Terms, ByDraw]:
    """Terms of -ELBO in nats [B], each the mean over `times_per_image` draws, and each draw
    by itself [times, B]; no dropout.

    The chain is an argument, so that chains of one length share a program.
    """
    params, chain = given

    def once(key: Key) -> tuple[Terms, ByDraw]:
        draws = draw(key, images.levels.shape, propose)
        terms = model.elbo(
            params,
            images.levels,
            draws,
            num_levels=num_levels,
            condition=images.condition,
            step_rule=rule(chain),
        )
        return terms, ByDraw(model.schedule.apply(params["schedule"], draws.t), terms.diffusion)

    terms, by_draw = jax.lax.map(once, jax.random.split(key, times_per_image))
    return jax.tree.map(lambda nats: nats.mean(axis=0), terms), by_draw
