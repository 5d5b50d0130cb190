"""Encoded images over time, and their changes (DiffEnc, Figs. 2, 4, 6)."""

import numpy as np
from jaxtyping import Float

from diffenc.evaluation import plots
from diffenc.tools.figures.figure_data import FigureInputs, FigureRecord, Record, Source, read_labels

CHANGE = "change per unit of t,\nsummed over channels;\n1 = the column's limit"


def measure_heat_maps(subject: FigureInputs) -> FigureRecord:
    """Returns `change`, (x_phi(t) - x_phi(s)) / (t - s) summed over channels, for each image shown."""
    encoded = subject.shown_encoded
    return FigureRecord(_shown(subject), {"x": encoded.x, "change": encoded.change.sum(axis=-1)})


def plot_heat_maps(data: FigureRecord, title: str) -> plots.Figure:
    """Plots changes as heat maps.

    Each column has its own scale, stated above it: changes at different t differ by orders of magnitude.
    """
    record, x, change = data.record, data.arrays["x"], data.arrays["change"]
    limit, pictures = colour_changes(x, change)
    columns = ["x", *map(format_column_title, record["t"], limit)]
    nothing = "" if limit.any() else ": this encoder changes nothing"
    figure = plots.sheet_figure(*pictures.shape[:2])
    figure.suptitle(
        f"{title}\nchange of the encoded image, $(x_t - x_s)/(t - s)$, s = t − {record['gap']:g}{nothing}",
        fontsize="medium",
    )
    axes = plots.draw_sheet(figure, pictures, columns, record["rows"])
    plots.draw_colour_bar(figure, axes, CHANGE)
    return figure


def colour_changes(
    x: Float[np.ndarray, "n h w c"], change: Float[np.ndarray, "n t h w"]
) -> tuple[plots.Values, np.ndarray]:
    """Returns each column's limit, and pictures [n, 1 + t, ...]: an image in grey, then its changes."""
    # One limit per column, over all images: colours can be compared between images, not between times.
    limit = np.abs(change).max(axis=(0, 2, 3))
    coloured = plots.diverging_colours(change, limit[:, None, None])
    return limit, np.concatenate([plots.to_rgb(x)[:, None], coloured], axis=1)


def format_column_title(t: float, limit: float) -> str:
    return f"t = {t:g}\n± {limit:.2g}"


def measure_encoded_images(subject: FigureInputs) -> FigureRecord:
    """Returns `x_phi` of each image shown, at each t."""
    encoded = subject.shown_encoded
    alpha_2 = 1 / (1 + np.exp(-subject.log_snr_at(np.array(subject.settings.times))))
    record = {**_shown(subject), "alpha_squared": alpha_2.tolist()}
    return FigureRecord(record, {"x": encoded.x, "x_phi": encoded.x_phi})


def plot_encoded_images(data: FigureRecord, title: str) -> plots.Figure:
    """Plots two rows per image: on the scale of pixels, and each picture on its own scale, since contrast fades."""
    record, x, x_phi = data.record, data.arrays["x"], data.arrays["x_phi"]
    together = np.concatenate([x[:, None], x_phi], axis=1)
    both = np.stack([together, stretch_contrast(together)], axis=1)
    pictures = plots.to_rgb(both.reshape(-1, *both.shape[2:]))
    rows = [text for row in record["rows"] for text in (row, "stretched")]
    columns = ["x", *(f"t = {t:g}" for t in record["t"])]
    figure = plots.sheet_figure(*pictures.shape[:2])
    nothing = "" if np.any(x_phi != x[:, None]) else ": this encoder changes nothing"
    figure.suptitle(
        f"{title}\nencoded images $x_\\phi(t)$ on the scale of pixels, −1 to 1, "
        f"and each stretched to its own range{nothing}",
        fontsize="medium",
    )
    plots.draw_sheet(figure, pictures, columns, rows)
    return figure


def stretch_contrast(pictures: Float[np.ndarray, "n t h w c"]) -> Float[np.ndarray, "n t h w c"]:
    """Returns each picture scaled from -1, its smallest value, to 1, its largest; a constant one becomes 0."""
    low, high = (side(pictures, axis=(2, 3, 4), keepdims=True) for side in (np.min, np.max))
    return np.where(high > low, 2 * (pictures - low) / np.where(high > low, high - low, 1) - 1, 0)


def _shown(subject: FigureInputs) -> Record:
    rows = make_row_titles(subject.shown, subject.experiment.dataset.num_classes)
    return {"rows": rows, "t": list(subject.settings.times), "gap": subject.settings.gap}


def make_row_titles(source: Source, num_classes: int) -> list[str]:
    """Returns the class of each image, or without classes its number in the figure."""
    if num_classes < 2:
        return [f"image {number}" for number in range(1, len(source) + 1)]
    return [f"class {label}" for label in read_labels(source)]
