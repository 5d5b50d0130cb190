"""The gap between the likelihood of the probability-flow ODE and the ELBO, in parts that are integrals of their own.

ODE - ELBO = solver + leaving + dequantisation + looseness + miscalibration + remainder:

- solver: the ODE at its tolerance less that at the tighter one;
- leaving: the ODE less the same integral with the divergence averaged along q. 0 for exact posterior means, since their ODE has
  q's marginals;
- dequantisation: the entropy of the noise sigma_0 less that of z_0 on the image's cell, less the reconstruction loss;
- looseness and miscalibration: integrals along q over the estimates' errors (`diffenc.evaluation.along_q`);
- remainder: the divergence along q less the diffusion loss, looseness and miscalibration. 0 but for Monte-Carlo noise, since
  these are its parts.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from diffenc.config.experiment import Experiment
from diffenc.core.dequantization import ENTROPY_LOST
from diffenc.evaluation.along_q import AveragedAlongQ
from diffenc.evaluation.evaluation_record import mean_and_errors
from diffenc.evaluation.image_error import ByPass, PassValues


class OdeGap(NamedTuple):
    """Bits/dim of each image in each pass; the parts add up to `gap`."""

    ode: PassValues
    along_q: PassValues
    elbo: PassValues
    gap: PassValues
    gap_solver: PassValues
    gap_leaving: PassValues
    gap_dequantisation: PassValues
    gap_looseness: PassValues
    gap_miscalibration: PassValues
    gap_remainder: PassValues

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        nats: ByPass,
        nats_tighter: ByPass,
        averaged: AveragedAlongQ,
        log_snr_0: float,
    ) -> "OdeGap":
        """Returns the gap and its parts, from the ODE's `nats`, and its `nats_tighter` at the tighter tolerance.

        Args:
          log_snr_0: at t = 0.
        """
        num_dims = int(np.prod(experiment.dataset.image_shape))
        to_bits, along = 1 / (num_dims * np.log(2)), averaged.nats
        lost_by = ENTROPY_LOST[experiment.likelihood.dequantisation]
        lost = num_dims * float(lost_by(jnp.asarray([log_snr_0]), experiment.dataset.num_levels)[0])
        # E log q(z_0 | x) is minus the entropy of z_0 on its cell: the bound has the entropy
        # lost in place of that of the noise at t = 0 (see `diffenc.evaluation.along_q`).
        along_q = along["latent"] + lost + along["divergence"]
        elbo = along["reconstruction"] + along["latent"] + along["diffusion"]
        dequantisation = lost - along["reconstruction"]
        errors = along["looseness"] + along["miscalibration"]

        # Images count as independent. They share strata of time, which matters little with many times per image; with
        # few (`likelihood.times_per_image`) the errors along q are overstated.
        def in_bits(nats: ByPass) -> PassValues:
            return PassValues(to_bits * nats)

        return cls(
            ode=in_bits(nats),
            along_q=in_bits(along_q),
            elbo=in_bits(elbo),
            # Differences per image, so that their errors are those of paired values.
            gap=in_bits(nats - elbo),
            gap_solver=in_bits(nats - nats_tighter),
            gap_leaving=in_bits(nats_tighter - along_q),
            gap_dequantisation=in_bits(dequantisation),
            gap_looseness=in_bits(along["looseness"]),
            gap_miscalibration=in_bits(along["miscalibration"]),
            gap_remainder=in_bits(along_q - elbo - dequantisation - errors),
        )

    def metrics(self) -> dict[str, Any]:
        """Returns the mean and the errors of `bpd_ode`, `bpd_along_q`, `bpd_gap_solver`, ... (see `mean_and_errors`)."""
        entries = (mean_and_errors(f"bpd_{name}", values) for name, values in self._asdict().items())
        return {key: value for entry in entries for key, value in entry.items()}


KEYS = tuple(f"bpd_{name}" for name in OdeGap._fields)
