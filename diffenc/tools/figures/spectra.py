"""Spectrum of the change of x_φ over t: whether the encoder changes edges or whole regions.

Uses the discrete cosine transform: unlike Fourier's, it has no artificial edge between opposite sides of an image. A
frequency is in cycles per pixel: 0 is the mean of an image, 1/2 alternates from pixel to pixel along one axis.
"""

import numpy as np
import scipy.fft
from jaxtyping import Float, Int

from diffenc.evaluation import plots
from diffenc.evaluation.streaming_stats import sum_errors
from diffenc.tools.figures.figure_data import EncodedImages, FigureInputs, FigureRecord, Record

Power = Float[np.ndarray, "n t h w"]


def measure_spectra(subject: FigureInputs) -> FigureRecord:
    """Returns mean frequency and radial spectrum of the change, of its learned part sigma^2 y_phi, and of the images.

    `late_minus_early` compares the last of `figures.times` with the first, image by image. `beyond_x` is the share
    of the change that is not a multiple of its image, 0 for an encoder that only rescales images. `beyond_last` is the share
    that is not a multiple of the change at the last time, 0 for an encoder with the same change, up to scale, at all times.
    """
    encoded = subject.many_encoded
    if not encoded.change.any():
        return FigureRecord(
            {"note": "This encoder changes nothing over t: there is no change to take a spectrum of."}
        )
    return FigureRecord(compute_spectra(encoded, np.array(subject.settings.times)))


def compute_spectra(encoded: EncodedImages, t: plots.Values) -> Record:
    """Returns the record of `measure_spectra`; NaN where a power is 0."""
    height, width = encoded.x.shape[1:3]
    rings = ring_indices(height, width)
    record: Record = {"t": t.tolist(), "frequency": ring_centres(rings, height, width).tolist()}
    for name, images in encoded.parts.items():
        one = power_spectrum(images)
        frequency, shares = mean_frequency(one)
        record |= {
            f"{name}_mean_frequency": frequency.tolist(),
            f"{name}_mean_frequency_se": sum_errors(shares).tolist(),
            f"{name}_spectrum": radial_spectrum(one, rings).tolist(),
            f"{name}_late_minus_early": float(frequency[-1] - frequency[0]),
            f"{name}_late_minus_early_se": float(sum_errors(shares[:, -1:] - shares[:, :1])[0]),
        }
    for name, reference in (("x", encoded.x), ("last", encoded.change[:, -1])):
        share, error = unexplained_share(encoded.change, reference)
        record |= {f"beyond_{name}": share.tolist(), f"beyond_{name}_se": error.tolist()}
    return record


def power_spectrum(images: Float[np.ndarray, "n t h w c"]) -> Power:
    """Returns the power at each frequency, summed over channels; the powers add up to the sum of squares."""
    # ortho: the transform is orthogonal, so that powers add up to the sum of squares (Parseval).
    return np.square(np.asarray(scipy.fft.dctn(images, axes=(2, 3), norm="ortho"))).sum(axis=-1)


def cycles_per_pixel(height: int, width: int) -> Float[np.ndarray, "h w"]:
    """Returns the frequency of each coefficient of the transform."""
    # Mode k of a DCT-II on n pixels has k half periods: k / (2 n) cycles per pixel.
    return np.hypot(np.arange(height)[:, None] / (2 * height), np.arange(width) / (2 * width))


def mean_frequency(power: Power) -> tuple[plots.Values, Float[np.ndarray, "n t"]]:
    """Returns the mean frequency, weighted by the power of all images together, and each image's share of its error."""
    moment = (power * cycles_per_pixel(*power.shape[2:])).sum(axis=(2, 3))
    return ratio_of_sums(moment, power.sum(axis=(2, 3)))


def ratio_of_sums(
    above: Float[np.ndarray, "n t"], below: Float[np.ndarray, "n t"]
) -> tuple[plots.Values, Float[np.ndarray, "n t"]]:
    """Returns sum(above) / sum(below) over images, NaN where sum(below) is 0, and each image's share of its error."""
    whole = below.sum(axis=0)
    whole = np.where(whole > 0, whole, np.nan)
    value = above.sum(axis=0) / whole
    # First-order influence of each image on the ratio: d(A / B) = (dA - (A / B) dB) / B.
    return value, (above - value * below) / whole


def ring_indices(height: int, width: int) -> Int[np.ndarray, "h w"]:
    """Returns the ring of frequencies of each coefficient; a ring has the width of the longer side's frequencies."""
    return np.round(cycles_per_pixel(height, width) * 2 * max(height, width)).astype(int)


def ring_centres(rings: Int[np.ndarray, "h w"], height: int, width: int) -> plots.Values:
    """Returns the frequency of each ring."""
    return np.arange(rings.max() + 1) / (2 * max(height, width))


def radial_spectrum(power: Power, rings: Int[np.ndarray, "h w"]) -> Float[np.ndarray, "t rings"]:
    """Returns each ring's share of the power of all images together."""
    by_coefficient = power.sum(axis=0)
    sums = np.array([np.bincount(rings.ravel(), one.ravel()) for one in by_coefficient])
    whole = sums.sum(axis=1, keepdims=True)
    return sums / np.where(whole > 0, whole, np.nan)


def unexplained_share(
    change: Float[np.ndarray, "n t h w c"], reference: Float[np.ndarray, "n h w c"]
) -> tuple[plots.Values, plots.Values]:
    """Returns the share of the change's mean square that is no multiple of its image's `reference`, and its standard error."""
    change, reference = (array.reshape(*array.shape[:-3], -1) for array in (change, reference))
    square = np.square(reference).sum(axis=-1, keepdims=True)
    along = np.einsum("nd,ntd->nt", reference, change) / np.where(square > 0, square, 1)
    rest = np.square(change - along[..., None] * reference[:, None]).sum(axis=-1)
    value, shares = ratio_of_sums(rest, np.square(change).sum(axis=-1))
    return value, sum_errors(shares)


def plot_spectra(data: FigureRecord, title: str) -> plots.Figure:
    """Plots spectra at an early, a middle and a late time on the left, the mean frequency over t on the right."""
    record, t = data.record, np.array(data.record["t"])
    figure, (left, right) = plots.make_axes_row(
        f"{title}: spectrum of the change of $x_\\phi$",
        ("frequency, cycles per pixel", "share of the power"),
        ("t (0 = data, 1 = noise)", "mean frequency, cycles per pixel"),
    )
    for place in sorted({0, (len(t) - 1) // 2, len(t) - 1}):
        left.plot(record["frequency"], record["change_spectrum"][place], label=f"change, t = {t[place]:g}")
    left.plot(record["frequency"], record["x_spectrum"][0], "k:", label="images x")
    left.set_yscale("log")
    left.legend(fontsize="small")
    for name, label in (("change", "change"), ("learned", "learned part, $\\sigma^2 y_\\phi$")):
        mean, error = (  # null is NaN
            np.array(record[f"{name}_mean_frequency{kind}"], np.float64) for kind in ("", "_se")
        )
        plots.plot_band(right, t, mean, error, label)
        right.lines[-1].set_marker(".")
    right.axhline(record["x_mean_frequency"][0], color="k", linestyle=":", label="images x")
    right.set_ylim(bottom=0)
    right.legend(fontsize="small")
    return figure
