"""Labels of the samples for FID, drawn in the proportions of the train split."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from diffenc.interfaces import Dataset, Key
from diffenc.runtime.progress import Progress

_CHUNK = 4096  # images whose labels are read at a time


def draw_labels(shares: Float[np.ndarray, " classes"], count: int, key: Key) -> Int[np.ndarray, " count"]:
    """Returns labels of `count` images, drawn independently with the classes' shares as probabilities."""
    drawn = jax.random.choice(key, len(shares), (count,), p=jnp.asarray(shares))
    return np.asarray(drawn, np.int32)


def class_shares(dataset: Dataset) -> Float[np.ndarray, " classes"]:
    """Returns the share of each class in the train split."""
    source, counts = dataset.source("train"), np.zeros(dataset.num_classes)
    progress = Progress("classes of train", -(-len(source) // _CHUNK))
    for first in range(0, len(source), _CHUNK):
        labels = source.__getitems__(np.arange(first, min(first + _CHUNK, len(source))))["label"]
        counts += np.bincount(labels, minlength=dataset.num_classes)
        progress()
    return counts / len(source)
