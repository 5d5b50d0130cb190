"""One run of several processes, each with its own devices: connecting them, and work for the main process only.

All processes run the same program on the same files and compute together. Only process 0, the main process, writes files
and logs.
"""

import contextlib
import functools
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, NoReturn, ParamSpec, TypeVar

import jax
from absl import logging
from jax._src import distributed as jax_distributed  # its client has no public name
from jax.experimental import multihost_utils

from diffenc.errors import UserError
from diffenc.parallel.heartbeat import Heartbeat
from diffenc.runtime.signals import Interrupted

P = ParamSpec("P")
R = TypeVar("R")

LOST_AFTER = 30  # heartbeat timeout in seconds; so long a hung machine keeps the others waiting
ABORT_AFTER = 90  # seconds until JAX itself ends the process with a stack trace, should the heartbeat fail
CONNECT_WITHIN = 300  # seconds
EXIT_DELAY = 1.0  # seconds that the main process waits for the others to exit first

# Parts of the messages by which errors of transports between processes are recognised, as their types vary.
SIGNS_OF_LOSS = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "heartbeat", "coordination service")


class Address(NamedTuple):
    """The address by which one process connects to the others.

    Attributes:
      coordinator: HOST:PORT of process 0.
      num_processes: number of processes.
      process_id: index of this process, from 0.
    """

    coordinator: str
    num_processes: int
    process_id: int


def parse_address(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> Address | None:
    """Returns the address given by flags, or None if no flag was given.

    Raises:
      UserError: the flags are incomplete or malformed, or the index is out of range.
    """
    if coordinator is None and num_processes is None and process_id is None:
        return None
    if coordinator is None or num_processes is None or process_id is None:
        raise UserError(
            "--coordinator=HOST:PORT, --num_processes and --process_id go together: give all three"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--coordinator={coordinator}: must be HOST:PORT of the process with --process_id=0")
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id={process_id}: must be from 0 to --num_processes - 1 = {num_processes - 1}"
        )
    return Address(coordinator, num_processes, process_id)


def has_several_processes(environment: Mapping[str, str]) -> bool:
    """Whether the environment of a launcher announces several processes: SLURM in a job step, or a TPU pod."""
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    return (tasks.isdigit() and int(tasks) > 1) or "," in environment.get("TPU_WORKER_HOSTNAMES", "")


def start_process_group(address: Address | None, detect: bool, notice: bool) -> None:
    """Connects to the other processes, if there are any. Must be called before JAX is used.

    Args:
      address: None = if `detect`, JAX determines it from the environment (SLURM, TPU pods, Open MPI).
      notice: whether SIGTERM is handled by `diffenc.runtime.signals`; otherwise it ends the process.

    Raises:
      UserError: the others did not connect in time.
    """
    if address is None and not detect:
        return
    # With jax.distributed, SIGTERM is handled by JAX's preemption notifier,
    # through which all processes learn of it at the same step.
    jax.config.update("jax_enable_preemption_service", notice)
    given: dict[str, Any] = {} if address is None else {
        "coordinator_address": address.coordinator,
        "num_processes": address.num_processes,
        "process_id": address.process_id,
    }  # fmt: skip
    # JAX's heartbeat timeout is the longer one: JAX ends a process with a C++
    # stack trace, and the heartbeat of this package should act first.
    timeouts: dict[str, Any] = {
        "initialization_timeout": CONNECT_WITHIN,
        "heartbeat_timeout_seconds": ABORT_AFTER,
        "shutdown_timeout_seconds": LOST_AFTER,
    }
    # Logged before connecting: if that fails, XLA ends the process with its own message.
    logging.info("waiting for %s, for at most %d s", _describe_others(address), CONNECT_WITHIN)
    try:
        jax.distributed.initialize(**given, **timeouts)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the processes of this run did not connect ({_first_line(error)}); start all of them with the same "
            "--coordinator and --num_processes, or --nodistributed to run alone"
        ) from error
    _start_heartbeat()
    if not is_main():
        # The other processes are silent: otherwise N processes would print every line N times.
        logging.set_verbosity(logging.WARNING)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives


def is_main() -> bool:
    """Whether this is the main process, which writes files and logs."""
    return jax.process_index() == 0


def main_process_only(function: Callable[P, R]) -> Callable[P, R | None]:
    """Wraps `function` so that only the main process calls it; in other processes the wrapper returns None."""

    @functools.wraps(function)
    def on_main(*args: P.args, **kwargs: P.kwargs) -> R | None:
        return function(*args, **kwargs) if is_main() else None

    return on_main


def barrier(name: str) -> None:
    """Waits until all processes have reached the barrier `name`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def translate_lost_process_errors() -> Iterator[None]:
    """Converts JAX's errors about a lost process into UserError; any other error ends this process at once.

    With one process errors pass unchanged. Among several processes, after an uncaught exception the interpreter's exit would
    wait for the other processes, which wait for this one.
    """
    try:
        yield
    except (UserError, Interrupted):
        raise
    except Exception as error:
        if jax.process_count() == 1:
            raise
        # Recognised by their text, since transports raise general types
        # such as RuntimeError and ValueError for a lost process.
        if not any(sign in str(error) for sign in SIGNS_OF_LOSS):
            traceback.print_exc()
            exit_process(1)
        raise UserError(_lost_message(_first_line(error))) from error


def exit_process(status: int) -> NoReturn:
    """Ends this process. After an error, one of several ends at once: an orderly exit would wait for the other processes."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    if jax.distributed.is_initialized() and jax.process_count() > 1 and status:
        if is_main():  # it hosts the coordination service: without it the others abort
            time.sleep(EXIT_DELAY)
        # os._exit skips atexit handlers, among them JAX's shutdown barrier, which waits for every process.
        os._exit(status)
    sys.exit(status)


def _lost_message(reason: str) -> str:
    return (
        f"another process of this run was lost, or the connection to it ({reason}); "
        "run the same command again in all of them: the run goes on from its last checkpoint"
    )


def _start_heartbeat() -> None:
    state = jax_distributed.global_state
    count, message = jax.process_count(), _lost_message(f"no heartbeat for {LOST_AFTER} s")
    if state.client is not None and count > 1:
        Heartbeat(state.client, jax.process_index(), count, float(LOST_AFTER), message).start()


def _describe_others(address: Address | None) -> str:
    if address is None:
        return "the other processes that JAX finds (--nodistributed runs alone)"
    return (
        f"{address.num_processes} processes to connect at {address.coordinator}, each started with this --coordinator "
        f"and --num_processes, and a --process_id of its own (here {address.process_id})"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
