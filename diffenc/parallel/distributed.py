"""One run by several processes, each with devices of its own: how they meet, and who does what only one may do.

All processes run the same program on the same files, and compute together. The first alone writes and speaks.
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

# Seconds until a process that went without a word counts as lost; so long a hung machine keeps the others waiting.
LOST_AFTER = 30
ABORT_AFTER = 90  # seconds until JAX ends the process in words of its own, should all else fail
MEET_WITHIN = 300  # seconds
GIVE_WAY = 1.0  # seconds that the first process lets the others leave before it

# In what the transports between processes raise; of types they raise all kinds.
SIGNS_OF_LOSS = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "heartbeat", "coordination service")


class Address(NamedTuple):
    """How one process finds the others.

    Attributes:
      coordinator: HOST:PORT of the first process.
      num_processes: in all.
      process_id: this one's number, from 0.
    """

    coordinator: str
    num_processes: int
    process_id: int


def check_address(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> Address | None:
    """The address given by flags, or None if none was.

    Raises:
      UserError: only a part of it was given, or the number is not one of them.
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


def is_announced(environment: Mapping[str, str]) -> bool:
    """Whether a launcher says that there are several processes: SLURM in a job step, or a TPU pod."""
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    return (tasks.isdigit() and int(tasks) > 1) or "," in environment.get("TPU_WORKER_HOSTNAMES", "")


def start_process_group(address: Address | None, detect: bool, notice: bool) -> None:
    """Meet the other processes, if there are any. To be called before JAX is used.

    Args:
      address: None = where `detect`, JAX finds it out from its surroundings (SLURM, TPU pods, Open MPI).
      notice: whether SIGTERM is for `diffenc.runtime.signals` to notice; otherwise it ends the process.

    Raises:
      UserError: the others did not come.
    """
    if address is None and not detect:
        return
    jax.config.update("jax_enable_preemption_service", notice)
    given: dict[str, Any] = {} if address is None else {
        "coordinator_address": address.coordinator,
        "num_processes": address.num_processes,
        "process_id": address.process_id,
    }  # fmt: skip
    patience: dict[str, Any] = {
        "initialization_timeout": MEET_WITHIN,
        "heartbeat_timeout_seconds": ABORT_AFTER,
        "shutdown_timeout_seconds": LOST_AFTER,
    }
    # Before, for where they do not meet XLA ends the process in words of its own.
    logging.info("waiting for %s, for at most %d s", _others(address), MEET_WITHIN)
    try:
        jax.distributed.initialize(**given, **patience)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the processes of this run did not meet ({_first_line(error)}); start all of them with the same "
            "--coordinator and --num_processes, or --nodistributed to run alone"
        ) from error
    _watch_others()
    if not is_main():
        logging.set_verbosity(logging.WARNING)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives


def is_main() -> bool:
    """Whether this is the one process that writes and speaks."""
    return jax.process_index() == 0


def main_process_only(function: Callable[P, R]) -> Callable[P, R | None]:
    """`function`, done by the first process alone; in the others it does nothing and returns None."""

    @functools.wraps(function)
    def only_there(*args: P.args, **kwargs: P.kwargs) -> R | None:
        return function(*args, **kwargs) if is_main() else None

    return only_there


def barrier(where: str) -> None:
    """Wait until all processes have come to the place called `where`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


@contextlib.contextmanager
def translate_lost_process_errors() -> Iterator[None]:
    """Among several processes, turn JAX's word for a lost one into a UserError, and end this one at any other failure.

    An exception that goes on to the interpreter's end would wait there for the others, which wait for this one.
    """
    try:
        yield
    except (UserError, Interrupted):
        raise
    except Exception as error:
        if jax.process_count() == 1:
            raise
        if not any(sign in str(error) for sign in SIGNS_OF_LOSS):
            traceback.print_exc()
            exit_process(1)
        raise UserError(_lost(_first_line(error))) from error


def exit_process(status: int) -> NoReturn:
    """End this process. Among several at once: an orderly end would wait for those that are stuck or gone."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    if jax.distributed.is_initialized() and jax.process_count() > 1 and status:
        if is_main():  # with it goes what the others are connected through, which aborts them
            time.sleep(GIVE_WAY)
        os._exit(status)
    sys.exit(status)


def _lost(reason: str) -> str:
    return (
        f"another process of this run was lost, or the connection to it ({reason}); "
        "run the same command again in all of them: the run goes on from its last checkpoint"
    )


def _watch_others() -> None:
    state = jax_distributed.global_state
    count, message = jax.process_count(), _lost(f"no sign of life for {LOST_AFTER} s")
    if state.client is not None and count > 1:
        Heartbeat(state.client, jax.process_index(), count, float(LOST_AFTER), message).start()


def _others(address: Address | None) -> str:
    if address is None:
        return "the other processes, as JAX finds them (--nodistributed runs alone)"
    return (
        f"{address.num_processes} processes to meet at {address.coordinator}, each started with this --coordinator "
        f"and --num_processes, and a --process_id of its own (here {address.process_id})"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
