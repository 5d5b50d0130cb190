"""Agreement of all processes of a run on small values. All must make the same calls, from their main threads."""

from collections.abc import Callable, Iterable

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Shaped

from diffenc.errors import UserError


def all_succeeded(here: bool) -> bool:
    """Returns whether `here` is true in every process."""
    if jax.process_count() == 1:
        return here
    # A collective operation: every process must call it, also after a failed check
    # of its own; hence results are values, not exceptions, until all processes know them.
    return bool(np.all(multihost_utils.process_allgather(np.array(here))))


def agree_on(check: Callable[[], None]) -> None:
    """Calls `check`; if it raises UserError in one process, raises one in all of them."""
    failure = None
    try:
        check()
    except UserError as error:
        # Only UserError, which a process can report to the others; any other error ends the process.
        failure = error
    # Without this exchange the failed process would exit, and the
    # others would wait for it in their next collective operation.
    if not all_succeeded(failure is None):
        raise failure or UserError("another process of this run stopped it; see the error there")


def broadcast_ints(*numbers: int) -> tuple[int, ...]:
    """Returns the `numbers` of process 0, which must fit into 32 bits."""
    if jax.process_count() == 1:
        return numbers
    return tuple(int(n) for n in multihost_utils.broadcast_one_to_all(np.array(numbers, np.int32)))


def broadcast_int_list(numbers: Iterable[int]) -> list[int]:
    """Returns the list of process 0, which may have another length; each number must fit into 32 bits."""
    mine = list(numbers)
    (count,) = broadcast_ints(len(mine))
    # Arrays of a broadcast need the same shape in all processes: the
    # length is sent first, then each list is cut or padded to it.
    return list(broadcast_ints(*[*mine, *[0] * count][:count])) if count else []


def broadcast_array(array: Shaped[np.ndarray, "*shape"]) -> Shaped[np.ndarray, "*shape"]:
    """Returns the array of process 0; the others pass one of the same shape and dtype."""
    if jax.process_count() == 1:
        return array
    return np.asarray(multihost_utils.broadcast_one_to_all(array))
