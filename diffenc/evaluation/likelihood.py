"""--mode=likelihood: bits/dim of a trained run by its probability-flow ODE, beside those of its ELBO.

The ODE gives a density exactly, but for the solver's error and, for images of many dimensions, the unbiased noise of
Hutchinson's estimate. The solver's error is not in the errors stated: it adds up over steps and dimensions, and for a
trained network in float32 was measured at 7e-4 bits/dim of an image at the default tolerance, 9e-3 at 1e-5. Images are discrete, though: what is stated for them is the bound
-log P(x) <= E_q[log q(z_0 | x) - log p_0(z_0)] that dequantisation leaves. Whose P that is depends on the encoder;
see MODELLED and UNMODELLED.
"""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int
from rich.table import Table

from diffenc.config import serialize
from diffenc.config.experiment import Experiment
from diffenc.config.settings import Likelihood
from diffenc.core.dequantization import DEQUANTISATIONS
from diffenc.core.model import Model
from diffenc.core.parameters import count_parameters
from diffenc.core.pixels import scale_pixels
from diffenc.data.sources import describe_images
from diffenc.errors import UserError
from diffenc.evaluation import ode
from diffenc.evaluation.batches import EvaluationBatches, compile_on_mesh
from diffenc.evaluation.commands import publish_record, restore_for_bound
from diffenc.evaluation.evaluator import (
    PerImage,
    circumstances,
    errors_table,
    image_metadata,
    mean_and_errors,
)
from diffenc.evaluation.image_error import PassValues
from diffenc.interfaces import Images, Key, Params, PerExample
from diffenc.parallel.sharding import data_mesh
from diffenc.runtime.progress import Progress
from diffenc.sampling.sampler import x_hat_of
from diffenc.sampling.solvers import slope_is_modelled
from diffenc.workdir.mirror import on_local_copy

MODELLED = "the probability-flow ODE of the trained SDE: it has the SDE's marginals where the denoiser is the best one"
UNMODELLED = (
    "an ODE of its own: the encoder's slope is not kappa x_phi, so this likelihood is not that of the SDE "
    "whose bound was trained"
)


class OdeLikelihoods(NamedTuple):
    """What solving for a set of images gave.

    Attributes:
      nats: log q(z_0 | x) - log p_0(z_0) of each image in source order; its mean bounds -log P(x).
      evaluations: of the network, for each batch of each pass.
    """

    nats: PerImage
    evaluations: Int[np.ndarray, "passes batches"]


@on_local_copy
def likelihood(experiment: Experiment, workdir: Path) -> dict[str, Any]:
    """Measure bits/dim by the ODE, print a table, file it as likelihood.{json,npz}; returns what the JSON says.

    Raises:
      UserError: no run there, one of another config, no such checkpoint, networks in bfloat16, or the ODE could
        not be solved.
    """
    mesh, settings = data_mesh(experiment.mesh), experiment.evaluate
    if serialize.network_precision(experiment) == "bfloat16":
        raise UserError(
            "--mode=likelihood: a solver that controls its error needs more digits than bfloat16 has; bind the "
            "networks' precision to 'float32'"
        )
    ema, step = restore_for_bound(experiment, workdir, mesh, settings.step)
    modelled = slope_is_modelled(experiment.model, ema, experiment.dataset.image_shape)
    # whatever JAX is set to: a solver that controls its error needs every digit
    with jax.default_matmul_precision("highest"):
        solved = solve_images(experiment, mesh, ema)
        figures = {
            **likelihood_record(experiment, solved),
            "model": MODELLED if modelled else UNMODELLED,
            "step": step,
            "num_params": count_parameters(ema),
        }
    publish_record(workdir, "likelihood", figures, solved._asdict(), likelihood_table(figures))
    return figures


def solve_images(experiment: Experiment, mesh: Mesh, params: Params) -> OdeLikelihoods:
    """Every image once a pass, each time with dequantisation and probes drawn afresh.

    Raises:
      UserError: the ODE could not be solved, or the batch does not divide over the devices.
    """
    passes = EvaluationBatches(experiment, experiment.evaluate, mesh, "likelihood")
    solve = partial(batch_nats, experiment.model, experiment.dataset.num_levels, experiment.likelihood)
    compiled, progress = compile_on_mesh(mesh, solve), Progress("likelihood", len(passes))
    nats, evaluations = [], []
    for visit in passes:
        bound, stats = jax.device_get(compiled(params, visit.images, visit.key))
        ode.require_reached(stats)
        nats.append(bound[visit.real].astype(np.float64))
        evaluations.append(stats.evaluations)
        progress()
    by_pass = np.stack([np.concatenate(one) for one in passes.by_pass(nats)])
    return OdeLikelihoods(by_pass, np.array(passes.by_pass(evaluations)))


def batch_nats(
    model: Model, num_levels: int, settings: Likelihood, params: Params, images: Images, key: Key
) -> tuple[PerExample, ode.Stats]:
    """log q(z_0 | x) - log p_0(z_0) in nats [B], from one z_0 of each image; no dropout."""
    dequantise_key, probe_key = jax.random.split(key)
    x = scale_pixels(images.levels, num_levels)
    log_snr_0, log_snr_1 = model.schedule.apply(params["schedule"], jnp.array([0.0, 1.0]))
    dequantise = DEQUANTISATIONS[settings.dequantisation]
    z_0, log_q = dequantise(dequantise_key, x, jnp.broadcast_to(log_snr_0, x.shape[:1]), num_levels)
    log_p, stats = ode.log_density(
        z_0,
        log_snr_0,
        log_snr_1,
        ode.ode_velocity(x_hat_of(model, params, images.condition), model.generative_mean),
        make_divergence(settings, probe_key, x.shape),
        settings.rtol,
        settings.atol,
    )
    return log_q - log_p, stats


def make_divergence(settings: Likelihood, key: Key, shape: tuple[int, ...]) -> ode.Divergence:
    """Exact for few dimensions, else Hutchinson's estimate by random signs; for a batch of `shape`."""
    if is_exact(settings, shape[1:]):
        return ode.exact_divergence
    return ode.hutchinson(jax.random.rademacher(key, (settings.probes, *shape), jnp.zeros(()).dtype))


def is_exact(settings: Likelihood, image_shape: tuple[int, ...]) -> bool:
    return int(np.prod(image_shape)) <= settings.exact_up_to


def likelihood_record(experiment: Experiment, solved: OdeLikelihoods) -> dict[str, Any]:
    """The figures, and all of the settings that one must know to compare them."""
    settings, shape = experiment.likelihood, experiment.dataset.image_shape
    exact = is_exact(settings, shape)
    return {
        **mean_and_errors("bpd_ode", PassValues(solved.nats / (np.prod(shape) * np.log(2)))),
        **image_metadata(experiment, experiment.evaluate, solved.nats.shape[1]),
        "dequantisation": settings.dequantisation,
        "divergence": "exact" if exact else "hutchinson",
        **({} if exact else {"probes": settings.probes}),
        "rtol": settings.rtol,
        "atol": settings.atol,
        "evaluations": float(solved.evaluations.mean()),
        **circumstances(experiment, experiment.evaluate),
    }


def likelihood_table(figures: dict[str, Any]) -> Table:
    """The bound in bits/dim with both errors, and below it whose bound it is."""
    title = (
        f"{describe_images(figures)}, {figures['num_images']} images, {figures['passes']} pass(es), "
        f"ODE with {figures['divergence']} divergence, {figures['evaluations']:.0f} evaluations, "
        f"{figures['dequantisation']} dequantisation, step {figures['step']}"
    )
    caption = f"{figures['model']}\npixels {figures['fingerprint'][:16]}"
    return errors_table(figures, ("bpd_ode",), title, caption)
