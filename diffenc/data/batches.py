"""The batches of a run: shuffled training batches, ordered by index arithmetic, and passes over a split.

Each batch is gathered in one look-up: per-example pipelines are several times slower.
"""

import functools
from collections.abc import Iterator

import grain
import numpy as np
from jaxtyping import Float, Int

from diffenc.data.sources import epoch_order
from diffenc.errors import UserError
from diffenc.interfaces import Batch, Source

_ENDLESS = 2**60  # examples

Rows = Int[np.ndarray, " rows"]  # places in a batch


def train_batches(
    source: Source, batch_size: int, seed: int, start: int = 0, rows: Rows | None = None
) -> grain.DatasetIterator[Batch]:
    """Returns endless shuffled batches from batch number `start` on.

    Batch k is a function of (seed, k) alone and is computed without the batches before it. Every example occurs
    once per epoch, and each epoch has its own order; a batch may straddle epochs, and contain several. Threads make
    batches ahead of time; `close()` ends them.

    Args:
      rows: positions within each batch that this process loads; None = the whole batch.

    Raises:
      UserError: `source` is empty.
    """
    if len(source) == 0:
        raise UserError("the train split is empty: there is nothing to train on")
    # A cache of a few neighbouring epochs: threads work on several batches at once, which may straddle epochs.
    order = functools.lru_cache(maxsize=4)(functools.partial(epoch_order, len(source), seed))

    def gather(k: int) -> Batch:
        # The endless sequence of examples, cut into batches: position i is place i % n of epoch i // n.
        epochs, places = np.divmod(np.arange(k * batch_size, (k + 1) * batch_size), len(source))
        parts = [order(epoch)[places[epochs == epoch]] for epoch in range(epochs[0], epochs[-1] + 1)]
        chosen = np.concatenate(parts)
        return source.__getitems__(chosen if rows is None else chosen[rows])

    # A map over batch numbers: the iterator's state is one index, so a resumed run continues exactly.
    batches = grain.MapDataset.range(start, _ENDLESS // batch_size).map(gather)
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))


def eval_batches(
    source: Source, batch_size: int, rows: Rows | None = None
) -> Iterator[tuple[Batch, Float[np.ndarray, " b"]]]:
    """Yields every example once, in source order, with weight 1.

    Batches are full; the last is filled up with the source's first example at weight 0.

    Args:
      rows: positions within each batch that this process loads; the weights are those of the whole batch in any case.
    """
    for first in range(0, len(source), batch_size):
        count = min(batch_size, len(source) - first)
        # A full last batch, so that one shape and one compiled program serve all batches.
        chosen, weight = np.zeros(batch_size, np.int64), np.zeros(batch_size, np.float32)
        chosen[:count], weight[:count] = first + np.arange(count), 1
        yield source.__getitems__(chosen if rows is None else chosen[rows]), weight
