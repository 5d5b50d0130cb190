import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from diffenc.core.gaussian import alpha_squared, scale
from diffenc.errors import UserError
from diffenc.interfaces import (
    NO_CONTEXT,
    ClassConditional,
    Context,
    Data,
    Key,
    LogSNR,
    Params,
    PreparedOnce,
)
from diffenc.registry import encoders
from diffenc_plugins.encoders.builtin import blend


@encoders.register("class_template")
@dataclasses.dataclass(frozen=True)
class ClassTemplate(PreparedOnce, ClassConditional):
    """x_phi = alpha^2 x + sigma^2 tanh(learned template of x's class). Its mean is generative_mean.counterterm.

    Templates start at 0, where the encoder is the non-trainable one; for images without a class it remains so.

    Attributes:
      classes: the number of classes.
    """

    generative_mean: ClassVar[str] = "generative_mean.counterterm"

    classes: int

    def __post_init__(self):
        if self.classes < 1:
            raise UserError(f"encoder.class_template.classes = {self.classes}: must be at least 1")

    def init(self, key: Key, x: Data, log_snr: LogSNR) -> Params:
        return {"template": jnp.zeros((self.classes, *x.shape[1:]), x.dtype)}

    def prepare(self, params: Params, x: Data, context: Context = NO_CONTEXT) -> tuple[Data, Data | None]:
        """Returns x, and the template of each image's class; None without classes."""
        if context.condition is None:
            return x, None
        # Row 0 is for no class: conditions are class + 1 and index the
        # rows directly. tanh keeps templates in the range of pixels.
        templates = jnp.concatenate([jnp.zeros((1, *x.shape[1:]), x.dtype), jnp.tanh(params["template"])])
        return x, templates[context.condition]

    def at(self, params: Params, prepared: tuple[Data, Data | None], log_snr: LogSNR) -> Data:
        x, y = prepared
        # Without conditions every template is 0: sigma^2 y is left out.
        return scale(alpha_squared(log_snr), x) if y is None else blend(x, y, log_snr)
