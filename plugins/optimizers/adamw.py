import dataclasses

import jax
import optax

from diffenc.errors import UserError
from diffenc.interfaces import Params
from diffenc.registry import optimizers

NEVER_DECAYED = ("b", "bias", "offset", "scale")


@optimizers.register("adamw")
@dataclasses.dataclass(frozen=True)
class AdamW:
    """AdamW after a linear warm-up, without gradient clipping.

    Weight decay reaches the kernels alone: never biases, normalisation, or the schedule.
    """

    learning_rate: float = 2e-4
    warmup_steps: int = 100
    weight_decay: float = 0.01
    b1: float = 0.9
    b2: float = 0.99
    eps: float = 1e-8

    def __post_init__(self):
        for name, good, range_ in (
            ("learning_rate", self.learning_rate >= 0, "0 or more"),
            ("warmup_steps", self.warmup_steps >= 0, "0 or more"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
            ("b1", 0 <= self.b1 < 1, "in [0, 1)"),
            ("b2", 0 <= self.b2 < 1, "in [0, 1)"),
            ("eps", self.eps > 0, "positive"),
        ):
            if not good:
                raise UserError(f"optimizer.adamw.{name} = {getattr(self, name)}: must be {range_}")

    def build(self) -> optax.GradientTransformation:
        return optax.adamw(
            optax.linear_schedule(0.0, self.learning_rate, self.warmup_steps)
            if self.warmup_steps
            else self.learning_rate,
            b1=self.b1,
            b2=self.b2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            mask=decay_mask,
        )


def decay_mask(params: Params) -> Params:
    """Returns True for every parameter that weight decay reaches, in a pytree of any shape.

    A leaf without a name of its own (an item of a list) is decayed if it has at least two axes. flax.nnx wraps a
    parameter in a Variable: there the name is that of the Variable.
    """

    def decays(path, leaf) -> bool:
        names = [getattr(entry, "key", getattr(entry, "name", None)) for entry in path]
        name = names[-2:-1] if names[-1:] == ["value"] else names[-1:]
        return "schedule" not in names[:1] and not set(name) & set(NEVER_DECAYED) and leaf.ndim > 1

    return jax.tree_util.tree_map_with_path(decays, params)
