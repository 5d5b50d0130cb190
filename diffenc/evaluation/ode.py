"""The probability-flow ODE in lambda = log SNR, and the exact density of the model that it is.

With x_hat the estimate of x_phi and kappa x_hat that of its slope,

    dz / d lambda = 1/2 sigma^2 z + alpha kappa x_hat + 1/2 (alpha x_hat - z)
                  = -1/2 alpha^2 z + alpha (kappa + 1/2) x_hat.

Read from t = 1 it turns N(0, I) into a density of z_0. Along a path d log p / d lambda = -div, hence

    log p_0(z_0) = log N(z_1; 0, I) + integral from lambda_0 to lambda_1 of div d lambda.

A whole batch is solved as one system, whose steps suit the most difficult of its examples; what an example
is given depends on the others, then, as it does on the tolerance.
"""

from collections.abc import Callable
from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffenc.core.gaussian import alpha_sigma, scale, sum_data, sum_squares
from diffenc.errors import UserError
from diffenc.interfaces import Data, GenerativeMean, LogSNR, PerExample
from diffenc.sampling.solvers import XHat

Velocity = Callable[[Data, LogSNR], Data]
Flow = Callable[[Data], Data]  # a velocity at a given lambda
Divergence = Callable[[Flow, Data], tuple[Data, PerExample]]
Scalar = Float[Array, ""]
Tolerance = float | Scalar

MAX_STEPS = 2000
SMALLEST_STEP = 1e-6  # of lambda; float32 knows no smaller one where lambda = 13


class Stats(NamedTuple):
    """How a solve went.

    Attributes:
      evaluations: of the velocity, each for the whole batch.
      reached: whether it came to its end; if not, what it returned means nothing.
    """

    evaluations: Int[Array, ""]
    reached: Bool[Array, ""]


def ode_velocity(x_hat: XHat, mean: GenerativeMean) -> Velocity:
    """dz / d lambda of the model whose reverse process assumes that x_phi has the slope kappa x_hat."""

    def dz(z: Data, log_snr: LogSNR) -> Data:
        alpha, _ = alpha_sigma(log_snr)
        pull = alpha * (mean(log_snr) + 0.5)
        return scale(pull, x_hat(z, log_snr)) - scale(0.5 * jnp.square(alpha), z)

    return dz


def exact_divergence(flow: Flow, z: Data) -> tuple[Data, PerExample]:
    """flow(z) and its divergence, by a derivative along each dimension: for few of them."""
    basis = jnp.eye(z[0].size, dtype=z.dtype).reshape(-1, 1, *z.shape[1:])
    dz, forms = _quadratic_forms(flow, z, jnp.broadcast_to(basis, (len(basis), *z.shape)))
    return dz, forms.sum(axis=0)


def hutchinson(probes: Float[Array, "k b *d"]) -> Divergence:
    """The mean of e . J e over k probes, unbiased if E e e^T = I. The probes stay the same along the path."""

    def divergence(flow: Flow, z: Data) -> tuple[Data, PerExample]:
        dz, forms = _quadratic_forms(flow, z, probes)
        return dz, forms.mean(axis=0)

    return divergence


def _quadratic_forms(
    flow: Flow, z: Data, tangents: Float[Array, "k b *d"]
) -> tuple[Data, Float[Array, "k b"]]:
    """flow(z), and e . J e of each tangent e: each example's own, since examples do not meet in a flow."""
    dz, push = jax.linearize(flow, z)
    return dz, jax.vmap(lambda e: sum_data(e * push(e)))(tangents)


def log_density(
    z_0: Data,
    log_snr_0: Scalar,
    log_snr_1: Scalar,
    velocity: Velocity,
    divergence: Divergence,
    rtol: Tolerance,
    atol: Tolerance,
) -> tuple[PerExample, Stats]:
    """log p_0(z_0) in nats [B] of the ODE between `log_snr_0`, the data's end, and `log_snr_1`, the noise's."""
    num_dims = z_0[0].size

    def field(log_snr: Scalar, state: tuple[Data, PerExample]) -> tuple[Data, PerExample]:
        z, _ = state
        at = jnp.broadcast_to(log_snr, z.shape[:1])
        dz, div = divergence(lambda z: velocity(z, at), z)
        return dz, div / num_dims  # of the size of z, so that one tolerance suits both

    start = z_0, jnp.zeros(z_0.shape[:1], z_0.dtype)
    (z_1, integral), stats = _solve(field, start, log_snr_0, log_snr_1, rtol, atol)
    prior = -0.5 * (sum_squares(z_1) + num_dims * jnp.log(2 * jnp.pi))
    return prior + num_dims * integral, stats


def transport(
    z: Data, log_snr_from: Scalar, log_snr_to: Scalar, velocity: Velocity, rtol: Tolerance, atol: Tolerance
) -> tuple[Data, Stats]:
    """z carried along the ODE: a sampler, from noise at the smallest log_snr to data at the largest."""

    def field(log_snr: Scalar, z: Data) -> Data:
        return velocity(z, jnp.broadcast_to(log_snr, z.shape[:1]))

    return _solve(field, z, log_snr_from, log_snr_to, rtol, atol)


def require_reached(stats: Stats) -> None:
    """Raise UserError if the solver gave up; for a solve that has been computed, not while tracing."""
    if not stats.reached:
        raise UserError(
            f"the ODE was not solved: it takes more than {MAX_STEPS} steps, or steps below {SMALLEST_STEP} of log_snr; "
            "bind likelihood.rtol and likelihood.atol higher, or add --x64"
        )


def _solve(field, start, log_snr_from: Scalar, log_snr_to: Scalar, rtol: Tolerance, atol: Tolerance):
    """The state at `log_snr_to`, and Stats."""
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda log_snr, state, _: field(log_snr, state)),
        diffrax.Tsit5(),
        log_snr_from,
        log_snr_to,
        dt0=None,
        y0=start,
        stepsize_controller=diffrax.PIDController(
            rtol=rtol, atol=atol, norm=_worst_example, dtmin=SMALLEST_STEP, force_dtmin=False
        ),
        adjoint=diffrax.ForwardMode(),
        max_steps=MAX_STEPS,
        throw=False,
    )
    evaluations = 6 * solution.stats["num_steps"] + 1  # a step's last stage is the first of the next
    reached = solution.result == diffrax.RESULTS.successful
    return jax.tree.map(lambda leaf: leaf[0], solution.ys), Stats(evaluations, reached)


def _worst_example(errors) -> Scalar:
    """The largest error of any example, each the root mean square over its dimensions; NaN is infinite."""
    squares = [jnp.square(leaf).reshape(len(leaf), -1).mean(axis=1) for leaf in jax.tree.leaves(errors)]
    worst = jnp.sqrt(jnp.max(jnp.stack(squares)))
    return jnp.where(jnp.isnan(worst), jnp.inf, worst)  # so that the step is tried again, shorter
