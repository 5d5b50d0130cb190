"""--mode=likelihood: bits/dim of a trained run by its probability-flow ODE, to compare with those of its ELBO.

The ODE gives a density exactly, except for the solver's error and, for images of many dimensions, the unbiased noise
of Hutchinson's estimate. The stated errors do not include the solver's error: it adds up over steps and dimensions;
for a trained network in float32 it was measured at 7e-4 bits/dim of an image at the default tolerance, 9e-3 at 1e-5.
Images are discrete: for them the bound -log P(x) <= E_q[log q(z_0 | x) - log p_0(z_0)] of dequantisation is stated.
Which model P belongs to depends on the encoder; see MODELLED, UNMODELLED and UNMODELLED_AT_T.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int
from rich.table import Table

from diffenc.config.experiment import Experiment
from diffenc.config.network_precision import network_precision
from diffenc.config.settings import Likelihood
from diffenc.core.dequantization import DEQUANTISATIONS
from diffenc.core.model import Model
from diffenc.core.parameters import count_parameters
from diffenc.core.pixels import scale_pixels
from diffenc.data.sources import describe_images
from diffenc.errors import UserError
from diffenc.evaluation import ode
from diffenc.evaluation.batches import EvaluationBatches, compile_on_mesh, map_batches, resolve_batch_size
from diffenc.evaluation.commands import publish_record
from diffenc.evaluation.evaluation_record import (
    errors_table,
    image_metadata,
    mean_and_errors,
    pass_metadata,
    run_metadata,
)
from diffenc.evaluation.image_error import ByPass, PassValues
from diffenc.evaluation.restore_params import restore_for_bound
from diffenc.interfaces import Context, Images, Key, Params, PerExample
from diffenc.parallel.sharding import data_mesh
from diffenc.runtime.progress import Progress
from diffenc.sampling.solvers import slope_is_modelled
from diffenc.workdir.mirror import on_local_copy

MODELLED = "the probability-flow ODE of the trained SDE: it has the SDE's marginals where the denoiser is the best one"
UNMODELLED = (
    "an ODE of its own: the generative mean does not know the encoder's slope, so this likelihood is not that of the SDE "
    "whose bound was trained"
)
UNMODELLED_AT_T = (
    "an ODE of its own: the encoder depends on the noise level and x_hat serves the T steps of training alone, so this "
    "likelihood is not that of the model whose bound was trained"
)


class OdeLikelihoods(NamedTuple):
    """Bounds on -log P(x) of a set of images by the ODE.

    Attributes:
      nats: log q(z_0 | x) - log p_0(z_0) of each image in source order; its mean bounds -log P(x).
      evaluations: number of network evaluations, for each batch of each pass.
    """

    nats: ByPass
    evaluations: Int[np.ndarray, "passes batches"]


@on_local_copy
def likelihood(experiment: Experiment, workdir: Path) -> dict[str, Any]:
    """Measures bits/dim by the ODE, prints a table and writes likelihood.{json,npz}; returns the record.

    Raises:
      UserError: no run there, one of another config, no such checkpoint, networks in bfloat16, or the solver
        did not reach the end.
    """
    mesh, settings = data_mesh(experiment.mesh), experiment.evaluate
    if network_precision(experiment) == "bfloat16":
        raise UserError(
            "--mode=likelihood: a solver that controls its error needs more digits than bfloat16 has; bind the "
            "networks' precision to 'float32'"
        )
    ema, step = restore_for_bound(experiment, workdir, mesh, settings.step)
    trained_at = experiment.num_timesteps
    modelled = slope_is_modelled(experiment.model, ema, experiment.dataset.image_shape, trained_at)
    unmodelled = UNMODELLED_AT_T if trained_at else UNMODELLED
    # regardless of JAX's setting: a solver that controls its error needs every digit
    # Around compilation as well as calls: the setting acts when the program is traced.
    with jax.default_matmul_precision("highest"):
        likelihoods = solve_images(experiment, mesh, ema)
        record = {
            **likelihood_record(experiment, likelihoods),
            "model": MODELLED if modelled else unmodelled,
            "step": step,
            "num_params": count_parameters(ema),
        }
    publish_record(workdir, "likelihood", record, likelihoods._asdict(), likelihood_table(record))
    return record


def solve_images(experiment: Experiment, mesh: Mesh, params: Params) -> OdeLikelihoods:
    """Returns the ODE's bounds of every image in each pass, with new dequantisation noise and probes in each.

    Raises:
      UserError: the solver did not reach the end, or the batch does not divide over the devices.
    """
    model, dataset = experiment.model, experiment.dataset
    settings = resolve_batch_size(experiment.evaluate, experiment.batch_size)
    batches = EvaluationBatches(dataset, model.conditioning, settings, mesh, "likelihood")
    results = map_batches(
        compile_on_mesh(mesh, batch_nats, model, dataset.num_levels, experiment.likelihood),
        params,
        batches,
        lambda batch: (batch.images, batch.key),
        Progress("likelihood", len(batches)),
    )
    nats, evaluations = [], []
    for (bound, stats), batch in results:
        ode.require_reached(stats)
        nats.append(batch.without_padding(bound).astype(np.float64))
        evaluations.append(stats.evaluations)
    return OdeLikelihoods(batches.stack_passes(nats), np.reshape(evaluations, (batches.passes, -1)))


def batch_nats(
    model: Model, num_levels: int, settings: Likelihood, params: Params, images: Images, key: Key
) -> tuple[PerExample, ode.Stats]:
    """Returns log q(z_0 | x) - log p_0(z_0) in nats [B], from one z_0 of each image; no dropout."""
    # -log P(x) <= E_q[log q(z_0 | x) - log p_0(z_0)]: one z_0 per image and pass estimates the expectation.
    dequantise_key, probe_key = jax.random.split(key)
    x = scale_pixels(images.levels, num_levels)
    log_snr_0, log_snr_1 = model.log_snr(params, jnp.array([0.0, 1.0]))
    dequantise = DEQUANTISATIONS[settings.dequantisation]
    z_0, log_q = dequantise(dequantise_key, x, jnp.broadcast_to(log_snr_0, x.shape[:1]), num_levels)
    log_p, stats = ode.log_density(
        z_0,
        log_snr_0,
        log_snr_1,
        ode.ode_velocity(
            partial(model.estimate, params, context=Context(images.condition)),
            partial(model.increment, params),
        ),
        make_divergence(settings, probe_key, x.shape),
        settings.rtol,
        settings.atol,
    )
    return log_q - log_p, stats


def make_divergence(settings: Likelihood, key: Key, shape: tuple[int, ...]) -> ode.Divergence:
    """Returns the exact divergence for few dimensions, else Hutchinson's estimate by random signs; for a batch of `shape`."""
    if is_exact(settings, shape[1:]):
        return ode.exact_divergence
    # Random signs: E e e^T = I, and of all probes with independent entries
    # theirs has the least variance, as diagonal entries contribute none.
    probes = jax.random.rademacher(key, (settings.probes, *shape), jnp.zeros(()).dtype)
    return ode.hutchinson_divergence(probes)


def is_exact(settings: Likelihood, image_shape: tuple[int, ...]) -> bool:
    """Returns whether the divergence is computed exactly for images of this shape."""
    return int(np.prod(image_shape)) <= settings.exact_up_to


def likelihood_record(experiment: Experiment, likelihoods: OdeLikelihoods) -> dict[str, Any]:
    """Returns the metrics, and all settings needed to compare them with others."""
    solver, shape = experiment.likelihood, experiment.dataset.image_shape
    settings = resolve_batch_size(experiment.evaluate, experiment.batch_size)
    bits_per_dim = PassValues(likelihoods.nats / (np.prod(shape) * np.log(2)))
    exact, num_images = is_exact(solver, shape), likelihoods.nats.shape[1]
    return {
        **mean_and_errors("bpd_ode", bits_per_dim),
        **image_metadata(experiment.dataset, experiment.model, settings.split, num_images),
        "dequantisation": solver.dequantisation,
        "divergence": "exact" if exact else "hutchinson",
        **({} if exact else {"probes": solver.probes}),
        "rtol": solver.rtol,
        "atol": solver.atol,
        "evaluations": float(likelihoods.evaluations.mean()),
        **pass_metadata(settings),
        **run_metadata(experiment),
    }


def likelihood_table(record: Mapping[str, Any]) -> Table:
    """Returns the bound in bits/dim with both errors; the caption names the model it belongs to."""
    title = (
        f"{describe_images(record)}, {record['num_images']} images, {record['passes']} pass(es), "
        f"ODE with {record['divergence']} divergence, {record['evaluations']:.0f} evaluations, "
        f"{record['dequantisation']} dequantisation, step {record['step']}"
    )
    caption = f"{record['model']}\npixels {record['fingerprint'][:16]}"
    return errors_table(record, ("bpd_ode",), title, caption)
