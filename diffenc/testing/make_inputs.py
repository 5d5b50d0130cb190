"""An encoder or a network with parameters, compiled, and images to give it."""

import functools
from collections.abc import Callable
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from diffenc.core.conditioning import conditioned_modules
from diffenc.core.parameters import as_parameters, require_same_structure
from diffenc.errors import UserError
from diffenc.interfaces import Data, ImageKeys, LogSNR, Params
from diffenc.registry import selector_of
from diffenc.testing.assertions import require, require_hashable

P = ParamSpec("P")
T = TypeVar("T")
OfPlugin = Callable[Concatenate[Any, P], T]

IMAGE_SHAPE = (8, 8, 2)
LOG_SNR = (-15.0, -4.6, 1.3, 15.0)  # away from the usual ends of schedules, where an embedding may be clipped
SHAKEN = 0.3  # standard deviation added to every parameter, so that what starts at zero is not silent

# These functions run once or twice: optimising them would take longer.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Subject(NamedTuple):
    """What checks of encoders and networks look at. `apply` and `init` are compiled."""

    init: Callable[..., Params]
    apply: Callable[..., Data]
    params: Params
    x: Data
    log_snr: LogSNR


def kept(plugins: int) -> Callable[[OfPlugin[P, T]], OfPlugin[P, T]]:
    """What a function of a plugin gives, computed once for each of the last so many; one not hashable is told so."""

    def keep(function: OfPlugin[P, T]) -> OfPlugin[P, T]:
        cached = functools.lru_cache(maxsize=plugins)(function)

        @functools.wraps(function)
        def checked(plugin: Any, *args: P.args, **kwargs: P.kwargs) -> T:
            require_hashable(plugin)
            return cached(plugin, *args, **kwargs)  # pyright: ignore[reportArgumentType]

        return checked

    return keep


@kept(plugins=32)
def subject(plugin: Any, image_shape: tuple[int, ...], x64: bool = False) -> Subject:
    """The plugin at four noise levels, its parameters shaken; `x64`: whether all is in float64, as it is now."""
    x = jnp.asarray(images(image_shape), jnp.result_type(float))
    log_snr = jnp.asarray(LOG_SNR, x.dtype)
    init = quick(init_of(plugin))
    return Subject(init, quick(plugin.apply), shaken(init(key(), x, log_snr), SHAKEN), x, log_snr)


def init_of(plugin: Any) -> Callable[..., Params]:
    """Returns the plugin's `init` as training calls it: an AssertionError where it returns what cannot be trained."""

    def init(*inputs: Any) -> Params:
        try:
            return as_parameters(selector_of(type(plugin)), plugin.init(*inputs))
        except UserError as error:
            raise AssertionError(str(error)) from error

    return init


def require_trainable(plugin: Any, *inputs: Any) -> None:
    """Raises AssertionError unless `init` returns, for a key and `inputs`, a pytree that a run can train and save."""
    require_hashable(plugin)
    init = lambda: jax.eval_shape(init_of(plugin), jax.random.key(0), *inputs)  # noqa: E731
    try:
        require_same_structure(selector_of(type(plugin)), init, init)
    except UserError as error:
        raise AssertionError(str(error)) from error
    first = init()
    structure = jax.tree.structure(first)
    try:  # specs of sharding, masks and names take the arrays' places
        refilled = jax.tree.structure(jax.tree.map(lambda _: "anything", first))
    except Exception as error:  # whatever the class raises
        raise AssertionError(
            f"{selector_of(type(plugin))}: the pytree of its parameters cannot hold other leaves than arrays: {error!r}; "
            "let its class take any leaves when it is unflattened"
        ) from error
    require(
        refilled == structure, plugin, "the structure of its parameters changes with the leaves they hold"
    )


def images(image_shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """One for each noise level, their pixels uniform in (-1, 1)."""
    return np.random.default_rng(seed).uniform(-1, 1, (len(LOG_SNR), *image_shape))


def key(seed: int = 0) -> Any:
    """Of a generator that compiles in no time."""
    return jax.random.key(seed, impl="unsafe_rbg")


def image_keys(seed: int) -> ImageKeys:
    """One for each image."""
    return jax.random.split(jax.random.key(seed), len(LOG_SNR))


def shaken(params: Params, scale: float, seed: int = 0) -> Params:
    """Parameters as training may leave them: every number moved at random; integers and flags as they are."""
    random = np.random.default_rng(seed)

    def moved(leaf: Any) -> Any:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            return leaf
        return leaf + jnp.asarray(random.normal(0, scale, jnp.shape(leaf)), jnp.result_type(leaf))

    return jax.tree.map(moved, params)


def classes_of(plugin: Any) -> int:
    """How many it takes; 0 if it looks at no condition."""
    return max((count for _, count in conditioned_modules(plugin)), default=0)
