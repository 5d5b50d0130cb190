"""An encoder or a network with parameters, compiled, and images to give it."""

import functools
from collections.abc import Callable
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from diffenc.classes import takers
from diffenc.interfaces import Data, ImageKeys, LogSNR, Params
from diffenc.testing.asserting import require_hashable

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
    init = quick(plugin.init)
    return Subject(init, quick(plugin.apply), shaken(init(key(), x, log_snr), SHAKEN), x, log_snr)


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
    return max((count for _, count in takers(plugin)), default=0)
