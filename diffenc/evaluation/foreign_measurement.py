"""Measures the terms of -ELBO of a denoiser of other code; fits the variances of its steps and the width of its decoder."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from diffenc.config.settings import Evaluate
from diffenc.core.discretization import Chain, make_chain
from diffenc.core.model import Terms
from diffenc.core.pixels import scale_pixels
from diffenc.data.array_dataset import ArrayDataset
from diffenc.evaluation import foreign_convention_check
from diffenc.evaluation.batches import EvaluationBatch, EvaluationBatches
from diffenc.evaluation.evaluation_record import TERMS, ElboTerms
from diffenc.evaluation.fit_variance import even_times
from diffenc.evaluation.foreign_bound import (
    NORMAL,
    ForeignModel,
    Outputs,
    batch_terms,
    decoder_losses,
    noisy_inputs,
)
from diffenc.evaluation.foreign_conventions import PixelRange
from diffenc.evaluation.foreign_denoiser import Denoiser, check_denoiser, prepare_denoiser
from diffenc.evaluation.loss_over_log_snr import LossDraws, concatenate_draws
from diffenc.evaluation.streaming_stats import StreamingMean
from diffenc.interfaces import EXCESS, Conditioning, Parameterization, Variance, requires
from diffenc.parallel.sharding import make_mesh
from diffenc.runtime.progress import Progress

DRAWS_PER_STEP = 16  # to fit a step's variance
STD_FACTORS = tuple(2.0 ** (k / 4) for k in range(-16, 17))  # of the normal decoder's default, tried in a fit

PerDraw = Float[np.ndarray, " draws"]


class ForeignMeasurement:
    """A denoiser on images. Its calls compile once, for fits and for the measurement."""

    def __init__(
        self,
        model: ForeignModel,
        denoiser: Denoiser,
        dataset: ArrayDataset,
        conditioning: Conditioning,
        settings: Evaluate,
        jit: bool | None = None,
        tolerance: float = 1e-3,
    ):
        """Tries the denoiser on the first batch.

        Args:
          jit, tolerance: as `diffenc.bound`.

        Raises:
          UserError: as `diffenc.evaluation.foreign_denoiser.check_denoiser`.
        """
        self._model, self._conditioning, self._settings = model, conditioning, settings
        # Until `choose_variance`: sigma_P = sigma_Q, and DDPM's width of the decoder.
        self._chain, self._std = model.equal_chain(), jnp.asarray(model.default_std())
        self._batches = self._make_batches(dataset, "evaluate", settings.passes)
        # Of all pixels together: the best constant x_hat is one number for every pixel.
        self._variance = jnp.asarray(pixel_variance(dataset, model.pixels))
        # The first batch of the measurement itself: the checks see the shapes and values that are measured.
        self._first = next(iter(self._batches))
        levels, labels = self._first.images
        given = noisy_inputs(self._model, levels, self._first.draws, self._chain)
        self._denoise = prepare_denoiser(denoiser, jit, given.z, given.noise_level, labels)
        check_denoiser(self._denoise, given.z, given.noise_level, labels, tolerance)

    def choose_variance(self, variance: Variance, fit_dataset: ArrayDataset | None) -> None:
        """Sets the variances of the chain; fits them, and the normal decoder's width, where there are images to fit on."""
        if fit_dataset is not None and self._model.decoder == NORMAL:
            self._std = self._best_std(fit_dataset)
        if self._model.num_timesteps:
            # Discrete times are the indices 0 .. T - 1, which `log_snr_at` looks up.
            times, excess = np.arange(float(self._model.num_timesteps)), None
            if fit_dataset is not None and requires(variance, EXCESS):
                excess = self._measure_excess(fit_dataset)
            self._chain = make_chain(self._model.log_snr_at, times, variance, excess)

    def measure(self) -> tuple[ElboTerms, PerDraw]:
        """Returns the terms of -ELBO of all images in all passes, and the diffusion loss of the best constant at each draw."""
        terms: list[Terms] = []
        draws: list[LossDraws] = []
        constants: list[PerDraw] = []
        progress = Progress("bound", len(self._batches))
        for batch in self._batches:
            batch_terms, batch_draws, constant = self._batch_terms(batch, self._chain)
            terms.append(jax.tree.map(lambda nats: nats.astype(np.float64), batch_terms))
            draws.append(batch_draws)
            constants.append(constant)
            progress()
        by_pass = {
            name: self._batches.stack_passes([getattr(batch, name) for batch in terms]) for name in TERMS
        }
        times = np.stack([self._batches.times(number) for number in range(self._batches.passes)])
        num_dims = int(np.prod(self._first.images.levels.shape[1:]))
        return ElboTerms(by_pass, times, num_dims, concatenate_draws(draws)), np.concatenate(constants)

    def find_misreading(
        self, draws: LossDraws, constant: PerDraw, predicts: str | Parameterization, own_noise_level: bool
    ) -> str | None:
        """Returns a warning if the loss is above that of the best constant, with the likely convention; else None."""
        excess = foreign_convention_check.find_excess(draws, constant)
        if excess is None:
            return None
        levels, labels = self._first.images
        reading = foreign_convention_check.likely_reading(
            self._model,
            self._denoise,
            predicts,
            levels,
            self._first.draws,
            labels,
            own_noise_level,
            excess.log_snr,
        )
        return foreign_convention_check.warning_text(excess, reading)

    def _batch_terms(self, batch: EvaluationBatch, chain: Chain | None) -> tuple[Terms, LossDraws, PerDraw]:
        """Returns the terms, the draws and the best constant's loss of one batch on the host, without padding."""
        levels, labels = batch.images
        given = noisy_inputs(self._model, levels, batch.draws, chain)
        at_0 = None
        if self._model.decoder == NORMAL:
            at_0 = self._denoise(given.z_0, given.noise_level_0, labels)
        outputs = Outputs(self._denoise(given.z, given.noise_level, labels), at_0)
        result = batch_terms(self._model, levels, batch.draws, chain, outputs, self._std, self._variance)
        return batch.without_padding(jax.device_get(result))

    def _make_batches(self, dataset: ArrayDataset, purpose: str, passes: int) -> EvaluationBatches:
        mesh = make_mesh()  # one device: what else there is, a denoiser may use itself
        return EvaluationBatches(dataset, self._conditioning, self._settings, mesh, purpose, passes)

    def _measure_excess(self, dataset: ArrayDataset) -> Float[np.ndarray, " steps"]:
        """Returns E || mu_P - mu_Q ||^2 / (d sigma_Q^2) of each step [70]."""
        model, count = self._model, len(dataset.images)
        # Enough passes over the images for DRAWS_PER_STEP draws a step, rounded up.
        passes = -(-DRAWS_PER_STEP * model.num_steps // count)
        batches = self._make_batches(dataset, "fit", passes)
        costs, progress = StreamingMean(model.num_steps), Progress("fitting", len(batches))
        for batch in batches:
            # Spread evenly: random times could leave a step without a draw.
            times = np.asarray(even_times(batch.pass_index, batch.first, batches.batch_size))
            drawn = batch._replace(draws=batch.draws._replace(times=times[:, None]))
            # With sigma_P = sigma_Q, as the excess is defined.
            terms, _, _ = self._batch_terms(drawn, model.equal_chain())
            # The diffusion loss is num_steps times the drawn step's cost, to estimate the sum over steps.
            nats = np.asarray(terms.diffusion, np.float64) / model.num_steps
            index = np.minimum(times * model.num_steps, model.num_steps - 1).astype(int)
            costs.add(drawn.without_padding(index), nats)
            progress()
        return 2 * costs.mean / np.prod(dataset.image_shape)

    def _best_std(self, dataset: ArrayDataset) -> Float[jax.Array, ""]:
        """Returns the width of the normal decoder with the lowest reconstruction term, among STD_FACTORS times the default."""
        stds = self._model.default_std() * jnp.asarray(STD_FACTORS)
        losses = np.zeros(len(STD_FACTORS))
        for batch in self._make_batches(dataset, "fit", 1):
            levels, labels = batch.images
            given = noisy_inputs(self._model, levels, batch.draws, self._chain)
            out_0 = self._denoise(given.z_0, given.noise_level_0, labels)
            by_std = jax.device_get(decoder_losses(self._model, levels, batch.draws, out_0, stds))
            losses += batch.without_padding(by_std).astype(np.float64).sum(axis=1)
        return stds[int(np.argmin(losses))]


def pixel_variance(dataset: ArrayDataset, pixels: PixelRange) -> float:
    """Returns the variance of all pixels of all images, in the units of `pixels`."""
    # Through the histogram of levels: exact, and without a float copy of all images.
    counts = np.bincount(dataset.images.ravel(), minlength=dataset.num_levels)
    values = np.asarray(pixels.convert(scale_pixels(jnp.arange(dataset.num_levels), dataset.num_levels)))
    values = values.astype(np.float64)
    mean = counts @ values / counts.sum()
    return float(counts @ np.square(values - mean) / counts.sum())
