"""Reading one checkpoint back, by all processes at once: all of them get it, or none."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from diffenc.checkpoint import arrays, leaves, meta
from diffenc.checkpoint.leaves import Described, Tree
from diffenc.checkpoint.meta import part_of
from diffenc.errors import UserError
from diffenc.files import stores
from diffenc.files.checksummed_json import UnreadableError
from diffenc.files.stores import Store
from diffenc.parallel.collectives import all_succeeded

Select = Callable[[Described, Described], Described]
Check = Callable[
    [str, dict[str, Any]], None
]  # of a checkpoint's name and metadata; raises UserError to refuse it


class Restored(NamedTuple):
    """A checkpoint read back: the tree, the caller's metadata, the step."""

    tree: Tree
    metadata: dict[str, Any]
    step: int


def everything(saved: Described, wanted: Described) -> Described:
    """For `Checkpoints.restore`: the wanted tree must be all that was saved."""
    return saved


def same_branches(saved: Described, wanted: Described) -> Described:
    """For `Checkpoints.restore`: of what was saved, only the top-level branches that are wanted count."""
    branches = {leaves.branch(name) for name in wanted}
    return {name: leaf for name, leaf in saved.items() if leaves.branch(name) in branches}


def any_metadata(where: str, metadata: dict[str, Any]) -> None:
    """For `Checkpoints.restore`: every checkpoint will do."""


@contextlib.contextmanager
def reading(place: stores.PathLike) -> Iterator[None]:
    """Within it, what a store refuses is a UserError."""
    try:
        yield
    except OSError as error:
        raise stores.unreadable(place, error) from error


def read_by_all(store: Store, name: str, abstract: Tree, select: Select, check: Check) -> Restored:
    """The checkpoint `name` of `store`; `select` and `check` as in `Checkpoints.restore`. All processes have to ask.

    Raises:
      UnreadableError: it is unreadable in one of the processes.
      UserError: the store refuses one of them, or the tree is of another architecture.
    """
    restored, damage, refusal = None, None, None
    try:
        restored = _read(store, name, abstract, select, check)
    except UnreadableError as error:
        damage = error
    except OSError as error:
        refusal = stores.unreadable(f"{store}/{name}".rstrip("/"), error)
    if not all_succeeded(refusal is None):
        raise refusal or UserError(f"cannot read {store}: it refused another process, whose log says why")
    if not all_succeeded(damage is None) or restored is None:
        raise damage or UnreadableError("another process could not read it")
    return restored


def _read(store: Store, name: str, abstract: Tree, select: Select, check: Check) -> Restored:
    content, where = meta.read(store, name), f"{store}/{name}".rstrip("/")
    check(where, content["metadata"])
    named = leaves.by_name(abstract)
    wanted = leaves.describe(named)
    _require_same(where, select(content["leaves"], wanted), wanted)
    parts = [part_of(name, index) for index in range(content["parts"])]
    host = arrays.read(store, parts, leaves.boxes_here(named))
    tree = jax.tree.unflatten(jax.tree.structure(abstract), leaves.place(named, host))
    return Restored(tree, content["metadata"], content["step"])


def _require_same(where: str, saved: Described, wanted: Described) -> None:
    for name in {**wanted, **saved}:
        if saved.get(name) != wanted.get(name):
            raise UserError(
                f"checkpoint {where} is of another architecture: {name} is {_told(saved.get(name))} there "
                f"and {_told(wanted.get(name))} here; use the config it was trained with, or another workdir"
            )


def _told(leaf: list | None) -> str:
    return f"{leaf[1]}{leaf[0]}" if leaf else "absent"
