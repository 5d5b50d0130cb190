"""Separate random keys for each use of one seed, and the settings that a draw depends on besides its key."""

import functools
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffenc.interfaces import Key

# JAX's settings that change the numbers drawn from a key.
SETTINGS = (
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_enable_x64",
    "jax_random_seed_offset",
    "jax_high_dynamic_range_gumbel",
)
USUAL = "threefry2x32, partitionable"  # JAX's defaults since 0.5.0


# of the host's loops: the same keys, for a tenth of the time that it takes operation by operation
fold_in = jax.jit(jax.random.fold_in)


def root_key(seed: int, purpose: str) -> Key:
    """Returns the key of all draws of one purpose: "init", "train", "evaluate", "sample", ...

    Without the purpose, evaluation would see the very noise that training saw, since split and fold_in of
    one key give the same children.
    """
    # crc32, not hash(): Python salts the hash of a string per
    # process, so processes and resumed runs would disagree.
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))


def draw_settings() -> dict[str, Any]:
    """Returns, for JSON, the dependences of a draw besides its key: JAX's settings, its version, and a few numbers drawn.

    The generator "rbg" draws other numbers on another backend, so for "rbg" the backend is included.
    """
    settings = {name: jax.config.values[name] for name in SETTINGS}
    # threefry is defined bit by bit, whatever computes it; rbg is the backend's own RngBitGenerator.
    backend = {"backend": jax.default_backend()} if "rbg" in settings["jax_default_prng_impl"] else {}
    return {**settings, **backend, "jax": jax.__version__, "drawn": _drawn(*settings.values())}


def generator() -> str:
    """Returns the generator in words, for records of measurements: its name, and each setting that is not JAX's default."""
    # jax_enable_x64 is left out: records state the precision by itself.
    impl, partitionable, _, offset, gumbel = (jax.config.values[name] for name in SETTINGS)
    parts = [impl]
    parts += ["partitionable"] if partitionable and impl == "threefry2x32" else []
    parts += [f"seed offset {offset}"] if offset else []
    parts += ["high-range gumbel"] if gumbel else []
    return ", ".join(parts)


def changed_draws(saved: dict[str, Any], now: dict[str, Any]) -> str | None:
    """Returns `SETTING = SAVED there and NOW here` of the first setting that changes the draws of equal keys; None if none does.

    JAX's version counts only where the numbers drawn differ. Settings that one record lacks are taken to be equal.

    Args:
      saved, now: as `draw_settings` returns them.
    """
    for name in (*SETTINGS, "backend"):
        if name in saved and name in now and saved[name] != now[name]:
            return f"{name} = {saved[name]} there and {now[name]} here"
    # Last, after the settings that would explain a difference. The tolerance allows for another rounding of
    # the inverse normal CDF, far below the distance between unrelated draws.
    if np.allclose(saved.get("drawn", now["drawn"]), now["drawn"], rtol=0, atol=1e-3):
        return None
    return f"jax = {saved.get('jax')} there and {now['jax']} here, which draw other numbers"


@functools.lru_cache(maxsize=8)
# The settings are arguments only to key the cache: they act on the draw through JAX's configuration.
def _drawn(*settings: Any) -> list[float]:
    """Returns a few numbers drawn under the current `settings`; rounding leaves them the same to 1e-3."""
    return [float(number) for number in jax.device_get(_draw(jax.random.key(0)))]


@jax.jit
def _draw(key: Key) -> Float[Array, " 4"]:
    """Returns normal numbers, which depend on the uniform numbers, and so on the key's bits, its split and its fold."""
    return jax.random.normal(jax.random.split(jax.random.fold_in(key, 1), 3)[2], (4,), jnp.float32)
