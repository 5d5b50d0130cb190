"""Inputs of the checks: compiled plugins with parameters, images and keys."""

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
LOG_SNR = (-15.0, -4.6, 1.3, 15.0)  # not the usual ends of schedules, where an embedding may be clipped
PERTURBED = (
    0.3  # standard deviation of the noise on parameters, so that layers initialised to 0 have an effect
)

# Compiled functions run only once or twice here, so optimising them would take longer than it saves.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Subject(NamedTuple):
    """An encoder or network under test, with its inputs; `apply` and `init` are compiled."""

    init: Callable[..., Params]
    apply: Callable[..., Data]
    params: Params
    x: Data
    log_snr: LogSNR


def cached_per_plugin(plugins: int) -> Callable[[OfPlugin[P, T]], OfPlugin[P, T]]:
    """Caches the results of a function for the last `plugins` plugins; an unhashable plugin fails with a hint."""

    def decorate(function: OfPlugin[P, T]) -> OfPlugin[P, T]:
        cached = functools.lru_cache(maxsize=plugins)(function)

        @functools.wraps(function)
        def checked(plugin: Any, *args: P.args, **kwargs: P.kwargs) -> T:
            require_hashable(plugin)
            return cached(plugin, *args, **kwargs)  # pyright: ignore[reportArgumentType]

        return checked

    return decorate


@cached_per_plugin(plugins=32)
def subject(plugin: Any, image_shape: tuple[int, ...], x64: bool = False) -> Subject:
    """Returns the plugin with perturbed parameters and images at four noise levels.

    Args:
      x64: part of the cache key; must be whether float64 is enabled at the call.
    """
    x = jnp.asarray(images(image_shape), jnp.result_type(float))
    log_snr = jnp.asarray(LOG_SNR, x.dtype)
    init = quick_jit(checked_init(plugin))
    return Subject(init, quick_jit(plugin.apply), perturb(init(key(), x, log_snr), PERTURBED), x, log_snr)


def checked_init(plugin: Any) -> Callable[..., Params]:
    """Returns the plugin's `init`, changed to raise AssertionError if its result cannot be trained."""

    def init(*inputs: Any) -> Params:
        try:
            return as_parameters(selector_of(type(plugin)), plugin.init(*inputs))
        except UserError as error:
            raise AssertionError(str(error)) from error

    return init


def require_trainable(plugin: Any, *inputs: Any) -> None:
    """Raises AssertionError unless `init` returns, for a key and `inputs`, a pytree that a run can train and save."""
    require_hashable(plugin)
    init = lambda: jax.eval_shape(checked_init(plugin), jax.random.key(0), *inputs)  # noqa: E731
    try:
        require_same_structure(selector_of(type(plugin)), init, init)
    except UserError as error:
        raise AssertionError(str(error)) from error
    first = init()
    structure = jax.tree.structure(first)
    try:  # sharding specs, masks and names replace the arrays as leaves during training
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
    """Returns an image for each noise level, with pixels uniform in (-1, 1)."""
    return np.random.default_rng(seed).uniform(-1, 1, (len(LOG_SNR), *image_shape))


def key(seed: int = 0) -> Any:
    """Returns a key of a generator that compiles fast."""
    return jax.random.key(seed, impl="unsafe_rbg")


def image_keys(seed: int) -> ImageKeys:
    """Returns a key for each image."""
    return jax.random.split(jax.random.key(seed), len(LOG_SNR))


def perturb(params: Params, scale: float, seed: int = 0) -> Params:
    """Returns parameters with Gaussian noise added to floating-point leaves; integers and flags are unchanged."""
    random = np.random.default_rng(seed)

    def perturb_leaf(leaf: Any) -> Any:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            return leaf
        return leaf + jnp.asarray(random.normal(0, scale, jnp.shape(leaf)), jnp.result_type(leaf))

    return jax.tree.map(perturb_leaf, params)


def num_classes_of(plugin: Any) -> int:
    """Returns the number of classes that the plugin accepts; 0 if it ignores the condition."""
    return max((count for _, count in conditioned_modules(plugin)), default=0)
