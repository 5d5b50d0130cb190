"""Checkpoints of a run: each a folder that is there whole, or not there.

DIRECTORY/000001000/ holds the leaves (see `diffenc.arrays`) and META.json:

  format     version of this layout
  step       the step the tree stood at
  leaves     {name: [shape, dtype]}; a name is the path of the leaf, parts joined by "/"
  metadata   what the caller gave
  checksum   SHA-256 of the above

A checkpoint is written under a temporary name, synced and then renamed: the name is the commit marker.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from diffenc import arrays, atomic
from diffenc.arrays import UnreadableError
from diffenc.errors import UserError

FORMAT = 1
FOLDER = "checkpoints"  # in a workdir
META = "META.json"
TEMPORARY = ".tmp-"

Tree = Any
Leaves = dict[str, list]  # name: [shape, dtype]
Select = Callable[[Leaves, Leaves], Leaves]


class Restored(NamedTuple):
    """A checkpoint read back: the tree, the caller's metadata, the step."""

    tree: Tree
    metadata: dict[str, Any]
    step: int


def everything(saved: Leaves, wanted: Leaves) -> Leaves:
    """For `Checkpoints.restore`: the wanted tree must be all that was saved."""
    return saved


def same_branches(saved: Leaves, wanted: Leaves) -> Leaves:
    """For `Checkpoints.restore`: of what was saved, only the top-level branches that are wanted count."""
    branches = {_branch(name) for name in wanted}
    return {name: leaf for name, leaf in saved.items() if _branch(name) in branches}


class Checkpoints:
    """The checkpoints in `directory`. Nothing is made or removed there before the first `save`.

    One process at a time may save. As a context manager it waits for the last save on leaving.

    `keep_last` of the newest are kept, at least 1, and those at multiples of `keep_every` for good (0 = none).
    """

    def __init__(self, directory: atomic.PathLike, keep_last: int = 3, keep_every: int = 0):
        self.directory = Path(directory)
        self.keep_last = keep_last
        self.keep_every = keep_every
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._swept = False

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.wait()
        except UserError as failure:
            if error is None:
                raise
            logging.error("%s", failure)  # raised here, it would hide the error that brought us here

    def steps(self) -> list[int]:
        """The steps of all committed checkpoints, ascending."""
        if not self.directory.is_dir():
            return []
        names = (path.name for path in self.directory.iterdir() if path.is_dir())
        return sorted(int(name) for name in names if re.fullmatch(r"\d{9,}", name))

    def save(self, step: int, tree: Tree, metadata: Mapping[str, Any]) -> None:
        """Copy `tree` to host memory, then write it in the background; its buffers may be donated at once.

        An earlier save still on its way is waited for first. A checkpoint of the same step is replaced.

        Raises:
          UserError: the earlier save failed, usually of a full disk; what was committed before is whole.
          TypeError: `metadata` has no JSON form, or jax could not hold a leaf (64 bits without x64).
        """
        self.wait()
        host = _host_copies(tree)
        content = {"format": FORMAT, "step": int(step), "leaves": _leaves(host), "metadata": dict(metadata)}
        self._pending = self._thread.submit(self._write, step, host, _meta_text(content))

    def wait(self) -> None:
        """Return when the last save is committed. Raises UserError if it failed."""
        if self._pending is None:
            return
        error = self._pending.exception()
        self._pending = None
        if isinstance(error, OSError):
            raise atomic.unwritable(self.directory, error) from error
        if error is not None:
            raise error

    def check(self) -> None:
        """Raise UserError if the last save has failed by now; does not wait for it."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def restore(self, abstract: Tree, step: int | None = None, select: Select = everything) -> Restored:
        """Read a checkpoint into the structure of `abstract`.

        Args:
          abstract: a pytree of jax.ShapeDtypeStruct; a leaf with a sharding is placed by it.
          step: which; None = the newest that can be read, with a logged warning for each that cannot.
          select: what of the saved leaves must agree with `abstract`: `everything` or `same_branches`.

        Raises:
          UserError: there is none (ask `steps()` first), none can be read, no such step, or it is of another
            architecture; the message names the first leaf that differs.
        """
        self.wait()
        steps = self.steps()
        if step is not None:
            return self._restore_one(abstract, step, steps, select)
        for newest in reversed(steps):
            try:
                return _read(self._folder(newest), abstract, select)
            except UnreadableError as error:
                logging.warning("checkpoint %s cannot be read, skipped: %s", self._folder(newest), error)
        found = f"none of its checkpoints {steps} can be read" if steps else "no checkpoint there"
        raise UserError(f"{self.directory}: {found}; train first, or name another workdir")

    def _restore_one(self, abstract: Tree, step: int, steps: list[int], select: Select) -> Restored:
        if step not in steps:
            raise UserError(f"{self.directory}: no checkpoint of step {step}; there are {steps}")
        return _read_or_refuse(self._folder(step), abstract, select)

    def _folder(self, step: int) -> Path:
        return self.directory / f"{step:09d}"

    def _write(self, step: int, host: dict[str, np.ndarray], meta: str) -> None:
        self._sweep()
        torn = self.directory / f"{TEMPORARY}{step:09d}"
        try:
            torn.mkdir()
            arrays.write(torn, host)
            (torn / META).write_text(meta)
            atomic.sync_all(torn)
            self._commit(torn, self._folder(step))
        except OSError:
            shutil.rmtree(torn, ignore_errors=True)
            raise
        self._retire(step)

    def _commit(self, torn: Path, final: Path) -> None:
        # Killed between the two renames this step is gone; the one the run went back to is not.
        replaced = _set_aside(final) if final.exists() else None
        torn.rename(final)
        atomic.sync(self.directory)
        if replaced:
            shutil.rmtree(replaced)

    def _sweep(self) -> None:
        """Before the first save: make the folder, remove what killed processes left."""
        if self._swept:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        atomic.sync(self.directory.parent)
        for left in self.directory.glob(f"{TEMPORARY}*"):
            shutil.rmtree(left)
        self._swept = True

    def _retire(self, newest: int) -> None:
        """Remove checkpoints that are too old. Later ones stay: a run that went back comes by them again."""
        past = [step for step in self.steps() if step <= newest]
        for step in past[: -self.keep_last]:
            if not (self.keep_every and step % self.keep_every == 0):
                shutil.rmtree(_set_aside(self._folder(step)))


def restore_from(path: atomic.PathLike, abstract: Tree, step: int | None = None) -> Restored:
    """Read the branches that `abstract` has at its top level, say params and ema, from another run.

    Args:
      path: a workdir, its folder of checkpoints, or one checkpoint.
      abstract, step: as in `Checkpoints.restore`; `step` means nothing where `path` is one checkpoint.

    Raises:
      UserError: as in `Checkpoints.restore`.
    """
    path = Path(path)
    if (path / META).is_file():
        return _read_or_refuse(path, abstract, same_branches)
    inner = path / FOLDER
    return Checkpoints(inner if inner.is_dir() else path).restore(abstract, step, same_branches)


def _set_aside(folder: Path) -> Path:
    """Take a checkpoint's name from it before it is removed, so that no half of it ever counts as one."""
    return folder.rename(folder.with_name(f"{TEMPORARY}old-{folder.name}"))


def _read_or_refuse(folder: Path, abstract: Tree, select: Select) -> Restored:
    try:
        return _read(folder, abstract, select)
    except UnreadableError as error:
        raise UserError(f"checkpoint {folder} cannot be read: {error}; name another one") from error


def _read(folder: Path, abstract: Tree, select: Select) -> Restored:
    named = _named(abstract)
    meta = _read_meta(folder)
    wanted = _leaves(named)
    _require_same(folder, select(meta["leaves"], wanted), wanted)
    host = arrays.read(folder, wanted)
    placed = [jax.device_put(host[name], getattr(leaf, "sharding", None)) for name, leaf in named.items()]
    return Restored(jax.tree.unflatten(jax.tree.structure(abstract), placed), meta["metadata"], meta["step"])


def _require_same(folder: Path, saved: Leaves, wanted: Leaves) -> None:
    for name in {**wanted, **saved}:
        if saved.get(name) != wanted.get(name):
            raise UserError(
                f"checkpoint {folder} is of another architecture: {name} is {_describe(saved.get(name))} there "
                f"and {_describe(wanted.get(name))} here; use the config it was trained with, or another workdir"
            )


def _describe(leaf: list | None) -> str:
    return f"{leaf[1]}{leaf[0]}" if leaf else "absent"


def _named(tree: Tree) -> dict[str, Any]:
    """The leaves by name. A part with a "/" of its own (haiku's) is quoted, so no two paths share a name."""
    return {"/".join(map(_part, path)): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _part(key: Any) -> str:
    text = jax.tree_util.keystr((key,), simple=True)
    return json.dumps(text) if "/" in text or '"' in text else text


def _branch(name: str) -> str:
    quoted = re.match(r'"(\\.|[^"\\])*"', name)
    return quoted[0] if quoted else name.split("/")[0]


def _leaves(named: Mapping[str, Any]) -> Leaves:
    return {name: [list(leaf.shape), str(np.dtype(leaf.dtype))] for name, leaf in named.items()}


def _host_copies(tree: Tree) -> dict[str, np.ndarray]:
    named = _named(tree)
    for leaf in named.values():
        if isinstance(leaf, jax.Array):
            leaf.copy_to_host_async()  # all transfers at once, before the first is waited for
    return {name: _host_copy(name, leaf) for name, leaf in named.items()}


def _host_copy(name: str, leaf: Any) -> np.ndarray:
    # np.asarray of a CPU array is a view of the device's buffer, which the caller is about to donate.
    array = np.array(leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf), copy=True)
    if array.dtype != jax.dtypes.canonicalize_dtype(array.dtype):
        raise TypeError(f"leaf {name} is {array.dtype}, which jax would cut to 32 bits on reading")
    return array


def _meta_text(content: Mapping[str, Any]) -> str:
    checksum = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, "checksum": checksum}, indent=1)


def _read_meta(folder: Path) -> dict[str, Any]:
    try:
        text = (folder / META).read_bytes().decode()
        meta = json.loads(text)
        whole = _meta_text({key: meta[key] for key in meta if key != "checksum"}) == text
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise UnreadableError(f"{META}: {error}") from error
    if not whole:
        raise UnreadableError(f"{META}: wrong checksum")
    if meta["format"] != FORMAT:
        raise UserError(
            f"checkpoint {folder} has format {meta['format']}, not {FORMAT}; use the version it is of"
        )
    return meta
