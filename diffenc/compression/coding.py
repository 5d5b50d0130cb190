"""All images of a source in one stream, batch by batch, and back."""

import dataclasses
import hashlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from diffenc.compression.bits_back import Tick, pop_images, push_images
from diffenc.compression.initial_bits import Words, initial_words
from diffenc.compression.stack import Stack
from diffenc.compression.stream import CodedImages
from diffenc.compression.trained_chain import TrainedChain
from diffenc.data.batches import eval_batches
from diffenc.errors import UserError
from diffenc.interfaces import Conditioning, Source

Pixels = UInt8[np.ndarray, "n h w c"]
Labels = Int[np.ndarray, " n"]


class Encoded(NamedTuple):
    """A stack of coded images.

    Attributes:
      words: the content of the stack.
      num_images: number of images in it.
      initial_words: number of its words that are initial bits.
      net_bits: bits that each batch added, in order.
      pixels: SHA-256 of the images.
      batch_checks, whitened: the fields of the header.
    """

    words: Words
    num_images: int
    initial_words: int
    net_bits: Int[np.ndarray, " batches"]
    pixels: str
    batch_checks: tuple[str, ...]
    whitened: tuple[int, ...]


class Decoded(NamedTuple):
    """Images, and the labels that were coded with them, if any were."""

    images: Pixels
    labels: Labels | None


def batch_check(images: Pixels) -> str:
    """Returns the first 8 hex digits of the SHA-256 of a batch's pixels."""
    return hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()[:8]


def encode_images(
    chain: TrainedChain,
    conditioning: Conditioning,
    source: Source,
    *,
    num_classes: int,
    seed: int,
    tick: Tick = lambda: None,
) -> Encoded:
    """Pushes all images of `source`.

    Args:
      num_classes: number of classes of the labels, which are coded too; 0 = labels are not coded.
      seed: seed of the initial bits.
      tick: called after each step of each batch.
    """
    stack, pixels = Stack(seed=seed), hashlib.sha256()
    bits, checks, whitened = [0], [], []
    for number, (batch, weight) in enumerate(eval_batches(source, chain.batch_shape[0])):
        count = int((weight > 0).sum())
        levels, labels = batch["image"].copy(), batch["label"].astype(np.int32)
        # The decoder lacks the padding's images: both sides pad with zeros, as the networks compute whole batches.
        levels[count:] = labels[count:] = 0
        of_these = dataclasses.replace(chain, condition=conditioning(labels))
        # The first batch draws from initial bits, which are random already.
        whitened.append(stack.whiten(number) if number else 0)
        push_images(stack, of_these, levels, count, tick)
        if num_classes:
            stack.push_uniform(labels[:count], num_classes)
        pixels.update(np.ascontiguousarray(levels[:count]).data)
        checks.append(batch_check(levels[:count]))
        bits.append(stack.net_bits)
    return Encoded(
        stack.words(),
        len(source),
        stack.num_initial_words,
        np.diff(bits),
        pixels.hexdigest(),
        tuple(checks),
        tuple(whitened),
    )


def decode_images(
    chain: TrainedChain, conditioning: Conditioning, coded: CodedImages, tick: Tick = lambda: None
) -> Decoded:
    """Pops all images of a stream, the last batch first.

    Raises:
      UserError: they differ from the encoded images; raised at the first batch that differs.
    """
    header, stack = coded.header, Stack(coded.words)
    parts = []
    for number in reversed(range(header.num_batches)):
        count = header.count(number)
        labels = np.zeros(header.batch_size, np.int32)
        # Pushed last, so popped first: the networks need the labels before any image can be decoded.
        if header.num_classes:
            labels[:count] = stack.pop_uniform(count, header.num_classes)
        of_these = dataclasses.replace(chain, condition=conditioning(labels))
        images = pop_images(stack, of_these, count, tick).astype(np.uint8)
        if batch_check(images) != header.batch_checks[number]:
            raise _disagreement(f"batch {number + 1} of {header.num_batches}")
        stack.whiten(number, header.whitened[number])
        parts.append((images, labels[:count]))
    images, labels = (np.concatenate(part) for part in zip(*reversed(parts), strict=True))
    if hashlib.sha256(images.data).hexdigest() != header.pixels:
        raise _disagreement("the images")
    # With all operations undone the initial bits alone are left, the first drawn on top.
    if not np.array_equal(stack.words(), initial_words(header.seed, header.initial_words)[::-1]):
        raise _disagreement("the initial bits")
    return Decoded(images, labels if header.num_classes else None)


def _disagreement(what: str) -> UserError:
    return UserError(
        f"decoding gave other values than encoding for {what}: this machine computes otherwise than the one that encoded them, "
        "although a probe agreed; decode there"
    )
