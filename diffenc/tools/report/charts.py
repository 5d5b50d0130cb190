"""Charts as SVG that takes any width: paths in a box of 1000 x 1000 that is stretched, labels and strokes that are not.

Drawn here and not by matplotlib, whose SVG can neither follow the reader's light or dark theme nor keep its text
legible on a phone; its choice of ticks is taken.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

from matplotlib.ticker import MaxNLocator

from diffenc.evaluation.formatting import typeset_minus
from diffenc.tools.report.curves import Curve, Point

BOX = 1000.0
WIDE = 8.0  # greatest over least value from which on a logarithmic scale tells more
MARGIN = 0.05  # of the range, around the curves
# Power of ten beyond which a value is drawn at the edge: with margins a chart then spans 10^-300 to 10^300.
EXTREME = 200
COLOURS, DASHES, MARKS = 8, 4, 4  # as many as style.css has; together they tell 32 runs apart

Scale = Callable[[float], float]


@dataclasses.dataclass(frozen=True)
class Tick:
    """Attributes: at: percent of the axis; text: the label."""

    at: float
    text: str


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A curve as SVG paths, any of which may be empty.

    Attributes:
      style: its classes.
      line, band, marks, bars: path data.
    """

    label: str
    style: str
    line: str = ""
    band: str = ""
    marks: str = ""
    bars: str = ""


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart, ready for the template.

    Attributes:
      alt: what it shows, in words.
    """

    title: str
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    curves: tuple[Drawn, ...]
    alt: str


def style(run: int) -> str:
    """The classes that give a run its colour, dash and mark."""
    shift = run + run // COLOURS
    return f"c{run % COLOURS} d{shift % DASHES} m{shift % MARKS}"


def chart(
    title: str, x_label: str, y_label: str, curves: Sequence[Curve], from_zero: bool = False
) -> Chart | None:
    """None where there is nothing to draw. `from_zero`: linear, and 0 is on the axis, so that areas mean something."""
    drawn = [_within(curve) for curve in curves]
    points = [point for curve in drawn for point in curve.points]
    if not points:
        return None
    ys = [point.y for point in points]
    log = not from_zero and min(ys) > 0 and max(ys) / min(ys) >= WIDE
    x_range, y_range = _range([point.x for point in points], 0.0), _y_range(points, log)
    if from_zero:
        y_range = min(0.0, y_range[0]) if min(ys) < 0 else 0.0, max(0.0, y_range[1])
    x, y = _linear(*x_range, False), (_logarithmic if log else _linear)(*y_range, True)
    return Chart(
        title,
        x_label,
        f"{y_label}, log scale" if log else y_label,
        tuple(Tick(round(x(at) / 10, 2), label(at)) for at in ticks(*x_range)),
        tuple(Tick(round(y(at) / 10, 2), label(at)) for at in (log_ticks if log else ticks)(*y_range)),
        tuple(_drawn(curve, x, y) for curve in drawn),
        alt(title, x_label, y_label, curves),
    )


def alt(title: str, x_label: str, y_label: str, curves: Sequence[Curve]) -> str:
    """Where each curve starts, ends and is lowest."""
    said = [_said(curve) for curve in curves if curve.points]
    return f"{title}: {y_label} over {x_label}. {'; '.join(said)}."


def _said(curve: Curve) -> str:
    first, last = curve.points[0], curve.points[-1]
    if len(curve.points) == 1:
        return f"{curve.label}: {brief(first.y)} at {label(first.x)}"
    least = min(curve.points, key=lambda point: point.y)
    return (
        f"{curve.label}: from {brief(first.y)} at {label(first.x)} to {brief(last.y)} at {label(last.x)}, "
        f"lowest {brief(least.y)} at {label(least.x)}"
    )


def brief(value: float) -> str:
    return typeset_minus(f"{value:.4g}")


def label(value: float) -> str:
    """1,500 or 0.25 or 1e−5."""
    if 1000 <= abs(value) < 1e6 and value == round(value):
        return typeset_minus(f"{value:,.0f}")
    if value and value % 1e5 == 0 and abs(value) >= 1e6:
        return typeset_minus(f"{value / 1e6:g}M")
    text = f"{value:.6g}"
    digits, _, power = text.partition("e")
    return typeset_minus(f"{digits}e{int(power)}" if power else text)


def ticks(low: float, high: float) -> list[float]:
    """Round numbers in a range."""
    found = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(f"{value:.10g}") for value in found if low <= value <= high]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten; where these are many, fewer."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [float(f"{factor}e{power}") for power in powers for factor in factors]
        found = [value for value in found if low <= value <= high]
        if len(found) <= 6:
            return found
    return found[:: -(-len(found) // 6)]


def _within(curve: Curve) -> Curve:
    """With sizes from 10^-EXTREME to 10^EXTREME, and 0, so that ranges neither overflow nor vanish."""

    def clip(value: float | None) -> float | None:
        size = min(max(abs(value or 0.0), 10.0**-EXTREME), 10.0**EXTREME)
        return math.copysign(size, value) if value else value

    points = (Point(*map(clip, dataclasses.astuple(point))) for point in curve.points)  # pyright: ignore[reportArgumentType]
    return dataclasses.replace(curve, points=tuple(points))


def _range(values: Sequence[float], margin: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    around = margin * (high - low) or (0.0 if high > low else 0.5 * abs(low) or 1.0)
    return low - around, high + around


def _y_range(points: Sequence[Point], log: bool) -> tuple[float, float]:
    """Of the values, with their bands unless these would leave a logarithmic scale."""
    ys = [value for point in points for value in (point.y, point.low, point.high) if value is not None]
    if not log:
        return _range(ys, MARGIN)
    least = min(point.y for point in points)
    low, high = _range([math.log10(max(value, least / 2)) for value in ys], MARGIN)
    return 10.0**low, 10.0**high


def _linear(low: float, high: float, upwards: bool) -> Scale:
    def scale(value: float) -> float:
        share = min(max((value - low) / (high - low), 0.0), 1.0)
        return BOX * (1 - share if upwards else share)

    return scale


def _logarithmic(low: float, high: float, upwards: bool) -> Scale:
    inner = _linear(math.log10(low), math.log10(high), upwards)
    return lambda value: inner(math.log10(max(value, low)))


def _drawn(curve: Curve, x: Scale, y: Scale) -> Drawn:
    places = [(x(point.x), y(point.y)) for point in curve.points]
    ranges = [
        (x(point.x), y(point.low), y(point.high))
        for point in curve.points
        if point.low is not None and point.high is not None
    ]
    line = "".join(f"{'L' if place else 'M'}{_at(*at)}" for place, at in enumerate(places))
    if not curve.marks:
        return Drawn(curve.label, style(curve.run), line=line, band=_band(ranges))
    marks = "".join(
        f"M{_at(*at)}h.01" for at in places
    )  # a point without length, which round caps make a dot
    bars = "".join(f"M{_at(at, low)}V{high:.1f}" for at, low, high in ranges)
    return Drawn(curve.label, style(curve.run), line=line, marks=marks, bars=bars)


def _band(ranges: Sequence[tuple[float, float, float]]) -> str:
    if len(ranges) < 2:
        return ""
    outline = [(at, low) for at, low, _ in ranges] + [(at, high) for at, _, high in reversed(ranges)]
    return "M" + "L".join(_at(*place) for place in outline) + "Z"


def _at(x: float, y: float) -> str:
    return f"{x:.1f} {y:.1f}"
