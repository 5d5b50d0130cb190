"""Norms of the encoder's learned part, ‖y_φ‖, and of its slope, ‖dy_φ/dλ‖, over λ."""

import jax
import numpy as np
from jaxtyping import Float

from diffenc.core.gaussian import alpha_squared, scale, sigma_squared, sum_squares
from diffenc.core.interval import EncodeAt
from diffenc.evaluation import plots
from diffenc.interfaces import Data, LogSNR, PerExample
from diffenc.tools.figures.figure_data import FigureInputs, FigureRecord, map_images

POINTS = 20  # equally spaced log-SNRs


def measure_norms(subject: FigureInputs) -> FigureRecord:
    """Returns root mean squares over dimensions and images of y_phi and dy_phi/dlambda, with standard errors over images."""
    ends = subject.log_snr_at(np.array([0.0, 1.0]))
    log_snr = np.linspace(ends[0], ends[1], POINTS)
    squares = map_images(subject, subject.many, log_snr, mean_squares, "norms of the encoder")
    record = {"log_snr": log_snr.tolist()}
    for name, square in squares.items():
        rms, error = root_mean_square(square)
        record |= {f"{name}_rms": rms.tolist(), f"{name}_rms_se": error.tolist()}
    return FigureRecord(record)


def mean_squares(encode: EncodeAt, x: Data, log_snr: LogSNR) -> dict[str, PerExample]:
    """Returns mean squares over dimensions of y_phi = (x_phi - alpha^2 x) / sigma^2 [15], for any encoder, and of its slope."""

    def y_phi(log_snr: LogSNR) -> Data:
        # float64 (`map_images`): the division by sigma^2 would leave no digits in float32 at low noise.
        rest = encode(log_snr) - scale(alpha_squared(log_snr), x)
        return scale(1 / sigma_squared(log_snr), rest)

    y, slope = jax.jvp(y_phi, (log_snr,), (jax.numpy.ones_like(log_snr),))
    return {"y": sum_squares(y) / x[0].size, "slope": sum_squares(slope) / x[0].size}


def root_mean_square(square: Float[np.ndarray, "n points"]) -> tuple[plots.Values, plots.Values]:
    """Returns the root of the mean over images, and its standard error; both 0 where all values are 0."""
    mean = square.mean(axis=0)
    error = square.std(axis=0, ddof=1) / np.sqrt(len(square))
    # Delta method: d sqrt(m) = dm / (2 sqrt(m)).
    return np.sqrt(mean), error / np.where(mean > 0, 2 * np.sqrt(mean), 1)


def plot_norms(data: FigureRecord, title: str) -> plots.Figure:
    """Plots both norms over log-SNR, with standard errors."""
    record = data.record
    figure, axes = plots.make_axes(
        f"{title}\nencoder, $x_\\phi = \\alpha^2 x + \\sigma^2 y_\\phi$",
        "$\\lambda$ = log SNR (right: data, left: noise)",
        "root mean square over dimensions and images",
    )
    for name, label in (("y", "$y_\\phi$"), ("slope", "$dy_\\phi/d\\lambda$")):
        rms, error = np.array(record[f"{name}_rms"]), np.array(record[f"{name}_rms_se"])
        plots.plot_band(axes, np.array(record["log_snr"]), rms, error, f"{label}, mean and standard error")
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure
