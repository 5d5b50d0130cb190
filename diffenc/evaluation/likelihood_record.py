"""The record of --mode=likelihood, and its table."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.table import Table

from diffenc.config.experiment import Experiment
from diffenc.data.sources import describe_images
from diffenc.evaluation.along_q import is_exact
from diffenc.evaluation.batches import resolve_batch_size
from diffenc.evaluation.evaluation_record import errors_table, image_metadata, pass_metadata, run_metadata
from diffenc.evaluation.ode_gap import KEYS, OdeGap
from diffenc.evaluation.ode_likelihood import Noise, OdeLikelihoods
from diffenc.evaluation.streaming_stats import sum_errors
from diffenc.workdir.fitted_chains import measured_path


def likelihood_record(
    experiment: Experiment, gap: OdeGap, solved: OdeLikelihoods, log_snr: Float[np.ndarray, " stops"]
) -> dict[str, Any]:
    """Returns the metrics, the noise along the trajectories, and all settings needed to compare them with others.

    Args:
      log_snr: the stops at which the noise along the trajectories was measured.
    """
    solver, shape = experiment.likelihood, experiment.dataset.image_shape
    settings = resolve_batch_size(experiment.evaluate, experiment.batch_size)
    exact = is_exact(solver, shape)
    return {
        **gap.metrics(),
        **image_metadata(experiment.dataset, experiment.model, settings.split, solved.nats.shape[1]),
        "dequantisation": solver.dequantisation,
        "divergence": "exact" if exact else "hutchinson",
        **({} if exact else {"probes": solver.probes}),
        "rtol": solver.rtol,
        "atol": solver.atol,
        "tighter": solver.tighter,
        "evaluations": float(solved.evaluations.mean()),
        "times_per_image": solver.times_per_image,
        "noise": noise_record(solved.noise, log_snr),
        **pass_metadata(settings),
        **run_metadata(experiment),
        **measured_path(experiment),
    }


def noise_record(noise: Noise, log_snr: Float[np.ndarray, " stops"]) -> dict[str, Any]:
    """Returns the noise variance along the trajectories over that of q, by log_snr, with errors over images.

    `ratio` is that of z - alpha value. `from_encoded` is the variance of z - alpha x_phi over sigma^2, which is below 1 for exact
    posterior means too.
    """
    # [images, stops], means over passes: errors are over images.
    path, q, encoded = (np.asarray(squares, np.float64).mean(axis=0).T for squares in noise)
    ratio = path.mean(axis=0) / q.mean(axis=0)
    return {
        "log_snr": log_snr.tolist(),
        "ratio": ratio.tolist(),
        # The error of a ratio of two means over the same images, to first order.
        "ratio_se": sum_errors((path - ratio * q) / (q.mean(axis=0) * len(q))).tolist(),
        "from_encoded": encoded.mean(axis=0).tolist(),
        "from_encoded_se": sum_errors((encoded - encoded.mean(axis=0)) / len(encoded)).tolist(),
    }


def likelihood_table(record: Mapping[str, Any]) -> Table:
    """Returns the ODE's bound, that along q, the ELBO and the parts of the gap, in bits/dim with both errors."""
    title = (
        f"{describe_images(record)}, {record['num_images']} images, {record['passes']} pass(es), "
        f"ODE with {record['divergence']} divergence, {record['evaluations']:.0f} evaluations, "
        f"{record['dequantisation']} dequantisation, step {record['step']}"
    )
    ratio = record["noise"]["ratio"]
    caption = (
        f"{record['model']}\nELBO in continuous time; gap = ODE - ELBO. Noise variance along the trajectories over that of q: "
        f"{min(ratio):.3f} to {max(ratio):.3f}\npixels {record['fingerprint'][:16]}"
    )
    return errors_table(record, KEYS, title, caption)
