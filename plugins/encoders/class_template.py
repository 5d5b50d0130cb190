import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from diffenc.core.gaussian import alpha_squared, scale, sigma_squared
from diffenc.errors import UserError
from diffenc.interfaces import Condition, Data, ImageKeys, Key, LogSNR, Params
from diffenc.registry import encoders


@encoders.register("class_template")
@dataclasses.dataclass(frozen=True)
class ClassTemplate:
    """x_phi = alpha^2 x + sigma^2 tanh(template of x's class), a learned image a class. Its mean is generative_mean.counterterm.

    The templates start at 0, which makes it the non-trainable encoder; that it stays for images of no class.

    Attributes:
      classes: how many there are.
    """

    generative_mean: ClassVar[str] = "generative_mean.counterterm"

    classes: int

    def __post_init__(self):
        if self.classes < 1:
            raise UserError(f"encoder.class_template.classes = {self.classes}: must be at least 1")

    def init(self, key: Key, x: Data, log_snr: LogSNR, *, condition: Condition | None = None) -> Params:
        return {"template": jnp.zeros((self.classes, *x.shape[1:]), x.dtype)}

    def apply(
        self,
        params: Params,
        x: Data,
        log_snr: LogSNR,
        *,
        condition: Condition | None = None,
        keys: ImageKeys | None = None,
    ) -> Data:
        x_nt = scale(alpha_squared(log_snr), x)
        if condition is None:
            return x_nt
        y = jnp.concatenate([jnp.zeros((1, *x.shape[1:]), x.dtype), jnp.tanh(params["template"])])
        return x_nt + scale(sigma_squared(log_snr), y[condition])
