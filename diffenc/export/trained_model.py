"""A trained model for use from Python: sampling, bits/dim and encoding."""

import dataclasses
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8

from diffenc.config import names
from diffenc.config.conditioning_check import check_sample_classes
from diffenc.config.experiment import Experiment
from diffenc.core.conditioning import conditioned_modules
from diffenc.core.model import Model
from diffenc.core.pixels import scale_pixels
from diffenc.core.rng import root_key
from diffenc.data.array_dataset import ArrayDataset, check_images, check_labels
from diffenc.errors import UserError, nearest
from diffenc.evaluation.batches import resolve_batch_size
from diffenc.evaluation.evaluation_record import ElboTerms
from diffenc.evaluation.evaluator import Evaluator
from diffenc.evaluation.sample_images import ImageSampler
from diffenc.fields.values import coerce
from diffenc.interfaces import Condition, Context, Data, LogSNR, Params
from diffenc.parallel.sharding import data_mesh
from diffenc.runtime.progress import Progress

Levels = UInt8[np.ndarray, "n h w c"]
PerImage = Float[np.ndarray, " n"]
ArrayInput = Any  # anything that numpy converts to an array; checked with a readable message


@dataclasses.dataclass(frozen=True)
class ElboResult:
    """-ELBO of images in bits/dim, each value the mean over passes.

    Attributes:
      bpd: bits/dim of each image.
      terms: the terms "reconstruction", "latent" and "diffusion" of `bpd`, of each image.
      mc_se: standard error of `bpd` over times and noise; None for a single pass.
      means: means over images as in evaluation.json: `bpd`, `bpd_diffusion`, ... with `_se` over images and `_mc_se`
        over times and noise.
    """

    bpd: PerImage
    terms: dict[str, PerImage]
    mc_se: PerImage | None
    means: dict[str, float | None]

    @staticmethod
    def from_terms(terms: ElboTerms) -> "ElboResult":
        bits = terms.bits_per_dim()
        passes = len(bits["bpd"])
        means = {key.removeprefix("bpd_"): each.mean(axis=0) for key, each in bits.items()}
        mc_se = bits["bpd"].std(axis=0, ddof=1) / np.sqrt(passes) if passes > 1 else None
        return ElboResult(means.pop("bpd"), means, mc_se, terms.metrics())


# Compared by identity: arrays have no truth value, and compiled functions are cached per instance.
@dataclasses.dataclass(frozen=True, eq=False)
class TrainedModel:
    """A model with the averaged parameters of one checkpoint.

    Attributes:
      experiment: the config of the run.
      params: parameters of each part of the model, by name, and under "variance" those of a learned variance.
      step: optimizer step of the checkpoint.
      name: the file or workdir from which the model was read.
      workdir: folder with fits and curves of the run; None if there is none.
    """

    experiment: Experiment
    params: Params
    step: int
    name: str
    workdir: Path | None = None
    _compiled: dict[Any, Any] = dataclasses.field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        return f"TrainedModel({self.name!r}, step={self.step})"

    @property
    def model(self) -> Model:
        """The model, without parameters."""
        return self.experiment.model

    @cached_property
    def mesh(self) -> Mesh:
        """All devices, each with a copy of the parameters."""
        return data_mesh()

    def sample(
        self, num: int = 16, *, num_timesteps: int | None = None, seed: int = 0, **settings: Any
    ) -> Levels:
        """Draws `num` images, uint8 levels [num, H, W, C], as --mode=sample does.

        Args:
          num_timesteps: T; None = as in the config.
          seed: seed of the noise.
          settings: other fields of the gin-bindable `sample`: `sampler`, `classes`, `guidance`, `variance`, ...

        Raises:
          UserError: an unknown setting, or one that does not apply to this model.
        """
        self._refuse_fixed("sample", settings, "step")
        given = {"num": num, "step": self.step, **settings} | (
            {} if num_timesteps is None else {"num_timesteps": num_timesteps}
        )
        chosen = replace_settings("sample", self.experiment.sample, seed=seed, **given)
        chosen = chosen.resolve(self.experiment.trained)
        check_sample_classes(self.model, self.experiment.dataset, chosen.classes, chosen.guidance)
        sampler = self._cached(
            # The cache's key has no seed: it is an argument of the compiled function.
            dataclasses.replace(chosen, seed=0),
            lambda: ImageSampler(
                *(self.model, self.experiment.dataset, chosen, self.mesh, self.workdir, self.step),
                trained_at=self.experiment.num_timesteps,
            ),
        )
        progress = Progress("samples", sampler.num_stretches)
        return sampler.draw(self.params, progress, root_key(seed, "sample")).astype(np.uint8)

    def elbo(
        self,
        images: ArrayInput,
        labels: ArrayInput | None = None,
        *,
        seed: int = 0,
        passes: int = 1,
        **settings: Any,
    ) -> ElboResult:
        """Returns the bits/dim of each of `images`, uint8 levels [N, H, W, C], as --mode=evaluate measures them.

        Equals the result of --mode=evaluate for the same images, order, seed, passes and batch size.

        Args:
          labels: classes of the images; only needed by a class-conditional model.
          seed: seed of times and noise.
          passes: evaluations of each image; at least two are needed for the Monte-Carlo error.
          settings: other fields of the gin-bindable `evaluate`: `num_timesteps` (T), `batch_size`, ...

        Raises:
          UserError: images that do not fit the model, or an unknown setting.
        """
        self._refuse_fixed("elbo", settings, "step", "split", "num_images")
        # An ArrayDataset has the given images as every split, so the choice of the split does not matter.
        base = dataclasses.replace(self.experiment.evaluate, num_images=None, split="test")
        chosen = replace_settings("evaluate", base, seed=seed, passes=passes, step=self.step, **settings)
        given = ArrayDataset(*self._check_inputs(images, labels), self.experiment.dataset)
        chosen = resolve_batch_size(chosen, self.experiment.batch_size)
        experiment = dataclasses.replace(self.experiment, dataset=given, evaluate=chosen)
        evaluator = self._cached(
            # Neither seed and passes nor the images change the compiled function.
            dataclasses.replace(chosen, seed=0, passes=1),
            lambda: Evaluator(experiment, self.mesh, self.workdir, self.step),
        ).with_images(given, chosen)
        return ElboResult.from_terms(
            evaluator.measure(self.params, Progress("evaluation", evaluator.num_batches))
        )

    def encode(
        self,
        images: ArrayInput,
        *,
        log_snr: ArrayInput | None = None,
        t: ArrayInput | None = None,
        labels: ArrayInput | None = None,
    ) -> Float[np.ndarray, "n h w c"]:
        """Returns x_phi of `images`, uint8 levels [N, H, W, C], scaled as pixels in (-1, 1); q(z_t | x) has mean alpha x_phi.

        Args:
          log_snr: log(alpha^2 / sigma^2); a number, or one for each image.
          t: time from 0 (data) to 1 (noise), instead of `log_snr`.
          labels: classes of the images; only needed by a class-conditional model.

        Raises:
          UserError: images that do not fit the model, or not exactly one of `log_snr` and `t`.
        """
        levels, labels = self._check_inputs(images, labels)
        if (log_snr is None) == (t is None):
            raise UserError("encode: give either log_snr or t")
        at = _broadcast_to_images(t if log_snr is None else log_snr, len(levels))
        if log_snr is None:
            at = self.model.log_snr(self.params, at)
        encode = self._cached(
            "encode", lambda: jax.jit(partial(_encode, self.model, self.experiment.dataset.num_levels))
        )
        return np.asarray(encode(self.params, jnp.asarray(levels), at, self.model.conditioning(labels)))

    def _refuse_fixed(self, method: str, settings: Mapping[str, Any], *fixed: str) -> None:
        """Raises UserError if `settings` has a field that the trained model or the given images determine."""
        reasons = {
            "step": f"these are the parameters of step {self.step}; nearest: num_timesteps, which is T",
            "split": "it measures the images that it is given",
            "num_images": "it measures all images that it is given, as images[:N]",
        }
        for field in fixed:
            if field in settings:
                raise UserError(f"{method} takes no {field}: {reasons[field]}")

    def _check_inputs(self, images: ArrayInput, labels: ArrayInput) -> tuple[Levels, Int[np.ndarray, " n"]]:
        dataset = self.experiment.dataset
        levels = check_images(images, dataset)
        is_conditional = bool(self.model.reverse_modules or conditioned_modules(self.model.encoder))
        return levels, check_labels(labels, len(levels), dataset.num_classes, is_conditional)

    def _cached(self, key: Any, make: Any) -> Any:
        """Returns the result of `make()` from the first call with `key`, so that nothing is compiled twice."""
        if key not in self._compiled:
            self._compiled[key] = make()
        return self._compiled[key]


def _encode(
    model: Model,
    num_levels: int,
    params: Params,
    levels: Int[Array, "n h w c"] | UInt8[Array, "n h w c"],
    log_snr: LogSNR,
    condition: Condition | None,
) -> Data:
    return model.encode(params, scale_pixels(levels, num_levels), log_snr, Context(condition))


def _broadcast_to_images(given: ArrayInput, count: int) -> Float[Array, " n"]:
    """Returns one number per image. Raises UserError unless `given` is a number or has one for each of `count` images."""
    array = np.asarray(given)
    if array.dtype.kind not in "iuf" or array.shape not in ((), (count,)):
        raise UserError(
            f"encode: {array.dtype}{list(array.shape)} is neither a number nor one for each of {count} images"
        )
    return jnp.broadcast_to(jnp.asarray(array, jnp.result_type(float)), (count,))


def replace_settings(name: str, settings: Any, **given: Any) -> Any:
    """Returns `settings`, gin-bindable as `name`, with some fields replaced. Raises UserError for unknown fields and types."""
    fields = names.bindable_fields(type(settings))
    for field, value in given.items():
        if field not in fields:
            near = nearest(field, fields)
            raise UserError(f"{name} has no setting {field!r}; nearest: {near}; it has {', '.join(fields)}")
        try:
            given[field] = coerce(value, fields[field].hint)
        except TypeError as error:
            raise UserError(f"{name}.{field} = {value!r}: {error}") from None
    return dataclasses.replace(settings, **given)
