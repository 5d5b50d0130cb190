"""Differences between classes in the encoder: the mean change of each class, and the distances between the means.

Images of two classes differ, so any encoder changes them differently, alpha^2 x too. The reference is the distance
between the classes of the images themselves.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from diffenc.evaluation import plots
from diffenc.runtime.progress import Progress
from diffenc.tools.figures.encoded_images import CHANGE, colour_changes, format_column_title
from diffenc.tools.figures.figure_data import (
    EncodedImages,
    FigureInputs,
    FigureRecord,
    Record,
    read_labels,
    spread_evenly,
)

PERMUTATIONS = 499
PERMUTATIONS_AT_ONCE = 50
MIN_IMAGES = 3  # of a class, so that it has a variance also when the jackknife leaves one out
SIGNIFICANT = 0.05

Gram = Float[np.ndarray, "n n"]
Labels = Int[np.ndarray, " n"]
OneHot = Bool[np.ndarray, "n classes"]


class ClassDistance(NamedTuple):
    """Distance between classes.

    Attributes:
      ratio: mean squared distance between the means of two classes, without the part due to chance, over that
        between two images of one class; NaN where images of one class do not differ.
      error: its standard error over images, by the jackknife.
      p_value: p-value of a permutation test: how often random classes are as far apart.
    """

    ratio: float
    error: float
    p_value: float


def measure_class_changes(subject: FigureInputs) -> FigureRecord:
    """Returns the mean change of each class, and for each t the distances between classes."""
    if subject.experiment.dataset.num_classes < 2:
        return FigureRecord({"note": "This data set has no classes: there is nothing to tell apart."})
    encoded, labels = subject.many_encoded, read_labels(subject.many)
    if not encoded.change.any():
        return FigureRecord({"note": "This encoder changes nothing over t, of any class."})
    classes, counts = np.unique(labels, return_counts=True)
    enough = np.isin(labels, classes[counts >= MIN_IMAGES])
    if np.sum(counts >= MIN_IMAGES) < 2:
        note = f"Fewer than two classes have {MIN_IMAGES} of the {len(labels)} images: bind figures.num_images higher."
        return FigureRecord({"note": note})
    encoded = encoded._replace(**{name: getattr(encoded, name)[enough] for name in ("x", "x_phi", "change")})
    return compare_classes(encoded, labels[enough], list(subject.settings.times), subject.settings.seed)


def compare_classes(encoded: EncodedImages, labels: Labels, t: list[float], seed: int) -> FigureRecord:
    """Returns the data of `measure_class_changes`, for images of classes with at least MIN_IMAGES each."""
    classes, counts = np.unique(labels, return_counts=True)
    record: Record = {"t": t, "classes": classes.tolist(), "num_of_class": counts.tolist()}
    for name, images in encoded.parts.items():
        each = class_distances(images, labels, seed)
        for field in ClassDistance._fields:
            record[f"{name}_{field}"] = [getattr(one, field) for one in each]
    shown = spread_evenly(classes)
    record["rows"] = [f"class {label}" for label in shown]
    return FigureRecord(
        record,
        {
            "mean_x": np.array([encoded.x[labels == label].mean(axis=0) for label in shown]),
            "mean_change": np.array(
                [encoded.change[labels == label].mean(axis=0).sum(axis=-1) for label in shown]
            ),
        },
    )


def class_distances(images: Float[np.ndarray, "n t h w c"], labels: Labels, seed: int) -> list[ClassDistance]:
    """Returns the distance between classes at each t."""
    one_hot = labels[:, None] == np.unique(labels)
    flat = images.reshape(*images.shape[:2], -1)
    # Sums of squares do not change by a common shift, and inner products keep their digits without the mean.
    flat = flat - flat.mean(axis=0)
    # [t, n, n] inner products: all sums of squares, permutations
    # and jackknife estimates follow from these without the images.
    grams = np.einsum("atd,btd->tab", flat, flat, optimize=True)
    p_values = permutation_test(grams, one_hot, seed)
    return [
        ClassDistance(
            float(variance_ratio(*sums_of_squares(gram, one_hot))),
            jackknife_error(gram, one_hot),
            float(p_value),
        )
        for gram, p_value in zip(grams, p_values, strict=True)
    ]


def sums_of_squares(
    gram: Gram, one_hot: OneHot
) -> tuple[np.float64, np.float64, Float[np.ndarray, " classes"]]:
    """Returns the sums of squares between and within classes of images with inner products `gram`, and the class sizes."""
    counts = one_hot.sum(axis=0).astype(np.float64)
    means = sum_squared_means(gram[None], (one_hot / np.sqrt(counts))[None])[0, 0]
    return means - gram.sum() / len(gram), np.trace(gram) - means, counts


def variance_ratio(between, within, counts):
    """Returns the variance of class means over that within classes, by the estimates of one-way analysis of variance."""
    total, classes = counts.sum(axis=-1), counts.shape[-1]
    # The effective number of images in a class for unequal
    # sizes, as in one-way random-effects analysis of variance.
    size = (total - np.square(counts).sum(axis=-1) / total) / (classes - 1)
    of_one = within / (total - classes)
    return (between / (classes - 1) - of_one) / size / np.where(of_one > 0, of_one, np.nan)


def jackknife_error(gram: Gram, one_hot: OneHot) -> float:
    """Returns the standard error of `variance_ratio` by the jackknife: sums without an image follow from those with it."""
    counts, label, own = one_hot.sum(axis=0).astype(np.float64), one_hot.argmax(axis=1), np.diag(gram)
    by_class = gram @ one_hot
    squares = (one_hot * by_class).sum(axis=0)  # of each class's sum
    with_class = by_class[np.arange(len(gram)), label]
    means = (squares / counts).sum() - (squares / counts)[label]
    # |S - x|^2 = |S|^2 - 2 S . x + |x|^2 for the sum S of the image's class without the image.
    means += (squares[label] - 2 * with_class + own) / (counts[label] - 1)
    whole = (gram.sum() - 2 * gram.sum(axis=1) + own) / (len(gram) - 1)
    without = variance_ratio(means - whole, np.trace(gram) - own - means, counts - one_hot)
    return float(np.sqrt((len(gram) - 1) * without.var()))


def permutation_test(
    grams: Float[np.ndarray, "t n n"], one_hot: OneHot, seed: int
) -> Float[np.ndarray, " t"]:
    """Returns the p-value at each t: how often shuffled classes are as far apart, with the true assignment counted."""
    weights = one_hot / np.sqrt(one_hot.sum(axis=0))
    true, random = sum_squared_means(grams, weights[None])[:, 0], np.random.default_rng(seed)
    # Starts at one: the true assignment is one of the permutations, and p is never 0.
    as_far, progress = np.ones(len(grams)), Progress("permutations", PERMUTATIONS)
    for first in range(0, PERMUTATIONS, PERMUTATIONS_AT_ONCE):
        count = min(PERMUTATIONS_AT_ONCE, PERMUTATIONS - first)
        orders = random.permuted(np.tile(np.arange(len(one_hot)), (count, 1)), axis=1)
        # The tolerance makes ties count in spite of rounding.
        as_far += (sum_squared_means(grams, weights[orders]) >= true[:, None] * (1 - 1e-12)).sum(axis=1)
        for _ in range(count):
            progress()
    return as_far / (PERMUTATIONS + 1)


def sum_squared_means(
    grams: Float[np.ndarray, "t n n"], weights: Float[np.ndarray, "many n classes"]
) -> Float[np.ndarray, "t many"]:
    """Returns the sum over classes of count times squared mean, for each assignment of images to classes."""
    columns = weights.swapaxes(0, 1).reshape(weights.shape[1], -1)
    sums = np.array([(columns * (gram @ columns)).sum(axis=0) for gram in grams])
    return sums.reshape(len(grams), len(weights), -1).sum(axis=2)


def plot_class_changes(data: FigureRecord, title: str) -> plots.Figure:
    """Plots mean changes as heat maps, and below them the distances over t."""
    record, arrays = data.record, data.arrays
    limit, pictures = colour_changes(arrays["mean_x"], arrays["mean_change"])
    width, height = plots.sheet_size(*pictures.shape[:2])
    figure = plots.Figure((width, height + 3.4), layout="constrained")
    figure.suptitle(
        f"{title}: mean change of each class, {sum(record['num_of_class'])} images", fontsize="medium"
    )
    above, below = np.asarray(figure.subfigures(2, 1, height_ratios=[height, 3.2]), object)
    columns = ["mean x", *map(format_column_title, record["t"], limit)]
    axes = plots.draw_sheet(above, pictures, columns, record["rows"])
    plots.draw_colour_bar(above, axes, CHANGE)
    plot_distances(below, record)
    return figure


def plot_distances(figure: plots.SubFigure, record: Record) -> None:
    """Plots distances between classes over t; points are filled where they are significant."""
    axes = figure.add_subplot(
        xlabel="t (0 = data, 1 = noise)", ylabel="squared distance of classes\nover that within a class"
    )
    axes.grid(alpha=0.3)
    t = np.array(record["t"])
    for name, label in (("change", "change"), ("learned", "learned part, $\\sigma^2 y_\\phi$")):
        ratio, error, p_value = (
            np.array(record[f"{name}_{field}"], np.float64) for field in ClassDistance._fields
        )  # null is NaN
        plots.plot_band(axes, t, ratio, error, f"{label}, and standard error")
        for chosen, style in ((p_value <= SIGNIFICANT, "full"), (p_value > SIGNIFICANT, "none")):
            axes.plot(
                t[chosen],
                ratio[chosen],
                "o",
                color=axes.lines[-1].get_color(),
                fillstyle=style,
                markersize=4,
            )
    axes.axhline(record["x_ratio"][0], color="k", linestyle=":", label="images x")
    axes.plot([], [], "o", color="grey", markersize=4, label=f"p ≤ {SIGNIFICANT:g} by permutation")
    axes.plot([], [], "o", color="grey", markersize=4, label="p above", fillstyle="none")
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
