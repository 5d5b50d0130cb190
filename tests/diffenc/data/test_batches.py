import itertools
import threading
import time

import numpy as np
import pytest

from diffenc.data import sources
from diffenc.data.batches import eval_batches, train_batches
from diffenc.errors import UserError


def toy(num: int) -> sources.ArraySource:
    """Images whose one pixel and whose label say where they stand."""
    return sources.ArraySource(
        np.arange(num, dtype=np.uint8).reshape(num, 1, 1, 1), np.arange(num, dtype=np.int32)
    )


def labels(source, batch_size: int, seed: int, batches: int, start: int = 0) -> list[list[int]]:
    stream = train_batches(source, batch_size, seed, start)
    try:
        return [batch["label"].tolist() for batch in itertools.islice(stream, batches)]
    finally:
        stream.close()


@pytest.mark.parametrize(("num", "batch_size"), [(7, 3), (6, 6), (5, 12), (1, 4), (64, 1)])
def test_each_example_comes_once_an_epoch(num, batch_size):
    epochs = 3
    stream = [
        label for batch in labels(toy(num), batch_size, 0, -(-epochs * num // batch_size)) for label in batch
    ]
    for epoch in range(epochs):
        assert sorted(stream[epoch * num : (epoch + 1) * num]) == list(range(num))


def test_batches_are_full_and_images_go_with_their_labels():
    stream = train_batches(toy(7), 4, 0)
    for batch in itertools.islice(stream, 6):
        assert batch["image"].shape == (4, 1, 1, 1)
        assert (batch["image"].dtype, batch["label"].dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["label"])
    stream.close()


@pytest.mark.parametrize("start", [0, 1, 5, 30])
def test_resuming_gives_the_batches_of_an_uninterrupted_run(start):
    whole = labels(toy(17), 5, 3, 40)
    assert labels(toy(17), 5, 3, 40 - start, start) == whole[start:]


def test_resuming_far_out_is_cheap():
    began = time.perf_counter()
    labels(toy(100), 128, 0, 1, start=10**9)
    assert time.perf_counter() - began < 2


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [order for seed in (0, 1, 2, -1, 2**40) for order in labels(toy(50), 50, seed, 3)]
    assert len({tuple(order) for order in orders}) == 15
    assert list(range(50)) not in orders


def test_every_place_in_an_epoch_is_equally_likely_for_every_example():
    num, epochs = 8, 2000
    counts = np.zeros((num, num))
    for order in labels(toy(num), num, 0, epochs):
        counts[np.arange(num), order] += 1
    chi_square = ((counts - epochs / num) ** 2 / (epochs / num)).sum()
    assert chi_square < 49 + 5 * np.sqrt(2 * 49)  # (num - 1)^2 degrees of freedom


def prefetching() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("grain-prefetch")]


def test_close_ends_the_threads():
    before = set(prefetching())
    stream = train_batches(toy(9), 3, 0)
    next(stream)
    mine = set(prefetching()) - before
    assert mine
    stream.close()
    for thread in mine:
        thread.join(timeout=5)
        assert not thread.is_alive()
    with pytest.raises(ValueError, match="closed"):
        next(stream)


def test_an_empty_source_is_refused():
    with pytest.raises(UserError, match="empty"):
        train_batches(toy(0), 3, 0)


@pytest.mark.parametrize(("num", "batch_size"), [(6, 3), (7, 3), (2, 5), (1, 1)])
def test_evaluation_sees_every_image_once_in_order(num, batch_size):
    seen = []
    for batch, weight in eval_batches(toy(num), batch_size):
        assert batch["image"].shape == (batch_size, 1, 1, 1)
        assert (weight.dtype, weight.shape) == (np.float32, (batch_size,))
        assert set(weight.tolist()) <= {0.0, 1.0}
        seen += batch["image"][weight == 1, 0, 0, 0].tolist()
    assert seen == list(range(num))
