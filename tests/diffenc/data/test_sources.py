import hashlib
import pickle

import numpy as np
import pytest

from diffenc import interfaces, registry
from diffenc.data import manifest, sources
from diffenc.data.manifest import Manifest, Split
from diffenc.errors import UserError
from diffenc_plugins.datasets import Digits, Mnist


def toy(num: int) -> sources.ArraySource:
    """Images whose one pixel and whose label say where they stand."""
    return sources.ArraySource(
        np.arange(num, dtype=np.uint8).reshape(num, 1, 1, 1), np.arange(num, dtype=np.int32)
    )


def test_an_array_source_gives_examples_and_batches():
    images = np.random.default_rng(0).integers(0, 256, (5, 2, 3, 4), dtype=np.uint8)
    source = sources.ArraySource(images, np.array([4, 3, 2, 1, 0], np.int32))
    assert isinstance(source, interfaces.Source)
    assert len(source) == 5
    example = source[3]
    np.testing.assert_array_equal(example["image"], images[3])
    assert (int(example["label"]), np.asarray(example["label"]).dtype) == (1, np.int32)
    batch = source.__getitems__(np.array([4, 0, 4]))
    np.testing.assert_array_equal(batch["image"], np.stack([images[4], images[0], images[4]]))
    np.testing.assert_array_equal(batch["label"], [0, 4, 0])


def test_images_of_a_split_are_read_at_once():
    class Toy(Digits):
        def source(self, split):
            return toy({"train": 9, "test": 5}[split])

    assert sources.read_images(Toy(), "test").ravel().tolist() == [0, 1, 2, 3, 4]
    some = sources.read_images(Toy(), "train", num=4, seed=1)
    measured = sources.subsample(toy(9), 4, seed=1)
    assert some.ravel().tolist() == [int(measured[k]["label"]) for k in range(4)]
    assert len({*some.ravel().tolist()}) == 4


def test_sources_pickle():
    source = sources.Subset(toy(6), np.array([5, 1]))
    again = pickle.loads(pickle.dumps(source))
    assert [int(again[k]["label"]) for k in range(len(again))] == [5, 1]


def test_the_arrays_of_a_source_cannot_be_written_to():
    mine = np.zeros((2, 1, 1, 1), np.uint8)
    source = sources.ArraySource(mine, np.zeros(2, np.int32))
    with pytest.raises(ValueError, match="read-only"):
        source.images[0] = 1
    mine[0] = 1  # the caller's own array is left as it was


def test_images_and_labels_must_be_as_many():
    with pytest.raises(Exception, match="labels"):
        sources.ArraySource(np.zeros((2, 1, 1, 1), np.uint8), np.zeros(3, np.int32))


def test_fingerprint_is_the_hash_of_all_pixels(monkeypatch):
    images = np.random.default_rng(1).integers(0, 256, (11, 2, 2, 3), dtype=np.uint8)
    source = sources.ArraySource(images, np.zeros(11, np.int32))
    for chunk in (1, 4, 11, 100):
        monkeypatch.setattr(sources, "_CHUNK", chunk)
        assert sources.fingerprint(source) == hashlib.sha256(images.tobytes()).hexdigest()
        some = sources.Subset(source, np.array([3, 1]))
        assert (
            sources.fingerprint(some) == hashlib.sha256(images[3].tobytes() + images[1].tobytes()).hexdigest()
        )


@pytest.mark.parametrize(("num", "validation"), [(10, 1), (10, 3), (10, 9), (1498, 149), (60_000, 10_000)])
def test_the_validation_cut_is_even_disjoint_and_complete(num, validation):
    chosen = sources.validation_indices(num, validation)
    assert len(set(chosen.tolist())) == validation
    for k, index in enumerate(chosen.tolist()):  # exact integer bounds of stretch k
        assert k * num // validation <= index < (k + 1) * num // validation
    if num > 250:
        return
    train, held = (
        sources.cut_validation(toy(num), split, validation, "toy") for split in ("train", "validation")
    )
    parts = [[int(source[k]["label"]) for k in range(len(source))] for source in (train, held)]
    assert parts[0] == sorted(parts[0])
    assert sorted(parts[0] + parts[1]) == list(range(num))
    assert parts[1] == chosen.tolist()


@pytest.mark.parametrize("period", [2, 5, 10])
def test_the_validation_cut_does_not_fall_in_step_with_a_cycle_of_classes(period):
    chosen = sources.validation_indices(1000, 100)  # stretches of ten
    counts = np.bincount(chosen % period, minlength=period)
    assert counts.min() >= 0.7 * 100 / period


def test_no_validation_leaves_train_as_it_is():
    source = toy(5)
    assert sources.cut_validation(source, "train", 0, "toy") is source


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
        sources.split_source(lambda part: toy(5), split, validation, "toy")


def test_split_source_reads_what_lies_on_disk():
    read = {"train": toy(6), "test": toy(2)}.__getitem__
    assert [len(sources.split_source(read, split, 2, "toy")) for split in sources.SPLITS] == [4, 2, 2]


def test_skipping_leaves_out_examples_across_batches():
    images = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)
    batches = [{"image": images[a:b], "label": np.arange(a, b)} for a, b in ((0, 4), (4, 5), (5, 10))]
    for first in range(12):
        left = list(sources.skip_examples(batches, first))  # pyright: ignore[reportArgumentType]
        assert [int(label) for part in left for label in part["label"]] == list(range(first, 10))
        assert [int(level) for part in left for level in part["image"].ravel()] == list(range(first, 10))


FIGURES = {
    "dataset": "mnist",
    "split": "test",
    "num_images": 100,
    "fingerprint": "ab" * 32,
    "source": "MNIST",
}


def test_figures_of_the_same_images_may_be_compared():
    sources.require_same_images([])
    sources.require_same_images([FIGURES])
    sources.require_same_images([FIGURES, FIGURES | {"bpd": 3.0, "seed": 1}])


@pytest.mark.parametrize(
    "other", [{"fingerprint": "cd" * 32, "source": "Fashion-MNIST"}, {"num_images": 50}], ids=str
)
def test_figures_of_other_images_are_refused_by_name(other):
    with pytest.raises(UserError, match="not to be compared") as caught:
        sources.require_same_images([FIGURES, FIGURES | other])
    assert "100 images of mnist test (MNIST), pixels abababababababab" in str(caught.value)
    assert str(*list(other.values())[-1:]) in str(caught.value)


def test_what_is_trained_on_is_told_without_reading_it(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFENC_DATA", str(tmp_path))
    assert sources.source_name(registry.datasets["digits"]()) is None
    assert sources.train_identity(registry.datasets["digits"]()) == Digits().fingerprint("train")
    split = Split("ab" * 32, ())
    made = Manifest(
        "x", "those images", (28, 28, 1), 256, 10, (), {"train": split, "test": split}, {}, "", "0"
    )
    (tmp_path / "mnist").mkdir()
    manifest.write(made, tmp_path / "mnist")
    whole, parted = registry.datasets["mnist"](), Mnist(validation=5)
    assert sources.source_name(whole) == "those images"
    identities = {sources.train_identity(whole), sources.train_identity(parted)}  # pyright: ignore[reportArgumentType]
    assert len(identities) == 2
    assert all("ab" * 32 in identity for identity in identities)
