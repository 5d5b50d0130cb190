"""A profile of a few steps, for TensorBoard's profiler."""

from collections.abc import Callable
from pathlib import Path

import jax
from absl import logging
from clu import profiler

from diffenc.training.clock import Clock

NUM_STEPS = 5


class Profile:
    """Records NUM_STEPS steps from step `first` on; 0 = never. A profile that fails costs no more than itself."""

    def __init__(self, workdir: Path, first: int, clock: Clock):
        """`clock` does not count what starting and writing take."""
        self._workdir = workdir
        self._first = first
        self._clock = clock
        self._running = False

    def before(self, step: int, last: jax.Array) -> None:
        """To be called before each step; `last` is ready when the step before is done."""
        if step == self._first:
            jax.block_until_ready(last)
            self._running = self._managed(self._start)
        elif step == self._first + NUM_STEPS:
            self.finish(last)

    def finish(self, last: jax.Array) -> None:
        """Write what was recorded so far, if anything is being recorded."""
        if not self._running:
            return
        self._running = False
        if self._managed(lambda: self._stop(last)):
            folder = self._workdir / "plugins" / "profile"
            logging.info("profile from step %d on in %s; TensorBoard shows it", self._first, folder)

    def _start(self) -> None:
        with self._clock.paused():
            profiler.start(str(self._workdir))

    def _stop(self, last: jax.Array) -> None:
        try:
            jax.block_until_ready(last)  # training, which the clock counts
        finally:
            with self._clock.paused():
                profiler.stop()

    def _managed(self, action: Callable[[], None]) -> bool:
        """Whether `action` did what it should; if not, says why."""
        try:
            action()
        except (
            Exception
        ) as error:  # such as: a profile is being taken already, the disk is full, a step failed
            logging.warning("no profile: %s", error)
            return False
        return True
