"""XLA options for programs on the CPU, which reduce compile time at little or no cost in run time.

On a CPU, convolutions and matrix products call library routines; XLA compiles only the operations between them. For these,
optimisation level 1 gives code as fast as level 3 in two thirds of the compile time. Without fusion emitters, and with a single
part in parallel code generation, compiling takes half of that again, and the code is slower by a few per cent.
"""

import functools
import os
from collections.abc import Mapping
from typing import Any

import jax

# For programs that run for hours.
STEADY: Mapping[str, Any] = {"xla_backend_optimization_level": "1"}
# For programs that run once, or for seconds.
BRIEF: Mapping[str, Any] = {
    **STEADY,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": "1",
}


def steady_options(platform: str) -> dict[str, Any] | None:
    """Returns the `compiler_options` of `jax.jit` for a program that runs for long on such devices."""
    return _known_options(tuple(STEADY.items())) if platform == "cpu" else None


def brief_options(platform: str) -> dict[str, Any] | None:
    """Returns the `compiler_options` of `jax.jit` for a program that runs once or a few times on such devices."""
    return _known_options(tuple(BRIEF.items())) if platform == "cpu" else None


@functools.cache
def _known_options(options: tuple[tuple[str, Any], ...]) -> dict[str, Any] | None:
    """Returns the options that $XLA_FLAGS does not set and the installed jaxlib supports; None if there are none."""
    flags = os.environ.get("XLA_FLAGS", "")
    # Options that the user set in XLA_FLAGS take precedence.
    known = {key: value for key, value in options if key not in flags and _is_known(key, value)}
    return known or None


@functools.cache
def _is_known(key: str, value: Any) -> bool:
    """Whether the installed jaxlib supports the option. Supported options vary by version, and unknown ones are errors."""
    try:
        with jax.default_device(jax.devices("cpu")[0]):
            # JAX has no list of supported options; compiling a trivial program is the only test.
            jax.jit(lambda: 0).lower().compile(compiler_options={key: value})
    except Exception:  # of whatever class this jaxlib has for it
        return False
    return True
