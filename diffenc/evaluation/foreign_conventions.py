"""Conventions of other codes' denoisers: their inputs and their targets, in terms of this code's process.

A denoiser is given z' = a x + b eps, and its bound depends on a / b = e^(lambda / 2) alone: `Process` holds a, b and the noise
level as the denoiser is given it. The denoiser estimates p x + q eps (`TARGETS`). The variance-preserving z = alpha x + sigma eps
of `diffenc.core` is z' times a factor that depends on lambda alone, so that both describe one model.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffenc.core.gaussian import alpha_sigma, scale
from diffenc.errors import UserError, nearest
from diffenc.interfaces import Data, LogSNR, Parameterization, PerExample

Pair = tuple[LogSNR, LogSNR]


@dataclasses.dataclass(frozen=True)
class Process:
    """A convention of diffusion processes.

    Attributes:
      title: in words.
      coefficients: log_snr -> (a, b) of z' = a x + b eps.
      velocity: log_snr -> (p, q) of its v = p x + q eps.
      noise_level: log_snr -> the time or noise that its denoisers are given.
      log_snr: lambda_max and lambda_min by default.
    """

    title: str
    coefficients: Callable[[LogSNR], Pair]
    velocity: Parameterization
    noise_level: Callable[[LogSNR], PerExample]
    log_snr: tuple[float, float]

    def diffuse(self, x: Data, eps: Data, log_snr: LogSNR) -> Data:
        """Returns z' = a x + b eps."""
        a, b = self.coefficients(log_snr)
        return scale(a, x) + scale(b, eps)

    @functools.cache  # noqa: B019 - there are three, and equal functions share what is compiled
    def target(self, predicts: str) -> Parameterization:
        """Returns log_snr -> (p, q) of the estimate that is called `predicts`, one of TARGETS."""
        return TARGETS[predicts](self)


def _v(log_snr: LogSNR) -> Pair:
    """v = alpha eps - sigma x [19]."""
    alpha, sigma = alpha_sigma(log_snr)
    return -sigma, alpha


def _sigma_ve(log_snr: LogSNR) -> LogSNR:
    """sigma / alpha = e^(-lambda / 2)."""
    return jnp.exp(-0.5 * log_snr)


def _flow(log_snr: LogSNR) -> Pair:
    """(1 - t, t), where (1 - t) / t = e^(lambda / 2)."""
    # Two sigmoids: 1 - t would lose the digits of the smaller one.
    return jax.nn.sigmoid(0.5 * log_snr), jax.nn.sigmoid(-0.5 * log_snr)


def reversed_time(log_snr: LogSNR) -> PerExample:
    """1 - t of a rectified flow: the time of codes with t = 0 at noise."""
    return _flow(log_snr)[0]


def _logit_ends(first: float) -> tuple[float, float]:
    """log_snr at t = `first` and t = 1 - `first` of a rectified flow."""
    # log SNR = 2 log((1 - t) / t); log1p keeps the digits of log(1 - t) at small t.
    return 2 * float(np.log1p(-first) - np.log(first)), -2 * float(np.log1p(-first) - np.log(first))


# Default ends: those of VDM's published models for "vp", EDM's sigma_min and sigma_max
# (arXiv:2206.00364) for "ve"; for "flow" short of t = 0 and 1, where lambda is infinite.
PROCESSES: dict[str, Process] = {
    "vp": Process("variance preserving", alpha_sigma, _v, lambda log_snr: log_snr, (13.3, -5.0)),
    "ve": Process(
        "variance exploding",
        lambda log_snr: (jnp.ones_like(log_snr), _sigma_ve(log_snr)),
        _v,
        _sigma_ve,
        (-2 * float(np.log(0.002)), -2 * float(np.log(80.0))),
    ),
    # v = eps - x for z = (1 - t) x + t eps: the velocity dz / dt.
    "flow": Process(
        "rectified flow",
        _flow,
        lambda log_snr: (-jnp.ones_like(log_snr), jnp.ones_like(log_snr)),
        lambda log_snr: _flow(log_snr)[1],
        _logit_ends(1e-3),
    ),
}


def _constant(p: float, q: float) -> Callable[[Process], Parameterization]:
    def target(log_snr: LogSNR) -> Pair:
        return jnp.full_like(log_snr, p), jnp.full_like(log_snr, q)

    return lambda process: target


def _score(process: Process) -> Parameterization:
    """The score of q(z' | x): -eps / b."""
    return lambda log_snr: (jnp.zeros_like(log_snr), -1 / process.coefficients(log_snr)[1])


TARGETS: dict[str, Callable[[Process], Parameterization]] = {
    "eps": _constant(0.0, 1.0),
    "x": _constant(1.0, 0.0),
    "v": lambda process: process.velocity,
    "score": _score,
}


def find_process(name: str) -> Process:
    """Returns the process called `name`. Raises UserError if there is none."""
    if name not in PROCESSES:
        raise UserError(f"process = {name!r}: {_offer(name, PROCESSES)}")
    return PROCESSES[name]


def find_target(predicts: "str | Parameterization", process: Process) -> Parameterization:
    """Returns log_snr -> (p, q). Raises UserError if `predicts` is neither a function nor one of TARGETS."""
    if callable(predicts):
        return predicts
    if predicts not in TARGETS:
        raise UserError(
            f"predicts = {predicts!r}: {_offer(predicts, TARGETS)}, and a function of log_snr that returns (p, q) for "
            "estimates of p x + q eps"
        )
    return process.target(predicts)


def _offer(name: object, names: dict) -> str:
    return f"there is no such one; nearest: {nearest(str(name), names)!r}; there are {', '.join(map(repr, names))}"


@dataclasses.dataclass(frozen=True)
class PixelRange:
    """The pixels that a denoiser takes: `low` of level 0, `high` of the top level, linear in between.

    They are factor * x + offset of the pixels x of `diffenc.core.pixels`.
    """

    low: float
    high: float
    num_levels: int

    @property
    def factor(self) -> float:
        # x of level 0 is -(1 - 1 / L), not -1: L / (L - 1) maps the outermost levels onto `low` and `high`.
        return (self.high - self.low) / 2 * self.num_levels / (self.num_levels - 1)

    @property
    def offset(self) -> float:
        return (self.high + self.low) / 2

    @property
    def half_cell(self) -> float:
        """Half the distance of neighbouring levels."""
        return self.factor / self.num_levels

    def convert(self, x: Data) -> Data:
        """Returns these pixels, from the scaled pixels `x` of `diffenc.core.pixels.scale_pixels`."""
        return self.factor * x + self.offset

    @property
    def log_snr_shift(self) -> float:
        """log factor^2: log_snr with respect to x less log_snr with respect to these pixels."""
        return 2 * float(np.log(self.factor))
