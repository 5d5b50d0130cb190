"""Commit protocol of one checkpoint, run by all processes at once, each in a background thread.

The processes must not communicate through their devices, which continue training. So each writes a marker file into the
checkpoint's folder when its part is on disk; the main process waits for all markers and commits by writing META.json
last. A folder without META.json is not a checkpoint.

  000001000/process_0/    the part of a process
  000001000/process_1.done, process_1.failed    marker of another process; .failed has the reason
  000001000/META.json     marker of the commit
"""

import contextlib
import time
from collections.abc import Callable

from diffenc.checkpoint import arrays
from diffenc.checkpoint.arrays import Part
from diffenc.checkpoint.meta import META, part_folder
from diffenc.files.location import MovedError
from diffenc.files.stores import Store

TIMEOUT = 600.0  # seconds that processes wait for each other
DONE, FAILED = "done", "failed"


class Deadline:
    """The time limit of waits for other processes. It may be shortened while another thread is waiting."""

    def __init__(self) -> None:
        self._seconds = TIMEOUT

    def shorten(self, seconds: float) -> None:
        """Limits the current and later waits to `seconds`."""
        self._seconds = min(self._seconds, seconds)

    def wait_for(self, is_met: Callable[[], bool], event: str) -> None:
        """Returns when `is_met()` is true. Raises OSError, which names the `event`, after the time limit."""
        began, pause = time.monotonic(), 0.01
        while not is_met():
            if time.monotonic() - began > self._seconds:
                raise TimeoutError(f"waited {self._seconds:.0f} s in vain for {event}")
            time.sleep(pause)
            # Growing pauses: short saves are noticed at once, and long waits do not load the file server.
            pause = min(1.5 * pause, 1.0)


class CheckpointWrite:
    """The write of the checkpoint `name` by process `index` of `count`."""

    def __init__(self, store: Store, name: str, index: int, count: int, deadline: Deadline):
        self._store = store
        self._name = name
        self._index = index
        self._count = count
        self._deadline = deadline

    def write(self, mine: Part, meta: str) -> None:
        """Returns when all processes have written their parts and the checkpoint is committed.

        Raises:
          OSError: this or another process failed; the checkpoint's files have been removed.
        """
        if self._index:
            self._write_as_other(mine)
        else:
            self._write_as_main(mine, meta)

    def _write_as_main(self, mine: Part, meta: str) -> None:
        try:
            try:
                self._write_part(mine)
            finally:  # also after a failure: a process that is still writing would leave files behind
                reasons = self._wait_for_others()
            if reasons:
                raise OSError("; ".join(reasons))
            # The commit. Each process has synced its part before its marker.
            self._store.write(f"{self._name}/{META}", meta.encode())
        except MovedError:  # a committed checkpoint of this name is another run's
            with contextlib.suppress(OSError):
                if self._store.read(f"{self._name}/{META}") is None:
                    self._store.remove(self._name)
            raise
        except Exception:
            with contextlib.suppress(OSError):
                self._store.remove(self._name)  # which the others notice
            raise

    def _write_as_other(self, mine: Part) -> None:
        part = self._part(self._index)
        try:
            self._write_part(mine)
            # After the sync in _write_part: a marker that survives a crash must not precede its data.
            self._store.write(f"{part}.{DONE}", b"")
        except Exception as error:  # of any kind: the main process is waiting for a marker
            with contextlib.suppress(OSError):
                if self._store.read(f"{part}.{DONE}") is None:  # else the main process may have committed
                    self._store.remove(part)  # on a full disk makes room for the marker
                    self._store.write(f"{part}.{FAILED}", str(error).encode())
            raise
        # In every process a save ends only when it is committed or abandoned.
        self._deadline.wait_for(self._is_decided, "the main process to commit")
        if self._store.read(f"{self._name}/{META}") is None:
            raise OSError("the main process gave it up; see its log")

    def _write_part(self, mine: Part) -> None:
        part = self._part(self._index)
        arrays.write_arrays(self._store, part, mine)
        self._store.sync(part)

    def _part(self, index: int) -> str:
        return part_folder(self._name, index)

    def _wait_for_others(self) -> list[str]:
        """Waits for the markers of the other processes; returns the reasons of failures."""
        reasons = []
        for index in range(1, self._count):
            self._deadline.wait_for(lambda index=index: self._marker(index) is not None, f"process {index}")
            reasons.append(self._marker(index))
        return [reason for reason in reasons if reason]

    def _marker(self, index: int) -> str | None:
        """Returns None if process `index` is still writing, "" if it is done, otherwise the reason of its failure."""
        reason = self._store.read(f"{self._part(index)}.{FAILED}")
        if (
            reason is not None
        ):  # read first: a `.done` whose write was reported to fail may exist all the same
            return f"process {index}: {reason.decode()}"
        return None if self._store.read(f"{self._part(index)}.{DONE}") is None else ""

    def _is_decided(self) -> bool:
        """Whether the main process has committed the checkpoint or removed it."""
        committed = self._store.read(f"{self._name}/{META}") is not None
        return committed or self._store.read(f"{self._part(self._index)}.{DONE}") is None
