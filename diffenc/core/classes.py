"""Whether the parts of a model take what they are told of an image, and what a figure must say of that.

Told to the network, the bound is one on log p(x | class). Told to the encoder alone it stays one on log p(x): what
the network learns from has no class in it, and q(z | x) may use whatever is known of x.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from diffenc.core.model import Model
from diffenc.errors import UserError
from diffenc.fields.values import objects_in
from diffenc.interfaces import Dataset, Key
from diffenc.registry import REGISTRIES
from diffenc.runtime.progress import Progress

_CHUNK = 4096  # images whose labels are read at a time


def takers(part: Any) -> list[tuple[str, int]]:
    """`SELECTOR.classes` of all in an encoder or a network that takes a condition, and how many classes it takes."""
    counts = [(f"{_selector(type(each))}.classes", getattr(each, "classes", 0)) for each in objects_in(part)]
    return [(field, count) for field, count in counts if count]


def stated(model: Model) -> dict[str, Any]:
    """What a figure of `model` must say to be understood: what p(x | ...) it is of, and what the encoder is told."""
    parts = {"condition": model.network, "encoder_condition": model.encoder}
    return {key: model.conditioning.what for key, part in parts.items() if takers(part)}


def check(model: Model, dataset: Dataset) -> None:
    """Raise UserError unless what the model's parts take is what they are told."""
    taken, what = [*takers(model.encoder), *takers(model.network)], model.conditioning.what
    for field, count in taken:
        if what is None:
            raise UserError(
                f"{field} = {count}, and the model is told no class: bind Model.conditioning = "
                "@conditioning.by_class(), or leave it at 0"
            )
        if count != dataset.num_classes:
            raise UserError(
                f"{field} = {count}, and {_selector(type(dataset))} has {dataset.num_classes} classes: bind it to "
                "that, or to 0 for a part that is told nothing"
            )
    if what is not None and not taken:
        raise UserError(
            f"Model.conditioning tells each image's {what}, and neither network nor encoder takes it: bind "
            f"network.unet.classes = {dataset.num_classes}, or unbind Model.conditioning"
        )


def check_samples(model: Model, dataset: Dataset, classes: tuple[int, ...] | None, guidance: float) -> None:
    """Raise UserError unless images of these classes can be drawn, with such guidance."""
    if not takers(model.network):
        asked = {"sample.classes": classes, "sample.guidance": guidance or None}
        for field, value in asked.items():
            if value is not None:
                raise UserError(
                    f"{field} = {value}: the network is told no class; train one that is "
                    "(--gin_file=gin/by_class.gin), or unbind it"
                )
        return
    if classes is not None and not all(0 <= each < dataset.num_classes for each in classes):
        raise UserError(
            f"sample.classes = {classes}: {_selector(type(dataset))} has classes 0 .. {dataset.num_classes - 1}"
        )
    if guidance and not model.conditioning.drop:
        raise UserError(
            f"sample.guidance = {guidance} needs a network that also knows images without their class: train one "
            "with conditioning.by_class.drop above 0"
        )


def in_turn(dataset: Dataset, classes: tuple[int, ...] | None, count: int) -> Int[np.ndarray, " count"]:
    """Labels of `count` images to draw: `classes` in turn, all there are if None."""
    cycle = np.arange(dataset.num_classes) if classes is None else np.asarray(classes)
    return np.resize(cycle, count).astype(np.int32)


def at_random(shares: Float[np.ndarray, " classes"], count: int, key: Key) -> Int[np.ndarray, " count"]:
    """Labels of `count` images to draw, each drawn by the shares of the classes."""
    drawn = jax.random.choice(key, len(shares), (count,), p=jnp.asarray(shares))
    return np.asarray(drawn, np.int32)


def shares(dataset: Dataset) -> Float[np.ndarray, " classes"]:
    """Which share of the train split is of each class."""
    source, counts = dataset.source("train"), np.zeros(dataset.num_classes)
    progress = Progress("classes of train", -(-len(source) // _CHUNK))
    for first in range(0, len(source), _CHUNK):
        labels = source.__getitems__(np.arange(first, min(first + _CHUNK, len(source))))["label"]
        counts += np.bincount(labels, minlength=dataset.num_classes)
        progress()
    return counts / len(source)


def _selector(cls: type) -> str:
    """`KIND.NAME` of a plugin; the class's own name for what is not registered."""
    found = {kind: registry.name_of(cls) for kind, registry in REGISTRIES.items()}
    return next((f"{kind}.{name}" for kind, name in found.items() if name), cls.__name__)
