"""Rendering of the page: the template and its context."""

import base64
import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from diffenc.config import serialize
from diffenc.evaluation.evaluation_record import KEYS
from diffenc.evaluation.measurement_text import NO_VALUE, format_measurement
from diffenc.evaluation.saved_records import finite_number
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
class HeatMapSlider:
    """Runs with heat maps of the same times, controlled by one slider."""

    times: tuple[float, ...]
    frames: tuple[Frames, ...]


def render_page(runs: Sequence[RunData]) -> str:
    """Returns the HTML page about `runs`."""
    # autoescape: names, notes and configs in a workdir are untrusted text. StrictUndefined: a misspelt
    # variable is an error, not an empty string.
    environment = Environment(
        loader=PackageLoader("diffenc.tools.report", TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(formats=formatting, style=charts.curve_style)
    environment.filters.update(mode_command=formatting.mode_command, train_command=formatting.train_command)
    script, css = (environment.get_template(name).render() for name in ("page.js", "style.css"))
    # For the page's content security policy: only this script may run, whatever a text on the page contains.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    html = environment.get_template("page.html.jinja").render(
        # Markup exempts the package's own files from escaping; nothing else on the page is exempt.
        script=Markup(script),
        css=Markup(css),
        script_digest=digest,
        **template_context(runs),
    )
    valid = html.encode(
        errors="replace"
    ).decode()  # JSON may contain lone surrogates, which UTF-8 cannot encode
    return valid.rstrip() + "\n"


def template_context(runs: Sequence[RunData]) -> dict[str, Any]:
    """Returns the variables of the template."""
    groups = grouping.group_by_config(runs)
    sliders, without_sliders = _heat_map_sliders(runs)
    samples = [(run, pictures.load_samples(run)) for run in runs]
    return {
        "runs": runs,
        "title": f"{', '.join(group.name for group in groups)} · diffenc report",
        "groups": [cards.make_group_card(group, runs) for group in groups],
        "terms": [(run, [(name, *format_measurement(run.evaluation, key)) for key, name in TERMS.items()])
                  for run in runs if run.evaluation],
        "pairs": [cards.make_pair_card(pair) for pair in pairs.compare_groups(groups)] if len(groups) > 1 else [],
        "training": _training_blocks(runs),
        "samples": samples,
        "without_samples": [run for run, picture in samples if picture is None],
        "sliders": sliders,
        "without_sliders": without_sliders,
        "without_heat_maps": [run for run, reason in without_sliders if reason is None],
        "schedule": _schedule_block(runs),
        "losses": _loss_blocks(runs),
        "differences": cards.config_differences(runs),
        "is_free": serialize.is_free_to_change,
        "environment": cards.environment_table(runs),
        "datasets": cards.dataset_cards(runs),
        "level": f"{LEVEL:.0%}",
        "resamples": RESAMPLES,
        "max_points": curves.MAX_POINTS,
        "max_record_points": curves.MAX_RECORD_POINTS,
    }  # fmt: skip


def _training_blocks(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """Returns a block of charts for each data set, as bits/dim of different data sets cannot be compared."""
    blocks = []
    for dataset, members in _group_by(runs, _dataset_bindings):
        indexed = [(runs.index(run), run) for run in members]
        splits = curves.evaluated_splits(members)
        lines = _training_curves(indexed, splits)
        drawn = _training_charts(lines)
        if drawn:
            tables = [_training_table(run, splits) for run in members if run.rows]
            blocks.append(
                {"dataset": dataset, "runs": indexed, "charts": drawn, "tables": tables, "splits": splits,
                 "rows": _max_rows_per_point(lines, marks=False), "marks": _max_rows_per_point(lines, marks=True),
                 "bounds": _describe_bounds(members)}
            )  # fmt: skip
    return blocks


def _max_rows_per_point(lines: Mapping[str, Sequence[Curve]], marks: bool) -> int:
    """Returns the largest number of rows that a point of a line, or a mark, averages."""
    rows = (curve.rows for of_key in lines.values() for curve in of_key if curve.marks == marks)
    return max(rows, default=1)


def _describe_bounds(runs: Sequence[RunData]) -> list[tuple[str, str]]:
    """Returns the bounds that the marks show, each with its runs; different bounds cannot be compared."""
    marked = [run for run in runs if curves.evaluated_splits([run])]
    return [
        (spec, ", ".join(run.label for run in members))
        for spec, members in _group_by(marked, lambda run: evaluation_spec.describe_spec(run.config))
    ]


def _training_curves(indexed: Sequence[tuple[int, RunData]], splits: Sequence[str]) -> dict[str, list[Curve]]:
    by_key = {}
    for key in (*curves.TERMS, curves.GRADIENT):
        lines = [curves.training_curve(index, run, key) for index, run in indexed]
        lines += [
            curves.evaluation_curve(index, run, key, split) for index, run in indexed for split in splits
        ]
        by_key[key] = [line for line in lines if line]
    return by_key


def _training_charts(lines: Mapping[str, Sequence[Curve]]) -> list[Chart]:
    total, *parts = ((title, lines[key]) for key, title in curves.TERMS.items())
    later = [line for line in curves.second_half(total[1]) if line.points]
    panels = [total, ("Total, second half", later), *parts, (GRADIENT, lines[curves.GRADIENT])]
    units = [BITS] * (len(panels) - 1) + ["mean since the last row"]
    drawn = (
        charts.make_chart(title, STEP, unit, of_one)
        for (title, of_one), unit in zip(panels, units, strict=True)
    )
    return [one for one in drawn if one]


def _training_table(run: RunData, splits: Sequence[str]) -> dict[str, Any]:
    """Returns a table of the points in the charts, with a column for each curve."""
    columns = []
    for key, title in curves.TERMS.items():
        columns.append((f"{title}, batches", curves.training_curve(0, run, key)))
        columns += [(f"{title}, {split}", curves.evaluation_curve(0, run, key, split)) for split in splits]
    columns.append((GRADIENT, curves.training_curve(0, run, curves.GRADIENT)))
    return _make_table(
        f"{run.label}, over steps", "Step", [(head, curve.points) for head, curve in columns if curve]
    )


def _make_table(label: str, head: str, columns: Sequence[tuple[str, Sequence[Point]]]) -> dict[str, Any]:
    by_x = [{point.x: point.y for point in points} for _, points in columns]
    xs = sorted({x for column in by_x for x in column})
    rows = [
        (
            charts.format_tick(x),
            [charts.format_value(column[x]) if x in column else NO_VALUE for column in by_x],
        )
        for x in xs
    ]
    return {"label": label, "heads": [head, *(name for name, _ in columns)], "rows": rows}


def _heat_map_sliders(
    runs: Sequence[RunData],
) -> tuple[list[HeatMapSlider], list[tuple[RunData, str | None]]]:
    """Returns the runs with heat maps, by times; and those without, with the reason if it is known."""
    by_times: dict[tuple[float, ...], list[Frames]] = {}
    without = []
    for index, run in enumerate(runs):
        frames = pictures.make_frames(index, run)
        if isinstance(frames, tuple):
            by_times.setdefault(frames[0], []).append(frames[1])
        else:
            without.append((run, frames))
    return [HeatMapSlider(times, tuple(frames)) for times, frames in by_times.items()], without


def _schedule_block(runs: Sequence[RunData]) -> dict[str, Any]:
    scheduled = [
        (index, run, figure.record)
        for index, run in enumerate(runs)
        if (figure := run.figures.get("schedule"))
    ]
    panels = []
    for title, key, y_label in (
        ("Log signal-to-noise", "log_snr", "λ"),
        ("Share of the signal in the variance", "alpha_squared", "α²"),
        ("Rate at which λ falls", "rate", "−dλ/dt"),
    ):
        lines = [
            Curve(index, run.label, curves.record_curve(record, "t", key)) for index, run, record in scheduled
        ]
        lines = [line for line in lines if line.points]
        panels.append(charts.make_chart(title, "t (0 data, 1 noise)", y_label, lines, from_zero=True))
    return {
        "charts": [panel for panel in panels if panel],
        "runs": [(index, run) for index, run, _ in scheduled],
        "steps": _list_steps((run, record) for _, run, record in scheduled),
        "without": [run for run in runs if run.figures.get("schedule") is None],
        "tables": [
            _make_table(f"{run.label}, over t, every tenth point", "t", [(name, curves.record_curve(record, "t", key)[::10])
                                    for name, key in (("λ", "log_snr"), ("α²", "alpha_squared"), ("−dλ/dt", "rate"))])
            for _, run, record in scheduled
        ],
    }  # fmt: skip


def _loss_blocks(runs: Sequence[RunData]) -> dict[str, Any]:
    """Returns a block with a chart for each set of images that the loss was measured on."""
    records = [(index, run, _newest_loss(run)) for index, run in enumerate(runs)]
    blocks = []
    measured = [(index, run, record) for index, run, record in records if record is not None]
    for images, members in _group_by(measured, lambda item: cards.describe_images(item[2])):
        lines = [
            (
                Curve(
                    index, run.label, curves.record_curve(record, "log_snr_centre", "density", "density_se")
                ),
                record,
            )
            for index, run, record in members
        ]
        drawn = charts.make_chart(
            "Diffusion loss by λ", "λ = log SNR", "bits/dim per unit of λ",
            [line for line, _ in lines if line.points], from_zero=True,
        )  # fmt: skip
        if drawn:
            tables = [
                _make_table(f"{line.label}, over λ", "λ", [("bits/dim per unit of λ", line.points)])
                for line, _ in lines
            ]
            indexed = [(index, run) for index, run, _ in members]
            bins = max(curves.values_per_point(record, "density") for _, record in lines)
            blocks.append(
                {"images": images, "chart": drawn, "runs": indexed, "tables": tables, "bins": bins,
                 "steps": _list_steps((run, record) for _, run, record in members)}
            )  # fmt: skip
    return {"blocks": blocks, "without": [run for _, run, record in records if record is None]}


def _newest_loss(run: RunData) -> dict[str, Any] | None:
    """Returns the newer of the records that --mode=diagnose and --mode=figures wrote."""
    figure = run.figures.get("loss")
    records = [record for record in (run.loss, figure and figure.record) if record and record.get("density")]
    return max(records, key=lambda record: _record_step(record) or 0, default=None)


def _record_step(record: dict[str, Any]) -> float | None:
    """Returns the step of the checkpoint that was measured."""
    checkpoint = record.get("of")
    return finite_number(record.get("step", checkpoint.get("step") if isinstance(checkpoint, dict) else None))


def _list_steps(records: Iterable[tuple[RunData, dict[str, Any]]]) -> str:
    steps = [(run.label, _record_step(record)) for run, record in records]
    return ", ".join(f"{label} at step {'?' if step is None else f'{step:,.0f}'}" for label, step in steps)


def _dataset_bindings(run: RunData) -> str:
    """Returns the bindings of the data set that a run is trained on."""
    bindings = [
        f"{key} = {value}" for key, value in sorted(run.config.items()) if key.partition(".")[0] == "dataset"
    ]
    return ", ".join([run.config.get("Experiment.dataset", "unknown images"), *bindings])


def _group_by(items: Sequence[Any], key: Any) -> list[tuple[Any, list[Any]]]:
    """Groups items by a key, in the order of their first items."""
    groups: dict[Any, list[Any]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.items())
