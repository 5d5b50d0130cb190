"""The convolutions and matrix products in a function, from its jaxpr, and what they cost.

FLOPs are 2 x multiply-adds, of these alone: what is element by element is bound by memory, not by arithmetic.
As in XLA's cost analysis, a multiply-add with padding or with a zero that dilation put in is none. So a convolution
and its two gradients cost the same. Unlike there, the body of a scan counts as often as it runs.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core

PRIMITIVES = {"conv_general_dilated": jax.lax.conv_general_dilated_p, "dot_general": jax.lax.dot_general_p}
ROLES = ("forward", "recomputed", "input_gradient", "kernel_gradient", "gradient")


class Operand(NamedTuple):
    """Shape and dtype of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class Contraction:
    """A convolution or a matrix product.

    Attributes:
      name: of its primitive, a key of PRIMITIVES.
      lhs, rhs: of a convolution, images and kernel.
      params: of the primitive, as pairs.
      role: "forward"; "recomputed" for the backward pass; in that pass, of a convolution "input_gradient" or
        "kernel_gradient", of a matrix product "gradient".
    """

    name: str
    lhs: Operand
    rhs: Operand
    params: tuple[tuple[str, Any], ...]
    role: str = "forward"

    @property
    def is_convolution(self) -> bool:
        return self.name == "conv_general_dilated"

    @property
    def flops(self) -> int:
        """2 x multiply-adds of one such contraction."""
        count = _convolution_size if self.is_convolution else _matrix_product_size
        return 2 * count(self.lhs.shape, self.rhs.shape, dict(self.params))

    @property
    def operation(self) -> "Contraction":
        """The same whatever it is for."""
        return dataclasses.replace(self, role="")

    def __call__(self, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        """Perform it."""
        return PRIMITIVES[self.name].bind(lhs, rhs, **dict(self.params))


@dataclasses.dataclass(frozen=True)
class Work:
    """All contractions of a function.

    Attributes:
      counts: how often each is performed.
      notes: what could not be counted, for people.
    """

    counts: Mapping[Contraction, int]
    notes: tuple[str, ...] = ()

    @property
    def flops(self) -> int:
        return sum(count * contraction.flops for contraction, count in self.counts.items())

    def where(self, keep: Callable[[Contraction], bool]) -> "Work":
        """Those that `keep` is true of."""
        return Work({one: count for one, count in self.counts.items() if keep(one)}, self.notes)

    @property
    def by_dtype(self) -> dict[str, int]:
        """FLOPs by the dtype of the first operand."""
        totals: Counter[str] = Counter()
        for contraction, count in self.counts.items():
            totals[contraction.lhs.dtype.name] += count * contraction.flops
        return dict(totals)


def count_work(function: Callable[..., Any], *arguments: Any) -> Work:
    """The contractions of `function(*arguments)`; arguments may be jax.ShapeDtypeStruct. Nothing is computed."""
    return count_jaxpr(jax.make_jaxpr(function)(*arguments))


def count_jaxpr(jaxpr: core.ClosedJaxpr) -> Work:  # pyright: ignore[reportPrivateImportUsage]  # jax 0.12 has no __all__ there
    """The contractions of a traced function, in all that it calls.

    Of the branches of a `cond` the costliest counts. How often a `while_loop` runs is not known: its body
    counts once, and a note says so. Any other primitive that holds a function is taken to call it once.
    """
    notes: dict[str, None] = {}
    counts = _count_in_jaxpr(jaxpr.jaxpr, "", notes)
    return Work(dict(counts), tuple(notes))


def _count_in_jaxpr(jaxpr: core.Jaxpr, stack: str, notes: dict[str, None]) -> Counter[Contraction]:
    """`stack` is the names of transformations that lead to `jaxpr`; `notes` is added to."""
    counts: Counter[Contraction] = Counter()
    for equation in jaxpr.eqns:
        within = f"{stack}/{equation.source_info.name_stack}"
        if equation.primitive.name in PRIMITIVES:
            counts[_make_contraction(equation, within)] += 1
            continue
        parts = [_count_in_jaxpr(part, within, notes) for part in core.jaxprs_in_params(equation.params)]
        if any(parts):
            counts.update(_repeated(equation, parts, notes))
    return counts


def _repeated(
    equation: core.JaxprEqn, parts: Sequence[Counter[Contraction]], notes: dict[str, None]
) -> Counter[Contraction]:
    """The contractions of one equation, from those of the functions that it holds."""
    name, params = equation.primitive.name, equation.params
    if name == "cond":
        return max(parts, key=lambda part: Work(part).flops)
    times = 1
    if name == "scan":
        times = params["length"]
    elif name == "shard_map":  # its function is one device's share
        times = math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    elif name == "while":
        notes["a while loop, which runs nobody knows how often, is counted once"] = None
    counts: Counter[Contraction] = Counter()
    for part in parts:
        counts.update({one: times * number for one, number in part.items()})
    return counts


def _make_contraction(equation: core.JaxprEqn, stack: str) -> Contraction:
    avals: list[Any] = [variable.aval for variable in equation.invars]
    lhs, rhs = (Operand(aval.shape, np.dtype(aval.dtype)) for aval in avals)
    params = tuple(sorted(equation.params.items()))
    return Contraction(equation.primitive.name, lhs, rhs, params, _find_role(equation, stack))


def _find_role(equation: core.JaxprEqn, stack: str) -> str:
    """What the contraction is for, from the transformations that made it."""
    if not re.search(r"\btranspose\(", stack):
        return "forward"
    if "rematted_computation" in stack:
        return "recomputed"
    if equation.primitive.name == "dot_general":
        return "gradient"
    # The gradient of a kernel sums over the batch: what was the batch's axis is the channels' there.
    numbers = equation.params["dimension_numbers"]
    return "input_gradient" if numbers.lhs_spec[0] == numbers.out_spec[0] else "kernel_gradient"


def _matrix_product_size(lhs: Sequence[int], rhs: Sequence[int], params: Mapping[str, Any]) -> int:
    """Multiply-adds of a dot_general."""
    (_, contracted), (_, batch) = params["dimension_numbers"]
    own = [size for axis, size in enumerate(rhs) if axis not in (*contracted, *batch)]
    return math.prod(lhs) * math.prod(own)


def _convolution_size(lhs: Sequence[int], rhs: Sequence[int], params: Mapping[str, Any]) -> int:
    """Multiply-adds of a conv_general_dilated with neither padding nor inserted zeros."""
    numbers = params["dimension_numbers"]
    batch = lhs[numbers.lhs_spec[0]] // params["batch_group_count"]
    channels_out, channels_in = (rhs[axis] for axis in numbers.rhs_spec[:2])
    axes = zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], strict=True)
    windows = zip(
        params["window_strides"],
        params["padding"],
        params["lhs_dilation"],
        params["rhs_dilation"],
        strict=True,
    )
    pairs = [
        _count_pairs(lhs[image], rhs[kernel], *window)
        for (image, kernel), window in zip(axes, windows, strict=True)
    ]
    return batch * channels_out * channels_in * math.prod(pairs)


def _count_pairs(
    size: int, window: int, stride: int, padding: tuple[int, int], dilation: int, window_dilation: int
) -> int:
    """Pairs of an output position and a kernel's, along one axis, that meet an element of the input.

    Args:
      size, window: elements of input and kernel.
      dilation, window_dilation: theirs.
    """
    spread, reach = dilation * (size - 1) + 1, window_dilation * (window - 1) + 1
    positions = (spread + sum(padding) - reach) // stride + 1
    starts = stride * np.arange(max(positions, 0)) - padding[0]
    met = starts[:, None] + window_dilation * np.arange(window)[None, :]
    return int(np.sum((met >= 0) & (met < spread) & (met % dilation == 0)))
