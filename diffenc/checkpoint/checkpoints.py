"""Checkpoints of a run: each is a folder that is either complete or ignored.

DIRECTORY/000001000/ contains the leaves (see `diffenc.checkpoint.arrays`) and META.json (see `diffenc.checkpoint.meta`),
the commit marker: it is written last and removed first, and a folder without it is not a checkpoint. A step that is saved
again gets a new folder, 000001000-1, -2 …; when that is committed, the older folder is removed. Nothing is renamed, so
that object stores work too.

Among several processes all make the same saves; see `diffenc.checkpoint.checkpoint_write`.
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
    accept_any_metadata,
    convert_store_errors,
    read_on_all_processes,
    select_all,
    select_branches,
)
from diffenc.errors import UserError
from diffenc.files import atomic, stores
from diffenc.files.checksummed_json import UnreadableError
from diffenc.parallel.collectives import broadcast_int_list, broadcast_ints

FOLDER = "checkpoints"  # in a workdir
GRACE = 20.0  # seconds that a run which ends by an error waits for other processes to finish a save
TIDY = 60.0  # seconds that other processes wait for the main one to remove uncommitted folders


class Checkpoints:
    """The checkpoints in `directory`, a path or a URL. Nothing is created or removed there before the first `save`.

    Only one run may save at a time. As a context manager it waits for the last save on exit.

    Several processes of one run construct it at the same time, while none of them saves, and then all make the same
    calls. The main process lists the directory and broadcasts the result, because on a shared disk processes may see
    different listings; it also writes META.json and removes old checkpoints.

    The newest `keep_last` checkpoints, at least 1, are kept, and those at multiples of `keep_every` (0 = none) are never
    removed.

    Attributes:
      found: steps of the checkpoints that were committed at construction, ascending; the same in all processes.
    """

    def __init__(self, directory: stores.PathLike, keep_last: int = 3, keep_every: int = 0):
        self.directory = directory
        self.keep_last = keep_last
        self.keep_every = keep_every
        self._store = stores.open_store(directory)
        # A single thread, so that saves are committed in the order of the calls.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._deadline = Deadline()
        self._pending: Future[None] | None = None
        self._buffer: arrays.Bytes | None = None  # of the last save, to be reused
        self._step = 0  # of the last save
        self._failure: UserError | None = None
        listed = self._list_on_main()
        self._uncommitted = [name for name, committed in listed.items() if not committed]
        # Uncommitted folders count too: a folder that was begun is never written to again.
        self._generations = {name.step: name.generation for name in listed}
        self._initial = _committed(listed)
        self.found = _steps(self._initial)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and jax.process_count() > 1:
            self._deadline.shorten(GRACE)  # another process may be dead
        try:
            self.wait()
        except UserError as failure:
            if error is None:
                raise
            logging.error("%s", failure)  # raised here, it would hide `error`

    def steps(self) -> list[int]:
        """Returns the steps of all committed checkpoints, ascending, as this process sees them. For messages only.

        Raises:
          UserError: the store cannot be listed.
        """
        with convert_store_errors(self.directory):
            return _steps(_committed(meta.list_checkpoints(self._store)))

    def unchanged(self) -> bool:
        """Whether the main process sees the same checkpoints as at construction. All processes must call it."""
        return _committed(self._list_on_main()) == self._initial

    def save(self, step: int, tree: Tree, metadata: Mapping[str, Any]) -> None:
        """Copies `tree` to host memory, then writes it in the background; its buffers may be donated at once.

        First waits for an earlier save; a failure of that is logged and does not prevent this save. An older checkpoint of
        the same step is removed when this one is committed.

        Raises:
          TypeError: `metadata` has no JSON form, or jax cannot hold a leaf (64 bits without x64).
        """
        # The earlier save uses the same buffer and thread.
        self._settle()
        named = leaves.leaves_by_name(tree)
        # Synchronous: on return the state is copied to host memory, and the train step may donate its buffers.
        mine = leaves.pack_leaves(named, self._buffer)
        # A store in memory keeps references: with the next save in the same buffer its content would change.
        self._buffer = mine.data if self._store.copies else None
        content = {"step": int(step), "parts": jax.process_count(), "leaves": leaves.describe_leaves(named)}
        meta_text = meta.format_meta({**content, "metadata": dict(metadata)})
        name = Name(int(step), self._generations.get(step, -1) + 1)
        self._generations[step] = name.generation
        self._step, self._failure = step, None
        self._pending = self._thread.submit(self._write, name, mine, meta_text)

    def wait(self) -> None:
        """Returns when the last save is committed. Raises UserError if it failed, even if that was logged before."""
        self._finish()
        if self._failure is not None:
            raise self._failure

    def check(self) -> None:
        """Logs the failure of the last save if it has failed by now; does not wait for it."""
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
        select: Select = select_all,
        check: Check = accept_any_metadata,
    ) -> Restored:
        """Reads a checkpoint into the structure of `abstract`, regardless of the number of devices that saved it.

        Args:
          abstract: a pytree of jax.ShapeDtypeStruct; a leaf with a sharding is placed accordingly, and every
            process reads only the parts that its devices need.
          step: the step to read; None = the newest that can be read, with a logged warning for each that cannot.
          select: selects the saved leaves that must agree with `abstract`: `select_all` or `select_branches`.
          check: called before any array is read; raises UserError to refuse a checkpoint by its metadata.

        Raises:
          UserError: there is no checkpoint (see `found`) or none of this step, none can be read, or it is of another
            architecture (the message names the first leaf that differs); or the store cannot be read, so that it is
            unknown whether the newest checkpoint is intact.
        """
        self._settle()
        committed, unread = _committed(self._list_on_main()), ""
        steps = _steps(committed)
        if step is not None and step not in steps:
            raise UserError(f"{self.directory}: no checkpoint of step {step}; there are {steps}")
        # Newest first, skipping damaged ones with a warning:
        # losing some steps is better than losing the run.
        for name in (name for name in reversed(committed) if step in (None, name.step)):
            try:
                return read_on_all_processes(self._store, str(name), abstract, select, check)
            # Only damage is skipped. After an error of the store it is unknown whether the newest checkpoint is
            # intact, so an older one must not replace it: that error ends the restore.
            except UnreadableError as error:
                unread = f"checkpoint {stores.join_path(self.directory, str(name))} cannot be read"
                logging.warning("%s, skipped: %s", unread, error)
        if step is not None:
            raise UserError(f"{unread}; name another one")
        found = f"none of its checkpoints {steps} can be read" if steps else "no checkpoint there"
        raise UserError(f"{self.directory}: {found}; train first, or name another workdir")

    def _list_on_main(self) -> dict[Name, bool]:
        """Returns every checkpoint folder and whether it is committed, ascending, as the main process sees them.

        Raises:
          UserError: the store cannot be listed.
        """
        listed = []
        if jax.process_index() == 0:
            with convert_store_errors(self.directory):
                listed = sorted(meta.list_checkpoints(self._store).items())
        numbers = broadcast_int_list(n for name, committed in listed for n in (*name, committed))
        # (step, generation, committed) of each, flattened for the broadcast.
        rows = zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)
        return {Name(step, generation): bool(committed) for step, generation, committed in rows}

    def _settle(self) -> None:
        """Waits for the last save, and logs its failure once."""
        known = self._failure
        self._finish()
        # Compared by identity, so that each failure is logged once, regardless of the number of calls.
        if self._failure is not None and self._failure is not known:
            logging.error("%s; %s, and the run goes on", self._failure, self._describe_newest())

    def _describe_newest(self) -> str:
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
        # A full disk must not end a run that has trained for days;
        # the next save may succeed. Any other error is a bug.
        if isinstance(error, OSError):
            reason = atomic.write_error(self.directory, error)
            # Kept for `wait`, which raises it at the end of a run; until then the run continues.
            self._failure = UserError(f"the checkpoint of step {self._step} was not saved: {reason}")
        elif error is not None:
            raise error

    def _write(self, name: Name, mine: Part, meta_text: str) -> None:
        """Writes one checkpoint; runs in the background thread."""
        # Before the write, to free space for it.
        self._remove_uncommitted()
        process, count = jax.process_index(), jax.process_count()
        write = CheckpointWrite(self._store, str(name), process, count, self._deadline)
        try:
            write.write(mine, meta_text)
        except Exception:
            # CheckpointWrite has tried to remove the folder; remaining files, or
            # those that another process writes later, are removed before the next save.
            self._uncommitted.append(name)
            raise
        if process == 0:
            with self._log_failed_removal():
                # After the commit, so that at every moment there is a complete checkpoint.
                self._remove_old(name.step)

    def _remove_uncommitted(self) -> None:
        """Removes, in the main process, folders that were begun and never committed; the other processes wait for it."""
        names, self._uncommitted = self._uncommitted, []
        if not names:
            return
        if jax.process_index() == 0:
            with self._log_failed_removal():
                self._remove(names)
            return

        def are_gone() -> bool:
            return all(
                committed for name, committed in meta.list_checkpoints(self._store).items() if name in names
            )

        deadline = Deadline()
        deadline.shorten(TIDY)
        with contextlib.suppress(OSError):  # they only take space: no reason not to try the save
            deadline.wait_for(are_gone, "the main process to remove uncommitted checkpoints")

    def _remove_old(self, newest: int) -> None:
        """Removes checkpoints that need not be kept. Those after `newest` are kept: a run resumed at an earlier step will
        reach them again."""
        names = [name for name in _committed(meta.list_checkpoints(self._store)) if name.step <= newest]
        latest = {name.step: name for name in names}  # ascending: the last generation of each step
        past = list(latest)
        kept = {
            *past[-self.keep_last :],
            *(step for step in past if self.keep_every and step % self.keep_every == 0),
        }
        # Of a step that was saved again, only the last generation is kept.
        self._remove([name for name in names if name.step not in kept or name != latest[name.step]])

    def _remove(self, names: Iterable[Name]) -> None:
        for name in names:
            self._store.remove(f"{name}/{META}")  # first, so that a part of it never counts as a checkpoint
            self._store.remove(str(name))

    @contextlib.contextmanager
    def _log_failed_removal(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            logging.warning("%s: old checkpoints could not be removed: %s", self.directory, error)


def restore_from(
    path: stores.PathLike, abstract: Tree, step: int | None = None, check: Check = accept_any_metadata
) -> Restored:
    """Reads the top-level branches of `abstract`, for example params and ema, from another run.

    Args:
      path: a workdir, its folder of checkpoints, or one checkpoint; a path or a URL.
      abstract, step, check: as in `Checkpoints.restore`; `step` is ignored if `path` is one checkpoint.

    Raises:
      UserError: as in `Checkpoints.restore`.
    """
    store = stores.open_store(path)
    # META.json in the folder itself: the path is one checkpoint, not a folder of them.
    if _is_true_on_main(path, lambda: store.read(META) is not None):
        try:
            return read_on_all_processes(store, "", abstract, select_branches, check)
        except UnreadableError as error:
            raise UserError(f"checkpoint {path} cannot be read: {error}; name another one") from error
    is_workdir = _is_true_on_main(path, lambda: FOLDER in store.names())
    return Checkpoints(stores.join_path(path, FOLDER) if is_workdir else path).restore(
        abstract, step, select_branches, check
    )


def _is_true_on_main(path: stores.PathLike, predicate: Callable[[], bool]) -> bool:
    with convert_store_errors(path):
        return bool(broadcast_ints(jax.process_index() == 0 and predicate())[0])


def _committed(listed: Mapping[Name, bool]) -> list[Name]:
    return sorted(name for name, committed in listed.items() if committed)


def _steps(names: Iterable[Name]) -> list[int]:
    return sorted({name.step for name in names})
