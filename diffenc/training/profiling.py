"""Profiles a few training steps for TensorBoard's profiler."""

from collections.abc import Callable
from pathlib import Path

import jax
from absl import logging
from clu import profiler

from diffenc.training.clock import Clock

NUM_STEPS = 5


class Profile:
    """Profiles NUM_STEPS steps from step `first` on; 0 = never. A failure is logged and does not affect training."""

    def __init__(self, workdir: Path, first: int, clock: Clock):
        """`clock` is paused while the profiler starts and writes."""
        self._workdir = workdir
        self._first = first
        self._clock = clock
        self._running = False

    def before(self, step: int, last: jax.Array) -> None:
        """Must be called before each step; `last` is an array that is ready when the previous step is done."""
        if step == self._first:
            # Steps are dispatched ahead: without waiting, the
            # profile would begin with the tail of earlier ones.
            jax.block_until_ready(last)
            self._running = self._try(self._start)
        elif step == self._first + NUM_STEPS:
            self.finish(last)

    def finish(self, last: jax.Array) -> None:
        """Stops the profiler and writes the recorded profile, if one is running."""
        if not self._running:
            return
        # Cleared first: after a failure to write, later calls must not stop the profiler again.
        self._running = False
        if self._try(lambda: self._stop(last)):
            folder = self._workdir / "plugins" / "profile"
            logging.info("profile from step %d on in %s; TensorBoard shows it", self._first, folder)

    def _start(self) -> None:
        with self._clock.paused():
            profiler.start(str(self._workdir))

    def _stop(self, last: jax.Array) -> None:
        try:
            jax.block_until_ready(last)  # this wait is training, which the clock counts
        finally:
            with self._clock.paused():
                profiler.stop()

    def _try(self, action: Callable[[], None]) -> bool:
        """Returns whether `action` succeeded; logs its error."""
        try:
            action()
        except Exception as error:  # such as: another profile is running, the disk is full, a step failed
            logging.warning("no profile: %s", error)
            return False
        return True
