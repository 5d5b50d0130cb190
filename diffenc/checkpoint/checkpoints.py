"""Checkpoints of a run: each a folder that is there whole, or not there.

DIRECTORY/000001000/ holds the leaves (see `diffenc.checkpoint.arrays`) and META.json (see `diffenc.checkpoint.meta`), which is the
commit marker: written last, removed first, nothing without it counts. A step that is saved again gets a folder
of its own, 000001000-1, -2 …; the newest that is committed is the step's, and only then are older ones removed.
Nothing is renamed, so an object store will do.

With several processes every one makes the same saves; see `diffenc.checkpoint.checkpoint_write`.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
from absl import logging

from diffenc.checkpoint import arrays, leaves, meta
from diffenc.checkpoint.arrays import Part
from diffenc.checkpoint.checkpoint_write import CheckpointWrite, Deadline
from diffenc.checkpoint.leaves import Tree
from diffenc.checkpoint.meta import META, Name
from diffenc.checkpoint.restore import (
    Check,
    Restored,
    Select,
    any_metadata,
    everything,
    read_by_all,
    reading,
    same_branches,
)
from diffenc.errors import UserError
from diffenc.files import atomic, stores
from diffenc.files.checksummed_json import UnreadableError
from diffenc.parallel.collectives import broadcast_ints, broadcast_strings

FOLDER = "checkpoints"  # in a workdir
GRACE = 20.0  # seconds that a run which ends by an error gives other processes to finish a save
TIDY = 60.0  # seconds that other processes give the first one to sweep up


class Checkpoints:
    """The checkpoints in `directory`, a path or a URL. Nothing is made or removed there before the first `save`.

    One run at a time may save. As a context manager it waits for the last save on leaving.

    Several processes of one run make theirs at the same time, with nobody saving meanwhile, and from then on
    all make the same calls. What is there the first one tells the others, for disks that are shared may not
    show all of them the same. It also writes META.json and removes what is old.

    `keep_last` of the newest are kept, at least 1, and those at multiples of `keep_every` for good (0 = none).

    Attributes:
      found: the steps of the checkpoints committed when this was made, ascending; the same in all processes.
    """

    def __init__(self, directory: stores.PathLike, keep_last: int = 3, keep_every: int = 0):
        self.directory = directory
        self.keep_last = keep_last
        self.keep_every = keep_every
        self._store = stores.at(directory)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._patience = Deadline()
        self._pending: Future[None] | None = None
        self._memory: arrays.Bytes | None = None  # of the last save
        self._step = 0  # of the last save
        self._failure: UserError | None = None
        listed = self._listed_by_first()
        self._torn = [name for name, committed in listed.items() if not committed]
        self._generations = {name.step: name.generation for name in listed}
        self._at_first = _committed(listed)
        self.found = _steps(self._at_first)

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
        """The steps of all committed checkpoints, ascending, as this process sees them: for messages.

        Raises:
          UserError: the store refused to say.
        """
        with reading(self.directory):
            return _steps(_committed(meta.found(self._store)))

    def unchanged(self) -> bool:
        """Whether the same are committed as when this was made, as the first process sees it. Called by all."""
        return _committed(self._listed_by_first()) == self._at_first

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

    def restore(
        self,
        abstract: Tree,
        step: int | None = None,
        select: Select = everything,
        check: Check = any_metadata,
    ) -> Restored:
        """Read a checkpoint into the structure of `abstract`; it does not matter on how many devices it was.

        Args:
          abstract: a pytree of jax.ShapeDtypeStruct; a leaf with a sharding is placed by it, and every
            process reads only what its devices need.
          step: which; None = the newest that can be read, with a logged warning for each that cannot.
          select: what of the saved leaves must agree with `abstract`: `everything` or `same_branches`.
          check: called before any array is read; raises UserError to refuse a checkpoint by its metadata.

        Raises:
          UserError: there is none (ask `found` first), none can be read, no such step, or it is of another
            architecture (the message names the first leaf that differs); or the store refuses, so that
            nobody can tell whether the newest can be read.
        """
        self._settle()
        committed, unread = _committed(self._listed_by_first()), ""
        steps = _steps(committed)
        if step is not None and step not in steps:
            raise UserError(f"{self.directory}: no checkpoint of step {step}; there are {steps}")
        for name in (name for name in reversed(committed) if step in (None, name.step)):
            try:
                return read_by_all(self._store, str(name), abstract, select, check)
            except UnreadableError as error:
                unread = f"checkpoint {stores.join(self.directory, str(name))} cannot be read"
                logging.warning("%s, skipped: %s", unread, error)
        if step is not None:
            raise UserError(f"{unread}; name another one")
        found = f"none of its checkpoints {steps} can be read" if steps else "no checkpoint there"
        raise UserError(f"{self.directory}: {found}; train first, or name another workdir")

    def _listed_by_first(self) -> dict[Name, bool]:
        """Every checkpoint and whether it is committed, ascending, as the first process sees it.

        Raises:
          UserError: the store refused to say.
        """
        listed = []
        if jax.process_index() == 0:
            with reading(self.directory):
                listed = sorted(meta.found(self._store).items())
        told = broadcast_strings(n for name, committed in listed for n in (*name, committed))
        rows = zip(told[::3], told[1::3], told[2::3], strict=True)
        return {Name(step, generation): bool(committed) for step, generation, committed in rows}

    def _settle(self) -> None:
        """Wait for the last save; log its failure."""
        known = self._failure
        self._finish()
        if self._failure is not None and self._failure is not known:
            logging.error("%s; %s, and the run goes on", self._failure, self._last_good())

    def _last_good(self) -> str:
        try:
            steps = self.steps()
        except UserError as error:
            return str(error)
        return f"the last good checkpoint is of step {steps[-1]}" if steps else "there is no checkpoint yet"

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
        attempt = CheckpointWrite(
            self._store, str(name), jax.process_index(), jax.process_count(), self._patience
        )
        try:
            attempt.write(mine, told)
        except Exception:
            self._torn.append(name)
            raise
        if jax.process_index() == 0:
            with self._unimportant():
                self._retire(name.step)

    def _sweep(self) -> None:
        """What was begun and not committed: the first process removes it, the others wait for that."""
        torn, self._torn = self._torn, []
        if not torn:
            return
        if jax.process_index() == 0:
            with self._unimportant():
                self._remove(torn)
            return

        def gone() -> bool:
            return all(committed for name, committed in meta.found(self._store).items() if name in torn)

        patience = Deadline()
        patience.shorten(TIDY)
        with contextlib.suppress(OSError):  # it is in the way of nobody, unlike a save that is never tried
            patience.wait_for(gone, "the first process to sweep up")

    def _retire(self, newest: int) -> None:
        """Remove checkpoints that are too old. Later ones stay: a run that went back comes by them again."""
        names = [name for name in _committed(meta.found(self._store)) if name.step <= newest]
        latest = {name.step: name for name in names}  # ascending, so of each step the last generation
        past = list(latest)
        kept = {
            *past[-self.keep_last :],
            *(step for step in past if self.keep_every and step % self.keep_every == 0),
        }
        self._remove([name for name in names if name.step not in kept or name != latest[name.step]])

    def _remove(self, names: Iterable[Name]) -> None:
        for name in names:
            self._store.remove(f"{name}/{META}")  # first, so that no half of it ever counts as one
            self._store.remove(str(name))

    @contextlib.contextmanager
    def _unimportant(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            logging.warning("%s: what is old could not be removed: %s", self.directory, error)


def restore_from(
    path: stores.PathLike, abstract: Tree, step: int | None = None, check: Check = any_metadata
) -> Restored:
    """Read the branches that `abstract` has at its top level, say params and ema, from another run.

    Args:
      path: a workdir, its folder of checkpoints, or one checkpoint; a path or a URL.
      abstract, step, check: as in `Checkpoints.restore`; `step` means nothing where `path` is one checkpoint.

    Raises:
      UserError: as in `Checkpoints.restore`.
    """
    store = stores.at(path)
    if _first_finds(path, lambda: store.read(META) is not None):
        try:
            return read_by_all(store, "", abstract, same_branches, check)
        except UnreadableError as error:
            raise UserError(f"checkpoint {path} cannot be read: {error}; name another one") from error
    inner = _first_finds(path, lambda: FOLDER in store.names())
    return Checkpoints(stores.join(path, FOLDER) if inner else path).restore(
        abstract, step, same_branches, check
    )


def _first_finds(path: stores.PathLike, question: Callable[[], bool]) -> bool:
    with reading(path):
        return bool(broadcast_ints(jax.process_index() == 0 and question())[0])


def _committed(listed: Mapping[Name, bool]) -> list[Name]:
    return sorted(name for name, committed in listed.items() if committed)


def _steps(names: Iterable[Name]) -> list[int]:
    return sorted({name.step for name in names})
