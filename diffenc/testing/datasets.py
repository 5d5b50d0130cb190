"""Conformance checks of data sets, which must have been prepared."""

import hashlib
import pickle
from typing import Any

import numpy as np

from diffenc.errors import UserError
from diffenc.interfaces import Batch, Source
from diffenc.testing.assertions import require, require_equal

NUM_SINGLE = 64  # examples read one by one


def shape_levels_and_classes_are_valid(plugin: Any) -> None:
    """Requires image_shape (H, W, C), at least 2 levels that fit into uint8, and at least 1 class."""
    shape = plugin.image_shape
    is_shape = isinstance(shape, tuple) and len(shape) == 3 and all(type(n) is int and n > 0 for n in shape)
    require(is_shape, plugin, f"image_shape = {shape!r}: must be (H, W, C)")
    require(2 <= plugin.num_levels <= 256, plugin, f"num_levels = {plugin.num_levels}: must be in 2 .. 256")
    require(plugin.num_classes >= 1, plugin, f"num_classes = {plugin.num_classes}: must be at least 1")


def examples_match_the_declaration(plugin: Any) -> None:
    """Requires uint8 images of the declared shape, levels below num_levels, int32 labels in 0 .. num_classes - 1."""
    for split in _splits(plugin):
        batch = _read_all(plugin.source(split))
        count = len(plugin.source(split))
        require(count > 0, plugin, f"{split} is empty")
        image, label = batch["image"], batch["label"]
        found = (image.dtype, image.shape)
        wanted = (np.dtype(np.uint8), (count, *plugin.image_shape))
        require(found == wanted, plugin, f"images of {split} are {found}, not {wanted}")
        found = (label.dtype, label.shape)
        wanted = (np.dtype(np.int32), (count,))
        require(found == wanted, plugin, f"labels of {split} are {found}, not {wanted}")
        top = image.max()
        require(top < plugin.num_levels, plugin, f"{split} has level {top}: num_levels = {plugin.num_levels}")
        low, high = label.min(), label.max()
        valid = low >= 0 and high < plugin.num_classes
        require(valid, plugin, f"{split} has labels {low} .. {high}: num_classes = {plugin.num_classes}")


def single_and_batched_examples_agree(plugin: Any) -> None:
    """Requires `__getitem__` and `__getitems__` to agree, also for unordered and repeated indices."""
    for split in _splits(plugin):
        source = plugin.source(split)
        chosen = np.random.default_rng(0).permutation(len(source))[:NUM_SINGLE]
        # a repeated index, and both ends
        chosen = np.r_[chosen, chosen[:1], 0, len(source) - 1]
        batch = source.__getitems__(chosen)
        for position, index in enumerate(chosen):
            one, message = source[int(index)], f"{split}[{index}] differs from the result of __getitems__"
            require_equal(one["image"], batch["image"][position], plugin, message)
            require(int(one["label"]) == batch["label"][position], plugin, f"{message}: its label")


def sources_are_reproducible(plugin: Any) -> None:
    """Requires a second source to have the same examples, so that a resumed run continues with the same images."""
    for split in _splits(plugin):
        first, second = (_read_all(plugin.source(split)) for _ in range(2))
        require_equal(second["image"], first["image"], plugin, f"{split} has other images when read again")
        require_equal(second["label"], first["label"], plugin, f"{split} has other labels when read again")


def fingerprint_is_sha256_of_pixels(plugin: Any) -> None:
    """Requires the hex SHA-256 of the uint8 [N, H, W, C] pixels in source order."""
    for split in _splits(plugin):
        digest, source = hashlib.sha256(), plugin.source(split)
        for index in range(len(source)):
            digest.update(source[index]["image"].tobytes())
        correct = plugin.fingerprint(split) == digest.hexdigest()
        require(correct, plugin, f"fingerprint({split!r}) is not the SHA-256 of the pixels")


def unknown_splits_are_refused(plugin: Any) -> None:
    """Requires a UserError of one line for an unknown split."""
    try:
        plugin.source("no_such_split")
    except UserError as error:
        require("\n" not in str(error), plugin, "its UserError for an unknown split has more than one line")
        return
    except Exception as error:
        raise AssertionError(f"an unknown split raises {error!r}: raise a UserError") from error
    require(False, plugin, "an unknown split is accepted: raise a UserError")


def sources_pickle(plugin: Any) -> None:
    """Requires sources that can be sent to worker processes."""
    for split in _splits(plugin):
        source = plugin.source(split)
        try:
            again = pickle.loads(pickle.dumps(source))
        except Exception as error:  # whatever a field's own pickling raises
            raise AssertionError(f"the source of {split} cannot be pickled: {error}") from error
        before, after = (_read_all(each)["image"] for each in (source, again))
        require_equal(after, before, plugin, f"{split} has other images after pickling")


def _splits(plugin: Any) -> list[str]:
    """Returns the splits: train, test and, where it exists, validation."""
    try:
        plugin.source("validation")
    except UserError:
        return ["train", "test"]
    return ["train", "validation", "test"]


def _read_all(source: Source) -> Batch:
    return source.__getitems__(np.arange(len(source)))


CHECKS = (
    shape_levels_and_classes_are_valid,
    examples_match_the_declaration,
    single_and_batched_examples_agree,
    sources_are_reproducible,
    fingerprint_is_sha256_of_pixels,
    unknown_splits_are_refused,
    sources_pickle,
)
