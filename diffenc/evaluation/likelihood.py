"""--mode=likelihood: bits/dim of a trained run by its probability-flow ODE, and the parts of their gap to those of its ELBO.

The ODE gives a density exactly, except for the solver's error and, for images of many dimensions, the unbiased noise
of Hutchinson's estimate. Each image is solved twice, the second time at a tighter tolerance: the difference is the solver's error.
Images are discrete, so the bound -log P(x) <= E_q[log q(z_0 | x) - log p_0(z_0)] of dequantisation is measured.
The model of P depends on the encoder; see MODELLED, UNMODELLED and UNMODELLED_AT_T.

The gap to the continuous-time ELBO of the same images is measured in parts (`diffenc.evaluation.ode_gap`), with the noise that
remains along the solved path (`diffenc.evaluation.ode_likelihood.path_noise`).
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffenc.config.experiment import Experiment
from diffenc.config.network_precision import network_precision
from diffenc.core.model import Model
from diffenc.core.parameters import count_parameters
from diffenc.errors import UserError
from diffenc.evaluation.along_q import measure_along_q
from diffenc.evaluation.commands import publish_record
from diffenc.evaluation.likelihood_record import likelihood_record, likelihood_table
from diffenc.evaluation.measured_path import measured_model
from diffenc.evaluation.ode_gap import OdeGap
from diffenc.evaluation.ode_likelihood import STOPS, solve_images
from diffenc.evaluation.restore_params import restore_for_bound
from diffenc.evaluation.second_head import take_up_head
from diffenc.interfaces import Params
from diffenc.parallel.sharding import data_mesh
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


@on_local_copy
def likelihood(experiment: Experiment, workdir: Path) -> dict[str, Any]:
    """Measures bits/dim by the ODE and the parts of their gap to the ELBO, prints a table, writes likelihood.{json,npz}.

    Returns the record.

    Raises:
      UserError: no run there, one of another config, no such checkpoint, networks in bfloat16, or the solver
        did not reach the end.
    """
    mesh, settings, solver = data_mesh(experiment.mesh), experiment.evaluate, experiment.likelihood
    if network_precision(experiment) == "bfloat16":
        raise UserError(
            "--mode=likelihood: a solver that controls its error needs more digits than bfloat16 has; bind the "
            "networks' precision to 'float32'"
        )
    ema, step = restore_for_bound(experiment, workdir, mesh, settings.step)
    of_ode, params, head_of = take_up_head(experiment, workdir, ema, step)
    measured, path_of = measured_model(experiment, workdir, step)
    # A second head leaves the bound as it is and changes the ODE:
    # with one, the integrals along q need its value and slope.
    along_model = of_ode if head_of else measured
    # Regardless of JAX's setting: a solver that controls its error needs every digit.
    # Around compilation as well as calls: the setting acts when the program is traced.
    with jax.default_matmul_precision("highest"):
        # The same dequantisation noise and probes for both, so that they differ by the solver's error alone.
        solved, tighter = (
            solve_images(experiment, of_ode, mesh, params, factor) for factor in (1.0, solver.tighter)
        )
        along_q = measure_along_q(experiment, along_model, mesh, params)
        high, low = np.asarray(of_ode.log_snr(params, jnp.array([0.0, 1.0])), np.float64)
        gap = OdeGap.of(experiment, solved.nats, tighter.nats, along_q, float(high))
        record = {
            **likelihood_record(experiment, gap, solved, np.linspace(high, low, STOPS)),
            **path_of,
            **head_of,
            "model": describe_model(experiment, of_ode, params),
            "step": step,
            "num_params": count_parameters(params),
        }
    arrays = {
        "nats": solved.nats,
        "nats_tighter": tighter.nats,
        "evaluations": solved.evaluations,
        **{f"noise_{name}": squares for name, squares in solved.noise._asdict().items()},
        **along_q.nats,
        "times": along_q.times,
    }
    publish_record(workdir, "likelihood", record, arrays, likelihood_table(record))
    return record


def describe_model(experiment: Experiment, model: Model, params: Params) -> str:
    """Returns the description of the model that the likelihood of the ODE of `model` belongs to."""
    trained_at = experiment.num_timesteps
    if slope_is_modelled(model, params, experiment.dataset.image_shape, trained_at):
        return MODELLED
    return UNMODELLED_AT_T if trained_at else UNMODELLED
