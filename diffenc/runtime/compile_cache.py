"""Ahead-of-time compilation, and the persistent compilation cache shared by later processes."""

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
    """Enables JAX's persistent compilation cache in the per-user cache folder, unless the environment configures it.

    JAX stores programs that take over a second to compile. $JAX_COMPILATION_CACHE_DIR names another folder (or none, if it
    is empty), and JAX_ENABLE_COMPILATION_CACHE=0 turns the cache off. If the folder cannot be written, a warning is logged.
    """
    # `is not None`, since "" is a setting too: a user who sets it empty wants no folder.
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
    """Creates `folder` if necessary. Raises OSError if it cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        # Writing is the only reliable test: os.access knows neither quotas nor full disks.
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
    """Returns `function`, made by `jax.jit`, compiled for the given arguments; logs progress and the time taken.

    With JAX_DISABLE_JIT it returns `function` itself, to be run line by line.

    Args:
      what: name of the program for the log, such as "the train step".
      arguments: arrays, or their `jax.ShapeDtypeStruct`s with shardings. The compiled function accepts only these shapes
        and shardings.
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
    """Yields a list to which each event `wanted` that JAX records in this thread is appended."""
    seen: list[str] = []
    thread = threading.get_ident()

    def listen(event: str, **_: Any) -> None:
        # Listeners are global, and other threads may compile at the same time.
        if event == wanted and threading.get_ident() == thread:
            seen.append(event)

    jax.monitoring.register_event_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_listener(listen)
