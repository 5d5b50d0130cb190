"""Settings of JAX, mostly from its environment variables, that these programs cannot run under, or cannot run at all."""

import jax
import jax.numpy as jnp
from absl import logging

from diffenc.errors import UserError
from diffenc.runtime.matmul_precision import LEVELS

GUARDS = tuple(
    f"jax_transfer_guard{way}" for way in ("", "_host_to_device", "_device_to_host", "_device_to_device")
)
# What is turned off, by setting: the values that are, what is set instead, and why.
OFF = {
    "jax_numpy_dtype_promotion": (("strict",), "standard", "the loss adds integers to floats"),
    **dict.fromkeys(
        GUARDS, (("disallow", "disallow_explicit"), "allow", "it stays on around the train step")
    ),
}


def override_settings() -> None:
    """Turn off settings that the programs cannot run under, with a line in the log for each. Before JAX has a backend."""
    for name, (values, instead, why) in OFF.items():
        if jax.config.values[name] in values:
            logging.warning("%s = %s is off here: %s", name, jax.config.values[name], why)
            jax.config.update(name, instead)


def train_in_float32() -> None:
    """Turn x64 off, with a line in the log: checkpoints are float32."""
    if jax.config.values["jax_enable_x64"]:
        logging.warning("jax_enable_x64 is off here: training is in float32")
        jax.config.update("jax_enable_x64", False)


def check_backend() -> None:
    """Raise UserError if JAX finds no device of the platform it is told, or that cannot multiply as it is told."""
    try:
        jax.devices()
    except RuntimeError as error:
        raise UserError(f"JAX has no device to compute on (JAX_PLATFORMS, or the driver): {error}") from None
    setting = jax.config.values["jax_default_matmul_precision"]
    if setting is None or setting in LEVELS:
        return
    square = jax.ShapeDtypeStruct((2, 2), jnp.float32)
    try:
        # Backends refuse some presets of DotAlgorithm only when
        # they compile: better here than minutes into a run.
        jax.jit(jnp.matmul).lower(square, square).compile()
    except (ValueError, RuntimeError) as error:
        raise UserError(f"JAX_DEFAULT_MATMUL_PRECISION={setting}: {error}") from None
