"""Signs of life between the processes of a run, so that one that no longer answers is reported in a line.

JAX's own service notices it too, but ends the process with a C++ stack, which no Python code can prevent.
"""

import contextlib
import os
import threading
import time
from typing import Any

BEAT = 2.0  # seconds between two signs of life
FOLDER = "diffenc/alive"


class Heartbeat:
    """Writes this process's sign of life to `board`, and watches the others', each in a thread.

    `board` has `key_value_set` and `key_value_dir_get`, as JAX's client of the processes' key-value store.
    """

    def __init__(self, board: Any, process: int, count: int, lost_after: float, message: str):
        """Nothing happens before `start`.

        Args:
          process: which this is, of `count`.
          lost_after: seconds without a sign from one of them until `message` is printed and this process ends
            with status 1. The first process, which keeps the board, waits a little longer, for the others to see it too.
        """
        self._board = board
        self._process = process
        self._lost_after = lost_after + (0 if process else 2 * BEAT)
        self._message = message
        self._signs = {str(number): "" for number in range(count)}
        self._seen = dict.fromkeys(self._signs, time.monotonic())

    def start(self) -> None:
        """Begin, until this process ends."""
        for work in (self._beat, self._watch):
            threading.Thread(target=work, name="heartbeat", daemon=True).start()

    def silent(self, now: float) -> list[str]:
        """Numbers of the processes that have given no sign for too long at the time `now`."""
        return [number for number, seen in self._seen.items() if now - seen > self._lost_after]

    def exchange(self, beat: int) -> None:
        """Give this process's sign number `beat`, and note those of the others."""
        self._board.key_value_set(f"{FOLDER}/{self._process}", str(beat), allow_overwrite=True)
        for key, sign in self._board.key_value_dir_get(FOLDER):
            number = key.rpartition("/")[2]
            if self._signs.get(number) != sign:
                self._signs[number], self._seen[number] = sign, time.monotonic()

    def _beat(self) -> None:
        beat = 0
        while True:
            beat += 1
            with contextlib.suppress(Exception):  # a board that is gone shows no signs
                self.exchange(beat)
            time.sleep(BEAT)

    def _watch(self) -> None:
        while True:
            before = time.monotonic()
            time.sleep(BEAT / 2)
            now = time.monotonic()
            if now - before > 2 * BEAT:  # this very process was stopped, and has seen nobody meanwhile
                self._seen = dict.fromkeys(self._seen, now)
            if self.silent(now):
                with contextlib.suppress(OSError):
                    os.write(2, f"error: {self._message}\n".encode())
                os._exit(1)
