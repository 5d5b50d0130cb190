"""What lies between the host, which makes batches, and the devices, which take steps: who waits for whom."""

from collections import deque
from collections.abc import Iterator

import jax
from jax.sharding import Mesh

from diffenc.interfaces import Batch, Conditioning, Images
from diffenc.parallel.sharding import images_to_devices
from diffenc.training.clock import Clock

AHEAD = 2  # batches on their way to the devices, or there, beside the one that is taken
IN_FLIGHT = 4  # steps; so many batches may wait in the devices' memory, and a stop waits for so many steps


class Prefetcher:
    """The images of `batches`, in their order, on the devices before they are asked for.

    Putting a batch on a device takes the host no time; it crosses over while the device works on steps before.
    """

    def __init__(self, batches: Iterator[Batch], conditioning: Conditioning, mesh: Mesh, clock: Clock):
        """`clock` is told how long `batches` was waited for."""
        self._batches = batches
        self._conditioning = conditioning
        self._mesh = mesh
        self._clock = clock
        self._ready: deque[Images] = deque()

    def take(self) -> Images:
        """The next batch, split over the devices.

        The first call also fills the queue, once; to the clock that is neither training nor waiting.
        """
        watched = self._clock.waiting if self._ready else self._clock.paused
        while len(self._ready) <= AHEAD:
            with watched():
                batch = next(self._batches)
            self._ready.append(images_to_devices(batch, self._conditioning, self._mesh))
        return self._ready.popleft()


class InFlightLimiter:
    """Keeps the host at most IN_FLIGHT steps ahead of the devices."""

    def __init__(self):
        self._tokens: deque[jax.Array] = deque()

    def add(self, token: jax.Array) -> None:
        """One more step was asked for. Waits for the step IN_FLIGHT before it.

        Args:
          token: what is ready when the step is done, and what no later step takes over.
        """
        self._tokens.append(token)
        if len(self._tokens) > IN_FLIGHT:
            jax.block_until_ready(self._tokens.popleft())
