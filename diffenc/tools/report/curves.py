"""Curves over steps, t and lambda, thinned so that no row is lost unseen."""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

from diffenc.evaluation.records import finite_number
from diffenc.tools.report import evaluation_spec
from diffenc.tools.report.run_data import Record, RunData

MOST_POINTS = 150  # of a curve: more rows are averaged in stretches
MOST_OF_RECORD = 400  # of a curve that was filed whole
PARTS = {
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

    low and high: of rows of training the least and greatest; of a measurement one standard error away, of several
    the largest of theirs.
    """

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class Curve:
    """What one run has to one chart.

    Attributes:
      run: its place among the page's runs, which is its colour, dash and mark.
      marks: single measurements with error bars; else a line with a band.
      rows: how many rows of a file a point stands for.
    """

    run: int
    label: str
    points: tuple[Point, ...]
    marks: bool = False
    rows: int = 1


def of_training(run: int, held: RunData, key: str) -> Curve | None:
    """The batches' own bits/dim as logged, means since the last row."""
    values = [(float(row["step"]), row[key]) for row in held.rows if key in row]
    if not values:
        return None
    points, rows = thinned(values)
    return Curve(run, held.label, points, rows=rows)


def of_evaluations(run: int, held: RunData, key: str, split: str) -> Curve | None:
    """What was measured of a split in training and, at its step, what evaluation.json says if it is of the same."""
    name = f"{split}_{key}"
    found = {row["step"]: _with_error(row["step"], row, name) for row in held.rows if name in row}
    final = held.evaluation
    if (
        final
        and final["split"] == split
        and finite_number(final.get(key)) is not None
        and evaluation_spec.is_asked_for(final, held.config)
    ):
        found[final["step"]] = _with_error(final["step"], final, key)
    if not found:
        return None
    points, rows = merged([found[step] for step in sorted(found)])
    return Curve(run, f"{held.label}, {split}", points, marks=True, rows=rows)


def later_half(curves: Sequence[Curve]) -> list[Curve]:
    """What of each curve lies beyond the half of the steps of the longest."""
    half = max((point.x for curve in curves for point in curve.points), default=0.0) / 2
    cut = (tuple(point for point in curve.points if point.x >= half) for curve in curves)
    return [dataclasses.replace(curve, points=points) for curve, points in zip(curves, cut, strict=True)]


def thinned(values: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> tuple[tuple[Point, ...], int]:
    """At most `most` points, each of equally many rows (the last maybe fewer); and of how many."""
    parts, rows = _parts(values, most)
    return tuple(_mean(part) for part in parts), rows


def merged(points: Sequence[Point], most: int = MOST_POINTS) -> tuple[tuple[Point, ...], int]:
    """The same of measurements: a mean keeps the largest of their standard errors, which it does not exceed."""
    parts, rows = _parts(points, most)
    return tuple(_measured(part) for part in parts), rows


def _parts(values: Sequence[Value], most: int) -> tuple[list[Sequence[Value]], int]:
    rows = -(-len(values) // most)
    return [values[first : first + rows] for first in range(0, len(values), rows)], rows


def evaluated_splits(runs: Sequence[RunData]) -> list[str]:
    """Splits that any run has marks of."""
    keys = {key for held in runs for row in held.rows for key in row}
    said = {
        str(held.evaluation["split"])
        for held in runs
        if held.evaluation and evaluation_spec.is_asked_for(held.evaluation, held.config)
    }
    return [split for split in SPLITS if f"{split}_bpd" in keys or split in said]


def over(record: Record, x: str, y: str, error: str | None = None) -> tuple[Point, ...]:
    """The curve y(x) of a record's lists, as far as both are finite."""
    lists = [record.get(name) if name else None for name in (x, y, error)]
    xs, ys, errors = (found if isinstance(found, list) else [] for found in lists)
    errors = [finite_number(value) for value in errors] or [None] * len(ys)
    points = []
    for at, value, spread in zip(map(finite_number, xs), map(finite_number, ys), errors, strict=False):
        if at is not None and value is not None:
            points.append(_around(at, value, spread))
    return merged(points, MOST_OF_RECORD)[0] if points else ()


def values_each(record: Record, y: str) -> int:
    """How many values of a record's list a point of `over` stands for, at most."""
    values = record.get(y)
    return max(1, -(-len(values) // MOST_OF_RECORD)) if isinstance(values, list) else 1


def _with_error(step: int, row: Record, name: str) -> Point:
    return _around(float(step), float(row[name]), finite_number(row.get(f"{name}_se")))


def _around(x: float, y: float, error: float | None) -> Point:
    return Point(x, y) if error is None else Point(x, y, y - error, y + error)


def _mean(part: Sequence[tuple[float, float]]) -> Point:
    xs, ys = zip(*part, strict=True)
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    return Point(x, y) if len(part) == 1 else Point(x, y, min(ys), max(ys))


def _measured(part: Sequence[Point]) -> Point:
    if len(part) == 1:
        return part[0]
    errors = [point.high - point.y for point in part if point.high is not None]
    x, y = (sum(values) / len(part) for values in ([point.x for point in part], [point.y for point in part]))
    return _around(x, y, max(errors, default=None))
