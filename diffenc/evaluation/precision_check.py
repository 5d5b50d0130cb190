"""The check that float32 is precise enough for the bound."""

import jax.numpy as jnp

from diffenc.core.gaussian import alpha_sigma
from diffenc.core.model import Model
from diffenc.errors import UserError
from diffenc.interfaces import LogSNR, Parameterization, Params, PerExample
from diffenc.registry import parameterizations

# Measured with the optimal denoiser of Gaussian data: float32 deviates from float64 by 0.2 % at this `rounding_share`, as for
# parameterization.x at log_snr 30; by 3 % at 33, 80 % at 40. epsilon and v deviate by less than 0.01 % up to 60.
MAX_ROUNDING_SHARE = 0.2


def check_precision(model: Model, params: Params) -> None:
    """Raises UserError if float32 is too coarse for the bound at t = 0, where noise is least and the weight largest.

    Args:
      params: of the schedule.
    """
    if jnp.zeros(()).dtype == jnp.float64:
        return
    log_snr = model.schedule.apply(params, jnp.zeros((1,)))
    if float(rounding_share(model.parameterization, log_snr)[0]) <= MAX_ROUNDING_SHARE:
        return
    name = parameterizations.name_of(type(model.parameterization)) or type(model.parameterization).__name__
    raise UserError(
        f"parameterization.{name} has too few digits in float32 for a schedule that begins at log_snr "
        f"{float(log_snr[0]):.1f}: bind Model.parameterization = @parameterization.v(), or begin at 30 or less, or, to "
        "measure a trained run, give --x64"
    )


def rounding_share(parameterization: Parameterization, log_snr: LogSNR) -> PerExample:
    """Returns the float32 rounding error of x_hat from the network's output, relative to the noise sigma / alpha."""
    alpha, sigma = alpha_sigma(log_snr)
    p, q = parameterization(log_snr)
    # 2^-24: half the spacing of float32 at 1, the largest relative rounding error
    # The output, of size |p| + |q|, enters x_hat - x_phi with the factor sigma / |q alpha - p sigma|; over
    # the noise sigma / alpha that leaves alpha / |q alpha - p sigma|.
    return 2.0**-24 * alpha * (jnp.abs(p) + jnp.abs(q)) / jnp.abs(q * alpha - p * sigma)
