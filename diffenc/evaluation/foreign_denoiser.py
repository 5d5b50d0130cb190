"""Denoisers of other code: calls, and checks that their loss is a bound.

The bound belongs to the model with reverse steps that use a fixed function of (z, noise level). The loss is no bound if an output
depends on other images of the batch, or on anything besides the arguments: `check_denoiser` refuses both.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from diffenc.errors import UserError
from diffenc.interfaces import Condition, Data

# (z, noise level), and where there are labels (z, noise level, labels) -> the estimate, shaped like z
Denoiser = Callable[..., Any]
NoiseLevel = Shaped[Array, " b"]
HostOutputs = Float[np.ndarray, "b *d"]

UNCOMPILED = 2  # images that a compiled denoiser is tried on uncompiled


@dataclasses.dataclass(frozen=True)
class DenoiserCall:
    """A denoiser together with the way it is called.

    Attributes:
      function: the user's.
      jitted: the compiled function; None = `function` is called with numpy arrays.
    """

    function: Denoiser
    jitted: Callable[..., Any] | None

    def __call__(self, z: Data, noise_level: NoiseLevel, labels: Condition | None = None) -> Data:
        """Returns the denoiser's output in the default precision.

        Raises:
          UserError: the output is no float array shaped like `z`.
        """
        if self.jitted is not None:
            return check_output(self.jitted(*_arguments(z, noise_level, labels)), z)
        return self.uncompiled(z, noise_level, labels)

    def uncompiled(self, z: Data, noise_level: NoiseLevel, labels: Condition | None = None) -> Data:
        """Returns the output of the function itself, called with numpy arrays where it does not compile."""
        given = _arguments(z, noise_level, labels)
        if self.jitted is None:
            given = tuple(
                np.array(array) for array in jax.device_get(given)
            )  # writable, for torch.from_numpy
        return check_output(self.function(*given), z)


def _arguments(z: Data, noise_level: NoiseLevel, labels: Condition | None) -> tuple[Array, ...]:
    return (z, noise_level) if labels is None else (z, noise_level, labels)


def prepare_denoiser(
    function: Denoiser, jit: bool | None, z: Data, noise_level: NoiseLevel, labels: Condition | None = None
) -> DenoiserCall:
    """Returns the denoiser, compiled if JAX can trace it on arguments like these.

    Args:
      jit: True compiles in any case, with JAX's error if tracing fails; False calls `function` with numpy arrays; None tries.

    Raises:
      UserError: `function` cannot be called.
    """
    if not callable(function):
        raise UserError(f"denoiser = {function!r}: must be a function of (z, noise_level)")
    if jit is None:
        jit = _is_traceable(function, _arguments(z, noise_level, labels))
    return DenoiserCall(function, jax.jit(function) if jit else None)


def _is_traceable(function: Denoiser, given: tuple[Array, ...]) -> bool:
    try:
        # Traces without computing: a denoiser that only runs on
        # numpy arrays fails here, before any batch is computed.
        jax.eval_shape(function, *given)
    except Exception:  # other libraries fail on JAX's tracers in ways of their own
        return False
    return True


def check_output(out: Any, z: Data) -> Data:
    """Returns `out` in the precision of `z`. Raises UserError unless it is an array of floats shaped like `z`."""
    if not isinstance(out, jax.Array):
        try:
            out = np.asarray(out)
        except Exception as error:
            raise UserError(
                f"the denoiser returns {type(out).__name__}, which numpy does not convert ({error}): return an array, "
                "of a torch tensor `out.detach().cpu().numpy()`"
            ) from error
    if out.shape != z.shape:
        more = out.ndim == z.ndim and out.shape[:-1] == z.shape[:-1] and out.shape[-1] > z.shape[-1]
        first = layout_hint(out.shape, z.shape)
        hint = f"; if the other channels are variances, return out[..., :{z.shape[-1]}]" if more else first
        raise UserError(
            f"the denoiser returns shape {list(out.shape)} for z of shape {list(z.shape)}: it must return one estimate "
            f"shaped like z, [B, H, W, C]{hint}"
        )
    if out.dtype.kind in "iubc":
        raise UserError(f"the denoiser returns {out.dtype}: it must return floats")
    # A denoiser in half precision is measured as it is: its outputs are rounded, the loss is not.
    return jnp.asarray(out).astype(z.dtype)


def layout_hint(found: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """Returns how to fix an output with channels first, as a part of a message; empty for other outputs."""
    channels_first = (wanted[0], wanted[-1], *wanted[1:-1])
    return "; move the channels to the last axis" if found == channels_first and len(wanted) == 4 else ""


def check_denoiser(
    denoise: DenoiserCall,
    z: Data,
    noise_level: NoiseLevel,
    labels: Condition | None,
    tolerance: float,
) -> None:
    """Calls the denoiser twice on a batch of different images, and on batches that repeat one of them.

    Args:
      tolerance: the difference of two outputs that counts as rounding, relative to the root mean square of the image's output.

    Raises:
      UserError: outputs differ between calls, or with the other images of the batch.
    """
    # 1. Twice the same call: randomness shows as a difference.
    company = _on_host(denoise(z, noise_level, labels))
    _require_equal(company, _on_host(denoise(z, noise_level, labels)), tolerance, RANDOM)
    if denoise.jitted is not None:  # what a function draws from Python or numpy, compiling freezes
        few = jax.tree.map(lambda array: array[:UNCOMPILED], (z, noise_level, labels))
        again = [_on_host(denoise.uncompiled(*few)) for _ in range(2)]
        _require_equal(again[0], again[1], tolerance, RANDOM)
    for image in sorted({0, len(z) - 1}) if len(z) > 1 else ():
        # 2. The image repeated to fill a batch of the same shape,
        # since another batch size could compile to other rounding.
        alone = jax.tree.map(
            lambda array, image=image: jnp.repeat(array[image : image + 1], len(z), axis=0),
            (z, noise_level, labels),
        )
        expected = np.broadcast_to(company[image], company.shape)
        _require_equal(expected, _on_host(denoise(*alone)), tolerance, MIXED)


RANDOM = (
    "the denoiser is not deterministic: two calls with the same arguments differ by {difference:.2g} of the output's size. Its "
    "loss is no bound then; switch off dropout and other noise (in PyTorch `module.eval()`), or draw it from a fixed seed"
)
MIXED = (
    "the denoiser mixes the images of a batch: an image's output differs by {difference:.2g} of its size with the other images "
    "of the batch. Its loss is no bound then; use running statistics in place of the batch's (in PyTorch `module.eval()`)"
)
ROUNDING = ", or give a larger tolerance (it is {tolerance:.2g}) if that is the rounding of its precision"


def _on_host(out: Data) -> HostOutputs:
    return np.asarray(jax.device_get(out), np.float64)


def _require_equal(one: HostOutputs, other: HostOutputs, tolerance: float, message: str) -> None:
    difference = relative_difference(one, other)
    # Written so that NaN counts as a difference.
    if not difference <= tolerance:
        raise UserError((message + ROUNDING).format(difference=difference, tolerance=tolerance))


def relative_difference(one: HostOutputs, other: HostOutputs) -> float:
    """Returns the largest root mean square of a difference of two images' outputs, relative to that of the first.

    Values that are not finite count as equal where both are the same, and as an infinite difference elsewhere.
    """
    axes = tuple(range(1, one.ndim))
    # Equal infinities would give inf - inf = NaN.
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    with np.errstate(invalid="ignore"):
        gap = np.where(same, 0.0, one - other)
    gap = np.where(np.isnan(gap), np.inf, gap)
    size = np.sqrt(np.mean(np.square(np.nan_to_num(one)), axis=axes))
    size = np.maximum(size, 1e-6 * np.sqrt(np.mean(np.square(size))))  # an image may have an output of zeros
    distance = np.sqrt(np.mean(np.square(gap), axis=axes))
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.max(np.where(distance > 0, distance / size, 0.0), initial=0.0))
