"""Conformance checks of generative means."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffenc.core.gaussian import scale, sigma_squared
from diffenc.core.interval import EncodeAt, chord, tangent
from diffenc.core.objective import step_error
from diffenc.core.reverse import BoundMean, no_encoder
from diffenc.core.stochasticity import MARKOV
from diffenc.interfaces import Data, Estimate, Interval, LogSNR, Params
from diffenc.testing.assertions import require, require_close, require_finite, require_like
from diffenc.testing.make_inputs import (
    IMAGE_SHAPE,
    LOG_SNR,
    PERTURBED,
    checked_init,
    images,
    key,
    perturb,
    quick_jit,
    require_trainable,
)

RISE = 0.7  # of log_snr over a step
INTERVALS = ("tangent", "chord")


def make_interval(name: str, log_snr: LogSNR) -> Interval:
    """Returns a step of some length from `log_snr` ("chord"), or its limit ("tangent"), on the Markov path."""
    increment = functools.partial(MARKOV.increment, {})
    return tangent(increment, log_snr) if name == "tangent" else chord(increment, log_snr, log_snr + RISE)


def wavy_encoder(x: Data) -> EncodeAt:
    """Returns x_phi = x + sigma^2 sin(x + lambda / 3), an encoder that is not affine in x."""

    def encode(log_snr: LogSNR) -> Data:
        shift = jnp.broadcast_to(log_snr.reshape(-1, *[1] * (x.ndim - 1)) / 3, x.shape)
        return x + scale(sigma_squared(log_snr), jnp.sin(x + shift))

    return encode


class Subject:
    """A mean under test with its inputs, in the default precision at the time."""

    def __init__(self, plugin: Any):
        self.plugin = plugin
        dtype = jnp.result_type(float)
        self.x_hat, self.z = (jnp.asarray(images(IMAGE_SHAPE, seed), dtype) for seed in (0, 1))
        self.log_snr = jnp.asarray(LOG_SNR, dtype)
        self.params: Params = perturb(checked_init(plugin)(key(), self.z, self.log_snr), PERTURBED)

    def mean(self) -> BoundMean:
        """Returns the mean with an encoder where it declares that it needs one."""
        prepare = wavy_encoder if self.plugin.needs_encoder else no_encoder
        return BoundMean(self.plugin, self.params, prepare)

    def estimate(self, name: str, x_hat: Data, z: Data, log_snr: LogSNR) -> Estimate:
        """Returns the estimates over the interval `name`."""
        return self.mean().estimate(x_hat, z, make_interval(name, log_snr))

    def estimates(self) -> Iterator[tuple[str, Estimate]]:
        """Yields the estimates over each interval, by name."""
        for name in INTERVALS:
            yield name, quick_jit(functools.partial(self.estimate, name))(self.x_hat, self.z, self.log_snr)


def parameters_can_be_trained(plugin: Any) -> None:
    """Requires that `init` returns a pytree that a run can train and save."""
    require_trainable(plugin, jnp.zeros((1, *IMAGE_SHAPE)), jnp.zeros(1))


def estimates_are_like_x_hat(plugin: Any) -> None:
    """Requires finite value and slope, with the shape and dtype of x_hat, in float32 and float64."""
    for x64 in (False, True):
        with jax.enable_x64(x64):
            subject = Subject(plugin)
            for name, estimate in subject.estimates():
                for part, array in estimate._asdict().items():
                    require_like(array, subject.x_hat, plugin, f"the {part} over a {name}")
                    require_finite(array, plugin, f"the {part} over a {name}")


def examples_do_not_interact(plugin: Any) -> None:
    """Requires that permuting the examples permutes the estimates."""
    subject, order = Subject(plugin), jnp.asarray([2, 0, 3, 1])
    for name, whole in subject.estimates():
        inputs = (array[order] for array in (subject.x_hat, subject.z, subject.log_snr))
        permuted = quick_jit(functools.partial(subject.estimate, name))(*inputs)
        for one, other in zip(permuted, whole, strict=True):
            require_close(one, other[order], plugin, "the order of examples changes an estimate", 1e-5, 1e-6)


def errors_are_differences(plugin: Any) -> None:
    """Requires `error` to be `apply` at x_hat = x_phi + e minus the truth, in float64."""
    with jax.enable_x64(True):
        subject = Subject(plugin)
        truth = Estimate(*(jnp.asarray(images(IMAGE_SHAPE, seed)) for seed in (2, 3)))
        for name in INTERVALS:
            interval, mean = make_interval(name, subject.log_snr), subject.mean()
            got = mean.error(subject.x_hat, truth, subject.z, interval)
            made = mean.estimate(truth.value + subject.x_hat, subject.z, interval)
            for one, at, true in zip(got, made, truth, strict=True):
                message = f"`error` is not `apply` less the truth over a {name}"
                require_close(one, at - true, plugin, message, 1e-9, 1e-9)


def the_bound_determines_x_hat(plugin: Any) -> None:
    """Requires that value_weight value + slope, on which the bound depends, rises with x_hat at any x_hat."""
    with jax.enable_x64(True):
        subject = Subject(plugin)
        direction = jnp.asarray(np.random.default_rng(4).normal(size=subject.x_hat.shape))
        for name in INTERVALS:
            interval = make_interval(name, subject.log_snr)

            def total(x_hat: Data, interval: Interval = interval) -> Data:
                return step_error(interval, subject.mean().estimate(x_hat, subject.z, interval))

            moved = jax.jvp(total, (subject.x_hat,), (direction,))[1]
            lowest = float(jnp.min(jnp.sum(moved * direction, axis=(1, 2, 3))))
            message = f"value_weight value + slope over a {name} does not rise with x_hat ({lowest:.2g})"
            require(lowest > 0, plugin, f"{message}: the bound must determine x_hat")


def auxiliary_losses_are_declared(plugin: Any) -> None:
    """Requires `auxiliary_losses` to return a finite loss per image for each name in `auxiliary`."""
    subject = Subject(plugin)
    interval = make_interval("tangent", subject.log_snr)
    truth = interval.follow(wavy_encoder(subject.x_hat))
    error = subject.mean().error(0 * subject.x_hat, truth, subject.z, interval)
    losses = plugin.auxiliary_losses(error, 0 * subject.x_hat, subject.log_snr)
    require(
        set(losses) == set(plugin.auxiliary),
        plugin,
        f"its auxiliary losses are {sorted(losses)}, and `auxiliary` declares {sorted(plugin.auxiliary)}",
    )
    for name, loss in losses.items():
        require(
            name.endswith("_loss"),
            plugin,
            f"its auxiliary loss {name!r} must end in _loss, as no other metric does",
        )
        require_like(loss, subject.log_snr, plugin, f"the auxiliary loss {name}")
        require_finite(loss, plugin, f"the auxiliary loss {name}")


CHECKS = (
    parameters_can_be_trained,
    estimates_are_like_x_hat,
    examples_do_not_interact,
    errors_are_differences,
    the_bound_determines_x_hat,
    auxiliary_losses_are_declared,
)
