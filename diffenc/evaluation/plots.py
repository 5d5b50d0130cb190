"""Figures as PNG and PDF files, without a display and without state: no pyplot."""

import io
import logging
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure

from diffenc.files import atomic

INCHES = (6.4, 4.0)
DOTS_PER_INCH = 150
PICTURE_INCHES = 0.78  # the side of one of many pictures
TITLE_INCHES = 0.45  # two lines
WIDE = 5.0  # times the median: what lies farther from it does not share a linear axis with it
BETWEEN = 0.06  # pictures, as a share of a picture's side
logging.getLogger("fontTools.subset").setLevel(logging.WARNING)  # dozens of lines for a PDF

DIVERGING = matplotlib.colormaps["RdBu_r"]  # red is positive

Values = Float[np.ndarray, " points"]
Colours = Float[np.ndarray, "*shape 3"]  # red, green, blue in 0 .. 1


def escape_dollars(text: str) -> str:
    """Returns `text` with escaped dollar signs, for titles that may hold formulas."""
    return text.replace("$", r"\$")


def make_axes(title: str, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """Returns a figure with one pair of labelled axes."""
    figure = Figure(INCHES, layout="constrained")
    result = figure.add_subplot(title=title, xlabel=x_label, ylabel=y_label)
    result.title.set_fontsize("medium")
    result.grid(alpha=0.3)
    return figure, result


def make_axes_row(title: str, *labels: tuple[str, str]) -> tuple[Figure, list[Axes]]:
    """Returns a figure with a pair of axes for each (x label, y label), side by side."""
    figure = Figure((4.6 * len(labels), 3.9), layout="constrained")
    figure.suptitle(title, fontsize="medium")
    result = []
    for place, (x_label, y_label) in enumerate(labels, 1):
        one = figure.add_subplot(1, len(labels), place, xlabel=x_label, ylabel=y_label)
        one.grid(alpha=0.3)
        result.append(one)
    return figure, result


def plot_band(axes: Axes, x: Values, y: Values, error: Values, label: str, color: str | None = None) -> None:
    """Plots a curve, and a band of one standard error on either side; by default in the next color of the axes."""
    (line,) = axes.plot(x, y, label=label, linewidth=1.2, color=color)
    axes.fill_between(x, y - error, y + error, color=line.get_color(), alpha=0.3, linewidth=0)


def scale_positive(axes: Axes, values: Float[np.ndarray, " points"]) -> None:
    """Scales the y axis of positive `values`: from 0, or logarithmic where the largest value would hide the others.

    Linear below the smallest positive value where some values are not positive. Values that are not finite are ignored.
    """
    finite = values[np.isfinite(values)]
    positive = finite[finite > 0]
    if not positive.size:
        return
    if positive.max() <= WIDE * np.median(positive) and positive.min() * WIDE >= np.median(positive):
        axes.set_ylim(bottom=min(0.0, 1.1 * finite.min()), top=1.1 * positive.max())
    elif positive.size == finite.size:
        axes.set_yscale("log")
    else:
        axes.set_yscale("symlog", linthresh=positive.min())


def make_statement(title: str, text: str) -> Figure:
    """Returns a figure of a text, in place of a plot without data."""
    figure = Figure((6.4, 1.6), layout="constrained")
    figure.suptitle(title, fontsize="medium")
    figure.text(0.5, 0.4, textwrap.fill(text, 80), ha="center", va="center")
    return figure


def to_rgb(x: Float[np.ndarray, "*shape c"]) -> Colours:
    """Returns pixels in (-1, 1) as colours; channels other than 3 are averaged to grey."""
    shown = x if x.shape[-1] == 3 else x.mean(axis=-1, keepdims=True).repeat(3, axis=-1)
    return np.clip((shown + 1) / 2, 0, 1)


def diverging_colours(
    values: Float[np.ndarray, "*shape"], limit: Float[np.ndarray, "..."] | float
) -> Colours:
    """Returns red for positive `values`, blue for negative ones, white for 0; full colour at `limit` (1 where it is 0)."""
    # A limit of 0 comes with values of 0, which stay white.
    share = values / np.where(np.asarray(limit) > 0, limit, 1)
    return DIVERGING((share + 1) / 2)[..., :3]


def sheet_size(rows: int, columns: int) -> tuple[float, float]:
    """Returns width and height in inches of rows x columns pictures, with labels and a colour bar, without a title."""
    return max(columns * PICTURE_INCHES + 1.9, INCHES[0]), max(rows * PICTURE_INCHES, 1.8) + 0.5


def sheet_figure(rows: int, columns: int) -> Figure:
    """Returns a figure for rows x columns pictures and two lines of title."""
    width, height = sheet_size(rows, columns)
    return Figure((width, height + TITLE_INCHES), layout="constrained")


def draw_sheet(
    figure: Figure | SubFigure,
    pictures: Float[np.ndarray, "rows columns h w 3"],
    columns: Sequence[str],
    rows: Sequence[str],
) -> Axes:
    """Draws pictures side by side on axes that fill `figure`, with a text above each column and beside each row."""
    height, width = pictures.shape[2:4]
    border = max(1, round(BETWEEN * max(height, width)))
    result = figure.add_subplot()
    result.imshow(tile_pictures(pictures, border), interpolation="nearest")
    middles = [border + size / 2 - 0.5 for size in (height, width)]
    result.set_yticks([middles[0] + k * (height + border) for k in range(len(rows))], rows)
    result.set_xticks([middles[1] + k * (width + border) for k in range(len(columns))], columns)
    result.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0, labelsize="small")
    result.spines[:].set_visible(False)
    return result


def tile_pictures(pictures: Float[np.ndarray, "rows columns h w 3"], border: int) -> Colours:
    """Returns one picture of all pictures, with `border` white pixels around each."""
    around = ((0, 0), (0, 0), (border, 0), (border, 0), (0, 0))
    padded = np.pad(pictures, around, constant_values=1.0)
    rows, columns, height, width, _ = padded.shape
    whole = padded.swapaxes(1, 2).reshape(rows * height, columns * width, 3)
    return np.pad(whole, ((0, border), (0, border), (0, 0)), constant_values=1.0)


def draw_colour_bar(figure: Figure | SubFigure, axes: Axes, label: str) -> None:
    """Draws the scale of `diverging_colours`, from -1 to 1 of the limit, beside `axes` and as tall."""
    scale = ScalarMappable(Normalize(-1, 1), DIVERGING)
    width = 0.2 / len(axes.get_xticks())  # of a picture
    bar = figure.colorbar(scale, cax=axes.inset_axes((1 + width, 0, width, 1)))
    bar.set_label(label, size="small")


def save_png(figure: Figure, path: Path) -> None:
    """Writes a figure to the PNG file `path`, atomically; makes its folder if it does not exist.

    Raises:
      UserError: the file cannot be written.
    """
    with atomic.replace_file(path) as temporary:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH)


def render_files(figure: Figure) -> dict[str, bytes]:
    """Returns a figure as files by suffix, ".pdf" and ".png"; equal figures give equal bytes."""
    # Lays the figure out once; the layout engine would repeat it for each format.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # it is laid out, and need not be again for each
    files = {}
    # Without the date, which matplotlib writes into a PDF by default, equal figures have equal bytes.
    for kind, undated in (("pdf", {"CreationDate": None}), ("png", {})):
        buffer = io.BytesIO()
        with matplotlib.rc_context({"pdf.fonttype": 42}):  # text that other programs can read and edit
            figure.savefig(buffer, format=kind, dpi=DOTS_PER_INCH, metadata=undated)
        files[f".{kind}"] = buffer.getvalue()
    return files
