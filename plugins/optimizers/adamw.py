import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from diffenc.errors import UserError
from diffenc.interfaces import Params
from diffenc.registry import optimizers

NEVER_DECAYED = ("b", "bias", "offset", "scale")
NOT_KERNELS = frozenset({"schedule", "stochasticity", "variance"})  # groups of a model's parameters


@optimizers.register("adamw")
@dataclasses.dataclass(frozen=True)
class AdamW:
    """AdamW with a linear warm-up, a learning-rate schedule after it, and clipping of the gradient's norm.

    Weight decay applies to kernels alone: never to biases, normalisation, or the schedule, path and variances of the process.

    Attributes:
      learning_rate: at the end of the warm-up, the largest one.
      warmup_steps: number of steps over which the learning rate rises from 0.
      schedule: after the warm-up: "constant"; "cosine" or "linear", which fall to 0 at the last step of training; or
        "inverse_sqrt", which at step k is learning_rate * sqrt(warmup_steps / k).
      clip_norm: a gradient of a larger global norm is scaled down to it; 0 = never.
    """

    learning_rate: float = 2e-4
    warmup_steps: int = 100
    weight_decay: float = 0.01
    b1: float = 0.9
    b2: float = 0.99
    eps: float = 1e-8
    schedule: Literal["constant", "cosine", "linear", "inverse_sqrt"] = "constant"
    clip_norm: float = 0.0

    def __post_init__(self):
        for name, good, range_ in (
            ("learning_rate", self.learning_rate >= 0, "0 or more"),
            ("warmup_steps", self.warmup_steps >= 0, "0 or more"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
            ("b1", 0 <= self.b1 < 1, "in [0, 1)"),
            ("b2", 0 <= self.b2 < 1, "in [0, 1)"),
            ("eps", self.eps > 0, "positive"),
            ("clip_norm", self.clip_norm >= 0, "0 or more"),
        ):
            if not good:
                raise UserError(f"optimizer.adamw.{name} = {getattr(self, name)}: must be {range_}")

    def build(self, num_steps: int) -> optax.GradientTransformation:
        adamw = optax.adamw(
            self._rate(num_steps),
            b1=self.b1,
            b2=self.b2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            mask=decay_mask,
        )
        # Clipping comes first, so that one large gradient does not enter the moments at full size.
        return optax.chain(optax.clip_by_global_norm(self.clip_norm), adamw) if self.clip_norm else adamw

    def _rate(self, num_steps: int) -> optax.ScalarOrSchedule:
        # optax counts steps from 0: with a warm-up the first update has rate 0.
        peak, warmup_steps = self.learning_rate, self.warmup_steps
        warmup = optax.linear_schedule(0.0, peak, warmup_steps) if warmup_steps else None
        if self.schedule == "constant":
            return peak if warmup is None else warmup
        decay = {
            "cosine": optax.cosine_decay_schedule(peak, max(1, num_steps - warmup_steps)),
            "linear": optax.linear_schedule(peak, 0.0, max(1, num_steps - warmup_steps)),
            # counted from the end of the warm-up; without one as after a warm-up of one step
            "inverse_sqrt": lambda count: peak / jnp.sqrt(1 + count / max(1, warmup_steps)),
        }[self.schedule]
        # join_schedules restarts the count for `decay` at the boundary.
        return decay if warmup is None else optax.join_schedules([warmup, decay], [warmup_steps])


def decay_mask(params: Params) -> Params:
    """Returns True for every parameter that weight decay applies to, in a pytree of any shape.

    A leaf without a name of its own (an item of a list) is decayed if it has at least two axes. flax.nnx wraps a
    parameter in a Variable: there the name is that of the Variable.
    """

    def decays(path, leaf) -> bool:
        names = [getattr(entry, "key", getattr(entry, "name", None)) for entry in path]
        # Lists, so that an empty path (a single array as parameters) needs no case of its own.
        name = names[-2:-1] if names[-1:] == ["value"] else names[-1:]
        return not set(names[:1]) & NOT_KERNELS and not set(name) & set(NEVER_DECAYED) and leaf.ndim > 1

    return jax.tree_util.tree_map_with_path(decays, params)
