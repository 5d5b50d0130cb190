"""Densities of the diffusion times that training and evaluation draw."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffenc.core.model import UniformTimeSampler
from diffenc.errors import UserError
from diffenc.interfaces import GRADIENT_CURVE, LOSS_CURVE, PerExample, Times
from diffenc.registry import selector_of, time_samplers

Uniform = time_samplers.register("uniform")(UniformTimeSampler)


@time_samplers.register("importance")
@dataclasses.dataclass(frozen=True)
class Importance:
    """More times where the loss is large: density proportional to its root mean square, from --mode=diagnose.

    Of all densities this one has the least Monte-Carlo error for independent draws. It is constant in each of the curve's
    bins, so that its inverse distribution function is piecewise linear. In training the curve is a running estimate.

    Attributes:
      floor: the share of uniform density mixed in. No weight exceeds 1 / floor, however wrong the curve is.
    """

    requires: ClassVar[frozenset[str]] = frozenset({LOSS_CURVE})

    floor: float = 0.1

    def __post_init__(self):
        if not 0 < self.floor <= 1:
            name = selector_of(type(self))
            raise UserError(f"{name}.floor = {self.floor}: must be above 0 and at most 1")

    def __call__(self, u: Times, curve: Float[Array, " bins"] | None) -> tuple[Times, PerExample]:
        assert curve is not None  # required: see diffenc.workdir.loss_curves.bind_curve
        size = curve + jnp.finfo(curve.dtype).tiny  # a curve of zeros becomes uniform
        # Mean 1 over equal bins: a mixture of the uniform density and the curve's.
        density = self.floor + (1 - self.floor) * size / jnp.mean(size)
        # Bins are equal in t; `cumulative` has the bins' ends in u.
        edges = jnp.linspace(0, 1, len(curve) + 1, dtype=curve.dtype)
        cumulative = jnp.concatenate([jnp.zeros(1, curve.dtype), jnp.cumsum(density)])
        # Divided by its own last value: the last entry is then
        # exactly 1, and no u < 1 falls beyond the last bin.
        cumulative = cumulative / cumulative[-1]
        # Inverse transform sampling, monotone in u: stratified u stay stratified.
        index = jnp.clip(jnp.searchsorted(cumulative, u, side="right") - 1, 0, len(curve) - 1)
        left, right = cumulative[index], cumulative[index + 1]
        weight = (right - left) * len(curve)  # the density of what is really drawn, rounding included
        # Linear within the bin: the density is constant there.
        t = edges[index] + (u - left) / (right - left) / len(curve)
        return jnp.clip(t, 0, 1), 1 / weight


@time_samplers.register("importance_by_gradient")
@dataclasses.dataclass(frozen=True)
class ImportanceByGradient(Importance):
    """More times where the gradient of training is large: the network's, and by a smaller share the encoder's.

    For `Experiment.time_sampler`: training measures the gradient of a few images every few steps
    (`diffenc.training.gradient_curve`).

    Attributes:
      floor: the share of uniform density, as in time_sampler.importance.
    """

    requires: ClassVar[frozenset[str]] = frozenset({GRADIENT_CURVE})
