"""The convolutions and matrix products of a function, found in its jaxpr, and their FLOPs.

FLOPs are 2 x multiply-adds of contractions only: elementwise operations are bound by memory bandwidth, not by arithmetic.
As in XLA's cost analysis, multiply-adds with padding or zeros inserted by dilation do not count. So a convolution and
its two gradients cost the same. Unlike XLA's, the body of a scan counts as often as it runs.
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
      name: name of the primitive, a key of PRIMITIVES.
      lhs, rhs: operands; of a convolution, images and kernel.
      params: parameters of the primitive, as pairs, so that the contraction is hashable.
      role: "forward"; "recomputed" in the backward pass; a gradient: "input_gradient" or "kernel_gradient" of a
        convolution, "gradient" of a matrix product.
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
        """The contraction without its role."""
        return dataclasses.replace(self, role="")

    def __call__(self, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        """Computes the contraction."""
        return PRIMITIVES[self.name].bind(lhs, rhs, **dict(self.params))


@dataclasses.dataclass(frozen=True)
class Work:
    """All contractions of a function.

    Attributes:
      counts: number of executions of each.
      notes: messages about parts that could not be counted.
    """

    counts: Mapping[Contraction, int]
    notes: tuple[str, ...] = ()

    @property
    def flops(self) -> int:
        return sum(count * contraction.flops for contraction, count in self.counts.items())

    def where(self, keep: Callable[[Contraction], bool]) -> "Work":
        """Returns the contractions for which `keep` is true."""
        return Work({one: count for one, count in self.counts.items() if keep(one)}, self.notes)

    @property
    def by_dtype(self) -> dict[str, int]:
        """FLOPs by the dtype of the first operand."""
        totals: Counter[str] = Counter()
        for contraction, count in self.counts.items():
            totals[contraction.lhs.dtype.name] += count * contraction.flops
        return dict(totals)


def count_work(function: Callable[..., Any], *arguments: Any) -> Work:
    """Counts the contractions of `function(*arguments)` by tracing it; arguments may be jax.ShapeDtypeStruct."""
    # Of a jitted function its own trace: inside that of make_jaxpr JAX refuses one that has compiler options.
    jitted = function if isinstance(function, jax.stages.Wrapped) else jax.jit(function)
    return count_jaxpr(jitted.trace(*arguments).jaxpr)


def count_jaxpr(jaxpr: core.ClosedJaxpr) -> Work:  # pyright: ignore[reportPrivateImportUsage]  # jax 0.12 has no __all__ there
    """Counts the contractions of a traced function and of all functions that it calls.

    Of the branches of a `cond`, the most expensive counts. The body of a `while_loop` counts once, with a note,
    since its length is unknown. Any other primitive with a function counts as one call.
    """
    notes: dict[str, None] = {}
    counts = _count_in_jaxpr(jaxpr.jaxpr, "", notes)
    return Work(dict(counts), tuple(notes))


def _count_in_jaxpr(jaxpr: core.Jaxpr, stack: str, notes: dict[str, None]) -> Counter[Contraction]:
    """Counts contractions; `stack` names the transformations that lead to `jaxpr`, and `notes` collects messages."""
    counts: Counter[Contraction] = Counter()
    for equation in jaxpr.eqns:
        # Transformations leave their names on this stack, which distinguishes a forward pass from its transpose.
        within = f"{stack}/{equation.source_info.name_stack}"
        if equation.primitive.name in PRIMITIVES:
            counts[_make_contraction(equation, within)] += 1
            continue
        parts = [_count_in_jaxpr(part, within, notes) for part in core.jaxprs_in_params(equation.params)]
        if any(parts):
            counts.update(_multiply_counts(equation, parts, notes))
    return counts


def _multiply_counts(
    equation: core.JaxprEqn, parts: Sequence[Counter[Contraction]], notes: dict[str, None]
) -> Counter[Contraction]:
    """Returns the contractions of an equation from those of the functions in its parameters."""
    name, params = equation.primitive.name, equation.params
    if name == "cond":
        return max(parts, key=lambda part: Work(part).flops)
    times = 1
    if name == "scan":
        times = params["length"]
    elif name == "shard_map":  # its function computes the share of one device
        # All devices together, since every other equation is counted at its global size.
        times = math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    elif name == "while":
        notes["a while loop of unknown length is counted once"] = None
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
    """Returns the role of a contraction, from the transformations that created it."""
    if not re.search(r"\btranspose\(", stack):
        return "forward"
    if "rematted_computation" in stack:
        return "recomputed"
    if equation.primitive.name == "dot_general":
        return "gradient"
    # The gradient of a kernel contracts over the batch: there the batch axis takes the place of the channel axis.
    numbers = equation.params["dimension_numbers"]
    return "input_gradient" if numbers.lhs_spec[0] == numbers.out_spec[0] else "kernel_gradient"


def _matrix_product_size(lhs: Sequence[int], rhs: Sequence[int], params: Mapping[str, Any]) -> int:
    """Returns the number of multiply-adds of a dot_general."""
    (_, contracted), (_, batch) = params["dimension_numbers"]
    own = [size for axis, size in enumerate(rhs) if axis not in (*contracted, *batch)]
    # Every element of lhs meets each of rhs's own columns once.
    return math.prod(lhs) * math.prod(own)


def _convolution_size(lhs: Sequence[int], rhs: Sequence[int], params: Mapping[str, Any]) -> int:
    """Returns the number of multiply-adds of a conv_general_dilated, without those of padding and inserted zeros."""
    numbers = params["dimension_numbers"]
    # batch_group_count > 1 occurs in gradients of grouped
    # convolutions; feature groups show in the kernel's channels_in.
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
    """Returns the number of pairs of output and kernel positions along one axis that meet an element of the input.

    Args:
      size, window: elements of input and kernel.
      dilation, window_dilation: dilations of input and kernel.
    """
    dilated_size, dilated_window = dilation * (size - 1) + 1, window_dilation * (window - 1) + 1
    positions = (dilated_size + sum(padding) - dilated_window) // stride + 1
    starts = stride * np.arange(max(positions, 0)) - padding[0]
    # Positions in the dilated input: only multiples of
    # `dilation` hold an element, the others are inserted zeros.
    meets = starts[:, None] + window_dilation * np.arange(window)[None, :]
    return int(np.sum((meets >= 0) & (meets < dilated_size) & (meets % dilation == 0)))
