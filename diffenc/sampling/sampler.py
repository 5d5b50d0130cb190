"""Sampling, once for all plugins and solvers; one compiled scan over the steps."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffenc.core.discretization import Chain
from diffenc.core.gaussian import alpha_sigma, scale
from diffenc.core.model import Model
from diffenc.core.pixels import Levels, nearest_levels
from diffenc.core.reverse import Estimator
from diffenc.core.stochasticity import Increment
from diffenc.interfaces import Condition, Context, Data, Estimate, Interval, Key, LogSNR, Params, PerStep
from diffenc.sampling.solvers import Solver, ancestral


def walk(
    key: Key,
    z: Data,
    log_snrs: Float[Array, " steps_plus_one"],
    log_w: PerStep,
    estimate: Estimator,
    increment: Increment,
    solver: Solver,
    first: int | Int[Array, ""] = 0,
) -> Data:
    """Returns z at log_snrs[-1], from z at log_snrs[0], the noisiest.

    The noise of step i is fold_in(key, first + i), so that a walk cut into stretches stays the same walk.
    """

    def body(z: Data, step) -> tuple[Data, None]:
        index, *at_step = step
        # Plugins take one noise level per image, [B]; a step of sampling has the same for all of them.
        log_snr_t, log_snr_s, log_w = (jnp.broadcast_to(value, z.shape[:1]) for value in at_step)
        # Drawn for deterministic solvers too, so that all solvers
        # have one signature; XLA removes it where it is unused.
        noise = jax.random.normal(jax.random.fold_in(key, index), z.shape, z.dtype)
        return solver(z, log_snr_t, log_snr_s, log_w, estimate, increment, noise), None

    # Stops are noisiest first: step i leads from log_snrs[i] (lambda_t) to log_snrs[i + 1] (lambda_s).
    steps = (first + jnp.arange(len(log_w)), log_snrs[:-1], log_snrs[1:], log_w)
    # lax.scan and not `unroll.scan`: loops slow down gradients on a CPU, and none is taken here; T unrolled
    # steps would take T times as long to compile.
    return jax.lax.scan(body, z, steps)[0]


def decode(z_0: Data, log_snr_0: LogSNR, num_levels: int) -> Levels:
    """Returns the argmax over the levels of p(x | z_0) [55]: the level nearest to z_0 / alpha_0."""
    # N(z_0; alpha_0 v, sigma_0^2) falls with |z_0 / alpha_0 - v|:
    # the most probable level is the nearest one, whatever sigma_0.
    return nearest_levels(scale(1 / alpha_sigma(log_snr_0)[0], z_0), num_levels)


def guided(given: Estimator, without: Estimator, weight: float) -> Estimator:
    """Returns (1 + w) estimate(z | condition) - w estimate(z): classifier-free guidance (arXiv:2207.12598 [6]).

    At a given z, the estimates of v, of eps and of x_phi are affine in each other and the weights sum to one: it is
    the same guidance whichever of them it is written for.
    """

    def estimate(z: Data, interval: Interval) -> Estimate:
        # Value and slope alike: steps use their weighted sum, so
        # guiding one of them alone would be another guidance.
        return jax.tree.map(
            lambda one, other: (1 + weight) * one - weight * other, given(z, interval), without(z, interval)
        )

    return estimate


def estimator_of(model: Model, params: Params, condition: Condition | None, guidance: float) -> Estimator:
    """Returns the model's estimates, without dropout; `guided` where the weight `guidance` is not 0."""
    given = Context(condition)
    estimate = partial(model.estimate, params, context=given)
    # A weight of 0 would give the same images at twice the cost: the second estimate calls the network again.
    if not guidance:
        return estimate
    # 0 is "no class", which training gives the network where
    # it drops a condition; None would be another pytree.
    dropped = Context(jax.tree.map(jnp.zeros_like, condition))
    # an encoder that the mean runs keeps the condition, as in training
    without = partial(model.estimate, params, context=dropped, encoder_context=given)
    return guided(estimate, without, guidance)


class ReverseChain(NamedTuple):
    """A chain in the order of sampling, the noisiest stop first: log_snr at its stops, and log_w of each step."""

    log_snrs: Float[Array, " steps_plus_one"]
    log_w: PerStep


def reverse_chain(model: Model, params: Params, chain: Chain) -> ReverseChain:
    """Returns `chain` from t = 1 down to 0, under the schedule's parameters."""
    # Chains are stored by rising t; sampling starts at t = 1.
    return ReverseChain(model.log_snr(params, chain.times[::-1]), chain.log_w[::-1])


def sample_along(
    down: ReverseChain,
    key: Key,
    shape: tuple[int, ...],
    num_levels: int,
    walk_down: Callable[[Key, Data, ReverseChain], Data],
) -> Levels:
    """Returns int32 levels of `shape`: standard normal noise, taken to log_snrs[-1] by `walk_down`, and decoded."""
    z_key, step_key = jax.random.split(key)
    # The prior N(0, I) stands for q(z_1); the latent loss is the cost of this in the bound.
    z_0 = walk_down(step_key, jax.random.normal(z_key, shape), down)
    return decode(z_0, jnp.broadcast_to(down.log_snrs[-1], shape[:1]), num_levels)


def sample(
    model: Model,
    params: Params,
    key: Key,
    shape: tuple[int, ...],
    *,
    num_levels: int,
    chain: Chain,
    solver: Solver = ancestral,
    condition: Condition | None = None,
    guidance: float = 0.0,
) -> Levels:
    """Returns images of `shape` [B, H, W, C], int32 levels, by the steps of `chain`. Only means that need the encoder run it.

    Which solvers are consistent with which encoders: see `diffenc.sampling.solvers`.
    """

    def walk_down(key: Key, z: Data, down: ReverseChain) -> Data:
        estimate = estimator_of(model, params, condition, guidance)
        return walk(key, z, *down, estimate, partial(model.increment, params), solver)

    return sample_along(reverse_chain(model, params, chain), key, shape, num_levels, walk_down)
