"""A trained model to be used from Python."""

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
from diffenc.errors import UserError, nearest
from diffenc.evaluation.batches import resolve_batch_size
from diffenc.evaluation.evaluation_record import ElboTerms
from diffenc.evaluation.evaluator import Evaluator
from diffenc.evaluation.sample_images import ImageSampler
from diffenc.export.array_dataset import ArrayDataset, check_images, check_labels
from diffenc.fields.values import coerce
from diffenc.interfaces import Condition, Context, Data, LogSNR, Params
from diffenc.parallel.sharding import data_mesh
from diffenc.runtime.progress import Progress

Levels = UInt8[np.ndarray, "n h w c"]
PerImage = Float[np.ndarray, " n"]
Given = Any  # whatever numpy takes for an array; it is checked, with an answer for people


@dataclasses.dataclass(frozen=True)
class ElboResult:
    """-ELBO of some images in bits/dim, each figure the mean over passes.

    Attributes:
      bpd: of each image.
      terms: its parts, "reconstruction", "latent" and "diffusion".
      mc_se: standard error of `bpd` over times and noise; None of a single pass.
      means: what evaluation.json says of the images together: `bpd`, `bpd_diffusion`, ... with `_se` over images
        and `_mc_se` over times and noise.
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
        spread = bits["bpd"].std(axis=0, ddof=1) / np.sqrt(passes) if passes > 1 else None
        return ElboResult(means.pop("bpd"), means, spread, terms.metrics())


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedModel:
    """A model with the averaged parameters of one checkpoint.

    Attributes:
      experiment: the run, as its config has it.
      params: {"encoder", "schedule", "network"}, and "variance" of a learned one.
      step: the optimiser's.
      name: where it was read from.
      workdir: where what was fitted to it is read from, if anywhere.
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
        """What it is put together from."""
        return self.experiment.model

    @cached_property
    def mesh(self) -> Mesh:
        """All devices there are; each has a copy of the parameters."""
        return data_mesh()

    def sample(
        self, num: int = 16, *, num_timesteps: int | None = None, seed: int = 0, **settings: Any
    ) -> Levels:
        """Draw `num` images, uint8 levels [num, H, W, C], as --mode=sample does.

        Args:
          num_timesteps: T; None = as the config says.
          seed: of the noise.
          settings: more of what gin binds as sample.NAME: `sampler`, `classes`, `guidance`, `variance`, ...

        Raises:
          UserError: there is no such setting, or not for this model.
        """
        self._refuse_fixed("sample", settings, "step")
        given = {"num": num, "step": self.step, **settings} | (
            {} if num_timesteps is None else {"num_timesteps": num_timesteps}
        )
        chosen = replace_settings("sample", self.experiment.sample, seed=seed, **given)
        chosen = chosen.resolve(self.experiment.trained)
        check_sample_classes(self.model, self.experiment.dataset, chosen.classes, chosen.guidance)
        sampler = self._once(
            dataclasses.replace(chosen, seed=0),
            lambda: ImageSampler(
                self.model, self.experiment.dataset, chosen, self.mesh, self.workdir, self.step
            ),
        )
        progress = Progress("samples", sampler.num_stretches)
        return sampler.draw(self.params, progress, root_key(seed, "sample")).astype(np.uint8)

    def elbo(
        self,
        images: Given,
        labels: Given | None = None,
        *,
        seed: int = 0,
        passes: int = 1,
        **settings: Any,
    ) -> ElboResult:
        """Bits/dim of each of `images`, uint8 levels [N, H, W, C], as --mode=evaluate measures them.

        The same images in the same order, with the same seed, passes and batch size, have the same bits/dim there.

        Args:
          labels: their classes; only a model that is told them needs any.
          seed: of times and noise.
          passes: how often each image is seen; from two on the Monte-Carlo error is known.
          settings: more of what gin binds as evaluate.NAME: `steps` (T), `batch_size`, `times_per_image`, ...

        Raises:
          UserError: these are no images of this model, or there is no such setting.
        """
        self._refuse_fixed("elbo", settings, "step", "split", "num_images")
        base = dataclasses.replace(self.experiment.evaluate, num_images=None, split="test")
        chosen = replace_settings("evaluate", base, seed=seed, passes=passes, step=self.step, **settings)
        given = ArrayDataset(*self._checked(images, labels), self.experiment.dataset)
        chosen = resolve_batch_size(chosen, self.experiment.batch_size)
        experiment = dataclasses.replace(self.experiment, dataset=given, evaluate=chosen)
        evaluator = self._once(
            dataclasses.replace(chosen, seed=0, passes=1),
            lambda: Evaluator(experiment, self.mesh, self.workdir, self.step),
        ).with_images(given, chosen)
        return ElboResult.from_terms(
            evaluator.measure(self.params, Progress("evaluation", evaluator.num_batches))
        )

    def encode(
        self,
        images: Given,
        *,
        log_snr: Given | None = None,
        t: Given | None = None,
        labels: Given | None = None,
    ) -> Float[np.ndarray, "n h w c"]:
        """x_phi of `images`, uint8 levels [N, H, W, C], in the scale of pixels in (-1, 1); the process has mean alpha x_phi.

        Args:
          log_snr: log(alpha^2 / sigma^2); a number, or one for each image.
          t: in its place the time, from 0, data, to 1, noise.
          labels: their classes; only a model that is told them needs any.

        Raises:
          UserError: these are no images of this model, or neither or both of `log_snr` and `t` are given.
        """
        levels, labels = self._checked(images, labels)
        if (log_snr is None) == (t is None):
            raise UserError("encode: give one of log_snr and t")
        at = _for_each(t if log_snr is None else log_snr, len(levels))
        if log_snr is None:
            at = self.model.log_snr(self.params, at)
        encode = self._once(
            "encode", lambda: jax.jit(partial(_encode, self.model, self.experiment.dataset.num_levels))
        )
        return np.asarray(encode(self.params, jnp.asarray(levels), at, self.model.conditioning(labels)))

    def _refuse_fixed(self, method: str, settings: Mapping[str, Any], *fixed: str) -> None:
        """Raise UserError if `settings` has one of those that a trained model, or images in hand, leave no choice of."""
        why = {
            "step": f"these are the parameters of step {self.step}; nearest: num_timesteps, which is T",
            "split": "it measures the images that it is given",
            "num_images": "it measures all images that it is given, as images[:N]",
        }
        for field in fixed:
            if field in settings:
                raise UserError(f"{method} takes no {field}: {why[field]}")

    def _checked(self, images: Given, labels: Given) -> tuple[Levels, Int[np.ndarray, " n"]]:
        dataset = self.experiment.dataset
        levels = check_images(images, dataset)
        told = bool(conditioned_modules(self.model.encoder) or conditioned_modules(self.model.network))
        return levels, check_labels(labels, len(levels), dataset.num_classes, told)

    def _once(self, key: Any, make: Any) -> Any:
        """What `make` compiles for `key`, made at the first call."""
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


def _for_each(given: Given, count: int) -> Float[Array, " n"]:
    """A number, or one for each of `count` images, as the latter. Raises UserError if it is neither."""
    array = np.asarray(given)
    if array.dtype.kind not in "iuf" or array.shape not in ((), (count,)):
        raise UserError(
            f"encode: {array.dtype}{list(array.shape)} is neither a number nor one for each of {count} images"
        )
    return jnp.broadcast_to(jnp.asarray(array, jnp.result_type(float)), (count,))


def replace_settings(name: str, settings: Any, **given: Any) -> Any:
    """`settings`, which gin calls `name`, with some of its fields. Raises UserError if one is none, or does not fit."""
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
