"""Programs compiled before they are needed, and kept from one process to the next."""

import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from absl import logging
from jax.experimental.compilation_cache import compilation_cache

from diffenc.errors import UserError
from diffenc.files.directories import cache_directory
from diffenc.runtime.progress import format_duration

HIT = "/jax/compilation_cache/cache_hits"  # an event that JAX records


def enable_cache() -> None:
    """Keep what takes over a second to compile in the per-user cache, unless the environment says otherwise.

    $JAX_COMPILATION_CACHE_DIR names another folder (or none, where it is empty), and
    JAX_ENABLE_COMPILATION_CACHE=0 turns the cache off. A folder that cannot be written costs a warning.
    """
    # "" is a choice too: a user who sets it empty wants no folder.
    if not jax.config.jax_enable_compilation_cache or jax.config.jax_compilation_cache_dir is not None:  # pyright: ignore[reportAttributeAccessIssue]
        return
    try:
        folder = cache_directory("xla")
        _check_writable(folder)
    except (OSError, UserError) as error:  # the latter: there is no home folder
        logging.warning("what is compiled is not kept for the next run: %s", error)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _check_writable(folder: Path) -> None:
    """Make `folder` if need be. Raises OSError if nothing can be written there."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        # Trying is the only test that holds: os.access knows neither quotas nor full disks.
        file.write(b"1")


@contextlib.contextmanager
def without_compile_cache() -> Iterator[None]:
    """Disables the persistent compilation cache, for reading and writing."""
    before: bool = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    _enable_cache(False)
    try:
        yield
    finally:
        _enable_cache(before)


def _enable_cache(enable: bool) -> None:
    jax.config.update("jax_enable_compilation_cache", enable)
    compilation_cache.reset_cache()  # JAX reads the setting only once before a reset


def compile_ahead(what: str, function: Callable[..., Any], *arguments: Any) -> Callable[..., Any]:
    """`function`, which `jax.jit` made, compiled for such arguments; says how far it is and how long it took.

    Args:
      what: "the train step", for the log.
      arguments: arrays, or their `jax.ShapeDtypeStruct`s with shardings. What is returned takes these shapes
        and shardings alone.

    With JAX_DISABLE_JIT it is returned as it is, to be run line by line.
    """
    if jax.config.values["jax_disable_jit"]:
        logging.info("%s is not compiled, for jax_disable_jit is on", what)
        return function
    began = time.monotonic()
    logging.info("tracing %s", what)
    lowered = function.lower(*arguments)  # pyright: ignore[reportFunctionMemberAccess]
    traced = time.monotonic()
    logging.info("compiling %s", what)
    with _counting(HIT) as hits:
        compiled = lowered.compile()
    origin = "; taken from the cache" if hits else ""
    logging.info(
        "compiled %s in %s (%s of it tracing%s)",
        what, format_duration(time.monotonic() - began), format_duration(traced - began), origin,
    )  # fmt: skip
    return compiled


@contextlib.contextmanager
def _counting(wanted: str) -> Iterator[list[str]]:
    """A list that grows by one each time JAX records the event `wanted` in this thread."""
    seen: list[str] = []
    thread = threading.get_ident()

    def listen(event: str, **_: Any) -> None:
        # Other threads may compile meanwhile, and listeners are global.
        if event == wanted and threading.get_ident() == thread:
            seen.append(event)

    jax.monitoring.register_event_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_listener(listen)
