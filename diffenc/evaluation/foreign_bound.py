"""The terms of -ELBO of a denoiser of other code: VDM's, with its outputs in place of a network of this code.

A denoiser need not be traceable by JAX, so it is called between two compiled functions: `noisy_inputs` computes its arguments,
`batch_terms` the terms from the same draws and the denoiser's outputs.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from diffenc.core import objective
from diffenc.core.discretization import Chain
from diffenc.core.gaussian import alpha_sigma
from diffenc.core.model import Draws, Terms
from diffenc.core.pixels import Levels, scale_pixels
from diffenc.core.stochasticity import MARKOV
from diffenc.evaluation.batches import PassDraws, make_draws
from diffenc.evaluation.foreign_conventions import PixelRange, Process
from diffenc.evaluation.level_decoder import losses_by_std, normal_level_loss
from diffenc.evaluation.loss_over_log_snr import LossDraws
from diffenc.interfaces import Data, Estimate, LogSNR, Parameterization, PerExample, Times

LEVELS, NORMAL = "levels", "normal"
DECODERS = (LEVELS, NORMAL)

Scalar = Float[Array, ""]
NoiseLevel = Shaped[Array, " b"]


class NoisyInputs(NamedTuple):
    """The arguments of two calls of a denoiser: in the diffusion term, and at lambda_max."""

    z: Data
    noise_level: NoiseLevel
    z_0: Data
    noise_level_0: NoiseLevel


class Outputs(NamedTuple):
    """The denoiser's outputs in both calls; `at_0` is None where the decoder does not need it."""

    out: Data
    at_0: Data | None


class LossRatios(NamedTuple):
    """Diffusion losses over those of the best constant: of all draws, and of those within a range of log_snr."""

    overall: Scalar | float
    within: Scalar | float


@dataclasses.dataclass(frozen=True)
class ForeignModel:
    """A denoiser's conventions, and the rest of the model that its bound is of.

    Attributes:
      process: the convention of z' = a x + b eps.
      target: log_snr -> (p, q) of the estimate p x + q eps.
      pixels: the pixels that the denoiser takes.
      noise_level: log_snr -> the time or noise that the denoiser is given; None = the index of the step, from 0.
      log_snrs: lambda_max and lambda_min in continuous time; at T discrete times the T values, falling.
      num_timesteps: T; 0 = continuous time.
      decoder: p(x | z_0): LEVELS or NORMAL.
    """

    process: Process
    target: Parameterization
    pixels: PixelRange
    noise_level: Callable[[LogSNR], PerExample] | None
    log_snrs: tuple[float, ...]
    num_timesteps: int
    decoder: str

    @property
    def num_steps(self) -> int:
        """The number of reverse steps between levels of noise: T - 1."""
        return max(self.num_timesteps - 1, 0)

    def log_snr_at(self, t: Times) -> LogSNR:
        """Returns log_snr at t in [0, 1], linear in t; in discrete time at t = 0, 1, ..., T - 1."""
        if self.num_timesteps:
            # Indices that a chain holds as floats, since times are; float32 has them exactly.
            return jnp.asarray(self.log_snrs)[jnp.round(t).astype(jnp.int32)]
        log_snr_max, log_snr_min = self.log_snrs
        return log_snr_max + (log_snr_min - log_snr_max) * t

    def ends(self, like: PerExample) -> tuple[LogSNR, LogSNR]:
        """Returns lambda_max and lambda_min, shaped as `like`."""
        return jnp.full_like(like, self.log_snrs[0]), jnp.full_like(like, self.log_snrs[-1])

    def images(self, levels: Levels) -> Data:
        """Returns the pixels that the denoiser takes."""
        return self.pixels.convert(scale_pixels(levels, self.pixels.num_levels))

    def step(self, x: Data, t: Times, chain: Chain | None) -> objective.Step:
        """Returns the drawn reverse step of VDM: x_phi = x at every noise level [9, 14]."""
        rule = objective.continuous if chain is None else objective.discrete(chain)
        # The encoder is the identity and the path Markov: slope 0, eta = 1, which is VDM's loss.
        return rule(lambda log_snr: x, self.log_snr_at, partial(MARKOV.increment, {}), t)

    def noise_levels(self, log_snr: LogSNR, t: Times | None) -> NoiseLevel:
        """Returns the noise level that the denoiser is given; `t` is the drawn time, None at lambda_max."""
        if self.noise_level is not None:
            return self.noise_level(log_snr)
        zeros = jnp.zeros(log_snr.shape, jnp.int32)
        # The reverse step i leads from time i + 1, where the denoiser is called, to time i.
        return zeros if t is None else objective.step_index(t, self.num_steps) + 1

    def noisy_inputs(self, levels: Levels, pass_draws: PassDraws, chain: Chain | None) -> NoisyInputs:
        """Returns the arguments of the denoiser's two calls."""
        x, draws = self.images(levels), _draws(levels, pass_draws)
        step, (log_snr_0, _) = self.step(x, draws.t, chain), self.ends(draws.t)
        return NoisyInputs(
            self.process.diffuse(x, draws.eps, step.log_snr),
            self.noise_levels(step.log_snr, draws.t),
            self.process.diffuse(x, draws.eps_0, log_snr_0),
            self.noise_levels(log_snr_0, None),
        )

    def batch_terms(
        self,
        levels: Levels,
        pass_draws: PassDraws,
        chain: Chain | None,
        outputs: Outputs,
        std: Scalar,
        variance: Scalar,
    ) -> tuple[Terms, LossDraws, PerExample]:
        """Returns the terms of -ELBO in nats [B], each draw, and the diffusion loss of the best constant at the same draws.

        Args:
          std: of the normal decoder.
          variance: of the pixels, in the denoiser's units.
        """
        x, draws = self.images(levels), _draws(levels, pass_draws)
        # The draws are those of `noisy_inputs`, made again from the same keys: x_hat - x needs their eps.
        step, log_snr_1 = self.step(x, draws.t, chain), self.ends(draws.t)[1]
        error = output_error(self.target, x, draws.eps, step.log_snr, outputs.out)
        # The slope of x_phi = x is 0, and so is that of VDM's mean: its error is 0.
        diffusion = objective.step_loss(step, Estimate(error, jnp.zeros_like(error)))
        terms = Terms(
            reconstruction=self._reconstruction(levels, x, draws.eps_0, outputs.at_0, std),
            latent=objective.latent_loss(x, log_snr_1),
            diffusion=diffusion,
        )
        constant = step.offset + step.weight * x[0].size * constant_error(variance, step.log_snr)
        return terms, LossDraws(step.log_snr, diffusion), constant

    def loss_ratios(
        self,
        targets: tuple[Parameterization, ...],
        levels: Levels,
        pass_draws: PassDraws,
        out: Data,
        variance: Scalar,
        log_snr: Float[Array, " 2"],
    ) -> list[LossRatios]:
        """Returns the diffusion loss of a batch over that of the best constant, with `out` as an estimate of each of `targets`.

        The steps have sigma_P = sigma_Q.

        Args:
          log_snr: the range, (low, high), of `LossRatios.within`.
        """
        x, draws = self.images(levels), _draws(levels, pass_draws)
        step = self.step(x, draws.t, self.equal_chain())
        # One call of the denoiser serves all targets: `out` is a fixed array.
        errors = [output_error(target, x, draws.eps, step.log_snr, out) for target in targets]
        losses = [objective.step_loss(step, Estimate(error, jnp.zeros_like(error))) for error in errors]
        constant = step.weight * x[0].size * constant_error(variance, step.log_snr)
        inside = (step.log_snr >= log_snr[0]) & (step.log_snr <= log_snr[1])
        sums = [(jnp.sum(loss), jnp.sum(loss * inside)) for loss in (constant, *losses)]
        return [LossRatios(overall / sums[0][0], within / sums[0][1]) for overall, within in sums[1:]]

    def losses_by_std(
        self, levels: Levels, pass_draws: PassDraws, out_0: Data, stds: Float[Array, " stds"]
    ) -> Float[Array, "stds b"]:
        """Returns -log p(x | z_0) of the normal decoder with each of `stds`."""
        x, draws = self.images(levels), _draws(levels, pass_draws)
        residual = -output_error(self.target, x, draws.eps_0, self.ends(draws.t)[0], out_0)
        return losses_by_std(residual, levels, self.pixels.half_cell, stds, self.pixels.num_levels)

    def equal_chain(self) -> Chain | None:
        """Returns the chain over all T levels of noise with sigma_P = sigma_Q; None in continuous time."""
        if self.num_timesteps == 0:
            return None
        # Times are the indices 0 .. T - 1, which `log_snr_at` looks up.
        return Chain(jnp.arange(float(self.num_timesteps)), jnp.zeros(self.num_steps))

    def default_std(self) -> float:
        """Returns sigma of z_0, DDPM's sqrt(beta_1): the standard deviation of the normal decoder unless it is fitted."""
        # sigma_0 = sqrt(1 - abar_0).
        return float(alpha_sigma(jnp.asarray(self.log_snrs[:1]))[1][0])

    def _reconstruction(
        self, levels: Levels, x: Data, eps_0: Data, out_0: Data | None, std: Scalar
    ) -> PerExample:
        # One value per image, for its shape and dtype alone.
        log_snr_0, _ = self.ends(x.reshape(len(x), -1)[:, 0])
        num_levels = self.pixels.num_levels
        if out_0 is not None:
            residual = -output_error(self.target, x, eps_0, log_snr_0, out_0)
            return normal_level_loss(residual, levels, self.pixels.half_cell, std, num_levels)
        # z' of the denoiser's pixels, factor x + offset, has factor^2 times
        # the SNR with respect to x; the offset is known and costs nothing.
        log_snr = log_snr_0 + self.pixels.log_snr_shift  # of pixels as the decoder has them
        diffused = objective.diffused_pixels(scale_pixels(levels, num_levels), eps_0, log_snr)
        return objective.reconstruction_loss(diffused, levels, log_snr, num_levels)


def output_error(target: Parameterization, x: Data, eps: Data, log_snr: LogSNR, out: Data) -> Data:
    """Returns x_hat - x, through the error of the output itself (`diffenc.core.objective.network_error`)."""
    return objective.network_error(log_snr, x, eps, lambda z, log_snr: out, target)


def constant_error(variance: Scalar, log_snr: LogSNR) -> PerExample:
    """Returns E(x_hat - x)^2 of the better of two constants: x_hat = E x, and eps_hat = 0."""
    # x_hat = E x errs by Var(x); eps_hat = 0 means x_hat = z / alpha,
    # which errs by sigma^2 / alpha^2 = e^(-lambda).
    return jnp.minimum(variance, jnp.exp(-log_snr))


def log_snrs_of(alphas_cumprod: Float[np.ndarray, " steps"]) -> tuple[float, ...]:
    """Returns log(abar / (1 - abar)), in float64."""
    # log1p: 1 - abar loses digits where abar is close to 1, which is where the weight is largest.
    return tuple((np.log(alphas_cumprod) - np.log1p(-alphas_cumprod)).tolist())


def _draws(levels: Levels, pass_draws: PassDraws) -> Draws:
    return make_draws(pass_draws, levels.shape)


# Compiled once for each convention: equal models are the same static argument.
noisy_inputs = jax.jit(ForeignModel.noisy_inputs, static_argnums=0)
batch_terms = jax.jit(ForeignModel.batch_terms, static_argnums=0)
decoder_losses = jax.jit(ForeignModel.losses_by_std, static_argnums=0)
