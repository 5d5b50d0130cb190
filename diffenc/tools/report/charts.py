"""Charts as SVG of any width: paths in a box of 1000 x 1000 that is stretched, with labels and strokes that are not.

Matplotlib gives only the choice of ticks: its SVG can neither follow the reader's light or dark theme nor keep its text
legible on a phone.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

from matplotlib.ticker import MaxNLocator

from diffenc.evaluation.measurement_text import typeset_minus
from diffenc.tools.report.curves import Curve, Point

BOX = 1000.0
LOG_SCALE_RATIO = 8.0  # of the largest to the smallest value, from which on the y axis is logarithmic
MARGIN = 0.05  # of the range, around the curves
# Power of ten beyond which a value is drawn at the edge, so that a chart with margins spans at most 10^-300 to 10^300.
MAX_EXPONENT = 200
COLOURS, DASHES, MARKS = 8, 4, 4  # as in style.css; their combinations distinguish 32 runs

Scale = Callable[[float], float]


@dataclasses.dataclass(frozen=True)
class Tick:
    """A tick at `at` percent of the axis, with its label."""

    at: float
    text: str


@dataclasses.dataclass(frozen=True)
class CurvePaths:
    """A curve as SVG paths, any of which may be empty.

    Attributes:
      style: CSS classes.
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
    """A chart for the template. `alt` describes it for screen readers."""

    title: str
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    curves: tuple[CurvePaths, ...]
    alt: str


def curve_style(index: int) -> str:
    """Returns the CSS classes that give a run its colour, dash and mark."""
    shift = index + index // COLOURS
    return f"c{index % COLOURS} d{shift % DASHES} m{shift % MARKS}"


def make_chart(
    title: str, x_label: str, y_label: str, curves: Sequence[Curve], from_zero: bool = False
) -> Chart | None:
    """Returns a chart; None without points. `from_zero`: a linear y axis that includes 0, so that areas are meaningful."""
    clipped = [_clip_extremes(curve) for curve in curves]
    points = [point for curve in clipped for point in curve.points]
    if not points:
        return None
    ys = [point.y for point in points]
    log = not from_zero and min(ys) > 0 and max(ys) / min(ys) >= LOG_SCALE_RATIO
    x_range, y_range = _padded_range([point.x for point in points], 0.0), _y_range(points, log)
    if from_zero:
        y_range = min(0.0, y_range[0]) if min(ys) < 0 else 0.0, max(0.0, y_range[1])
    x, y = _linear_scale(*x_range, False), (_log_scale if log else _linear_scale)(*y_range, True)
    return Chart(
        title,
        x_label,
        f"{y_label}, log scale" if log else y_label,
        tuple(Tick(round(x(at) / 10, 2), format_tick(at)) for at in linear_ticks(*x_range)),
        tuple(
            Tick(round(y(at) / 10, 2), format_tick(at))
            for at in (log_ticks if log else linear_ticks)(*y_range)
        ),
        tuple(_draw_curve(curve, x, y) for curve in clipped),
        describe_chart(title, x_label, y_label, curves),
    )


def describe_chart(title: str, x_label: str, y_label: str, curves: Sequence[Curve]) -> str:
    """Returns a text with the start, end and minimum of each curve."""
    descriptions = [_describe_curve(curve) for curve in curves if curve.points]
    return f"{title}: {y_label} over {x_label}. {'; '.join(descriptions)}."


def _describe_curve(curve: Curve) -> str:
    first, last = curve.points[0], curve.points[-1]
    if len(curve.points) == 1:
        return f"{curve.label}: {format_value(first.y)} at {format_tick(first.x)}"
    least = min(curve.points, key=lambda point: point.y)
    return (
        f"{curve.label}: from {format_value(first.y)} at {format_tick(first.x)} to {format_value(last.y)} at {format_tick(last.x)}, "
        f"lowest {format_value(least.y)} at {format_tick(least.x)}"
    )


def format_value(value: float) -> str:
    return typeset_minus(f"{value:.4g}")


def format_tick(value: float) -> str:
    """Formats a tick label, such as 1,500 or 0.25 or 1e−5."""
    if 1000 <= abs(value) < 1e6 and value == round(value):
        return typeset_minus(f"{value:,.0f}")
    if value and value % 1e5 == 0 and abs(value) >= 1e6:
        return typeset_minus(f"{value / 1e6:g}M")
    text = f"{value:.6g}"
    digits, _, power = text.partition("e")
    return typeset_minus(f"{digits}e{int(power)}" if power else text)


def linear_ticks(low: float, high: float) -> list[float]:
    """Returns round numbers in a range."""
    values = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(f"{value:.10g}") for value in values if low <= value <= high]


def log_ticks(low: float, high: float) -> list[float]:
    """Returns 1, 2 and 5 times powers of ten in a range, or fewer of them if there are more than six."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        values = [float(f"{factor}e{power}") for power in powers for factor in factors]
        values = [value for value in values if low <= value <= high]
        if len(values) <= 6:
            return values
    return values[:: -(-len(values) // 6)]


def _clip_extremes(curve: Curve) -> Curve:
    """Limits magnitudes, other than 0, to 10^-MAX_EXPONENT .. 10^MAX_EXPONENT, so that ranges do not overflow or vanish."""

    def clip(value: float | None) -> float | None:
        size = min(max(abs(value or 0.0), 10.0**-MAX_EXPONENT), 10.0**MAX_EXPONENT)
        return math.copysign(size, value) if value else value

    points = (Point(*map(clip, dataclasses.astuple(point))) for point in curve.points)  # pyright: ignore[reportArgumentType]
    return dataclasses.replace(curve, points=tuple(points))


def _padded_range(values: Sequence[float], margin: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    around = margin * (high - low) or (0.0 if high > low else 0.5 * abs(low) or 1.0)
    return low - around, high + around


def _y_range(points: Sequence[Point], log: bool) -> tuple[float, float]:
    """Returns the range of values and bands; on a logarithmic scale, bands may extend to half of the smallest value."""
    ys = [value for point in points for value in (point.y, point.low, point.high) if value is not None]
    if not log:
        return _padded_range(ys, MARGIN)
    least = min(point.y for point in points)
    low, high = _padded_range([math.log10(max(value, least / 2)) for value in ys], MARGIN)
    return 10.0**low, 10.0**high


def _linear_scale(low: float, high: float, upwards: bool) -> Scale:
    def scale(value: float) -> float:
        share = min(max((value - low) / (high - low), 0.0), 1.0)
        return BOX * (1 - share if upwards else share)

    return scale


def _log_scale(low: float, high: float, upwards: bool) -> Scale:
    inner = _linear_scale(math.log10(low), math.log10(high), upwards)
    return lambda value: inner(math.log10(max(value, low)))


def _draw_curve(curve: Curve, x: Scale, y: Scale) -> CurvePaths:
    positions = [(x(point.x), y(point.y)) for point in curve.points]
    ranges = [
        (x(point.x), y(point.low), y(point.high))
        for point in curve.points
        if point.low is not None and point.high is not None
    ]
    line = "".join(f"{'L' if index else 'M'}{_format_point(*at)}" for index, at in enumerate(positions))
    if not curve.marks:
        return CurvePaths(curve.label, curve_style(curve.run), line=line, band=_band_path(ranges))
    marks = "".join(
        f"M{_format_point(*at)}h.01" for at in positions
    )  # a stroke of almost no length, which round caps make a dot
    bars = "".join(f"M{_format_point(at, low)}V{high:.1f}" for at, low, high in ranges)
    return CurvePaths(curve.label, curve_style(curve.run), line=line, marks=marks, bars=bars)


def _band_path(ranges: Sequence[tuple[float, float, float]]) -> str:
    if len(ranges) < 2:
        return ""
    outline = [(at, low) for at, low, _ in ranges] + [(at, high) for at, _, high in reversed(ranges)]
    return "M" + "L".join(_format_point(*position) for position in outline) + "Z"


def _format_point(x: float, y: float) -> str:
    return f"{x:.1f} {y:.1f}"
