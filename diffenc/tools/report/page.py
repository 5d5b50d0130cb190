"""The page: what the template needs, and the template filled in."""

import base64
import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from diffenc.config import serialize
from diffenc.evaluation.evaluator import KEYS
from diffenc.evaluation.formatting import NO_VALUE, format_measurement
from diffenc.evaluation.records import finite_number
from diffenc.evaluation.significance import LEVEL, RESAMPLES
from diffenc.tools.report import cards, charts, curves, evaluation_spec, formatting, grouping, pairs, pictures
from diffenc.tools.report.charts import Chart
from diffenc.tools.report.curves import Curve, Point
from diffenc.tools.report.pictures import Frames
from diffenc.tools.report.run_data import RunData

TERMS = dict(zip(KEYS, ("Total", "Reconstruction", "Latent", "Diffusion"), strict=True))
STEP, BITS, GRADIENT = "training step", "bits/dim", "Norm of the gradient"
TEMPLATES = "templates"


@dataclasses.dataclass(frozen=True)
class Slide:
    """Runs whose heat maps are of the same times, moved by one slider."""

    times: tuple[float, ...]
    frames: tuple[Frames, ...]


def render(runs: Sequence[RunData]) -> str:
    """The whole page about `runs`."""
    environment = Environment(
        loader=PackageLoader("diffenc.report", TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(shown=formatting, style=charts.style)
    environment.filters.update(mode_command=formatting.command, train_command=formatting.train_command)
    script, css = (environment.get_template(name).render() for name in ("page.js", "style.css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    found = environment.get_template("page.html.jinja").render(
        script=Markup(script),
        css=Markup(css),
        script_digest=digest,
        **content(runs),
    )
    whole = found.encode(errors="replace").decode()  # JSON can spell half a character, which no file can hold
    return whole.rstrip() + "\n"


def content(runs: Sequence[RunData]) -> dict[str, Any]:
    """What the template shows."""
    groups = grouping.together(runs)
    slides, without_slides = _slides(runs)
    samples = [(run, pictures.samples(run)) for run in runs]
    return {
        "runs": runs,
        "title": f"{', '.join(group.name for group in groups)} · diffenc report",
        "groups": [cards.of_group(group, runs) for group in groups],
        "terms": [(run, [(name, *format_measurement(run.evaluation, key)) for key, name in TERMS.items()])
                  for run in runs if run.evaluation],
        "pairs": [cards.of_pair(pair) for pair in pairs.compared(groups)] if len(groups) > 1 else [],
        "training": _training(runs),
        "samples": samples,
        "without_samples": [run for run, found in samples if found is None],
        "slides": slides,
        "without_slides": without_slides,
        "without_heat_maps": [run for run, reason in without_slides if reason is None],
        "schedule": _schedules(runs),
        "losses": _losses(runs),
        "differences": cards.config_differences(runs),
        "is_free": serialize.is_free_to_change,
        "environment": cards.environments(runs),
        "datasets": cards.datasets(runs),
        "level": f"{LEVEL:.0%}",
        "resamples": RESAMPLES,
        "most_points": curves.MOST_POINTS,
        "most_of_record": curves.MOST_OF_RECORD,
    }  # fmt: skip


def _training(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """A block of charts for the runs of each data set: bits/dim of others are not to be laid over them."""
    found = []
    for dataset, members in _by(runs, _dataset_bindings):
        placed = [(runs.index(run), run) for run in members]
        splits = curves.evaluated_splits(members)
        lines = _training_curves(placed, splits)
        drawn = _training_charts(lines)
        if drawn:
            tables = [_training_table(run, splits) for run in members if run.rows]
            found.append(
                {"dataset": dataset, "runs": placed, "charts": drawn, "tables": tables, "splits": splits,
                 "rows": _rows_each(lines, marks=False), "marks": _rows_each(lines, marks=True),
                 "bounds": _bounds(members)}
            )  # fmt: skip
    return found


def _rows_each(lines: Mapping[str, Sequence[Curve]], marks: bool) -> int:
    """How many rows a point of the lines, or a mark, stands for at most."""
    rows = (curve.rows for of_key in lines.values() for curve in of_key if curve.marks == marks)
    return max(rows, default=1)


def _bounds(runs: Sequence[RunData]) -> list[tuple[str, str]]:
    """What the marks are of, and of which runs: more than one are not to be compared."""
    marked = [run for run in runs if curves.evaluated_splits([run])]
    return [
        (what, ", ".join(run.label for run in of))
        for what, of in _by(marked, lambda run: evaluation_spec.stated(run.config))
    ]


def _training_curves(placed: Sequence[tuple[int, RunData]], splits: Sequence[str]) -> dict[str, list[Curve]]:
    found = {}
    for key in (*curves.PARTS, curves.GRADIENT):
        lines = [curves.of_training(place, run, key) for place, run in placed]
        lines += [curves.of_evaluations(place, run, key, split) for place, run in placed for split in splits]
        found[key] = [line for line in lines if line]
    return found


def _training_charts(lines: Mapping[str, Sequence[Curve]]) -> list[Chart]:
    total, *parts = ((title, lines[key]) for key, title in curves.PARTS.items())
    later = [line for line in curves.later_half(total[1]) if line.points]
    panels = [total, ("Total, second half", later), *parts, (GRADIENT, lines[curves.GRADIENT])]
    units = [BITS] * (len(panels) - 1) + ["mean since the last row"]
    drawn = (
        charts.chart(title, STEP, unit, of_one) for (title, of_one), unit in zip(panels, units, strict=True)
    )
    return [one for one in drawn if one]


def _training_table(run: RunData, splits: Sequence[str]) -> dict[str, Any]:
    """The points behind the charts, a column for each of their curves."""
    columns = []
    for key, title in curves.PARTS.items():
        columns.append((f"{title}, batches", curves.of_training(0, run, key)))
        columns += [(f"{title}, {split}", curves.of_evaluations(0, run, key, split)) for split in splits]
    columns.append((GRADIENT, curves.of_training(0, run, curves.GRADIENT)))
    return _table(
        f"{run.label}, over steps", "Step", [(head, curve.points) for head, curve in columns if curve]
    )


def _table(label: str, head: str, columns: Sequence[tuple[str, Sequence[Point]]]) -> dict[str, Any]:
    by_x = [{point.x: point.y for point in points} for _, points in columns]
    xs = sorted({x for column in by_x for x in column})
    rows = [
        (charts.label(x), [charts.brief(column[x]) if x in column else NO_VALUE for column in by_x])
        for x in xs
    ]
    return {"label": label, "heads": [head, *(name for name, _ in columns)], "rows": rows}


def _slides(runs: Sequence[RunData]) -> tuple[list[Slide], list[tuple[RunData, str | None]]]:
    """Runs with heat maps by their times; and those without, with the reason where there is one."""
    by_times: dict[tuple[float, ...], list[Frames]] = {}
    without = []
    for place, run in enumerate(runs):
        found = pictures.frames(place, run)
        if isinstance(found, tuple):
            by_times.setdefault(found[0], []).append(found[1])
        else:
            without.append((run, found))
    return [Slide(times, tuple(frames)) for times, frames in by_times.items()], without


def _schedules(runs: Sequence[RunData]) -> dict[str, Any]:
    found = [
        (place, run, filed.record) for place, run in enumerate(runs) if (filed := run.numbers("schedule"))
    ]
    panels = []
    for title, key, y_label in (
        ("Log signal-to-noise", "log_snr", "λ"),
        ("Share of the data in the variance", "alpha_squared", "α²"),
        ("How fast λ falls", "rate", "−dλ/dt"),
    ):
        lines = [Curve(place, run.label, curves.over(record, "t", key)) for place, run, record in found]
        lines = [line for line in lines if line.points]
        panels.append(charts.chart(title, "t (0 data, 1 noise)", y_label, lines, from_zero=True))
    return {
        "charts": [panel for panel in panels if panel],
        "runs": [(place, run) for place, run, _ in found],
        "steps": _steps((run, record) for _, run, record in found),
        "without": [run for run in runs if run.numbers("schedule") is None],
        "tables": [
            _table(f"{run.label}, over t, every tenth point", "t", [(name, curves.over(record, "t", key)[::10])
                                    for name, key in (("λ", "log_snr"), ("α²", "alpha_squared"), ("−dλ/dt", "rate"))])
            for _, run, record in found
        ],
    }  # fmt: skip


def _losses(runs: Sequence[RunData]) -> dict[str, Any]:
    """One chart for each set of images that the loss was measured on."""
    records = [(place, run, _loss_of(run)) for place, run in enumerate(runs)]
    blocks = []
    found = [(place, run, record) for place, run, record in records if record is not None]
    for images, members in _by(found, lambda item: cards.images_of(item[2])):
        lines = [
            (Curve(place, run.label, curves.over(record, "log_snr_centre", "density", "density_se")), record)
            for place, run, record in members
        ]
        drawn = charts.chart(
            "Diffusion loss by λ", "λ = log SNR", "bits/dim per unit of λ",
            [line for line, _ in lines if line.points], from_zero=True,
        )  # fmt: skip
        if drawn:
            tables = [
                _table(f"{line.label}, over λ", "λ", [("bits/dim per unit of λ", line.points)])
                for line, _ in lines
            ]
            members_of = [(place, run) for place, run, _ in members]
            bins = max(curves.values_each(record, "density") for _, record in lines)
            blocks.append(
                {"images": images, "chart": drawn, "runs": members_of, "tables": tables, "bins": bins,
                 "steps": _steps((run, record) for _, run, record in members)}
            )  # fmt: skip
    return {"blocks": blocks, "without": [run for _, run, record in records if record is None]}


def _loss_of(run: RunData) -> dict[str, Any] | None:
    """The newer of what --mode=diagnose and --mode=figures filed."""
    filed = run.numbers("loss")
    found = [one for one in (run.loss, filed and filed.record) if one and one.get("density")]
    return max(found, key=lambda one: _step(one) or 0, default=None)


def _step(record: dict[str, Any]) -> float | None:
    """Of the checkpoint that it was measured of."""
    of = record.get("of")
    return finite_number(record.get("step", of.get("step") if isinstance(of, dict) else None))


def _steps(records: Iterable[tuple[RunData, dict[str, Any]]]) -> str:
    said = [(run.label, _step(record)) for run, record in records]
    return ", ".join(f"{label} at step {'?' if step is None else f'{step:,.0f}'}" for label, step in said)


def _dataset_bindings(run: RunData) -> str:
    """Which images a run is trained on, as far as its config tells."""
    said = [
        f"{key} = {value}" for key, value in sorted(run.config.items()) if key.partition(".")[0] == "dataset"
    ]
    return ", ".join([run.config.get("Experiment.dataset", "unknown images"), *said])


def _by(items: Sequence[Any], key: Any) -> list[tuple[Any, list[Any]]]:
    """Items by their key, in the order of the first of each."""
    found: dict[Any, list[Any]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return list(found.items())
