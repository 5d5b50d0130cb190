import dataclasses
import inspect
import math
from typing import Any

import optax

from diffenc.errors import UserError
from diffenc.registry import optimizers
from diffenc_plugins.optimizers.adamw import decay_mask

# The optax functions that a config may name. None of them takes a function that is not listed here too, changes
# parameters by anything but their gradients, or hides a gradient that is not finite.
TRANSFORMATIONS = (
    "adabelief", "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamaxw", "adamw", "amsgrad",
    "adaptive_grad_clip", "add_decayed_weights", "centralize", "clip", "clip_by_block_rms", "clip_by_global_norm",
    "ema", "identity", "lamb", "lars", "lion", "nadam", "nadamw", "novograd", "radam", "rmsprop", "scale",
    "scale_by_adam", "scale_by_adamax", "scale_by_amsgrad", "scale_by_belief", "scale_by_learning_rate",
    "scale_by_lion", "scale_by_novograd", "scale_by_radam", "scale_by_rms", "scale_by_rss", "scale_by_schedule",
    "scale_by_sm3", "scale_by_trust_ratio", "scale_by_yogi", "sgd", "sign_sgd", "sm3", "trace", "yogi",
)  # fmt: skip
SCHEDULES = (
    "constant_schedule", "cosine_decay_schedule", "cosine_onecycle_schedule", "exponential_decay",
    "linear_onecycle_schedule", "linear_schedule", "polynomial_schedule", "warmup_constant_schedule",
    "warmup_cosine_decay_schedule", "warmup_exponential_decay_schedule",
)  # fmt: skip
NUM_STEPS = "num_steps"  # as an argument: how many steps training takes
KERNELS = "kernels"  # as the argument `mask`: what the weight decay of optimizer.adamw reaches

Call = tuple[str, tuple[tuple[str, Any], ...]]  # a name and its named arguments


@optimizers.register("chain")
@dataclasses.dataclass(frozen=True)
class Chain:
    """Transformations of optax, one after the other, by name and arguments.

    Transformations that treat each parameter array by itself ("lamb", "lars", "clip_by_block_rms" and the like) see the stacked
    blocks of a network as one array.

    Attributes:
      transformations: pairs of a name in optax and its named arguments: `("clip_by_global_norm", {"max_norm":
        1.0})`. An argument is a number, a truth value, None, a tuple of these, a learning-rate schedule of optax in the
        same form, "num_steps" for the number of training steps, or as a `mask` "kernels" for the parameters that weight
        decay should apply to.
    """

    transformations: tuple[tuple[Any, ...], ...] = (
        ("clip_by_global_norm", (("max_norm", 1.0),)),
        ("adam", (("learning_rate", 2e-4),)),
    )

    def __post_init__(self):
        calls = tuple(_parse_call(item, TRANSFORMATIONS) for item in self.transformations)
        # object.__setattr__ since the dataclass is frozen. The canonical form makes equal
        # optimizers equal and hashable, whether gin or Python gave dicts, lists or tuples.
        object.__setattr__(self, "transformations", calls)
        self.build(num_steps=1)  # so that an impossible argument is found here

    def build(self, num_steps: int) -> optax.GradientTransformation:
        return optax.chain(*(_make(call, num_steps) for call in self.transformations))


def _parse_call(item: Any, allowed: tuple[str, ...]) -> Call:
    """Returns a name and its arguments, given as a dict or as pairs, in hashable form."""
    try:
        name, arguments = item
        pairs = dict(arguments).items()
    except (TypeError, ValueError):
        raise _error(
            f"{item!r} must be a pair of a name and arguments, as ('scale', {{'step_size': 0.5}})"
        ) from None
    if name not in allowed:
        raise _error(f"{name!r} is none of {', '.join(allowed)}")
    known = inspect.signature(getattr(optax, name)).parameters
    for key, _ in pairs:
        if key not in known:
            raise _error(f"{name} has no argument {key!r}; it has {', '.join(known)}")
    return name, tuple((key, _parse_argument(name, key, value)) for key, value in pairs)


def _parse_argument(name: str, key: str, value: Any) -> Any:
    if isinstance(value, list | tuple) and value and isinstance(value[0], str):
        return _parse_call(value, SCHEDULES)
    if isinstance(value, list | tuple):
        return tuple(_parse_argument(name, key, item) for item in value)
    # A config may come from an untrusted source: only names in this module's
    # lists are looked up in optax, and arguments are plain values.
    is_number = isinstance(value, int | float) and math.isfinite(value)
    is_known_name = value == NUM_STEPS or (key == "mask" and value == KERNELS) or key.endswith("dtype")
    if not (is_number or value is None or (isinstance(value, str) and is_known_name)):
        raise _error(f"{name}: {key} = {value!r} is no number")
    return value


def _make(call: Call, num_steps: int) -> Any:
    """Returns the result of the optax function that `call` names."""
    name, arguments = call
    values = {key: _make_argument(value, num_steps) for key, value in arguments}
    try:
        return getattr(optax, name)(**values)
    except (TypeError, ValueError, AttributeError) as error:
        raise _error(f"{name}: {error}") from error


def _make_argument(value: Any, num_steps: int) -> Any:
    if isinstance(value, tuple) and value and isinstance(value[0], str):
        return _make(value, num_steps)  # pyright: ignore[reportArgumentType]
    return {NUM_STEPS: num_steps, KERNELS: decay_mask}.get(value, value) if isinstance(value, str) else value


def _error(reason: str) -> UserError:
    return UserError(f"optimizer.chain.transformations: {reason}")
