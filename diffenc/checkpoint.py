"""Checkpoints of a run: each a folder that is there whole, or not there.

DIRECTORY/000001000/ holds the leaves (see `diffenc.arrays`) and META.json (see `diffenc.meta`), which is the
commit marker: written last, removed first, nothing without it counts. A step that is saved again gets a folder
of its own, 000001000-1, -2 …; the newest that is committed is the step's, and only then are older ones removed.
Nothing is renamed, so an object store will do.

With several processes every one makes the same saves; see `diffenc.attempt`.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
from absl import logging

from diffenc import arrays, atomic, leaves, meta, stores
from diffenc.agreement import all_succeeded, as_first
from diffenc.arrays import Part
from diffenc.attempt import Attempt, Patience
from diffenc.errors import UserError
from diffenc.leaves import Described, Tree
from diffenc.meta import META, Name, part_of
from diffenc.sealed import UnreadableError
from diffenc.stores import Store

FOLDER = "checkpoints"  # in a workdir
GRACE = 20.0  # seconds that a run which ends by an error gives other processes to finish a save
TIDY = 60.0  # seconds that other processes give the first one to sweep up

Select = Callable[[Described, Described], Described]


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


class Checkpoints:
    """The checkpoints in `directory`, a path or a URL. Nothing is made or removed there before the first `save`.

    One run at a time may save. As a context manager it waits for the last save on leaving.

    Several processes of one run make theirs at the same time, with nobody saving meanwhile (between two
    barriers), for each lists what is there to give the same names as the others. From then on all make the
    same calls. The first one writes META.json and removes what is old.

    `keep_last` of the newest are kept, at least 1, and those at multiples of `keep_every` for good (0 = none).
    """

    def __init__(self, directory: stores.PathLike, keep_last: int = 3, keep_every: int = 0):
        self.directory = directory
        self.keep_last = keep_last
        self.keep_every = keep_every
        self._store = stores.at(directory)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._patience = Patience()
        self._pending: Future[None] | None = None
        self._memory: arrays.Bytes | None = None  # of the last save
        self._step = 0  # of the last save
        self._failure: UserError | None = None
        found = meta.found(self._store)
        self._torn = [name for name, committed in found.items() if not committed]
        self._generations = {name.step: name.generation for name in sorted(found)}

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and jax.process_count() > 1:
            self._patience.shorten(GRACE)  # another process may be dead
        try:
            self.wait()
        except UserError as failure:
            if error is None:
                raise
            logging.error("%s", failure)  # raised here, it would hide the error that brought us here

    def steps(self) -> list[int]:
        """The steps of all committed checkpoints, ascending."""
        return sorted({name.step for name in self._committed()})

    def save(self, step: int, tree: Tree, metadata: Mapping[str, Any]) -> None:
        """Copy `tree` to host memory, then write it in the background; its buffers may be donated at once.

        An earlier save still on its way is waited for first; if it failed that is logged, and this one is
        tried all the same. A checkpoint of the same step is replaced, once this one is committed.

        Raises:
          TypeError: `metadata` has no JSON form, or jax could not hold a leaf (64 bits without x64).
        """
        self._settle()
        named = leaves.by_name(tree)
        mine = leaves.pack(named, self._memory)
        self._memory = mine.data if self._store.copies else None
        content = {"step": int(step), "parts": jax.process_count(), "leaves": leaves.describe(named)}
        told = meta.text({**content, "metadata": dict(metadata)})
        name = Name(int(step), self._generations.get(step, -1) + 1)
        self._generations[step] = name.generation
        self._step, self._failure = step, None
        self._pending = self._thread.submit(self._write, name, mine, told)

    def wait(self) -> None:
        """Return when the last save is committed. Raises UserError if it failed, logged before or not."""
        self._finish()
        if self._failure is not None:
            raise self._failure

    def check(self) -> None:
        """Log the failure of the last save if it has failed by now; does not wait for it."""
        if self._pending is not None and self._pending.done():
            self._settle()

    @property
    def failed(self) -> bool:
        """Whether the last save is known to have failed."""
        return self._failure is not None

    def restore(self, abstract: Tree, step: int | None = None, select: Select = everything) -> Restored:
        """Read a checkpoint into the structure of `abstract`; it does not matter on how many devices it was.

        Args:
          abstract: a pytree of jax.ShapeDtypeStruct; a leaf with a sharding is placed by it, and every
            process reads only what its devices need.
          step: which; None = the newest that can be read, with a logged warning for each that cannot.
          select: what of the saved leaves must agree with `abstract`: `everything` or `same_branches`.

        Raises:
          UserError: there is none (ask `steps()` first), none can be read, no such step, or it is of another
            architecture; the message names the first leaf that differs.
        """
        self._settle()
        steps, unread = self.steps(), ""
        if step is not None and step not in steps:
            raise UserError(f"{self.directory}: no checkpoint of step {step}; there are {steps}")
        for name in self._newest_first(step):
            try:
                return _read_by_all(self._store, str(name), abstract, select)
            except UnreadableError as error:
                unread = f"checkpoint {stores.join(self.directory, str(name))} cannot be read"
                logging.warning("%s, skipped: %s", unread, error)
        if step is not None:
            raise UserError(f"{unread}; name another one")
        found = f"none of its checkpoints {steps} can be read" if steps else "no checkpoint there"
        raise UserError(f"{self.directory}: {found}; train first, or name another workdir")

    def _newest_first(self, step: int | None) -> Iterator[Name]:
        """The committed ones, or those of `step`, as the first process sees them."""
        names = [name for name in reversed(self._committed()) if step in (None, name.step)]
        (count,) = as_first(len(names))
        for i in range(count):
            yield Name(*as_first(*(names[i] if i < len(names) else (0, 0))))

    def _committed(self) -> list[Name]:
        return sorted(name for name, committed in meta.found(self._store).items() if committed)

    def _settle(self) -> None:
        """Wait for the last save; log its failure."""
        known = self._failure
        self._finish()
        if self._failure is not None and self._failure is not known:
            steps = self.steps()
            good = (
                f"the last good checkpoint is of step {steps[-1]}" if steps else "there is no checkpoint yet"
            )
            logging.error("%s; %s, and the run goes on", self._failure, good)

    def _finish(self) -> None:
        if self._pending is None:
            return
        error = self._pending.exception()
        self._pending = None
        if isinstance(error, OSError):
            refused = atomic.unwritable(self.directory, error)
            self._failure = UserError(f"the checkpoint of step {self._step} was not saved: {refused}")
        elif error is not None:
            raise error

    def _write(self, name: Name, mine: Part, told: str) -> None:
        self._sweep()
        attempt = Attempt(self._store, str(name), jax.process_index(), jax.process_count(), self._patience)
        try:
            attempt.write(mine, told)
        except OSError:
            self._torn.append(name)
            raise
        if jax.process_index() == 0:
            self._retire(name.step)

    def _sweep(self) -> None:
        """What was begun and not committed: the first process removes it, the others wait for that."""
        torn, self._torn = self._torn, []
        if not torn:
            return
        if jax.process_index() == 0:
            self._remove(torn)
            return
        patience = Patience()
        patience.shorten(TIDY)
        with contextlib.suppress(TimeoutError):  # it is in the way of nobody
            patience.wait_for(
                lambda: not set(torn) & set(meta.found(self._store)), "the first process to sweep up"
            )

    def _retire(self, newest: int) -> None:
        """Remove checkpoints that are too old. Later ones stay: a run that went back comes by them again."""
        names = [name for name in self._committed() if name.step <= newest]
        latest = {name.step: name for name in names}  # ascending, so of each step the last generation
        past = list(latest)
        kept = {
            *past[-self.keep_last :],
            *(step for step in past if self.keep_every and step % self.keep_every == 0),
        }
        self._remove([name for name in names if name.step not in kept or name != latest[name.step]])

    def _remove(self, names: Iterable[Name]) -> None:
        try:
            for name in names:
                self._store.remove(f"{name}/{META}")  # first, so that no half of it ever counts as one
                self._store.remove(str(name))
        except OSError as error:
            logging.warning("%s: what is old could not be removed: %s", self.directory, error)


def restore_from(path: stores.PathLike, abstract: Tree, step: int | None = None) -> Restored:
    """Read the branches that `abstract` has at its top level, say params and ema, from another run.

    Args:
      path: a workdir, its folder of checkpoints, or one checkpoint; a path or a URL.
      abstract, step: as in `Checkpoints.restore`; `step` means nothing where `path` is one checkpoint.

    Raises:
      UserError: as in `Checkpoints.restore`.
    """
    store = stores.at(path)
    if store.read(META) is not None:
        try:
            return _read_by_all(store, "", abstract, same_branches)
        except UnreadableError as error:
            raise UserError(f"checkpoint {path} cannot be read: {error}; name another one") from error
    inner = FOLDER in store.names()
    return Checkpoints(stores.join(path, FOLDER) if inner else path).restore(abstract, step, same_branches)


def _read_by_all(store: Store, name: str, abstract: Tree, select: Select) -> Restored:
    """Raises UnreadableError in all processes if it is unreadable in one."""
    restored, unreadable = None, UnreadableError("another process could not read it")
    try:
        restored = _read(store, name, abstract, select)
    except UnreadableError as error:
        unreadable = error
    if not all_succeeded(restored is not None) or restored is None:
        raise unreadable
    return restored


def _read(store: Store, name: str, abstract: Tree, select: Select) -> Restored:
    content = meta.read(store, name)
    named = leaves.by_name(abstract)
    wanted = leaves.describe(named)
    _require_same(f"{store}/{name}".rstrip("/"), select(content["leaves"], wanted), wanted)
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
