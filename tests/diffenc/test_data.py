import hashlib
import itertools
import pickle
import threading
import time

import numpy as np
import pytest
from absl import logging

from diffenc import data, interfaces
from diffenc.errors import UserError


def toy(num: int) -> data.ArraySource:
    """Images whose one pixel and whose label say where they stand."""
    return data.ArraySource(
        np.arange(num, dtype=np.uint8).reshape(num, 1, 1, 1), np.arange(num, dtype=np.int32)
    )


def labels(source, batch_size: int, seed: int, batches: int, start: int = 0) -> list[list[int]]:
    stream = data.train_batches(source, batch_size, seed, start)
    try:
        return [batch["label"].tolist() for batch in itertools.islice(stream, batches)]
    finally:
        stream.close()


def test_an_array_source_gives_examples_and_batches():
    images = np.random.default_rng(0).integers(0, 256, (5, 2, 3, 4), dtype=np.uint8)
    source = data.ArraySource(images, np.array([4, 3, 2, 1, 0], np.int32))
    assert isinstance(source, interfaces.Source)
    assert len(source) == 5
    example = source[3]
    np.testing.assert_array_equal(example["image"], images[3])
    assert (int(example["label"]), np.asarray(example["label"]).dtype) == (1, np.int32)
    batch = source.__getitems__(np.array([4, 0, 4]))
    np.testing.assert_array_equal(batch["image"], np.stack([images[4], images[0], images[4]]))
    np.testing.assert_array_equal(batch["label"], [0, 4, 0])


def test_sources_pickle():
    source = data.Subset(toy(6), np.array([5, 1]))
    again = pickle.loads(pickle.dumps(source))
    assert [int(again[k]["label"]) for k in range(len(again))] == [5, 1]


def test_the_arrays_of_a_source_cannot_be_written_to():
    mine = np.zeros((2, 1, 1, 1), np.uint8)
    source = data.ArraySource(mine, np.zeros(2, np.int32))
    with pytest.raises(ValueError, match="read-only"):
        source.images[0] = 1
    mine[0] = 1  # the caller's own array is left as it was


def test_images_and_labels_must_be_as_many():
    with pytest.raises(Exception, match="labels"):
        data.ArraySource(np.zeros((2, 1, 1, 1), np.uint8), np.zeros(3, np.int32))


def test_fingerprint_is_the_hash_of_all_pixels(monkeypatch):
    images = np.random.default_rng(1).integers(0, 256, (11, 2, 2, 3), dtype=np.uint8)
    source = data.ArraySource(images, np.zeros(11, np.int32))
    for chunk in (1, 4, 11, 100):
        monkeypatch.setattr(data, "_CHUNK", chunk)
        assert data.fingerprint(source) == hashlib.sha256(images.tobytes()).hexdigest()
        some = data.Subset(source, np.array([3, 1]))
        assert data.fingerprint(some) == hashlib.sha256(images[3].tobytes() + images[1].tobytes()).hexdigest()


@pytest.mark.parametrize(("num", "validation"), [(10, 1), (10, 3), (10, 9), (1498, 149), (60_000, 10_000)])
def test_the_validation_cut_is_even_disjoint_and_complete(num, validation):
    chosen = data.held_out(num, validation)
    assert len(set(chosen.tolist())) == validation
    for k, index in enumerate(chosen.tolist()):  # exact integer bounds of stretch k
        assert k * num // validation <= index < (k + 1) * num // validation
    if num > 250:
        return
    train, held = (data.cut(toy(num), split, validation, "toy") for split in ("train", "validation"))
    parts = [[int(source[k]["label"]) for k in range(len(source))] for source in (train, held)]
    assert parts[0] == sorted(parts[0])
    assert sorted(parts[0] + parts[1]) == list(range(num))
    assert parts[1] == chosen.tolist()


@pytest.mark.parametrize("period", [2, 5, 10])
def test_the_validation_cut_does_not_fall_in_step_with_a_cycle_of_classes(period):
    chosen = data.held_out(1000, 100)  # stretches of ten
    counts = np.bincount(chosen % period, minlength=period)
    assert counts.min() >= 0.7 * 100 / period


def test_no_validation_leaves_train_as_it_is():
    source = toy(5)
    assert data.cut(source, "train", 0, "toy") is source


@pytest.mark.parametrize(
    ("split", "validation", "says"),
    [
        ("validation", 0, r"dataset\.toy\.validation = 0: there is no validation split"),
        ("train", 5, r"dataset\.toy\.validation = 5: must be less than the 5 images"),
        ("validation", 6, r"dataset\.toy\.validation = 6: must be less"),
        ("train", -1, r"dataset\.toy\.validation = -1: must not be negative"),
        ("valid", 1, r"dataset\.toy has no split 'valid'; splits: train, validation, test"),
    ],
)
def test_a_cut_that_cannot_be_is_refused(split, validation, says):
    with pytest.raises(UserError, match=says):
        data.split_source(lambda part: toy(5), split, validation, "toy")


def test_split_source_reads_what_lies_on_disk():
    read = {"train": toy(6), "test": toy(2)}.__getitem__
    assert [len(data.split_source(read, split, 2, "toy")) for split in data.SPLITS] == [4, 2, 2]


@pytest.mark.parametrize(("num", "batch_size"), [(7, 3), (6, 6), (5, 12), (1, 4), (64, 1)])
def test_each_example_comes_once_an_epoch(num, batch_size):
    epochs = 3
    stream = [
        label for batch in labels(toy(num), batch_size, 0, -(-epochs * num // batch_size)) for label in batch
    ]
    for epoch in range(epochs):
        assert sorted(stream[epoch * num : (epoch + 1) * num]) == list(range(num))


def test_batches_are_full_and_images_go_with_their_labels():
    stream = data.train_batches(toy(7), 4, 0)
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
    stream = data.train_batches(toy(9), 3, 0)
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
        data.train_batches(toy(0), 3, 0)


@pytest.mark.parametrize(("num", "batch_size"), [(6, 3), (7, 3), (2, 5), (1, 1)])
def test_evaluation_sees_every_image_once_in_order(num, batch_size):
    seen = []
    for batch, weight in data.eval_batches(toy(num), batch_size):
        assert batch["image"].shape == (batch_size, 1, 1, 1)
        assert (weight.dtype, weight.shape) == (np.float32, (batch_size,))
        assert set(weight.tolist()) <= {0.0, 1.0}
        seen += batch["image"][weight == 1, 0, 0, 0].tolist()
    assert seen == list(range(num))


def test_only_other_counts_are_warned_of(caplog):
    caplog.set_level("WARNING", logger=logging.get_absl_logger().name)
    data.warn_unless_official("MNIST", "train", 60_000, 60_000)
    assert not caplog.records
    data.warn_unless_official("MNIST", "train", 59_999, 60_000)
    (record,) = caplog.records
    assert record.getMessage().startswith("not the official MNIST: 59,999 train images")
    assert "not comparable" in record.getMessage()
