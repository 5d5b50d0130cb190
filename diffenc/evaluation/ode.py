"""The probability-flow ODE in lambda = log SNR, and the exact density of the model that it defines.

With the estimates of x_phi and of its slope by the generative mean,

    dz / d lambda = 1/2 sigma^2 z + alpha slope + 1/2 (alpha value - z)
                  = -1/2 alpha^2 z + alpha (slope + 1/2 value).

Solved from t = 1, it maps N(0, I) to a density of z_0. Along a path d log p / d lambda = -div, hence

    log p_0(z_0) = log N(z_1; 0, I) + integral from lambda_0 to lambda_1 of div d lambda.

A whole batch is solved as one system, with step sizes that suit its most difficult example. So the result of an
example depends on the other examples, within the tolerance.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffenc.core.gaussian import alpha_sigma, alpha_squared, scale, sum_data, sum_squares
from diffenc.core.interval import tangent
from diffenc.core.reverse import Estimator
from diffenc.core.stochasticity import Increment
from diffenc.errors import UserError
from diffenc.interfaces import Data, LogSNR, PerExample

Velocity = Callable[[Data, LogSNR], Data]
Flow = Callable[[Data], Data]  # a velocity at a given lambda
Divergence = Callable[[Flow, Data], tuple[Data, PerExample]]
Scalar = Float[Array, ""]
Tolerance = float | Scalar

MAX_STEPS = 2000
MIN_STEP = 1e-6  # of lambda; the spacing of float32 at lambda = 13


class Stats(NamedTuple):
    """Statistics of a solve.

    Attributes:
      evaluations: number of evaluations of the velocity, each for the whole batch.
      reached: whether it reached the end of the interval; if not, its result is invalid.
    """

    evaluations: Int[Array, ""]
    reached: Bool[Array, ""]


def ode_velocity(estimate: Estimator, increment: Increment) -> Velocity:
    """Returns dz / d lambda of the model with these estimates, trained on the path of `increment`."""
    pull = ode_pull(estimate, increment)

    def dz(z: Data, log_snr: LogSNR) -> Data:
        return pull(z, log_snr) - scale(0.5 * alpha_squared(log_snr), z)

    return dz


def ode_pull(estimate: Estimator, increment: Increment) -> Velocity:
    """Returns the estimates' part of the velocity, alpha (1/2 value + slope): all but the decay -1/2 alpha^2 z."""

    def pull(z: Data, log_snr: LogSNR) -> Data:
        alpha, _ = alpha_sigma(log_snr)
        value, slope = estimate(z, tangent(increment, log_snr))
        # Independent of the path, since all paths have the same marginals;
        # `increment` only makes the step that the mean is evaluated at.
        return scale(alpha, 0.5 * value + slope)

    return pull


def exact_divergence(flow: Flow, z: Data) -> tuple[Data, PerExample]:
    """Returns flow(z) and its divergence, by a derivative along each dimension: for few dimensions."""
    # [d, 1, ...] broadcast to [d, b, ...]: one tangent per dimension, the same for all examples.
    basis = jnp.eye(z[0].size, dtype=z.dtype).reshape(-1, 1, *z.shape[1:])
    dz, forms = _quadratic_forms(flow, z, jnp.broadcast_to(basis, (len(basis), *z.shape)))
    return dz, forms.sum(axis=0)


def hutchinson_divergence(probes: Float[Array, "k b *d"]) -> Divergence:
    """Returns the divergence estimator mean e . J e over k probes, unbiased if E e e^T = I; fixed along a trajectory."""

    def divergence(flow: Flow, z: Data) -> tuple[Data, PerExample]:
        dz, forms = _quadratic_forms(flow, z, probes)
        return dz, forms.mean(axis=0)

    return divergence


def _quadratic_forms(
    flow: Flow, z: Data, tangents: Float[Array, "k b *d"]
) -> tuple[Data, Float[Array, "k b"]]:
    """Returns flow(z), and e . J e of each tangent e, per example, since a flow does not mix examples."""
    # The network runs once; each tangent then costs its linear part alone.
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
    """Returns log p_0(z_0) [B] in nats, of the ODE between `log_snr_0` (data) and `log_snr_1` (noise)."""
    stops = jnp.stack([log_snr_0, log_snr_1])
    log_p, _, stats = log_density_and_path(z_0, stops, velocity, divergence, rtol, atol)
    return log_p, stats


def log_density_and_path(
    z_0: Data,
    stops: Float[Array, " stops"],
    velocity: Velocity,
    divergence: Divergence,
    rtol: Tolerance,
    atol: Tolerance,
) -> tuple[PerExample, Float[Array, "stops b *d"], Stats]:
    """Returns log p_0(z_0) [B] in nats, and z along the trajectory, at each of `stops`.

    Args:
      stops: falling values of log_snr, from that of `z_0` (data) to that of the prior (noise).
    """
    num_dims = z_0[0].size

    def field(log_snr: Scalar, state: tuple[Data, PerExample]) -> tuple[Data, PerExample]:
        z, _ = state
        at = jnp.broadcast_to(log_snr, z.shape[:1])
        # State and divergence together: the integral follows the very steps of the path.
        dz, div = divergence(lambda z: velocity(z, at), z)
        return dz, div / num_dims  # of the magnitude of z, so that one tolerance suits both

    start = z_0, jnp.zeros(z_0.shape[:1], z_0.dtype)
    (path, integrals), stats = _solve(field, start, stops, rtol, atol)
    # log N(z_1; 0, I) at the noisy end.
    prior = -0.5 * (sum_squares(path[-1]) + num_dims * jnp.log(2 * jnp.pi))
    return prior + num_dims * integrals[-1], path, stats


def solve_ode(
    z: Data, log_snr_from: Scalar, log_snr_to: Scalar, velocity: Velocity, rtol: Tolerance, atol: Tolerance
) -> tuple[Data, Stats]:
    """Returns z transported along the ODE: a sampler, from noise at the smallest log_snr to data at the largest."""

    def field(log_snr: Scalar, z: Data) -> Data:
        return velocity(z, jnp.broadcast_to(log_snr, z.shape[:1]))

    path, stats = _solve(field, z, jnp.stack([log_snr_from, log_snr_to]), rtol, atol)
    return path[-1], stats


def require_reached(stats: Stats) -> None:
    """Raises UserError if the solver gave up. Needs concrete values, so not for use while tracing."""
    if not stats.reached:
        raise UserError(
            f"the ODE was not solved: it takes more than {MAX_STEPS} steps, or steps below {MIN_STEP} of log_snr; "
            "bind likelihood.rtol and likelihood.atol higher, or add --x64"
        )


def _solve(field, start, stops: Float[Array, " stops"], rtol: Tolerance, atol: Tolerance):
    """Returns the states at `stops`, of which `start` is the first, and Stats. The steps do not depend on the stops between."""
    # The end may lie above or below the start in lambda: the sign of the interval gives the direction.
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda log_snr, state, _: field(log_snr, state)),
        diffrax.Tsit5(),
        stops[0],
        stops[-1],
        dt0=None,
        y0=start,
        saveat=diffrax.SaveAt(ts=stops),
        # force_dtmin=False: a step that would have to be shorter than MIN_STEP ends the solve as failed,
        # instead of going on with an error above the tolerance.
        stepsize_controller=diffrax.PIDController(
            rtol=rtol, atol=atol, norm=_worst_example, dtmin=MIN_STEP, force_dtmin=False
        ),
        # no gradient is taken backwards through a solve, so no checkpoints are stored
        adjoint=diffrax.ForwardMode(),
        max_steps=MAX_STEPS,
        # compiled code could not name the settings to change: `require_reached` does
        throw=False,
    )
    # Tsit5 has 7 stages, but the last of a step is the first of the next.
    evaluations = 6 * solution.stats["num_steps"] + 1
    reached = solution.result == diffrax.RESULTS.successful
    states: Any = solution.ys
    return states, Stats(evaluations, reached)


def _worst_example(errors) -> Scalar:
    """Returns the largest root mean square error of any example; infinite for NaN."""
    squares = [jnp.square(leaf).reshape(len(leaf), -1).mean(axis=1) for leaf in jax.tree.leaves(errors)]
    worst = jnp.sqrt(jnp.max(jnp.stack(squares)))
    # An infinite error makes the controller reject the step and try a shorter one.
    return jnp.where(jnp.isnan(worst), jnp.inf, worst)
