"""The running curve from which the time sampler draws training times: of the loss, of the gradient, or none."""

from functools import partial

from diffenc.core.model import SampleTimes
from diffenc.interfaces import GRADIENT_CURVE, LOSS_CURVE, TimeSampler, requires
from diffenc.training.gradient import BatchGradient
from diffenc.training.gradient_curve import GradientCurve, begin_gradient_curve, gradient_sizes
from diffenc.training.loss_curve import LossCurve, begin_loss_curve, root_mean_squares, update_loss_curve

Curve = LossCurve | GradientCurve | None


def begin_curve(sampler: TimeSampler) -> Curve:
    """Returns the curve before the first step; None for a time sampler that needs none."""
    if requires(sampler, GRADIENT_CURVE):
        return begin_gradient_curve()
    return begin_loss_curve() if requires(sampler, LOSS_CURVE) else None


def bind_curve(sampler: TimeSampler, curve: Curve) -> SampleTimes:
    """Returns the time sampler as a function that draws times by the current curve."""
    match curve:
        case LossCurve():
            return partial(sampler, curve=root_mean_squares(curve))
        case GradientCurve():
            return partial(sampler, curve=gradient_sizes(curve))
        case None:
            return partial(sampler, curve=None)


def update_curve(curve: Curve, batch: BatchGradient) -> Curve:
    """Returns the curve after a step: a loss curve adds the batch's losses; a gradient curve is measured between steps."""
    # The losses per image are computed in any case; a gradient
    # per image would need a backward pass for each.
    return update_loss_curve(curve, batch.draws, batch.diffusion) if isinstance(curve, LossCurve) else curve
