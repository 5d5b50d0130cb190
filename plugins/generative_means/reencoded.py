"""Re-encoding: the encoder run on the network's estimate of the image."""

import dataclasses
from typing import ClassVar

from diffenc.interfaces import Data, Estimate, GenerativeMean, Params, StepInputs
from diffenc.registry import generative_means


@generative_means.register("reencoded")
@dataclasses.dataclass(frozen=True)
class Reencoded(GenerativeMean):
    """x_hat estimates x itself, and value and slope are the encoder's for x_hat (NDM, arXiv:2310.08337).

    Sampling needs the encoder, with one more call of it per step. In float32 the errors lose digits where sigma vanishes,
    since they are differences of encoded images. Since x_phi of E[x | z] is not E[x_phi | z], the probability-flow ODE is
    consistent only with encoders that are affine in x.
    """

    needs_encoder: ClassVar[bool] = True

    def apply(self, params: Params, x_hat: Data, step: StepInputs) -> Estimate:
        """Returns x_phi of `x_hat` and its slope over the step."""
        return step.encode(x_hat)
