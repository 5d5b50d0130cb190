"""--mode=fit_stochasticity: the best noise of the forward path for a trained model, without training.

With the errors of value and slope at lambda, e_x and e_s, the diffusion loss of the path of noise eta has the integrand

    1/2 e^lambda E || 1/2 (1 + eta^2) e_x + e_s ||^2 / eta^2,

least where eta^4 = E || e_x + 2 e_s ||^2 / E || e_x ||^2, independently at each lambda. So eta^2 is measured in bins of t, and
taken to be constant in each. The bound on the fitted path is that of another model than the one that was trained.
"""

import dataclasses
import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Array, Int

from diffenc.config.experiment import Experiment
from diffenc.config.settings import Fit
from diffenc.core.gaussian import sum_data, sum_squares
from diffenc.core.model import Draws, Model, bits_per_dim
from diffenc.core.objective import continuous, step_error, step_index
from diffenc.core.pixels import scale_pixels
from diffenc.evaluation.batches import resolve_batch_size
from diffenc.evaluation.bin_means import log_snr_at, measure_bins
from diffenc.evaluation.evaluation_record import model_metadata
from diffenc.evaluation.measured_path import check_other_path
from diffenc.evaluation.restore_params import restore_for_bound
from diffenc.evaluation.streaming_stats import sum_errors
from diffenc.interfaces import Context, Dataset, Images, Params, PerExample
from diffenc.parallel.sharding import data_mesh
from diffenc.workdir import fitted_chains, fitted_paths
from diffenc.workdir.mirror import on_local_copy

BINS = 24  # of t
MOST = 100.0  # eta^2 and 1 / eta^2, where an error is nearly zero


@on_local_copy
def fit_stochasticity(experiment: Experiment, workdir: Path) -> dict[str, Any]:
    """Measures eta^2 in bins of t on the images of `fit`, and writes it to the workdir; returns the record.

    Raises:
      UserError: there is no run, its model serves the path of training alone, or a bin was drawn less than twice.
    """
    check_other_path(experiment)
    mesh, dataset = data_mesh(experiment.mesh), experiment.dataset
    ema, step = restore_for_bound(experiment, workdir, mesh, experiment.evaluate.step)
    fit = resolve_batch_size(experiment.fit, experiment.batch_size)
    # measure_bins takes one time per image and pass; passes give as many draws.
    fit = dataclasses.replace(fit, passes=fit.passes * fit.times_per_image, times_per_image=1)
    found = path_record(experiment.model, dataset, fit, mesh, ema)
    # Later fits on this path record the digest, and an evaluation
    # compares it: a path fitted again has another one.
    digest = hashlib.sha256(json.dumps([found["log_snr"], found["eta_2"]]).encode()).hexdigest()[:16]
    record = {
        **found,
        **model_metadata(experiment),
        "path_of": {**fitted_chains.fit_origin(experiment, step), "digest": digest},
    }
    fitted_paths.save_path(workdir, record)
    logging.info(
        "diffusion loss on the path of training %.4f, on the fitted one %.4f bits/dim, on the images fitted to; eta^2 from "
        "%.3g to %.3g, in %s",
        record["bpd_diffusion_trained"],
        record["bpd_diffusion_fitted"],
        min(record["eta_2"]),
        max(record["eta_2"]),
        fitted_paths.path_file(workdir),
    )
    return record


def path_record(model: Model, dataset: Dataset, fit: Fit, mesh: Mesh, params: Params) -> dict[str, Any]:
    """Returns eta^2 between neighbours of log_snr, which rises, with errors over images, and the loss it saves.

    Losses are diffusion losses in bits/dim, on the images fitted to.
    """
    means = measure_bins(model, dataset, fit, mesh, params, BINS, measure_errors)
    value, shifted, trained = (means[name] for name in ("value", "shifted", "trained"))
    # eta^2 must be positive and finite, which the ratio is not where one of the errors is nearly 0.
    ratio = np.clip(shifted.mean / np.maximum(value.mean, 1e-30), MOST**-2, MOST**2)  # eta^4
    # the error of a ratio of means over the same images, to first order
    ratio_error = sum_errors((shifted.shares - ratio * value.shares) / np.maximum(value.mean, 1e-30))
    # The weight is that of eta = 1 (see `squared_errors`):
    # fits on any path of training give the same optimum.
    eta_2 = np.sqrt(ratio)
    # E || (1 + eta^2) / 2 e_x + e_s ||^2 / eta^2 with e_s = ((e_x + 2 e_s) - e_x) / 2
    fitted = (eta_2 * value.mean + 2 * means["product"].mean + shifted.mean / eta_2) / 4
    edges = log_snr_at(model, params, np.linspace(0, 1, BINS + 1))
    return {
        "log_snr": edges[::-1].tolist(),
        # Reversed: bins rise in t, and log_snr of a path must rise.
        "eta_2": eta_2[::-1].tolist(),
        "eta_2_se": (0.5 * ratio_error / eta_2)[::-1].tolist(),
        "bpd_diffusion_trained": float(trained.mean.mean()),
        "bpd_diffusion_fitted": float(fitted.mean()),
        "num_images": value.num_images,
        "draws": value.count[::-1].tolist(),
    }


def measure_errors(
    model: Model, num_levels: int, num_bins: int, params: Params, images: Images, draws: Draws
) -> tuple[Int[Array, " b"], dict[str, PerExample]]:
    """Returns the bin of each image's time, and `squared_errors` there."""
    return step_index(draws.t, num_bins), squared_errors(model, params, images, draws, num_levels)


def squared_errors(
    model: Model, params: Params, images: Images, draws: Draws, num_levels: int
) -> dict[str, PerExample]:
    """Returns the second moments of the errors that eta^2 is computed from, each times 1/2 |dSNR/dt|, in bits/dim.

    "value" is || e_x ||^2, "shifted" || e_x + 2 e_s ||^2, "product" their inner product, and "trained" the loss itself.
    """
    # The errors of value and slope do not depend on the path for means that `check_other_path` lets pass.
    context = Context(images.condition)
    encode = model.prepare(params, scale_pixels(images.levels, num_levels), context)
    step = continuous(encode, partial(model.log_snr, params), partial(model.increment, params), draws.t)
    error, _ = model.estimate_error(params, step, draws.eps, context)
    shifted = error.value + 2 * error.slope
    # value_weight = (1 + eta^2) / 2. step.weight has the factor
    # 1 / eta^2 of the path of training, which is undone below.
    eta_2 = 2 * step.interval.value_weight - 1
    squares = {
        "value": sum_squares(error.value),
        "shifted": sum_squares(shifted),
        "product": sum_data(error.value * shifted),
        "trained": sum_squares(step_error(step.interval, error)) / eta_2,
    }
    num_dims = step.x_phi[0].size
    return {name: bits_per_dim(step.weight * eta_2 * square, num_dims) for name, square in squares.items()}
