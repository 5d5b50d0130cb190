"""Overlaps the work of the host, which makes batches, with that of the devices, which compute steps."""

from collections import deque
from collections.abc import Iterator

import jax
from jax.sharding import Mesh

from diffenc.interfaces import Batch, Conditioning, Images
from diffenc.parallel.sharding import images_to_devices
from diffenc.training.clock import Clock

AHEAD = 2  # batches that are transferred before they are needed, each of which takes device memory
IN_FLIGHT = 4  # dispatched steps; each holds a batch in device memory, and a stop waits for all of them


class Prefetcher:
    """Transfers the images of `batches`, in order, to the devices ahead of time.

    A transfer does not block the host, and overlaps with earlier steps on the device.
    """

    def __init__(self, batches: Iterator[Batch], conditioning: Conditioning, mesh: Mesh, clock: Clock):
        """`clock` counts the time spent waiting for `batches`."""
        self._batches = batches
        self._conditioning = conditioning
        self._mesh = mesh
        self._clock = clock
        self._ready: deque[Images] = deque()

    def take(self) -> Images:
        """Returns the next batch, sharded over the devices.

        The first call also fills the queue, which the clock counts neither as training nor as waiting.
        """
        # An empty queue means the first call: the start of the pipeline is
        # excluded from the rates, since it happens only once.
        timed = self._clock.waiting if self._ready else self._clock.paused
        # One more than AHEAD, for the batch that is returned.
        while len(self._ready) <= AHEAD:
            with timed():
                batch = next(self._batches)
            # The transfer is asynchronous: it proceeds while the host makes the next batch.
            self._ready.append(images_to_devices(batch, self._conditioning, self._mesh))
        return self._ready.popleft()


class InFlightLimiter:
    """Keeps the host at most IN_FLIGHT steps ahead of the devices."""

    def __init__(self):
        self._tokens: deque[jax.Array] = deque()

    def add(self, token: jax.Array) -> None:
        """Adds a dispatched step, and waits for the step IN_FLIGHT before it.

        Args:
          token: an array that is ready when the step is done, and that is never donated to a later step.
        """
        self._tokens.append(token)
        # Without a limit the host would run far ahead: dispatch
        # returns at once, and every step in flight holds its batch.
        if len(self._tokens) > IN_FLIGHT:
            jax.block_until_ready(self._tokens.popleft())
