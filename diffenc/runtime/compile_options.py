"""XLA's options for programs on the CPU: most of what its compiler spends by default, a program never gets back.

Convolutions and products are ready-made routines on a CPU. What XLA compiles is all between them, and there its optimisation
of level 1 gives code as fast as that of level 3, for two thirds of the time. Without fusion emitters, each piece compiled in
one part, it takes half of that again, and the code is slower by a few per cent.
"""

import functools
import os
from collections.abc import Mapping
from typing import Any

import jax

# to run for hours
STEADY: Mapping[str, Any] = {"xla_backend_optimization_level": "1"}
# to run once, or for seconds
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
    """Returns those that $XLA_FLAGS leaves open and the installed jaxlib knows; None if there are none."""
    flags = os.environ.get("XLA_FLAGS", "")
    # What the user set in XLA_FLAGS wins.
    known = {key: value for key, value in options if key not in flags and _is_known(key, value)}
    return known or None


@functools.cache
def _is_known(key: str, value: Any) -> bool:
    """Whether the installed jaxlib takes the option. It changes from one to the next, and refuses what it does not know."""
    try:
        with jax.default_device(jax.devices("cpu")[0]):
            # There is no list of options to ask; a trivial program that compiles is the only proof.
            jax.jit(lambda: 0).lower().compile(compiler_options={key: value})
    except Exception:  # of whatever class this jaxlib has for it
        return False
    return True
