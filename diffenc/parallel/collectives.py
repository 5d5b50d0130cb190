"""What processes that compute together must decide alike. All of them have to ask, from their main threads."""

from collections.abc import Callable, Iterable

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Shaped

from diffenc.errors import UserError


def all_succeeded(here: bool) -> bool:
    """Whether `here` is true in every process."""
    if jax.process_count() == 1:
        return here
    return bool(np.all(multihost_utils.process_allgather(np.array(here))))


def agree_on(check: Callable[[], None]) -> None:
    """Calls `check`, and raises in every process where it raises UserError in one."""
    failure = None
    try:
        check()
    except UserError as error:
        failure = error
    if not all_succeeded(failure is None):
        raise failure or UserError("another process of this run has stopped it, and says why")


def broadcast_ints(*numbers: int) -> tuple[int, ...]:
    """The first process's `numbers`, which must fit into 32 bits."""
    if jax.process_count() == 1:
        return numbers
    return tuple(int(n) for n in multihost_utils.broadcast_one_to_all(np.array(numbers, np.int32)))


def broadcast_strings(numbers: Iterable[int]) -> list[int]:
    """The first process's list, whatever its length; each must fit into 32 bits."""
    mine = list(numbers)
    (count,) = broadcast_ints(len(mine))
    return list(broadcast_ints(*[*mine, *[0] * count][:count])) if count else []


def broadcast_array(array: Shaped[np.ndarray, "*shape"]) -> Shaped[np.ndarray, "*shape"]:
    """The first process's array; of the others' only shape and type matter."""
    if jax.process_count() == 1:
        return array
    return np.asarray(multihost_utils.broadcast_one_to_all(array))
