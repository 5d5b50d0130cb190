"""Curves over steps, t and lambda, thinned by averaging so that every row still counts."""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

from diffenc.evaluation.saved_records import finite_number
from diffenc.tools.report import evaluation_spec
from diffenc.tools.report.run_data import Record, RunData

MAX_POINTS = 150  # of a curve over steps; more rows are averaged in groups
MAX_RECORD_POINTS = 400  # of a curve over t or lambda, from a single record
TERMS = {
    "bpd": "Total",
    "bpd_diffusion": "Diffusion",
    "bpd_latent": "Latent",
    "bpd_reconstruction": "Reconstruction",
}
GRADIENT = "grad_norm"
SPLITS = ("test", "validation", "train")

Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True)
class Point:
    """A value at x, or the mean of several.

    low, high: for rows of training, their minimum and maximum; for measurements, one standard error below and above,
      the largest of several.
    """

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class Curve:
    """The curve of one run in one chart.

    Attributes:
      run: index among the page's runs, which selects colour, dash and mark.
      marks: whether to draw single measurements with error bars, rather than a line with a band.
      rows: number of rows that a point averages.
    """

    run: int
    label: str
    points: tuple[Point, ...]
    marks: bool = False
    rows: int = 1


def training_curve(index: int, run: RunData, key: str) -> Curve | None:
    """Returns a quantity of the training batches as logged: means since the previous row."""
    values = [(float(row["step"]), row[key]) for row in run.rows if key in row]
    if not values:
        return None
    points, rows = thin(values)
    return Curve(index, run.label, points, rows=rows)


def evaluation_curve(index: int, run: RunData, key: str, split: str) -> Curve | None:
    """Returns evaluations of a split during training, and the final one if it has the same settings."""
    name = f"{split}_{key}"
    points_by_step = {
        row["step"]: _evaluation_point(row["step"], row, name) for row in run.rows if name in row
    }
    final = run.evaluation
    if (
        final
        and final["split"] == split
        and finite_number(final.get(key)) is not None
        and evaluation_spec.matches_config(final, run.config)
    ):
        # The final evaluation takes the place of one during training at the same step.
        points_by_step[final["step"]] = _evaluation_point(final["step"], final, key)
    if not points_by_step:
        return None
    points, rows = merge_measurements([points_by_step[step] for step in sorted(points_by_step)])
    return Curve(index, f"{run.label}, {split}", points, marks=True, rows=rows)


def second_half(curves: Sequence[Curve]) -> list[Curve]:
    """Returns the part of each curve after half of the steps of the longest curve."""
    half = max((point.x for curve in curves for point in curve.points), default=0.0) / 2
    cut = (tuple(point for point in curve.points if point.x >= half) for curve in curves)
    return [dataclasses.replace(curve, points=points) for curve, points in zip(curves, cut, strict=True)]


def thin(
    values: Sequence[tuple[float, float]], max_points: int = MAX_POINTS
) -> tuple[tuple[Point, ...], int]:
    """Averages consecutive rows to at most `max_points` points; returns them and the number of rows in each."""
    parts, rows = _split_evenly(values, max_points)
    return tuple(_mean_of_rows(part) for part in parts), rows


def merge_measurements(
    points: Sequence[Point], max_points: int = MAX_POINTS
) -> tuple[tuple[Point, ...], int]:
    """Averages consecutive measurements likewise; a mean gets the largest standard error, an upper bound of its own error."""
    parts, rows = _split_evenly(points, max_points)
    return tuple(_mean_of_measurements(part) for part in parts), rows


def _split_evenly(values: Sequence[Value], max_points: int) -> tuple[list[Sequence[Value]], int]:
    rows = -(-len(values) // max_points)
    return [values[first : first + rows] for first in range(0, len(values), rows)], rows


def evaluated_splits(runs: Sequence[RunData]) -> list[str]:
    """Returns the splits that any run was evaluated on."""
    keys = {key for run in runs for row in run.rows for key in row}
    final_splits = {
        str(run.evaluation["split"])
        for run in runs
        if run.evaluation and evaluation_spec.matches_config(run.evaluation, run.config)
    }
    return [split for split in SPLITS if f"{split}_bpd" in keys or split in final_splits]


def record_curve(record: Record, x: str, y: str, error: str | None = None) -> tuple[Point, ...]:
    """Returns the curve y(x) from lists in a record, where both are finite."""
    lists = [record.get(name) if name else None for name in (x, y, error)]
    xs, ys, errors = (values if isinstance(values, list) else [] for values in lists)
    errors = [finite_number(value) for value in errors] or [None] * len(ys)
    points = []
    for x_value, y_value, y_error in zip(
        map(finite_number, xs), map(finite_number, ys), errors, strict=False
    ):
        if x_value is not None and y_value is not None:
            points.append(_with_error_bar(x_value, y_value, y_error))
    return merge_measurements(points, MAX_RECORD_POINTS)[0] if points else ()


def values_per_point(record: Record, y: str) -> int:
    """Returns the largest number of values in a record's list that a point of `record_curve` averages."""
    values = record.get(y)
    return max(1, -(-len(values) // MAX_RECORD_POINTS)) if isinstance(values, list) else 1


def _evaluation_point(step: int, row: Record, name: str) -> Point:
    return _with_error_bar(float(step), float(row[name]), finite_number(row.get(f"{name}_se")))


def _with_error_bar(x: float, y: float, error: float | None) -> Point:
    return Point(x, y) if error is None else Point(x, y, y - error, y + error)


def _mean_of_rows(part: Sequence[tuple[float, float]]) -> Point:
    xs, ys = zip(*part, strict=True)
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    return Point(x, y) if len(part) == 1 else Point(x, y, min(ys), max(ys))


def _mean_of_measurements(part: Sequence[Point]) -> Point:
    if len(part) == 1:
        return part[0]
    errors = [point.high - point.y for point in part if point.high is not None]
    x, y = (sum(values) / len(part) for values in ([point.x for point in part], [point.y for point in part]))
    # The error of a mean is at most the largest of the errors, however they are correlated.
    return _with_error_bar(x, y, max(errors, default=None))
