"""Reads one checkpoint on all processes at once; either all of them succeed, or all fail."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from diffenc.checkpoint import arrays, leaves, meta
from diffenc.checkpoint.leaves import LeafSpecs, Tree
from diffenc.checkpoint.meta import part_folder
from diffenc.errors import UserError
from diffenc.files import stores
from diffenc.files.checksummed_json import UnreadableError
from diffenc.files.stores import Store
from diffenc.parallel.collectives import all_succeeded

Select = Callable[[LeafSpecs, LeafSpecs], LeafSpecs]
# (location of a checkpoint, its metadata) -> None; raises UserError to refuse it
Check = Callable[[str, dict[str, Any]], None]


class Restored(NamedTuple):
    """The content of a checkpoint: the tree, the caller's metadata, the step."""

    tree: Tree
    metadata: dict[str, Any]
    step: int


def select_all(saved: LeafSpecs, wanted: LeafSpecs) -> LeafSpecs:
    """Selects all saved leaves, for `Checkpoints.restore`: the wanted tree must have all of them."""
    return saved


def select_branches(saved: LeafSpecs, wanted: LeafSpecs) -> LeafSpecs:
    """Selects the saved leaves in the top-level branches of the wanted tree, for `Checkpoints.restore`."""
    branches = {leaves.top_level_branch(name) for name in wanted}
    return {name: leaf for name, leaf in saved.items() if leaves.top_level_branch(name) in branches}


def accept_any_metadata(where: str, metadata: dict[str, Any]) -> None:
    """Accepts every checkpoint, for `Checkpoints.restore`."""


@contextlib.contextmanager
def convert_store_errors(place: stores.PathLike) -> Iterator[None]:
    """Converts OSErrors within the context into UserErrors that name `place`."""
    try:
        yield
    except OSError as error:
        raise stores.read_error(place, error) from error


def read_on_all_processes(store: Store, name: str, abstract: Tree, select: Select, check: Check) -> Restored:
    """Reads the checkpoint `name`; `select` and `check` as in `Checkpoints.restore`. All processes must call it.

    Raises:
      UnreadableError: the checkpoint is damaged, as found by one of the processes.
      UserError: the store failed in one of them, or the tree is of another architecture.
    """
    restored, damage, refusal = None, None, None
    try:
        restored = _read(store, name, abstract, select, check)
    except UnreadableError as error:
        damage = error
    except OSError as error:
        refusal = stores.read_error(f"{store}/{name}".rstrip("/"), error)
    # Two rounds, errors of the store first: an error of the store in one process must not
    # count as damage, after which all processes would fall back to an older checkpoint.
    if not all_succeeded(refusal is None):
        raise refusal or UserError(f"cannot read {store}: it failed in another process; see its log")
    if not all_succeeded(damage is None) or restored is None:
        raise damage or UnreadableError("another process could not read it")
    return restored


def _read(store: Store, name: str, abstract: Tree, select: Select, check: Check) -> Restored:
    content, where = meta.read_meta(store, name), f"{store}/{name}".rstrip("/")
    # The cheap checks (format, metadata, structure) come first, before gigabytes are read.
    check(where, content["metadata"])
    named = leaves.leaves_by_name(abstract)
    wanted = leaves.describe_leaves(named)
    _require_same(where, select(content["leaves"], wanted), wanted)
    # One by one: a forged number of parts ends at the first that is absent.
    parts = (part_folder(name, index) for index in range(content["parts"]))
    host = arrays.read_arrays(store, parts, leaves.local_boxes(named))
    tree = jax.tree.unflatten(jax.tree.structure(abstract), leaves.place_leaves(named, host))
    return Restored(tree, content["metadata"], content["step"])


def _require_same(where: str, saved: LeafSpecs, wanted: LeafSpecs) -> None:
    for name in {**wanted, **saved}:
        if saved.get(name) != wanted.get(name):
            raise UserError(
                f"checkpoint {where} is of another architecture: {name} is {_format_spec(saved.get(name))} there "
                f"and {_format_spec(wanted.get(name))} here; use the config it was trained with, or another workdir"
            )


def _format_spec(leaf: list | None) -> str:
    return f"{leaf[1]}{leaf[0]}" if leaf else "absent"
