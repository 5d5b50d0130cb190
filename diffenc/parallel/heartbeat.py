"""Heartbeats between the processes of a run, so that a lost process is reported in one line.

JAX's own service detects it too, but ends the process with a C++ stack trace, which Python code cannot prevent.
"""

import contextlib
import os
import threading
import time
from typing import Any

BEAT = 2.0  # seconds between two heartbeats
FOLDER = "diffenc/alive"


class Heartbeat:
    """Writes this process's heartbeats to a key-value store, and watches those of other processes, in one thread each."""

    def __init__(self, store: Any, process: int, count: int, lost_after: float, message: str):
        """Does nothing before `start`.

        Args:
          store: JAX's client of the processes' key-value store, with `key_value_set` and `key_value_dir_get`.
          process: index of this process, of `count`.
          lost_after: heartbeat timeout in seconds, after which `message` is printed and this process ends with status 1.
            Process 0, which hosts the store, waits a little longer, so that the others notice too.
        """
        self._store = store
        self._process = process
        # If process 0 ended first, the store would be gone, and JAX would end the others with its stack trace.
        self._lost_after = lost_after + (0 if process else 2 * BEAT)
        self._message = message
        self._beats = {str(number): "" for number in range(count)}
        # Arrival times by this process's clock: clocks of different machines are never compared.
        self._seen = dict.fromkeys(self._beats, time.monotonic())

    def start(self) -> None:
        """Starts both threads, which run until this process ends."""
        for work in (self._beat, self._watch):
            # Two threads, since a store call that hangs must not block the watcher.
            threading.Thread(target=work, name="heartbeat", daemon=True).start()

    def lost_processes(self, now: float) -> list[str]:
        """Returns the indices of the processes with a last heartbeat older than the timeout at the time `now`."""
        return [number for number, seen in self._seen.items() if now - seen > self._lost_after]

    def exchange(self, beat: int) -> None:
        """Writes this process's heartbeat number `beat`, and reads those of the others."""
        self._store.key_value_set(f"{FOLDER}/{self._process}", str(beat), allow_overwrite=True)
        for key, value in self._store.key_value_dir_get(FOLDER):
            number = key.rpartition("/")[2]
            # Only a changed number counts as a heartbeat: a store that
            # still returns an old value is not a sign of life.
            if self._beats.get(number) != value:
                self._beats[number], self._seen[number] = value, time.monotonic()

    def _beat(self) -> None:
        beat = 0
        while True:
            beat += 1
            with contextlib.suppress(Exception):  # a store that is gone: the watcher times out
                self.exchange(beat)
            time.sleep(BEAT)

    def _watch(self) -> None:
        while True:
            before = time.monotonic()
            time.sleep(BEAT / 2)
            now = time.monotonic()
            if now - before > 2 * BEAT:  # this process was suspended, and has read no heartbeats meanwhile
                self._seen = dict.fromkeys(self._seen, now)
            if self.lost_processes(now):
                with contextlib.suppress(OSError):
                    # os.write, not logging or print: the main thread
                    # may hang in native code while it holds their locks.
                    os.write(2, f"error: {self._message}\n".encode())
                os._exit(1)
