"""One attempt to write a checkpoint, by all processes at once, each from a thread of its own.

They must not speak through devices, which are training meanwhile. So each leaves a marker in the attempt's
folder when its part is on disk; the first process waits for all of them, and commits by writing
META.json, last. Once that stands the checkpoint exists; before, nothing does.

  000001000/process_0/    the part of a process
  000001000/process_1.done, process_1.failed    the marker of another; the latter says why
  000001000/META.json     the marker of the commit
"""

import contextlib
import time
from collections.abc import Callable

from diffenc.checkpoint import arrays
from diffenc.checkpoint.arrays import Part
from diffenc.checkpoint.meta import META, part_of
from diffenc.files.location import MovedError
from diffenc.files.stores import Store

PATIENCE = 600.0  # seconds that processes wait for each other
DONE, FAILED = "done", "failed"


class Deadline:
    """Until when to wait for other processes."""

    def __init__(self) -> None:
        self._most = PATIENCE

    def shorten(self, seconds: float) -> None:
        """From now on wait no longer than that."""
        self._most = min(self._most, seconds)

    def wait_for(self, found: Callable[[], bool], what: str) -> None:
        """Return when `found()`. Raises OSError if that takes too long."""
        began, pause = time.monotonic(), 0.01
        while not found():
            if time.monotonic() - began > self._most:
                raise TimeoutError(f"waited {self._most:.0f} s in vain for {what}")
            time.sleep(pause)
            pause = min(1.5 * pause, 1.0)


class CheckpointWrite:
    """The checkpoint called `name` as process `index` of `count` writes it."""

    def __init__(self, store: Store, name: str, index: int, count: int, patience: Deadline):
        self._store = store
        self._name = name
        self._index = index
        self._count = count
        self._patience = patience

    def write(self, mine: Part, meta: str) -> None:
        """Return when all have written their parts and the checkpoint is committed.

        Raises:
          OSError: it is not, in this process or another; what it took of the disk is free again.
        """
        if self._index:
            self._take_part(mine)
        else:
            self._lead(mine, meta)

    def _lead(self, mine: Part, meta: str) -> None:
        try:
            try:
                self._write_part(mine)
            finally:  # also if it failed: who is still writing would leave something behind
                reasons = self._of_others()
            if reasons:
                raise OSError("; ".join(reasons))
            self._store.write(f"{self._name}/{META}", meta.encode())
        except MovedError:  # a checkpoint that is called so there now is another run's
            with contextlib.suppress(OSError):
                if self._store.read(f"{self._name}/{META}") is None:
                    self._store.remove(self._name)
            raise
        except Exception:
            with contextlib.suppress(OSError):
                self._store.remove(self._name)  # tells the others too
            raise

    def _take_part(self, mine: Part) -> None:
        part = self._part(self._index)
        try:
            self._write_part(mine)
            self._store.write(f"{part}.{DONE}", b"")
        except Exception as error:  # whatever it is, the first process must not wait in vain
            with contextlib.suppress(OSError):
                if self._store.read(f"{part}.{DONE}") is None:  # else the first may have committed by now
                    self._store.remove(part)  # makes room for the marker
                    self._store.write(f"{part}.{FAILED}", str(error).encode())
            raise
        self._patience.wait_for(self._settled, "the first process to commit")
        if self._store.read(f"{self._name}/{META}") is None:
            raise OSError("the first process gave it up; its log says why")

    def _write_part(self, mine: Part) -> None:
        part = self._part(self._index)
        arrays.write(self._store, part, mine)
        self._store.sync(part)

    def _part(self, index: int) -> str:
        return part_of(self._name, index)

    def _of_others(self) -> list[str]:
        """Wait for the others' markers; returns what went wrong there."""
        reasons = []
        for index in range(1, self._count):
            self._patience.wait_for(lambda index=index: self._marker(index) is not None, f"process {index}")
            reasons.append(self._marker(index))
        return [reason for reason in reasons if reason]

    def _marker(self, index: int) -> str | None:
        """None = still writing, "" = done, otherwise why process `index` failed."""
        reason = self._store.read(f"{self._part(index)}.{FAILED}")
        if reason is not None:  # looked for first: a `.done` that was refused may have got there all the same
            return f"process {index}: {reason.decode()}"
        return None if self._store.read(f"{self._part(index)}.{DONE}") is None else ""

    def _settled(self) -> bool:
        """Whether the first process committed, or removed the attempt."""
        committed = self._store.read(f"{self._name}/{META}") is not None
        return committed or self._store.read(f"{self._part(self._index)}.{DONE}") is None
