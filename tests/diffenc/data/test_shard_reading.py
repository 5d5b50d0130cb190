import hashlib
import itertools
import pickle
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
from array_record.python import array_record_module as array_record  # pyright: ignore[reportAttributeAccessIssue]

from diffenc.data import shard_reading
from diffenc.data.batches import train_batches
from diffenc.data.manifest import Shard, Split
from diffenc.errors import UserError

SHAPE = (5, 4, 3)
COUNTS = (70, 1, 90)  # examples a shard


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *SHAPE), dtype=np.uint8)


PIXELS = np.concatenate([images(count) for count in COUNTS])
LABELS = np.arange(len(PIXELS)) * 1000 - 3  # of several bytes, some negative


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three shards, written by hand: a little-endian int32, then the pixels."""
    start = 0
    for number, count in enumerate(COUNTS):
        writer = array_record.ArrayRecordWriter(str(tmp_path / f"shard-{number}"), "group_size:1")
        for k in range(start, start + count):
            writer.write(struct.pack("<i", LABELS[k]) + bytes(PIXELS[k].flatten().tolist()))
        writer.close()
        start += count
    return tmp_path


def split(folder: Path) -> Split:
    shards = [
        Shard(f"shard-{number}", count, (folder / f"shard-{number}").stat().st_size, "")
        for number, count in enumerate(COUNTS)
    ]
    sha256 = hashlib.sha256(PIXELS.tobytes()).hexdigest()
    return Split(sha256, tuple(shards))


@pytest.fixture
def source(folder) -> shard_reading.ShardSource:
    return shard_reading.ShardSource(folder, split(folder), SHAPE)


def check(source, indices):
    batch = source.__getitems__(np.asarray(indices))
    np.testing.assert_array_equal(batch["image"], PIXELS[indices])
    np.testing.assert_array_equal(batch["label"], LABELS[indices])
    assert (batch["image"].dtype, batch["label"].dtype) == (np.uint8, np.int32)


def test_a_record_is_the_label_and_the_pixels():
    (record,) = shard_reading.encode({"image": PIXELS[:1], "label": np.array([-2])})
    assert record == b"\xfe\xff\xff\xff" + PIXELS[0].tobytes()
    batch = shard_reading.decode([record, record], SHAPE)
    np.testing.assert_array_equal(batch["image"], PIXELS[[0, 0]])
    assert batch["label"].tolist() == [-2, -2]


def test_any_examples_are_gathered_from_any_shards_in_the_order_asked_for(source):
    assert len(source) == 161
    for indices in ([0], [69, 70, 71], [160, 0, 70, 0, 159], list(range(160, -1, -1)), [71] * 3):
        check(source, indices)
    assert source.__getitems__(np.array([], int))["image"].shape == (0, *SHAPE)
    np.testing.assert_array_equal(source[70]["image"], PIXELS[70])
    assert source[160]["label"] == LABELS[160]


@pytest.mark.parametrize("index", [-1, 161])
def test_an_index_that_is_none_is_a_mistake_of_the_caller(source, index):
    with pytest.raises(IndexError):
        source.__getitems__(np.array([0, index]))


def test_threads_share_a_source(source):
    wrong = []

    def work(seed: int) -> None:
        generator = np.random.default_rng(seed)
        for _ in range(60):
            indices = generator.integers(0, len(PIXELS), 32)
            if not np.array_equal(source.__getitems__(indices)["image"], PIXELS[indices]):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_source_that_has_been_read_from_pickles(source):
    check(source, [3])
    check(pickle.loads(pickle.dumps(source)), [160, 3])


def test_in_memory_it_is_the_same(source):
    held = shard_reading.load_into_memory(source)
    np.testing.assert_array_equal(held.images, PIXELS)
    np.testing.assert_array_equal(held.labels, LABELS)


def test_pixels_that_are_not_the_manifests_are_refused(folder):
    other = Split("0" * 64, split(folder).shards)
    with pytest.raises(UserError, match="pixels are not those of the manifest"):
        shard_reading.load_into_memory(shard_reading.ShardSource(folder, other, SHAPE))


def test_a_missing_shard_is_named_with_the_way_out(folder):
    said = split(folder)
    (folder / "shard-1").unlink()
    with pytest.raises(UserError, match=r"shard-1: is damaged or missing .*; delete .* and prepare it again"):
        shard_reading.ShardSource(folder, said, SHAPE)


@pytest.mark.parametrize("keep", [0, 1, 1000, -1])
def test_a_shard_cut_short_is_named(folder, keep):
    said = split(folder)
    path = folder / "shard-2"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"shard-2: .*bytes, not"):
        shard_reading.ShardSource(folder, said, SHAPE)


def test_a_shard_of_another_count_is_named(folder):
    said = split(folder)
    wrong = Split(said.sha256, (*said.shards[:2], Shard("shard-2", 89, said.shards[2].bytes, "")))
    with pytest.raises(UserError, match=r"shard-2: .*90 good records, not 89"):
        shard_reading.ShardSource(folder, wrong, SHAPE)


def test_a_flipped_byte_gives_the_right_examples_or_an_error_that_names_the_shard(folder):
    """Bytes of padding may change unseen; none may change what is read."""
    said, path = split(folder), folder / "shard-0"
    good = path.read_bytes()
    refusals = []
    places = [*range(0, 1000, 7), *np.flatnonzero(np.frombuffer(good, np.uint8))[::97].tolist()]
    for place in places:
        path.write_bytes(good[:place] + bytes([good[place] ^ 0x10]) + good[place + 1 :])
        try:
            check(shard_reading.ShardSource(folder, said, SHAPE), np.arange(len(PIXELS)))
        except UserError as error:
            refusals.append(str(error))
    assert all("shard-0: is damaged" in refusal and "\n" not in refusal for refusal in refusals)
    assert len(refusals) > 0.7 * len(places)


def test_a_shard_cut_short_while_it_is_read_is_named(source, folder):
    """The library itself then gives empty records."""
    check(source, [0, 160])
    with open(folder / "shard-2", "r+b") as file:
        file.truncate(2000)
    with pytest.raises(UserError, match=r"shard-2: is damaged"):
        [source[k] for k in range(71, 161)]


def test_damage_reaches_who_takes_batches_as_it_is(source, folder):
    batches = train_batches(source, 16, seed=0)
    next(batches)
    for number in (0, 2):
        with open(folder / f"shard-{number}", "r+b") as file:
            file.truncate(100)
    with pytest.raises(UserError, match=r"shard-\d: is damaged"):
        list(itertools.islice(batches, 40))
