"""Figures as PNG files, without a display and without state: no pyplot."""

from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffenc import atomic

INCHES = (6.4, 4.0)
DOTS_PER_INCH = 150

Values = Float[np.ndarray, " points"]


def axes(title: str, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """A figure with one pair of labelled axes."""
    figure = Figure(INCHES, layout="constrained")
    result = figure.add_subplot(title=title, xlabel=x_label, ylabel=y_label)
    result.title.set_fontsize("medium")
    result.grid(alpha=0.3)
    return figure, result


def band(axes: Axes, x: Values, y: Values, error: Values, label: str) -> None:
    """A curve, and one standard error to both sides of it."""
    (line,) = axes.plot(x, y, label=label, linewidth=1.2)
    axes.fill_between(x, y - error, y + error, color=line.get_color(), alpha=0.3, linewidth=0)


def save(figure: Figure, path: Path) -> None:
    """Write a figure to the PNG file `path`, all or nothing; its folder is made if need be.

    Raises:
      UserError: the disk refused.
    """
    with atomic.replacing(path) as temporary:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH)
