"""Bits-back coding of images on a chain of T steps, for any model of the steps' means.

The latents z_1 .. z_0 of a batch of images are popped from the stack under q, the noisiest first: z_1 from q(z_1 | x), then each
z_s from q(z_s | z_t, x) [13]. The images are pushed under p(x | z_0), then the latents under p, the last popped first:

    sender      pop z_1 .. z_0 by q,    push x by p,    push z_0 .. z_1 by p
    receiver    pop z_1 .. z_0 by p,    pop x by p,     push z_0 .. z_1 by q

so that the receiver undoes each operation of the sender in reverse, and is left with the bits that the sender drew the latents
from. An image adds log q(z_1 .. z_0 | x) - log p(x, z_0 .. z_1) bits to the stack, on average -ELBO of T steps.
q(z_s | z_t, x) depends on x, which the receiver has only at the end: latents cannot be pushed back earlier, as a Markov
q(z_t | z_s) would allow, and the first batch needs initial bits for all of its latents.

Latents are coded on a lattice. Both q and p of a step are distributions over cells of width w, `bins` cells per standard
deviation. A cell's symbol is its number relative to the cell of p's mean, which both ends know.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, Integer

from diffenc.compression.stack import Stack
from diffenc.errors import UserError

Latents = Float[np.ndarray, "b ..."]
PixelLevels = Integer[np.ndarray, "b ..."]
Tick = Callable[[], None]

REACH = 16  # standard deviations that symbols reach on both sides of the mean of p: as far as means may differ, and more
MOST_CELLS = 1 << 20  # on a side


@dataclasses.dataclass(frozen=True)
class Lattice:
    """The cells that one latent is coded in, and the standard deviations of its two distributions.

    Attributes:
      width: width of a cell.
      std_q: standard deviation of q, in cells.
      std_p: standard deviation of p, in cells.
      window: symbols reach from -window to +window.
    """

    width: float
    std_q: float
    std_p: float
    window: int

    def place(self, mean_p: Latents) -> Float[np.ndarray, "b ..."]:
        """Returns the number of the cell that contains the mean of p, an integer in float64."""
        return np.rint(mean_p.astype(np.float64) / self.width)

    def offset(self, mean: Latents, mean_p: Latents) -> Float[np.ndarray, "b ..."]:
        """Returns the distance, in cells, of `mean` from the centre of the cell that contains the mean of p."""
        return mean.astype(np.float64) / self.width - self.place(mean_p)

    def latent(self, symbols: Int[np.ndarray, "b ..."], mean_p: Latents) -> Latents:
        """Returns the centre of the cell of each symbol, in the precision of `mean_p`."""
        return ((self.place(mean_p) + symbols) * self.width).astype(mean_p.dtype)


def make_lattice(std_q: float, std_p: float, bins: int) -> Lattice:
    """Returns the lattice with `bins` cells per standard deviation, the smaller of the two.

    Raises:
      UserError: one is so much larger than the other that there would be too many cells.
    """
    least, most = min(std_q, std_p), max(std_q, std_p)
    width = least / bins
    can_be = width > 0 and np.isfinite(most) and REACH * bins * most <= MOST_CELLS * least
    # Bounded before the division, where a tiny width would give an infinite number of cells.
    window = int(np.ceil(REACH * most / width)) if can_be else 0
    if not 0 < window <= MOST_CELLS:
        raise UserError(
            f"standard deviations of {std_q:.3g} and {std_p:.3g} cannot be coded with compress.bins = {bins}: bind fewer, or "
            "other variances"
        )
    return Lattice(width, std_q / width, std_p / width, window)


@runtime_checkable
class Inference(Protocol):
    """q(z_1 .. z_0 | x) of a batch of images."""

    def mean(self, index: int, z: Latents | None) -> Latents:
        """Returns the mean of q of z at stop `index` given `z` at stop index + 1; at the last stop, T, `z` is None."""
        ...


@runtime_checkable
class ChainModel(Protocol):
    """The chain of T steps with T + 1 stops, from stop 0, next to the data, to stop T, the noisiest.

    Attributes:
      lattices: the lattice of z at each stop.
    """

    @property
    def lattices(self) -> tuple[Lattice, ...]: ...

    def generative_mean(self, index: int, z: Latents | None) -> Latents:
        """Returns the mean of p of z at stop `index` given `z` at stop index + 1; at the last stop, where `z` is None, zeros."""
        ...

    def infer(self, levels: PixelLevels) -> Inference:
        """Returns q for the images with these integer levels."""
        ...

    def level_probabilities(self, z_0: Latents) -> Float[np.ndarray, "b ... levels"]:
        """Returns p(x | z_0) of every level of each pixel."""
        ...


class _Coded(NamedTuple):
    """A popped latent that is still to be pushed: its stop, the latent it was conditioned on, its symbols, and the mean of p."""

    stop: int
    given: Latents | None
    symbols: Int[np.ndarray, "b ..."]
    mean_p: Latents


def push_images(
    stack: Stack, chain: ChainModel, levels: PixelLevels, count: int, tick: Tick = lambda: None
) -> None:
    """Pushes the first `count` images of a batch; the others are padding, an input of the model that is not coded.

    Args:
      tick: called after each latent, to show progress.
    """
    posterior = chain.infer(levels)

    def pop(index: int, given: Latents | None, mean_p: Latents) -> Int[np.ndarray, "b ..."]:
        lattice = chain.lattices[index]
        offset = lattice.offset(posterior.mean(index, given), mean_p)[:count]
        return _padded(stack.pop_normal(offset.ravel(), lattice.std_q, lattice.window), mean_p)

    coded, z_0 = _draw(chain, pop, tick)
    probabilities = chain.level_probabilities(z_0)[:count]
    stack.push_categorical(levels[:count].ravel(), _by_pixel(probabilities))
    for one in reversed(coded):
        lattice = chain.lattices[one.stop]
        offset = lattice.offset(one.mean_p, one.mean_p)[:count]
        stack.push_normal(one.symbols[:count].ravel(), offset.ravel(), lattice.std_p, lattice.window)


def pop_images(stack: Stack, chain: ChainModel, count: int, tick: Tick = lambda: None) -> PixelLevels:
    """Pops the `count` images that `push_images` pushed, and restores the stack to its state before."""

    def pop(index: int, given: Latents | None, mean_p: Latents) -> Int[np.ndarray, "b ..."]:
        lattice = chain.lattices[index]
        offset = lattice.offset(mean_p, mean_p)[:count]
        return _padded(stack.pop_normal(offset.ravel(), lattice.std_p, lattice.window), mean_p)

    coded, z_0 = _draw(chain, pop, tick)
    probabilities = chain.level_probabilities(z_0)[:count]
    levels = _padded(stack.pop_categorical(_by_pixel(probabilities)), z_0)
    posterior = chain.infer(levels)
    for one in reversed(coded):
        lattice = chain.lattices[one.stop]
        offset = lattice.offset(posterior.mean(one.stop, one.given), one.mean_p)[:count]
        stack.push_normal(one.symbols[:count].ravel(), offset.ravel(), lattice.std_q, lattice.window)
        tick()
    return levels[:count]


def _draw(
    chain: ChainModel,
    pop: Callable[[int, Latents | None, Latents], Int[np.ndarray, "b ..."]],
    tick: Tick,
) -> tuple[list[_Coded], Latents]:
    """Returns all latents in the order of their draws by `pop`, the noisiest first, and z_0."""
    coded: list[_Coded] = []
    z = None
    for index in reversed(range(len(chain.lattices))):
        mean_p = chain.generative_mean(index, z)
        symbols = pop(index, z, mean_p)
        # The latent continues as the centre of its cell: the receiver recovers that, and no finer value.
        coded.append(_Coded(index, z, symbols, mean_p))
        z = chain.lattices[index].latent(symbols, mean_p)
        tick()
    assert z is not None
    return coded, z


def _padded(symbols: Int[np.ndarray, " n"], like: Latents) -> Int[np.ndarray, "b ..."]:
    """Returns the symbols of the first images as a whole batch shaped like `like`, followed by zeros."""
    batch = np.zeros(like.shape, np.int32)
    batch.reshape(-1)[: len(symbols)] = symbols
    return batch


def _by_pixel(probabilities: Float[np.ndarray, "b ... levels"]) -> Float[np.ndarray, "n levels"]:
    return probabilities.reshape(-1, probabilities.shape[-1])
