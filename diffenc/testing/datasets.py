"""What every data set keeps. Its files, if it has any, must be there."""

import hashlib
import pickle
from typing import Any

import numpy as np

from diffenc.errors import UserError
from diffenc.interfaces import Batch, Source
from diffenc.testing.assertions import require, require_equal

FEW = 64  # examples taken one by one


def it_says_shape_levels_and_classes(plugin: Any) -> None:
    """(H, W, C), at least 2 levels that fit into uint8, at least 1 class."""
    shape = plugin.image_shape
    whole = isinstance(shape, tuple) and len(shape) == 3 and all(type(n) is int and n > 0 for n in shape)
    require(whole, plugin, f"image_shape = {shape!r}: must be (H, W, C)")
    require(2 <= plugin.num_levels <= 256, plugin, f"num_levels = {plugin.num_levels}: must be in 2 .. 256")
    require(plugin.num_classes >= 1, plugin, f"num_classes = {plugin.num_classes}: must be at least 1")


def examples_are_what_it_says(plugin: Any) -> None:
    """uint8 images of its shape, levels below num_levels; int32 labels from 0, below num_classes."""
    for split in _splits(plugin):
        batch = _everything(plugin.source(split))
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
        least, most = label.min(), label.max()
        within = least >= 0 and most < plugin.num_classes
        require(within, plugin, f"{split} has labels {least} .. {most}: num_classes = {plugin.num_classes}")


def one_by_one_examples_are_those_of_a_batch(plugin: Any) -> None:
    """`__getitem__` and `__getitems__`, also in another order and of one index twice."""
    for split in _splits(plugin):
        source = plugin.source(split)
        chosen = np.random.default_rng(0).permutation(len(source))[:FEW]
        chosen = np.r_[chosen, chosen[:1], 0, len(source) - 1]
        batch = source.__getitems__(chosen)
        for place, index in enumerate(chosen):
            one, message = source[int(index)], f"{split}[{index}] is not what __getitems__ gives there"
            require_equal(one["image"], batch["image"][place], plugin, message)
            require(int(one["label"]) == batch["label"][place], plugin, f"{message}: its label")


def it_reads_the_same_again(plugin: Any) -> None:
    """From a source made anew: a run that is taken up goes on with the images it would have had."""
    for split in _splits(plugin):
        first, second = (_everything(plugin.source(split)) for _ in range(2))
        require_equal(second["image"], first["image"], plugin, f"{split}, read again, has other images")
        require_equal(second["label"], first["label"], plugin, f"{split}, read again, has other labels")


def the_fingerprint_is_that_of_the_pixels(plugin: Any) -> None:
    """Hex SHA-256 of the uint8 [N, H, W, C] pixels in source order."""
    for split in _splits(plugin):
        digest, source = hashlib.sha256(), plugin.source(split)
        for index in range(len(source)):
            digest.update(source[index]["image"].tobytes())
        said = plugin.fingerprint(split)
        require(
            said == digest.hexdigest(), plugin, f"fingerprint({split!r}) is not the SHA-256 of the pixels"
        )


def another_split_is_refused(plugin: Any) -> None:
    """By a UserError in one line."""
    try:
        plugin.source("no_such_split")
    except UserError as error:
        require("\n" not in str(error), plugin, "its UserError takes more than a line")
        return
    except Exception as error:
        raise AssertionError(f"a split that is not there raises {error!r}, no UserError") from error
    require(False, plugin, "a split that is not there is not refused")


def sources_pickle(plugin: Any) -> None:
    """As they go to worker processes."""
    for split in _splits(plugin):
        source = plugin.source(split)
        try:
            again = pickle.loads(pickle.dumps(source))
        except Exception as error:  # whatever a field's own pickling raises
            raise AssertionError(f"the source of {split} does not pickle: {error}") from error
        before, after = (_everything(each)["image"] for each in (source, again))
        require_equal(after, before, plugin, f"{split} has other images after pickling")


def _splits(plugin: Any) -> list[str]:
    """Train, test, and validation where there is one."""
    try:
        plugin.source("validation")
    except UserError:
        return ["train", "test"]
    return ["train", "validation", "test"]


def _everything(source: Source) -> Batch:
    return source.__getitems__(np.arange(len(source)))


CHECKS = (
    it_says_shape_levels_and_classes,
    examples_are_what_it_says,
    one_by_one_examples_are_those_of_a_batch,
    it_reads_the_same_again,
    the_fingerprint_is_that_of_the_pixels,
    another_split_is_refused,
    sources_pickle,
)
