"""A cache of compiled functions: JAX compiles per function object, and a function that is made anew compiles again."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
Compiled = TypeVar("Compiled")

KEPT = 8  # of each decorated function; each holds its compiled programs in memory


def compiled_once(make: Callable[P, Compiled]) -> Callable[P, Compiled]:
    """Decorates `make`, which returns a compiled function: equal arguments give the same function, so that it compiles once.

    The program must follow from the arguments alone: parameters and other arrays are arguments of the compiled
    function. The last `KEPT` functions are kept. With an unhashable argument, such as one that holds arrays, each call makes
    a new function.
    """
    find = functools.lru_cache(maxsize=KEPT)(make)

    @functools.wraps(make)
    def find_or_make(*args: P.args, **kwargs: P.kwargs) -> Compiled:
        # lru_cache raises TypeError for an argument without a hash, and a TypeError from within `make` would
        # look the same: so the hash is tried first, not the call.
        return find(*args, **kwargs) if _is_hashable((args, *kwargs.values())) else make(*args, **kwargs)

    return find_or_make


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
