"""A reverse step from lambda_t to lambda_s, in two forms: a step of some length (`Chord`), and its limit (`Tangent`).

With c = 1 - e^(lambda_t - lambda_s), and g and c_eta those of the path (`diffenc.core.stochasticity`), both means of a step are

    mu = (alpha_s / alpha_t) g z_t + alpha_s c (value_weight value + slope),    value_weight = (1 - g) / c,

with the encoder's x_phi(lambda_t) and secant (x_phi(lambda_s) - x_phi(lambda_t)) / c in q, and with their estimates in p. As
s -> t the secant becomes the derivative by lambda, and value_weight becomes (1 + eta^2) / 2.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffenc.core.gaussian import scale, step_fraction
from diffenc.core.stochasticity import Increment, eta_squared, mean_fraction, renewed_fraction
from diffenc.interfaces import Data, Estimate, Interval, LogSNR, PerExample

EncodeAt = Callable[[LogSNR], Data]  # lambda -> x_phi of given images


@dataclasses.dataclass(frozen=True, eq=False)
class Tangent(Interval):
    """The limit of short steps at lambda_t.

    Attributes:
      eta_2: eta^2 of the path there.
    """

    log_snr: LogSNR
    eta_2: PerExample

    @property
    def log_snr_s(self) -> LogSNR:  # pyright: ignore[reportIncompatibleVariableOverride]
        """lambda_t again."""
        return self.log_snr

    @property
    def value_weight(self) -> PerExample:
        # The limit of (1 - g) / c with H = eta^2 rise: 1 - g -> (1 + eta^2) rise / 2 and c -> rise.
        return 0.5 * (1 + self.eta_2)

    @property
    def stretch(self) -> PerExample:
        # rise / c -> 1 as lambda_s -> lambda_t.
        return jnp.ones_like(self.log_snr)

    def follow(self, encode: EncodeAt) -> Estimate:
        """Returns x_phi and d x_phi / d lambda, by one jvp: under one dropout mask."""
        # A tangent of ones per image: x_phi of an image depends on its own lambda alone, so one jvp gives all
        # the derivatives d x_phi,b / d lambda_b at once. Forward mode, since there is one input and an image
        # of outputs; the training gradient is reverse mode over it.
        return Estimate(*jax.jvp(encode, (self.log_snr,), (jnp.ones_like(self.log_snr),)))


@dataclasses.dataclass(frozen=True, eq=False)
class Chord(Interval):
    """The step from lambda_t to lambda_s > lambda_t.

    Attributes:
      clock_rise: H = h(lambda_s) - h(lambda_t).
    """

    log_snr: LogSNR
    log_snr_s: LogSNR
    clock_rise: LogSNR

    @property
    def rise(self) -> LogSNR:
        """lambda_s - lambda_t."""
        return self.log_snr_s - self.log_snr

    @property
    def fraction(self) -> PerExample:
        """c."""
        return step_fraction(self.log_snr, self.log_snr_s)

    @property
    def renewed(self) -> PerExample:
        """c_eta = sigma_Q^2 / sigma_s^2."""
        return renewed_fraction(self.clock_rise)

    @property
    def value_weight(self) -> PerExample:
        # Both are expm1 of the same order as the step, so that
        # their ratio keeps its digits; on the Markov path it is 1.
        return mean_fraction(self.rise, self.clock_rise) / self.fraction

    @property
    def stretch(self) -> PerExample:
        # >= 1, and 1 as s -> t: c = 1 - e^(-rise) <= rise.
        return self.rise / self.fraction

    def follow(self, encode: EncodeAt) -> Estimate:
        """Returns x_phi(lambda_t) and the secant.

        The encoder is evaluated at full precision on every device: its difference over a short step has few digits.
        """
        # x_s - x_t is of the order of the step: where an accelerator rounds products to bfloat16 or TF32, the
        # difference would be rounding alone, and 1 / c would multiply it.
        with jax.default_matmul_precision("highest"):
            x_t, x_s = encode(self.log_snr), encode(self.log_snr_s)
        return self.between(x_t, x_s)

    def between(self, x_t: Data, x_s: Data) -> Estimate:
        """Returns `x_t` and the secant, from x_phi at both ends."""
        return Estimate(x_t, scale(1 / self.fraction, x_s - x_t))


def tangent(increment: Increment, log_snr: LogSNR) -> Tangent:
    """Returns the limit of short steps at `log_snr`, on the path of `increment`."""
    return Tangent(log_snr, eta_squared(increment, log_snr))


def chord(increment: Increment, log_snr_t: LogSNR, log_snr_s: LogSNR) -> Chord:
    """Returns the step from `log_snr_t` to `log_snr_s`, on the path of `increment`."""
    return Chord(log_snr_t, log_snr_s, increment(log_snr_t, log_snr_s))
