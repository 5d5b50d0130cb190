"""Possible savings of a trained model's diffusion loss: by the noise of its path, and by another estimate of the slope.

With the errors e_x of the value and e_s of the slope at lambda, and both estimates held fixed, the path of noise eta and a slope
larger by c value have the integrand

    1/2 e^lambda E || 1/2 (1 + eta^2) e_x + e_s + c value ||^2 / eta^2.

A path chooses eta at each lambda, a slope head of one number chooses c, by least squares. Both are fitted in bins of t on half of
the images and measured on the other half, each in turn, so that nothing is saved by fitting noise. These are the savings of this
network as it stands, by another path and by so simple a slope head. They bound neither the gain of a network or an encoder that
is trained with them, nor the savings of a head with a network of its own.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
from rich.table import Table

from diffenc.config.settings import Diagnose
from diffenc.core.gaussian import sum_data, sum_squares
from diffenc.core.model import Draws, Model, bits_per_dim
from diffenc.core.objective import continuous, step_error, step_index
from diffenc.core.pixels import scale_pixels
from diffenc.evaluation.bin_means import BinMeans, log_snr_at, measure_bins
from diffenc.evaluation.evaluation_record import errors_table
from diffenc.evaluation.streaming_stats import ImageMeans
from diffenc.interfaces import Context, Dataset, Images, Params, PerExample

MOST = 100.0  # eta^2 and 1 / eta^2, where an error is nearly zero
NOTHING = 1e-30  # of a mean square
SAVINGS = ("saved_by_path", "saved_by_slope", "saved_by_both")
KEYS = ("bpd", "bpd_reconstruction", "bpd_latent", "bpd_diffusion", *(f"bpd_{name}" for name in SAVINGS))

PerBin = Float[np.ndarray, " bins"]
Moments = Mapping[str, PerBin]  # means of `error_moments` by name


def worth_record(
    model: Model, dataset: Dataset, settings: Diagnose, mesh: Mesh, params: Params
) -> dict[str, Any]:
    """Returns the terms of the continuous-time bound and the savings of its diffusion loss, in bits/dim, with errors over images.

    `bpd_saved_by_path` is the saving by the best noise of the path, `bpd_saved_by_slope` by a slope head c value on the path of
    training, `bpd_saved_by_both` by both. `density_NAME` are the same per unit of lambda at `log_snr_centre`. `eta_2` and `c` are
    those of `saved_by_path` and `saved_by_slope`, fitted to all images.
    """
    bins = settings.bins
    means = measure_bins(model, dataset, settings, mesh, params, bins, error_moments)
    whole = moments_of(means)
    terms = {name: means[name] for name in ("reconstruction", "latent", "diffusion")}
    saved = {name: cross_fitted_saving(means, name) for name in SAVINGS}
    edges = log_snr_at(model, params, np.linspace(0, 1, bins + 1))
    # width: the mean |d lambda / dt| of a bin, which makes a loss per unit of t one per unit of lambda.
    width, centres = -np.diff(edges) * bins, (np.arange(bins) + 0.5) / bins
    by_bin = {"diffusion": terms["diffusion"], **saved}
    ends = {name: term.by_image for name, term in terms.items() if name != "diffusion"}
    total = ends["reconstruction"] + ends["latent"]
    return {
        "bpd": float(total.mean()) + float(terms["diffusion"].mean.mean()),
        "bpd_se": total_error(total, terms["diffusion"]),
        **{key: value for name, one in ends.items() for key, value in _mean_of(f"bpd_{name}", one).items()},
        **{f"bpd_{name}": float(one.mean.mean()) for name, one in by_bin.items()},
        **{f"bpd_{name}_se": one.mean_error for name, one in by_bin.items()},
        "num_images": terms["diffusion"].num_images,
        "log_snr": edges.tolist(),
        "log_snr_centre": log_snr_at(model, params, centres).tolist(),
        **{f"density_{name}": (one.mean / width).tolist() for name, one in by_bin.items()},
        **{f"density_{name}_se": (one.standard_error / width).tolist() for name, one in by_bin.items()},
        "eta_2": best_eta_2(whole).tolist(),
        "c": best_multiple_on_path(whole).tolist(),
        "draws": terms["diffusion"].count.tolist(),
    }


def _mean_of(key: str, by_image: Float[np.ndarray, " images"]) -> dict[str, float]:
    error = by_image.std(ddof=1) / np.sqrt(len(by_image)) if len(by_image) > 1 else 0.0
    return {key: float(by_image.mean()), f"{key}_se": float(error)}


def total_error(ends: Float[np.ndarray, " images"], diffusion: ImageMeans) -> float:
    """Returns the error over images of the mean of `ends` plus the diffusion loss."""
    # Added per image before squaring: the terms of one image are correlated.
    shares = (ends - ends.mean()) / len(ends) + diffusion.shares.mean(axis=1)
    return float(np.sqrt(np.square(shares).sum() * len(shares) / max(len(shares) - 1, 1)))


def error_moments(
    model: Model, num_levels: int, num_bins: int, params: Params, images: Images, draws: Draws
) -> tuple[Int[Array, " b"], dict[str, PerExample]]:
    """Returns the bin of each image's time, and the moments that give the bound of any path and slope head, in bits/dim.

    Second moments, each times 1/2 |dSNR/dt|: "xx", "xs", "ss" of the errors of value and slope; "xv", "sv" of each error with the
    value, and "vv". On the path of training: the loss "diffusion" and, with the error e of the estimates' sum,
    "ev" = <e, value> / eta^2 and "vv_on_path" = || value ||^2 / eta^2. And "reconstruction" and "latent".
    """
    context = Context(images.condition)
    terms = model.elbo(params, images.levels, draws, num_levels=num_levels, condition=images.condition)
    encode = model.prepare(params, scale_pixels(images.levels, num_levels), context)
    step = continuous(encode, partial(model.log_snr, params), partial(model.increment, params), draws.t)
    error, _ = model.estimate_error(params, step, draws.eps, context)
    value, of_sum = step.x_phi + error.value, step_error(step.interval, error)
    # step.weight has the factor 1 / eta^2 of the path of training,
    # with eta^2 = 2 value_weight - 1; `on_any` is without it.
    on_path, num_dims = draws.weight * step.weight, images.levels[0].size
    on_any = on_path * (2 * step.interval.value_weight - 1)
    moments = {
        "xx": on_any * sum_squares(error.value),
        "xs": on_any * sum_data(error.value * error.slope),
        "ss": on_any * sum_squares(error.slope),
        "xv": on_any * sum_data(error.value * value),
        "sv": on_any * sum_data(error.slope * value),
        "vv": on_any * sum_squares(value),
        "ev": on_path * sum_data(of_sum * value),
        "vv_on_path": on_path * sum_squares(value),
        **terms._asdict(),
    }
    bits = {name: bits_per_dim(nats, num_dims) for name, nats in moments.items()}
    return step_index(draws.t, num_bins), bits


def moments_of(means: BinMeans) -> dict[str, PerBin]:
    """Returns the mean of each moment in each bin."""
    return {name: mean.mean for name, mean in means.items()}


def best_eta_2(moments: Moments) -> PerBin:
    """Returns eta^2 of the path with the least loss: eta^4 = 1 + 4 (xs + ss) / xx."""
    # || 1/2 (1 + eta^2) e_x + e_s ||^2 / eta^2 is 1/4 (eta^2 xx + shifted
    # / eta^2) and a constant, with shifted = || e_x + 2 e_s ||^2.
    shifted = moments["xx"] + 4 * (moments["xs"] + moments["ss"])
    best = np.sqrt(np.clip(shifted / np.maximum(moments["xx"], NOTHING), MOST**-2, MOST**2))
    # Without errors, as in a bin that no image of a half was drawn in, the path of training stays.
    return np.where(moments["xx"] > NOTHING, best, 1.0)


def best_multiple_on_path(moments: Moments) -> PerBin:
    """Returns c of the least loss on the path of training, by regression of the sum's error on the value."""
    return -moments["ev"] / np.maximum(moments["vv_on_path"], NOTHING)


def best_both(moments: Moments) -> tuple[PerBin, PerBin]:
    """Returns eta^2 and c of the least loss: eta^2 as `best_eta_2` of the errors without their part along the value."""
    # At any eta^2 the best c removes the part along the value, so eta^2 is that of the orthogonal parts.
    norm = np.maximum(moments["vv"], NOTHING)
    along = {"xx": ("xv", "xv"), "xs": ("xv", "sv"), "ss": ("sv", "sv")}
    eta_2 = best_eta_2(
        {name: moments[name] - moments[one] * moments[other] / norm for name, (one, other) in along.items()}
    )
    return eta_2, -(0.5 * (1 + eta_2) * moments["xv"] + moments["sv"]) / norm


def saving_weights(name: str, moments: Moments) -> dict[str, PerBin]:
    """Returns the weights of the moments in the saving by the eta^2 and c that are fitted to `moments`.

    With G = (1 + eta^2) / 2 the loss is (G^2 xx + 2 G xs + ss + 2 c (G xv + sv) + c^2 vv) / eta^2.
    """
    if name == "saved_by_slope":
        # || e ||^2 - || e + c value ||^2, over eta^2: the loss itself cancels.
        c = best_multiple_on_path(moments)
        return {"ev": -2 * c, "vv_on_path": -np.square(c)}
    eta_2, c = (
        best_both(moments) if name == "saved_by_both" else (best_eta_2(moments), np.zeros_like(moments["xx"]))
    )
    half = 0.5 * (1 + eta_2)
    of_loss = {
        **{"xx": half**2, "xs": 2 * half, "ss": np.ones_like(half)},
        **{"xv": 2 * c * half, "sv": 2 * c, "vv": np.square(c)},
    }
    return {"diffusion": np.ones_like(half), **{key: -weight / eta_2 for key, weight in of_loss.items()}}


def cross_fitted_saving(means: BinMeans, name: str) -> ImageMeans:
    """Returns the saving on each half of the images by the fit to the other half."""
    count = next(iter(means.values())).num_images
    halves = [np.arange(count) % 2 == k for k in (0, 1)]
    # weights[k] are for halves[k], fitted to the other half.
    weights = [saving_weights(name, moments_of(_select(means, other))) for other in halves[::-1]]
    return ImageMeans.combine(
        [
            (np.where(halves[0][:, None], weights[0][key][None], weights[1][key][None]), means[key])
            for key in weights[0]
        ]
    )


def _select(means: BinMeans, images: np.ndarray) -> BinMeans:
    return {name: mean.select(images) for name, mean in means.items()}


def worth_table(record: Mapping[str, Any], title: str) -> Table:
    """Returns the terms of the bound and the savings, with errors over images."""
    caption = (
        "in continuous time; saved: by the best noise of the path, by adding c value to the slope, by both, fitted to other halves "
        "of the images"
    )
    return errors_table(record, KEYS, title, caption)
