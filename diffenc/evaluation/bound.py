"""`diffenc.bound`: bits/dim of a denoiser of any code, with both errors."""

import dataclasses
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Float

from diffenc import registry
from diffenc.config.settings import MAX_BATCH, MAX_COUNT, Evaluate, check_seed, require
from diffenc.core.conditioning import UNCONDITIONAL
from diffenc.core.rng import generator
from diffenc.evaluation.bound_arguments import (
    ArrayInput,
    GivenLabels,
    NoiseLevelOf,
    check_fit_labels,
    check_pixel_range,
    given_dataset,
    overlap_warning,
    resolve_decoder,
    resolve_log_snrs,
    resolve_noise_level,
    resolve_variance,
)
from diffenc.evaluation.evaluation_record import TERMS, ElboTerms
from diffenc.evaluation.foreign_bound import ForeignModel
from diffenc.evaluation.foreign_conventions import find_process, find_target
from diffenc.evaluation.foreign_denoiser import Denoiser
from diffenc.evaluation.foreign_measurement import ForeignMeasurement
from diffenc.evaluation.uncertainty_format import format_estimate
from diffenc.interfaces import Parameterization, Variance

NO_DEQUANTISATION = "none"


# eq=False: fields are arrays, and == of arrays has no truth value.
@dataclasses.dataclass(frozen=True, eq=False)
class BoundResult:
    """-ELBO of images under a denoiser: an upper bound on -log p(images), in bits per dimension.

    Attributes:
      bits_per_dim: the mean over images and passes.
      se: its standard error over images; None where Monte-Carlo noise hides it (more passes resolve it).
      se_upper: an upper bound of `se`; None for a single image.
      mc_se: the Monte-Carlo standard error over times and noise; None for a single pass.
      terms: the means of its "reconstruction", "latent" and "diffusion" terms.
      per_image: bits/dim of each image, the mean over passes.
      likelihood: the kind of the bound, in words.
      num_timesteps: T; None = continuous time.
      log_snr: lambda_max and lambda_min, between which the denoiser was called.
      predicts: the target that the denoiser was taken to estimate.
      process: the convention of the denoiser's inputs.
      pixel_range: the values of the lowest and the highest level.
      dequantisation: "none": the decoder is a distribution of the integer levels.
      decoder: p(x | z_0): "levels" or "normal".
      variance: sigma_P^2 of the T steps; None in continuous time.
      condition: "label" where labels were given: the bound is one of p(x | label).
      num_levels: L, of the images; bounds of other levels are not comparable.
      num_images: N.
      passes: how often each image was seen.
      seed: of times and noise.
      fingerprint: hex SHA-256 of the pixels, as in records of evaluations.
      metrics: mean and errors of the bound and of its terms by the keys of evaluation.json: `bpd`, `bpd_se`, ...
      warnings: the warnings that were logged.
    """

    bits_per_dim: float
    se: float | None
    se_upper: float | None
    mc_se: float | None
    terms: dict[str, float]
    per_image: Float[np.ndarray, " n"] = dataclasses.field(repr=False)
    likelihood: str
    num_timesteps: int | None
    log_snr: tuple[float, float]
    predicts: str
    process: str
    pixel_range: tuple[float, float]
    dequantisation: str
    decoder: str
    variance: str | None
    condition: str | None
    num_levels: int
    num_images: int
    passes: int
    seed: int
    fingerprint: str
    metrics: dict[str, Any] = dataclasses.field(repr=False)
    warnings: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """Returns everything but `per_image` for a JSON file, with the keys of evaluation.json."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        # `metrics` holds the estimates under the keys of evaluation.json, and T stands for num_timesteps.
        left_out = (
            "bits_per_dim",
            "se",
            "se_upper",
            "mc_se",
            "terms",
            "per_image",
            "metrics",
            "num_timesteps",
        )
        rest = {key: value for key, value in own.items() if key not in left_out and value is not None}
        depth = {"T": "continuous" if self.num_timesteps is None else self.num_timesteps}
        return {**self.metrics, **depth, **rest, "prng": generator()}

    def __str__(self) -> str:
        mean, over_images, draws = format_estimate(self.bits_per_dim, self.se, self.se_upper, self.mc_se)
        condition = "" if self.condition is None else f" | {self.condition}"
        dequantisation = "no" if self.dequantisation == NO_DEQUANTISATION else self.dequantisation
        high, low = self.log_snr
        return (
            f"{mean} bits/dim ± {over_images} over images ± {draws} Monte Carlo: {self.likelihood}{condition}, log_snr "
            f"{high:.4g} to {low:.4g}, {dequantisation} dequantisation (decoder: {self.decoder}), {self.num_levels} levels, "
            f"{self.num_images} images (pixels {self.fingerprint[:16]}), {self.passes} passes"
        )


def bound(
    denoiser: Denoiser,
    images: ArrayInput,
    *,
    predicts: str | Parameterization = "eps",
    process: str = "vp",
    time: NoiseLevelOf | None = None,
    log_snr: tuple[float, float] | None = None,
    alphas_cumprod: ArrayInput = None,
    variance: str | Variance = "equal",
    fit_images: ArrayInput = None,
    fit_labels: ArrayInput = None,
    decoder: str | None = None,
    pixel_range: tuple[float, float] = (-1.0, 1.0),
    num_levels: int = 256,
    labels: ArrayInput = None,
    passes: int = 4,
    batch_size: int = 64,
    seed: int = 0,
    jit: bool | None = None,
    tolerance: float = 1e-3,
) -> BoundResult:
    """Measures the variational bound of a denoiser of any code on -log p(images), in bits/dim with both errors.

    The denoiser is called as `denoiser(z, noise_level)` with a batch z [B, H, W, C] in its own convention and one noise level for
    each image [B], and returns its estimate, shaped like z. Any fixed function of both has a valid bound: that of the model with
    the reverse steps that the function defines. z = a x + b eps, and the noise level is

      process   z                       noise level, unless `time` is given
      "vp"      alpha x + sigma eps     log_snr = log(alpha^2 / sigma^2)
      "ve"      x + sigma eps           sigma = e^(-log_snr / 2)
      "flow"    (1 - t) x + t eps       t = 1 / (1 + e^(log_snr / 2))

    and with `alphas_cumprod` the index of the step, from 0, int32.

    Args:
      denoiser: compiled if JAX can trace it; otherwise called with numpy arrays, and may return anything that numpy converts.
      images: uint8 levels [N, H, W, C], from 0 to num_levels - 1.
      predicts: "eps"; "x"; "v", which is alpha eps - sigma x and for flow eps - x; "score", that of z given x, -eps / b; or a
        function of log_snr that returns (p, q), for estimates of p x + q eps.
      process: "vp", "ve" or "flow".
      time: the noise level that the denoiser takes, as a function of log_snr [B], of JAX.
      log_snr: lambda_max and lambda_min, the ends of the diffusion in continuous time; None = (13.3, -5) of vp, sigma = 0.002
        and 80 of ve, t = 0.001 and 0.999 of flow. Each choice has a bound of its own.
      alphas_cumprod: [T], falling from nearly 1 to nearly 0: the model has T discrete times, log_snr = log(abar / (1 - abar)),
        and the bound is that of its chain: T - 1 reverse steps, and the decoder at index 0. For ve's sigmas, 1 / (1 + sigmas**2).
      variance: sigma_P^2 of the reverse steps: "equal" to that of q (DDPM's fixedsmall), "fitted", or another plugin.
      fit_images: other images, uint8 levels, to fit variances on; variances fitted on the measured images would give too low a
        bound. The width of the normal decoder is fitted on them too.
      fit_labels: the labels of `fit_images`, required where `labels` are given.
      decoder: p(x | z_0): "levels", VDM's, proportional to the density of z_0 [55], without the denoiser; or "normal", DDPM's, the
        mass of N(x_hat(z_0), 1 - abar_0) in each level's cell. None = "normal" with `alphas_cumprod`, else "levels".
      pixel_range: the values of levels 0 and num_levels - 1 that the denoiser was trained on.
      labels: [N] integers; the denoiser is called as `denoiser(z, noise_level, labels)`, and the bound is one of p(x | label).
      passes: how often each image is seen, each time at another time and with other noise; `mc_se` needs two or more.
      batch_size: images in one call; the last batch is filled up.
      seed: of times and noise; the same seed, images and passes give any denoiser the same draws.
      jit: True insists on compiling the denoiser, False on calling it with numpy arrays.
      tolerance: the relative difference of outputs that counts as rounding: between equal calls, and between an image's outputs
        with and without other images in its batch.

    Raises:
      UserError: an argument does not fit; or the denoiser is not deterministic, mixes the images of a batch, or returns an output
        that is not shaped like z.
    """
    require(
        isinstance(tolerance, (int, float)) and tolerance > 0,
        f"tolerance = {tolerance!r}: must be a positive number",
    )
    # 1. Resolve and check all arguments; nothing is computed before they fit together.
    convention = find_process(process)
    log_snrs = resolve_log_snrs(log_snr, alphas_cumprod, convention)
    depth = 0 if alphas_cumprod is None else len(log_snrs)
    dataset = given_dataset("images", images, labels, num_levels)
    model = ForeignModel(
        process=convention,
        target=find_target(predicts, convention),
        pixels=check_pixel_range(pixel_range, num_levels),
        noise_level=resolve_noise_level(time, alphas_cumprod, convention),
        log_snrs=log_snrs,
        num_timesteps=depth,
        decoder=resolve_decoder(decoder, alphas_cumprod),
    )
    chosen = resolve_variance(variance, alphas_cumprod, fit_images, model.decoder)
    check_fit_labels(labels, fit_labels, fit_images)
    fit = None if fit_images is None else given_dataset("fit_images", fit_images, fit_labels, num_levels)
    settings = _settings(passes, batch_size, seed, len(dataset.images))
    conditioning = UNCONDITIONAL if labels is None else GivenLabels()
    # 2. Try the denoiser (shape, determinism, no mixing of images), fit variances and decoder, then measure.
    measurement = ForeignMeasurement(model, denoiser, dataset, conditioning, settings, jit, tolerance)
    # After the checks of the denoiser: a fit takes many calls.
    measurement.choose_variance(chosen, fit)
    terms, constant = measurement.measure()
    # 3. Warn where a valid bound would mislead: images in
    # both sets, overflow, another convention.
    # A user's `time`, or the index of a step, stays the same for every process that the check tries.
    own_noise_level = time is None and alphas_cumprod is None
    found = (
        None if fit is None else overlap_warning(dataset, fit),
        _not_finite(terms),
        measurement.find_misreading(terms.draws, constant, predicts, own_noise_level),
    )
    warnings = tuple(text for text in found if text is not None)
    for text in warnings:
        logging.warning("bound: %s", text)
    return BoundResult(
        **_estimates(terms),
        **_model_metadata(model, predicts, process, chosen),
        condition=conditioning.label,
        num_levels=num_levels,
        num_images=len(dataset.images),
        passes=passes,
        seed=seed,
        fingerprint=dataset.fingerprint("test"),
        warnings=warnings,
    )


def _settings(passes: int, batch_size: int, seed: int, num_images: int) -> Evaluate:
    check_seed("seed", seed)
    for name, value, most in (("passes", passes, MAX_COUNT), ("batch_size", batch_size, MAX_BATCH)):
        require(
            isinstance(value, int) and 1 <= value <= most,
            f"{name} = {value!r}: must be an integer from 1 to {most}",
        )
    # A batch larger than the data would be padding, for which the denoiser is called as well.
    return Evaluate(passes=passes, batch_size=min(batch_size, num_images), seed=seed)


def _estimates(terms: ElboTerms) -> dict[str, Any]:
    """Returns the bound and its errors, as fields of a `BoundResult`."""
    metrics = terms.metrics()
    return {
        "bits_per_dim": metrics["bpd"],
        "se": metrics.get("bpd_se"),
        "se_upper": metrics.get("bpd_se_upper"),
        "mc_se": metrics.get("bpd_mc_se"),
        "terms": {name: metrics[f"bpd_{name}"] for name in TERMS},
        "per_image": terms.bits_per_dim()["bpd"].mean(axis=0),
        "metrics": metrics,
    }


def _model_metadata(
    model: ForeignModel, predicts: str | Parameterization, process: str, variance: Variance
) -> dict[str, Any]:
    """Returns the description of the model that the bound belongs to, as fields of a `BoundResult`."""
    depth = model.num_timesteps
    return {
        "likelihood": f"ELBO of T = {depth} steps" if depth else "ELBO in continuous time",
        "num_timesteps": depth or None,
        "log_snr": (model.log_snrs[0], model.log_snrs[-1]),
        "predicts": predicts if isinstance(predicts, str) else getattr(predicts, "__name__", str(predicts)),
        "process": process,
        "pixel_range": (model.pixels.low, model.pixels.high),
        "dequantisation": NO_DEQUANTISATION,
        "decoder": model.decoder,
        "variance": registry.variances.spell(variance) if depth else None,
    }


def _not_finite(terms: ElboTerms) -> str | None:
    """Returns a warning if the bound of an image is not finite; else None."""
    count = int((~np.isfinite(terms.bits_per_dim()["bpd"])).any(axis=0).sum())
    if count == 0:
        return None
    return f"the bound of {count} images is not finite: the denoiser returned values that are not, or far too large ones"
