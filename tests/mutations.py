"""Plants the classic faults of this field, one at a time, and shows which test kills each.

  python tests/mutations.py [--only=WORD]

Each fault is a change of a line or two in a copy of the checkout, where the tests that should know better are
run until one fails. The table says which; the exit status is 1 if a fault survives. About a minute a fault.
"""

import argparse
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
LEFT_BEHIND = shutil.ignore_patterns(
    ".git", ".venv*", ".cache", "__pycache__", "runs", ".pytest_cache", "build"
)

OBJECTIVE = "tests/diffenc/core/test_objective.py"
STOCHASTICITY = "tests/diffenc/core/test_stochasticity.py"
MODEL = "tests/diffenc/core/test_model.py"
SAMPLER = "tests/diffenc/sampling/test_sampler.py"
SOLVERS = "tests/diffenc/sampling/test_solvers.py"
ODE = "tests/diffenc/evaluation/test_ode.py"
ALONG_Q = "tests/diffenc/evaluation/test_along_q.py"
COMPRESSION = "tests/diffenc/compression/test_commands.py"
K_SAMPLE = "tests/diffenc/evaluation/test_k_sample.py"
GAUSSIAN = "tests/diffenc/core/test_gaussian.py"
TRAIN_STATE = "tests/diffenc/training/test_state.py"
TRAINED_BOUND = "tests/diffenc/training/test_trained_bound.py"
GRADIENT_CURVE = "tests/diffenc/training/test_gradient_curve.py"
LOSS_CURVE = "tests/diffenc/training/test_loss_curve.py"
FIT_VARIANCE = "tests/diffenc/evaluation/test_fit_variance.py"
CLASSES = "tests/diffenc/test_class_conditioning.py"
STUDY = "tests/experiments/test_study.py"
ENCODERS = "tests/plugins/encoders"
MEANS = "tests/plugins/generative_means"
PARAMETERIZATIONS = "tests/plugins/parameterizations"


@dataclasses.dataclass(frozen=True)
class Fault:
    """`old`, which `file` holds once, becomes `new`; `tests` should tell."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


FAULTS = (
    Fault(
        "counterterm dropped from the loss",
        "plugins/generative_means/builtin.py",
        "return interval.stretch * sigma_squared(interval.log_snr)",
        "return 0 * interval.stretch",
        (OBJECTIVE,),
    ),
    Fault(
        "counterterm not stretched over a discrete step",
        "plugins/generative_means/builtin.py",
        "return interval.stretch * sigma_squared(interval.log_snr)",
        "return sigma_squared(interval.log_snr)",
        (OBJECTIVE,),
    ),
    Fault(
        "sign of the slope",
        "diffenc/interfaces.py",
        "moved + offset + (right - true)",
        "moved + offset + (right + true)",
        (OBJECTIVE,),
    ),
    Fault(
        "sign of the secant",
        "diffenc/core/interval.py",
        "scale(1 / self.fraction, x_s - x_t)",
        "scale(1 / self.fraction, x_t - x_s)",
        (OBJECTIVE,),
    ),
    Fault(
        "lambda_t for lambda_s in the weight",
        "diffenc/core/objective.py",
        "fraction * jnp.exp(log_snr_s)",
        "fraction * jnp.exp(log_snr_t)",
        (OBJECTIVE,),
    ),
    Fault(
        "factor 1/2 of the discrete loss",
        "diffenc/core/objective.py",
        "weight = 0.5 * step.fraction",
        "weight = step.fraction",
        (OBJECTIVE,),
    ),
    Fault(
        "factor 1/2 of the continuous loss",
        "diffenc/core/objective.py",
        "-0.5 * rate",
        "-1.0 * rate",
        (OBJECTIVE,),
    ),
    Fault(
        "value and slope swapped",
        "diffenc/core/objective.py",
        "scale(interval.value_weight, error.value) + error.slope",
        "scale(interval.value_weight, error.slope) + error.value",
        (STOCHASTICITY,),
    ),
    Fault(
        "w applied twice",
        "diffenc/core/objective.py",
        "num_steps * jnp.exp(log_w)",
        "num_steps * jnp.exp(2 * log_w)",
        (OBJECTIVE,),
    ),
    Fault(
        "the encoder not stopped in the second head",
        "plugins/generative_means/two_heads.py",
        "*jax.lax.stop_gradient((step.z, interval.log_snr))",
        "step.z, interval.log_snr",
        (MEANS,),
    ),
    Fault(
        "the first head trained by the second's loss",
        "plugins/generative_means/two_heads.py",
        "jax.lax.stop_gradient(x_hat_error) + shift",
        "x_hat_error + shift",
        (MEANS,),
    ),
    Fault(
        "the second head left in the bound",
        "diffenc/core/value_head.py",
        "estimate.slope - scale(interval.value_weight, shift)",
        "estimate.slope",
        (MEANS, "tests/diffenc/training/test_fit_ode.py"),
    ),
    Fault(
        "the secant of alpha^2 over alpha_s^2",
        "plugins/generative_means/builtin.py",
        "growth = alpha_squared(interval.log_snr_s) / alpha_squared(interval.log_snr)",
        "growth = 1",
        (MEANS,),
    ),
    Fault(
        "eta^2 of the fit without the slope's error",
        "diffenc/evaluation/fit_stochasticity.py",
        "error.value + 2 * error.slope",
        "error.value + error.slope",
        ("tests/diffenc/evaluation/test_fit_stochasticity.py",),
    ),
    Fault(
        "the path of training where another is measured",
        "diffenc/evaluation/measured_path.py",
        "return dataclasses.replace(model, stochasticity=bound), ",
        "return model, ",
        ("tests/diffenc/evaluation/test_fit_stochasticity.py",),
    ),
    Fault(
        "factor 1/2 of the variances' cost",
        "diffenc/core/objective.py",
        "offset = 0.5 * step",
        "offset = step",
        (OBJECTIVE,),
    ),
    Fault(
        "w for 1 / w",
        "diffenc/core/objective.py",
        "num_steps * jnp.exp(log_w)",
        "num_steps * jnp.exp(-log_w)",
        (OBJECTIVE,),
    ),
    Fault(
        "eta^2 for (1 + eta^2) / 2",
        "diffenc/core/interval.py",
        "return 0.5 * (1 + self.eta_2)",
        "return self.eta_2",
        (STOCHASTICITY,),
    ),
    Fault(
        "the weight of the path, 1 / eta^2, dropped",
        "diffenc/core/objective.py",
        "jnp.exp(log_snr) / at.eta_2",
        "jnp.exp(log_snr)",
        (STOCHASTICITY,),
    ),
    Fault(
        "the weight of the path in a step, c / c_eta, dropped",
        "diffenc/core/objective.py",
        " * (step.fraction / step.renewed)",
        "",
        (STOCHASTICITY,),
    ),
    Fault(
        "the path of the paper, 1 - c, for g",
        "diffenc/core/interval.py",
        "mean_fraction(self.rise, self.clock_rise) / self.fraction",
        "mean_fraction(self.rise, self.rise) / self.fraction",
        (STOCHASTICITY,),
    ),
    Fault(
        "the clock of another step",
        "diffenc/core/interval.py",
        "return Chord(log_snr_t, log_snr_s, increment(log_snr_t, log_snr_s))",
        "return Chord(log_snr_t, log_snr_s, increment(2 * log_snr_t - log_snr_s, log_snr_t))",
        (STOCHASTICITY,),
    ),
    Fault(
        "the clock of the paper in the noise that a chain keeps",
        "diffenc/evaluation/k_sample.py",
        "clock_rise = model.increment(params, step.log_snr, log_snr_s)",
        "clock_rise = log_snr_s - step.log_snr",
        (K_SAMPLE,),
    ),
    Fault(
        "the weight of the path dropped from the table of costs",
        "diffenc/evaluation/step_costs.py",
        "return between.weight * sum_squares(error)",
        "return sum_squares(error)",
        ("tests/diffenc/evaluation/test_step_costs.py",),
    ),
    Fault(
        "the paper's path in the sampler's noise",
        "diffenc/sampling/solvers.py",
        "jnp.sqrt(rise * at.eta_2)",
        "jnp.sqrt(rise)",
        (SOLVERS,),
    ),
    Fault(
        "factor 1/2 of the latent loss",
        "diffenc/core/objective.py",
        "return 0.5 * (alpha_2",
        "return (alpha_2",
        (OBJECTIVE,),
    ),
    Fault(
        "alpha^2 for sigma^2 in the latent loss",
        "diffenc/core/objective.py",
        "(jax.nn.softplus(log_snr) - alpha_2)",
        "(jax.nn.softplus(log_snr) - (1 - alpha_2))",
        (OBJECTIVE,),
    ),
    Fault(
        "alpha^2 for sigma^2 in the encoder",
        "plugins/encoders/builtin.py",
        "scale(sigma_squared(log_snr), y)",
        "scale(alpha_squared(log_snr), y)",
        (ENCODERS,),
    ),
    Fault(
        "alpha^2 for sigma^2 in the counterterm",
        "plugins/generative_means/builtin.py",
        "return interval.stretch * sigma_squared(interval.log_snr)",
        "return interval.stretch * (1 - sigma_squared(interval.log_snr))",
        (MEANS,),
    ),
    Fault(
        "alpha for alpha^2 in the non-trainable encoder",
        "plugins/encoders/builtin.py",
        "return scale(alpha_squared(log_snr), x)\n",
        "return scale(alpha_squared(log_snr) ** 0.5, x)\n",
        (ENCODERS,),
    ),
    Fault(
        "sign of v",
        "plugins/parameterizations/builtin.py",
        "return -sigma, alpha",
        "return sigma, -alpha",
        (PARAMETERIZATIONS,),
    ),
    Fault(
        "d alpha^2 / d lambda by JAX's own rule",
        "diffenc/core/gaussian.py",
        "value * sigma_squared(log_snr) * tangent",
        "value * (1 - value) * tangent",
        (GAUSSIAN,),
    ),
    Fault(
        "every image told to be of class 0",
        "diffenc/parallel/sharding.py",
        'conditioning(batch["label"])',
        'conditioning(0 * batch["label"])',
        (CLASSES,),
    ),
    Fault(
        "a step's network told nothing in the table of costs",
        "diffenc/evaluation/step_costs.py",
        "model.x_hat_error(params, truth.value, eps, each, context)",
        "model.x_hat_error(params, truth.value, eps, each, Context(0 * condition))",
        (CLASSES,),
    ),
    Fault(
        "guidance away from the class",
        "diffenc/sampling/sampler.py",
        "(1 + weight) * one - weight * other",
        "(1 - weight) * one + weight * other",
        (SAMPLER,),
    ),
    Fault(
        "a blur whose width does not grow with the noise",
        "plugins/encoders/blurring.py",
        "self.width * sigma_squared(log_snr)",
        "self.width * sigma_squared(-log_snr)",
        (ENCODERS,),
    ),
    Fault(
        "a second dropout mask in the encoder",
        "diffenc/core/model.py",
        "prepared = self.prepare_images(params, x, encoder_context)",
        "prepared = self.prepare_images(params, x, Context(condition, network_keys))",
        (MODEL,),
    ),
    Fault(
        "the encoder told as little as the network",
        "diffenc/core/model.py",
        "encoder_context = Context(condition, encoder_keys)",
        "encoder_context = Context(network_condition, encoder_keys)",
        ("tests/diffenc/test_class_conditioning.py",),
    ),
    Fault(
        "one noise for z_t and z_0",
        "diffenc/core/model.py",
        "jax.random.normal(eps_0_key, shape_0), weight",
        "jax.random.normal(eps_key, shape_0), weight",
        (MODEL,),
    ),
    Fault(
        "the latent loss at lambda_0",
        "diffenc/core/model.py",
        "latent_loss(x_phi_1, log_snr_1)",
        "latent_loss(x_phi_1, log_snr_0)",
        (MODEL,),
    ),
    Fault(
        "x for x_phi in z_0",
        "diffenc/core/model.py",
        "pixels = objective.diffused_pixels(x_phi_0, eps_0, log_snr_0)",
        "pixels = objective.diffused_pixels(scale_pixels(levels, num_levels), eps_0, log_snr_0)",
        (MODEL,),
    ),
    Fault(
        "the average of the parameters not used: evaluation",
        "diffenc/evaluation/restore_params.py",
        'abstract = {"ema": abstract_params(',
        'abstract = {"params": abstract_params(',
        ("tests/diffenc/evaluation/test_commands.py",),
    ),
    Fault(
        "the average of the parameters not used: during training",
        "diffenc/training/hooks.py",
        "self._evaluator.measure(session.state.ema",
        "self._evaluator.measure(session.state.params",
        ("tests/diffenc/training/test_hooks.py",),
    ),
    Fault(
        "the average of the parameters not kept",
        "diffenc/training/state.py",
        "average + rate.astype(new.dtype) * (new - average)",
        "new",
        (TRAIN_STATE,),
    ),
    Fault(
        "a bias added in the precision of the maps",
        "plugins/networks/layers.py",
        "return (at_least_float32(h) + jnp.broadcast_to(bias, h.shape)).astype(h.dtype)",
        "return h + jnp.broadcast_to(bias, h.shape).astype(h.dtype)",
        ("tests/plugins/networks/test_layers.py",),
    ),
    Fault(
        "the first convolution in bfloat16",
        "plugins/networks/layers.py",
        'h = conv3x3(h, channels, "conv_in")',
        'h = conv3x3(h if precision == "float32" else h.astype(jnp.bfloat16), channels, "conv_in")',
        ("tests/plugins/networks/test_layers.py",),
    ),
    Fault(
        "attention's gradients of keys and values summed in bfloat16",
        "plugins/networks/layers.py",
        "wide_key, wide_value = key.astype(wide), value.astype(wide)",
        "wide_key, wide_value = key, value",
        ("tests/plugins/networks/test_layers.py",),
    ),
    Fault(
        "attention of the rows that fill the last chunk",
        "plugins/networks/layers.py",
        "return mixed[:, :positions].astype(query.dtype)",
        "return mixed[:, -positions:].astype(query.dtype)",
        ("tests/plugins/networks/test_layers.py",),
    ),
    Fault(
        "a forged index that has a piece of an array twice",
        "diffenc/checkpoint/arrays.py",
        "and all(n <= math.prod(wanted[name].shape) for name, n in _count_entries(pieces).items())",
        "",
        ("tests/diffenc/checkpoint/test_arrays.py",),
    ),
    Fault(
        "both ends at lambda_0",
        "diffenc/core/model.py",
        "_side_by_side(log_snr_0, log_snr_1)",
        "_side_by_side(log_snr_0, log_snr_0)",
        (MODEL,),
    ),
    Fault(
        "the same images at the ends in every step",
        "diffenc/training/gradient.py",
        "[:, first], images)",
        "[:, 0], images)",
        ("tests/diffenc/training/test_gradient.py",),
    ),
    Fault(
        "the blocks of a stack in another order",
        "plugins/networks/stacks.py",
        "for i, part in zip(sharing, split_leaves(",
        "for i, part in zip(sharing[::-1], split_leaves(",
        ("tests/plugins/networks/test_numpy.py",),
    ),
    Fault(
        "both halves of a random word the same",
        "plugins/networks/layers.py",
        "[words & 0xFFFF, words >> 16]",
        "[words & 0xFFFF, words & 0xFFFF]",
        ("tests/plugins/networks/test_layers.py",),
    ),
    Fault(
        "the skips of a loop in the wrong order",
        "plugins/networks/stacks.py",
        "return jax.lax.scan(lambda h, at: turn(h, *at), h, (blocks, xs), reverse=reverse)",
        "return jax.lax.scan(lambda h, at: turn(h, *at), h, (blocks, xs))",
        ("tests/plugins/networks/test_numpy.py",),
    ),
    Fault(
        "the reconstruction's gradient without its factor 2",
        "diffenc/core/pixels.py",
        "scale(-2 * half_snr, gap)",
        "scale(-half_snr, gap)",
        ("tests/diffenc/core/test_pixels.py",),
    ),
    Fault(
        "the schedule's interior trained on a part of the batch",
        "diffenc/training/gradient.py",
        'params["schedule"], batch.draws.t, diffusion / weight, weight',
        'params["schedule"], batch.draws.t[::2], (diffusion / weight)[::2], weight[::2]',
        ("tests/diffenc/training/test_gradient.py",),
    ),
    Fault(
        "the short last batch counted whole",
        "diffenc/evaluation/evaluator.py",
        "batch_terms, batch_draws = batch.without_padding(result)",
        "batch_terms, batch_draws = result",
        ("tests/diffenc/evaluation/test_evaluator.py",),
    ),
    Fault(
        "factor 2 of the fitted variance",
        "diffenc/evaluation/fit_variance.py",
        "to_excess = 2 / np.prod",
        "to_excess = 1 / np.prod",
        (FIT_VARIANCE,),
    ),
    Fault(
        "sigma_Q for sigma_P in the sampler",
        "diffenc/sampling/solvers.py",
        "scale(sigma * jnp.exp(-0.5 * log_w), noise)",
        "scale(sigma, noise)",
        (SOLVERS,),
    ),
    Fault(
        "lambda_t for the middle in the midpoint solver",
        "diffenc/sampling/solvers.py",
        "return step(log_snr_s, middle, step(middle, log_snr_t, z))",
        "return step(log_snr_s, log_snr_t, step(middle, log_snr_t, z))",
        (SOLVERS,),
    ),
    Fault(
        "the secant for the tangent on the diagonal of the costs",
        "diffenc/evaluation/step_costs.py",
        "between.either(slope, between.secant",
        "between.either(0 * slope, between.secant",
        ("tests/diffenc/evaluation/test_step_costs.py",),
    ),
    Fault(
        "a path with an edge too few",
        "diffenc/evaluation/cheapest_path.py",
        "for edge in range(1, num_edges + 1):",
        "for edge in range(1, num_edges):",
        ("tests/diffenc/evaluation/test_cheapest_path.py",),
    ),
    Fault(
        "the bound's gradient in the schedule's interior",
        "plugins/schedules/monotone.py",
        'self._log_snr(params["ends"], jax.lax.stop_gradient(params["interior"]), t)',
        'self._log_snr(params["ends"], params["interior"], t)',
        ("tests/plugins/schedules/test_monotone.py",),
    ),
    Fault(
        "loops of a compiled program counted once",
        "diffenc/tools/planning/hlo.py",
        "return [(name, trip_count(program, one)) for name",
        "return [(name, 1) for name",
        ("tests/diffenc/tools/planning/test_hlo.py",),
    ),
    Fault(
        "a stretch of the sampler estimated as one step",
        "diffenc/tools/planning/compiled_plan.py",
        "cycles / topology.kind.clock / steps if",
        "cycles / topology.kind.clock if",
        ("tests/diffenc/tools/planning/test_compiled_plan.py",),
    ),
    Fault(
        "VDM's schedule read without the shift to the middle of its times",
        "plugins/released_vdm.py",
        "2 * np.abs(a), c - np.abs(a)",
        "2 * np.abs(a), c",
        ("tests/plugins/test_released_vdm.py",),
    ),
    Fault(
        "counterterm dropped from the sampler",
        "diffenc/sampling/solvers.py",
        "scale(not_kept, estimate.value) + scale(step.fraction, estimate.slope)",
        "scale(not_kept, estimate.value)",
        (SAMPLER,),
    ),
    Fault(
        "counterterm dropped from DDIM",
        "diffenc/sampling/solvers.py",
        "scale(-jnp.expm1(-0.5 * step.rise), value) + scale(step.fraction, slope)",
        "scale(-jnp.expm1(-0.5 * step.rise), value)",
        (SOLVERS,),
    ),
    Fault(
        "sigma_t for sigma_s in the sampler",
        "diffenc/sampling/solvers.py",
        "return mu, sigma_s * jnp.sqrt(step.renewed)",
        "return mu, alpha_sigma(step.log_snr)[1] * jnp.sqrt(step.renewed)",
        (SAMPLER,),
    ),
    Fault(
        "the sign of the divergence",
        "diffenc/evaluation/ode.py",
        "return prior + num_dims * integrals[-1], path, stats",
        "return prior - num_dims * integrals[-1], path, stats",
        (ODE,),
    ),
    Fault(
        "looseness with the loss's weight of the value",
        "diffenc/evaluation/along_q.py",
        "scale(0.5 * (1 - eta_2), error.value)",
        "scale(0.5 * (1 + eta_2), error.value)",
        (ALONG_Q,),
    ),
    Fault(
        "miscalibration with all of the noise",
        "diffenc/evaluation/along_q.py",
        "noise_left = draws.eps - scale(root_snr, error.value)",
        "noise_left = draws.eps",
        (ALONG_Q,),
    ),
    Fault(
        "a truncated normal's entropy without its tails",
        "diffenc/core/dequantization.py",
        "return reach * density / mass - jnp.log(mass)",
        "return -jnp.log(mass)",
        ("tests/diffenc/core/test_dequantization.py",),
    ),
    Fault(
        "a second head that moves the sum",
        "diffenc/core/value_head.py",
        "estimate.slope - scale(interval.value_weight, shift)",
        "estimate.slope - shift",
        ("tests/diffenc/training/test_fit_ode.py",),
    ),
    Fault(
        "a saving measured on the half it was fitted to",
        "diffenc/evaluation/worth.py",
        "for other in halves[::-1]",
        "for other in halves",
        ("tests/diffenc/evaluation/test_worth.py",),
    ),
    Fault(
        "the SDE's drift in the ODE",
        "diffenc/evaluation/ode.py",
        "scale(alpha, 0.5 * value + slope)",
        "scale(alpha, value + slope)",
        (ODE,),
    ),
    Fault(
        "the truncation's mass forgotten",
        "diffenc/core/dequantization.py",
        "(log_sigma + jnp.log(mass))",
        "log_sigma",
        ("tests/diffenc/core/test_dequantization.py",),
    ),
    Fault(
        "sign of the mean's error in a chain's weight",
        "diffenc/evaluation/k_sample.py",
        "w * (sum_data(eps * shift)",
        "w * (-sum_data(eps * shift)",
        (K_SAMPLE,),
    ),
    Fault(
        "a stream's variance the wrong way round",
        "diffenc/compression/numbers.py",
        "np.exp(-0.5 * self.log_w)",
        "np.exp(0.5 * self.log_w)",
        (COMPRESSION,),
    ),
    Fault(
        "bits not whitened before the next batch",
        "diffenc/compression/coding.py",
        "stack.whiten(number) if number else 0",
        "0",
        (COMPRESSION,),
    ),
    Fault(
        "latents counted from another cell under p",
        "diffenc/compression/bits_back.py",
        "np.rint(mean_p.astype(np.float64) / self.width)",
        "np.floor(mean_p.astype(np.float64) / self.width)",
        ("tests/diffenc/compression/test_bits_back.py",),
    ),
    Fault(
        "importance-sampled times not weighed",
        "diffenc/core/model.py",
        "terms = Terms(reconstruction, latent, draws.weight * objective.step_loss(step, error))",
        "terms = Terms(reconstruction, latent, objective.step_loss(step, error))",
        (MODEL,),
    ),
    Fault(
        "the rate forgotten where the schedule's interior is trained",
        "diffenc/training/schedule_objective.py",
        "jnp.square(loss / jnp.mean(weight * loss)) / rate",
        "jnp.square(loss / jnp.mean(weight * loss))",
        ("tests/diffenc/training/test_schedule_objective.py",),
    ),
    Fault(
        "training at T: in continuous time all the same",
        "diffenc/training/trained_bound.py",
        "if num_timesteps == 0:",
        "if num_timesteps >= 0:",
        (TRAINED_BOUND,),
    ),
    Fault(
        "training at T: the chain of another T",
        "diffenc/training/trained_bound.py",
        "times = equal_times(num_timesteps)",
        "times = equal_times(num_timesteps + 1)",
        (TRAINED_BOUND,),
    ),
    Fault(
        "training at T: w applied twice",
        "diffenc/training/trained_bound.py",
        "times, variance_given(variance, params))",
        "times, lambda *steps: 2 * variance_given(variance, params)(*steps))",
        (TRAINED_BOUND,),
    ),
    Fault(
        "training at T: no gradient in the schedule's interior",
        "diffenc/training/trained_bound.py",
        "self.schedule.apply(params, t) + (interior - jax.lax.stop_gradient(interior))",
        "self.schedule.apply(params, t) + 0 * jax.lax.stop_gradient(interior)",
        (TRAINED_BOUND,),
    ),
    Fault(
        "training at T: the interior's other objective as well",
        "diffenc/training/gradient.py",
        'bound.model.schedule, params["schedule"], batch',
        'experiment.model.schedule, params["schedule"], batch',
        (TRAINED_BOUND,),
    ),
    Fault(
        "training at T: a learned w forgotten",
        "plugins/variances/builtin.py",
        'return _Given(params["log_w"])',
        'return _Given(0 * params["log_w"])',
        (TRAINED_BOUND,),
    ),
    Fault(
        "training at T: a learned w left out of what is measured",
        "diffenc/workdir/fitted_chains.py",
        "variance_given(self.variance, params)",
        'variance_given(self.variance, {"variance": {"log_w": 0 * params.get("variance", {"log_w": 0})["log_w"]}})',
        ("tests/diffenc/evaluation/test_trained_depth.py",),
    ),
    Fault(
        "training at T: measured in continuous time unless told",
        "diffenc/config/settings.py",
        "filled = _fill(self, trained, trained.num_timesteps)",
        "filled = _fill(self, trained, 0)",
        ("tests/diffenc/config/test_depth.py",),
    ),
    Fault(
        "training at T: its variance at every other T",
        "diffenc/config/settings.py",
        "trained.variance if as_trained else EQUAL",
        "trained.variance if num_timesteps else EQUAL",
        ("tests/diffenc/config/test_depth.py",),
    ),
    Fault(
        "training times: the weight left in the curve of the loss",
        "diffenc/training/loss_curve.py",
        "jnp.square(weighted / draws.weight)",
        "jnp.square(weighted)",
        (LOSS_CURVE,),
    ),
    Fault(
        "training times: drawn by another curve than the run's",
        "diffenc/training/state.py",
        "bind_curve(experiment.time_sampler, state.curve)",
        "bind_curve(experiment.time_sampler, begin_curve(experiment.time_sampler))",
        (LOSS_CURVE,),
    ),
    Fault(
        "training times: the curve forgotten from step to step",
        "diffenc/training/state.py",
        "update_curve(state.curve, batch)",
        "update_curve(begin_curve(experiment.time_sampler), batch)",
        (LOSS_CURVE,),
    ),
    Fault(
        "training times: the interior of a schedule as if drawn uniformly",
        "diffenc/training/gradient.py",
        "diffusion / weight, weight",
        "diffusion",
        (LOSS_CURVE,),
    ),
    Fault(
        "the encoder's gradients not weighed against the network's",
        "diffenc/training/gradient_curve.py",
        "means / jnp.where(total > 0, jnp.mean(means), 1.0)",
        "means",
        (GRADIENT_CURVE,),
    ),
    Fault(
        "norms of gradients not squared",
        "diffenc/training/gradient_curve.py",
        "jnp.sum(jnp.square(leaf))",
        "jnp.sqrt(jnp.sum(jnp.square(leaf)))",
        (GRADIENT_CURVE,),
    ),
    Fault(
        "the devices' gradients not averaged",
        "diffenc/training/gradient.py",
        "total / (experiment.microbatches * num_devices)",
        "total / experiment.microbatches",
        ("tests/diffenc/parallel/test_sharding.py",),
    ),
    Fault(
        "one dropout mask for all images",
        "diffenc/training/gradient.py",
        "jax.random.split(dropout_key, shape[0])",
        "jnp.stack([dropout_key] * shape[0])",
        ("tests/diffenc/training/test_gradient.py",),
    ),
    Fault(
        "a split parameter's moments copied",
        "diffenc/parallel/param_sharding.py",
        "        if spec is not None and param_shape == shape:\n",
        "        if spec is not None and param_shape == shape and start < 1:\n",
        ("tests/diffenc/parallel/test_param_sharding.py",),
    ),
    Fault(
        "each process takes the first rows",
        "diffenc/parallel/sharding.py",
        "return np.unique(np.concatenate([np.arange(batch_size)[span] for span in spans]))",
        "return np.arange(sum(len(np.arange(batch_size)[span]) for span in spans))",
        ("tests/cli/test_processes.py",),
    ),
    Fault(
        "an evaluation on another path counts as the run's own",
        "diffenc/tools/sweep/runs.py",
        "        MEASURED_PATH: measured_path(experiment).get(MEASURED_PATH),\n",
        "",
        ("tests/diffenc/tools/sweep/test_sweep.py",),
    ),
    Fault(
        "comparisons without a run are left out of Holm's correction",
        "diffenc/tools/sweep/comparison.py",
        "_tests_sheet(tests, notes, len(missing))",
        "_tests_sheet(tests, notes, 0)",
        ("tests/diffenc/tools/sweep/test_results.py",),
    ),
    Fault(
        "rows of fewer seeds are never complete",
        "diffenc/tools/tables/components.py",
        "planned = {line.row.name: {run.seed for run in line.runs} for line in lines}",
        "planned = {line.row.name: {run.seed for each in lines for run in each.runs} for line in lines}",
        ("tests/diffenc/tools/tables/test_tables.py",),
    ),
    Fault(
        "a run's config chooses where compress writes",
        "diffenc/config/gin_loader.py",
        "from_run and (selector, field) in WRITTEN",
        "not from_run and (selector, field) in WRITTEN",
        ("tests/diffenc/config/test_gin_loader.py",),
    ),
    Fault(
        "the encoder's default groups ignore its last norm",
        "plugins/networks/encoder_unet.py",
        "for each in layers.possible_groups(channels) if channels % halve(each) == 0)",
        "for each in layers.possible_groups(channels))",
        ("tests/plugins/networks/test_encoder_unet.py",),
    ),
    Fault(
        "the slope is tested for the first class alone",
        "diffenc/sampling/solvers.py",
        "jax.lax.map(of_class, (keys, conditions))",
        "jax.lax.map(of_class, (keys[:1], jax.tree.map(lambda leaf: leaf[:1], conditions)))",
        (SOLVERS,),
    ),
    Fault(
        "products within a loop are left exact",
        "experiments/rounded_products.py",
        'elif eqn.primitive.name == "scan":',
        'elif eqn.primitive.name == "no scan":',
        ("tests/experiments/test_rounded_products.py",),
    ),
    Fault(
        "a notebook's float64 reaches the training",
        "diffenc/training/loop.py",
        "with jax.enable_x64(False):",
        'with jax.enable_x64(jax.config.read("jax_enable_x64")):',
        ("tests/diffenc/training/test_loop.py",),
    ),
    Fault(
        "training losses are means over rows, not steps",
        "experiments/study/records.py",
        "weights=weights[part]",
        "weights=None",
        (STUDY,),
    ),
    Fault(
        "the path of training named explicitly is another path",
        "diffenc/tools/report/evaluation_spec.py",
        "path = None if path == trained else path",
        "path = path or trained",
        ("tests/diffenc/tools/report/test_charts.py",),
    ),
    Fault(
        "a win over one rival is enough",
        "experiments/study/verdicts.py",
        "return max((1.0 if p is None else p for p in found), default=None)",
        "return min((1.0 if p is None else p for p in found), default=None)",
        (STUDY,),
    ),
    Fault(
        "verdicts without Holm's correction",
        "experiments/study/verdicts.py",
        "p_holm=None if p is None else holm)",
        "p_holm=None if p is None else p)",
        (STUDY,),
    ),
    Fault(
        "comparisons without p are left out of the correction",
        "experiments/study/verdicts.py",
        "corrected = holm_correction([1.0 if p is None else p for p in found])",
        "tested = iter(holm_correction([p for p in found if p is not None]))\n"
        "    corrected = [1.0 if p is None else next(tested) for p in found]",
        (STUDY,),
    ),
    Fault(
        "compared with the worst rival",
        "experiments/study/verdicts.py",
        'key=lambda arm: results[arm].values("total").mean())',
        'key=lambda arm: -results[arm].values("total").mean())',
        (STUDY,),
    ),
    Fault(
        "a shared Monte-Carlo error is no obstacle to a verdict",
        "experiments/study/verdicts.py",
        "are_small = all(each.by_pass.mc_se <= stats.sem(each.differences) / 2 for each in self.contrasts)",
        "are_small = True",
        (STUDY,),
    ),
    Fault(
        "the Monte-Carlo error of one rival alone looked at",
        "experiments/study/verdicts.py",
        "for each in self.contrasts)\n        if self.p_holm is None",
        "for each in self.contrasts[:1])\n        if self.p_holm is None",
        (STUDY,),
    ),
    Fault(
        "the slope of the training loss fitted to all steps",
        "experiments/study/records.py",
        "last = steps > steps[-1] - WINDOW",
        "last = steps > 0",
        (STUDY,),
    ),
    Fault(
        "seeds in which A is higher counted as lower",
        "experiments/study/results.py",
        "(differences < 0).sum()",
        "(differences > 0).sum()",
        (STUDY,),
    ),
    Fault(
        "training losses of other seeds subtracted",
        "experiments/study/figures.py",
        "losses[arm][seed] - level[seed]",
        "losses[arm][seed] - level[seeds[0]]",
        (STUDY,),
    ),
    Fault(
        "learned times measured from a straight line",
        "experiments/study/figures.py",
        "return np.asarray(schedule.apply(schedule.init(jax.random.key(experiment.seed)), times))",
        "return np.asarray(schedule.log_snr_max + (schedule.log_snr_min - schedule.log_snr_max) * times)",
        (STUDY,),
    ),
    Fault(
        "intervals of one comparison called those of all",
        "experiments/study/verdicts.py",
        "level = 1 - ALPHA / max(num_rows, 1)",
        "level = LEVEL",
        (STUDY,),
    ),
    Fault(
        "an interval of the normal distribution for five seeds",
        "experiments/study/results.py",
        "stats.t.interval(level, len(values) - 1, values.mean(), stats.sem(values))",
        "stats.norm.interval(level, values.mean(), stats.sem(values))",
        (STUDY,),
    ),
    Fault(
        "another path's bound with the sign of the arm's own minus it",
        "experiments/study/results.py",
        'there.values("total") - own.select(there.seeds).values("total")',
        'own.select(there.seeds).values("total") - there.values("total")',
        (STUDY,),
    ),
    Fault(
        "the learned chain of the first checkpoint drawn",
        "experiments/study/figures.py",
        "by_step[max(by_step)]",
        "by_step[min(by_step)]",
        (STUDY,),
    ),
    Fault(
        "hours of training counted from every row's whole step",
        "experiments/study/records.py",
        'steps = np.diff([0, *(row["step"] for row in rows)])',
        'steps = np.array([row["step"] for row in rows])',
        (STUDY,),
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="only faults whose name holds this")
    only = parser.parse_args(argv).only
    chosen = [fault for fault in FAULTS if only in fault.name]
    if not sound(chosen):
        return 1
    verdicts = []
    for fault in chosen:
        verdicts.append((fault, killer(fault)))
        print(row(*verdicts[-1]), file=sys.stderr, flush=True)
    print("| fault | killed by |\n|---|---|")
    print("\n".join(row(*verdict) for verdict in verdicts))
    return 0 if all(test for _, test in verdicts) else 1


def sound(faults: Sequence[Fault]) -> bool:
    """Whether the tests pass without a fault, or their failing would show nothing."""
    done = run_tests(ROOT, sorted({test for fault in faults for test in fault.tests}))
    if done.returncode:
        print(f"the tests fail as they are:\n{done.stdout}", file=sys.stderr)
    return done.returncode == 0


def row(fault: Fault, test: str | None) -> str:
    """A line of the table."""
    return f"| {fault.name} (`{fault.file}`) | {f'`{test}`' if test else '**survived**'} |"


def killer(fault: Fault) -> str | None:
    """The first test that fails on the planted fault; None if all pass.

    Raises:
      RuntimeError: pytest could not even collect the tests.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "checkout"
        shutil.copytree(ROOT, copy, symlinks=True, ignore=LEFT_BEHIND)
        plant(fault, copy)
        done = run_tests(copy, fault.tests)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{fault.name}: pytest ended with status {done.returncode}\n{done.stdout}")
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return failed[1] if failed else None


def plant(fault: Fault, folder: Path) -> None:
    """Change the copy in `folder`.

    Raises:
      ValueError: the text is not there, or there more than once.
    """
    file = folder / fault.file
    text = file.read_text()
    if text.count(fault.old) != 1:
        raise ValueError(f"{fault.name}: {fault.file} holds {fault.old!r} {text.count(fault.old)} times")
    file.write_text(text.replace(fault.old, fault.new))


def run_tests(folder: Path, tests: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """pytest in `folder`, on the packages that lie there, until the first failure."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (folder, folder / "typings"))),
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "xla"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    quick = ("-m", "not slow and not docs")  # those of `make test` must tell by themselves
    command = [sys.executable, "-m", "pytest", "-q", "-x", *quick, "-p", "no:cacheprovider", *tests]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


if __name__ == "__main__":
    sys.exit(main())
