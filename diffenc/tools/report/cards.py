"""Runs in words and figures: headlines, tests, configs, environments and data sets."""

import math
from collections.abc import Sequence
from typing import Any

from diffenc.config import serialize
from diffenc.data.versions import UNKNOWN, is_published
from diffenc.evaluation.formatting import NO_VALUE, format_measurement, typeset_minus
from diffenc.evaluation.records import finite_number, stored_value
from diffenc.evaluation.significance import TestResult
from diffenc.evaluation.uncertainty_format import round_to_error
from diffenc.tools.report import evaluation_spec, formatting
from diffenc.tools.report.curves import SPLITS
from diffenc.tools.report.grouping import Group
from diffenc.tools.report.pairs import Pair
from diffenc.tools.report.run_data import Record, RunData

ENVIRONMENT = {
    "diffenc": "diffenc",
    "commit": "Commit",
    "python": "Python",
    "jax": "JAX",
    "jaxlib": "jaxlib",
    "numpy": "NumPy",
    "optax": "Optax",
    "dm-haiku": "Haiku",
    "platform": "Platform",
    "backend": "Backend",
    "devices": "Devices",
    "processes": "Processes",
    "precision": "Precision",
    "matmul_precision": "Products of float32",
}


def of_group(group: Group, runs: Sequence[RunData]) -> dict[str, Any]:
    """The headline of a group, and of each of its runs; what all of these state is stated once."""
    mean = _over_seeds(group)
    by_run = [_facts(run) for run in group.runs]
    shared = [fact for fact in by_run[0] if all(fact in facts for facts in by_run)] if len(by_run) > 1 else []
    return {
        "name": group.name,
        "mean": mean,
        "refused": group.refused,
        "shared": shared,
        "runs": [
            {
                "run": run,
                "place": runs.index(run),
                "bpd": format_measurement(run.evaluation, "bpd") if run.evaluation else None,
                "facts": [fact for fact in facts if fact not in shared],
            }
            for run, facts in zip(group.runs, by_run, strict=True)
        ],
    }


def _over_seeds(group: Group) -> dict[str, Any] | None:
    if group.mean is None:
        return None
    records = [run.evaluation for run in group.evaluated if run.evaluation]
    return {"figure": formatting.over_seeds(*group.mean, records), "seeds": len(group.totals)}


def _facts(run: RunData) -> list[tuple[str, str]]:
    """What one must know to read a run's figure."""
    facts: list[tuple[str, str]] = []
    said = run.evaluation
    if said:
        facts += [
            ("Data", f"{said['dataset']} {said['split']}{_told(said)}"),
            ("Version", version(said)),
            ("Images", images_counted(said)),
            ("Pixels", formatting.short(said["fingerprint"])),
            ("T", T(said)),
            ("Passes", formatting.count(said["passes"])),
            ("Step", formatting.count(said["step"])),
        ]
        facts += _chosen(run)
    if not said:
        facts += _measured_in_training(run)
    if run.step is not None and (not said or said["step"] != run.step):
        facts.append(("Trained to", f"step {run.step:,}{_of_steps(run)}"))
    return [*facts, *([("Parameters", formatting.count(run.parameters))] if run.parameters else [])]


def _chosen(run: RunData) -> list[tuple[str, str]]:
    """Which evaluation it is, where there are several of the step."""
    if run.evaluations < 2:
        return []
    as_asked = evaluation_spec.is_asked_for(run.evaluation, run.config)
    why = (
        "the newest that the config asks for"
        if as_asked
        else "the newest: none is of what the config asks for"
    )
    return [("Evaluation", f"{run.terms_name.removesuffix('.npz')} of {run.evaluations}, {why}")]


def _measured_in_training(run: RunData) -> list[tuple[str, str]]:
    """The latest figure of each split among the metrics."""
    found: dict[str, str] = {}
    for row in run.rows:
        for split in SPLITS:
            if f"{split}_bpd" in row:
                value = formatting.figure(row[f"{split}_bpd"], row.get(f"{split}_bpd_se"))
                found[split] = f"{split} {value} at step {row['step']:,}"
    return [("While training", text) for text in found.values()]


def _of_steps(run: RunData) -> str:
    steps = run.config.get("Experiment.steps", "")
    return f" of {int(steps):,}" if steps.isdecimal() and len(steps) < 16 else ""


def _told(record: Record) -> str:
    return f" | {record['condition']}" if record.get("condition") else ""


def T(record: Record) -> str:  # noqa: N802 - its name
    """The depth of the model that a bound is of."""
    return " ".join(str(record[key]) for key in ("T", "times", "variance") if key in record) + (
        " (times, variance)" if "times" in record else ""
    )


def version(record: Record) -> str:
    """Which version of the images it is, as their digests tell."""
    return str(record.get("source") or "comes with the program, or not recorded")


def images_counted(record: Record) -> str:
    """2,000 of 10,000."""
    whole = record.get("split_images")
    of = f" of {formatting.count(whole)}" if whole and whole != record["num_images"] else ""
    return f"{formatting.count(record['num_images'])}{of}"


def images_of(record: Record) -> str:
    """Which images a figure is of, in a line."""
    name = f"{record.get('dataset', '?')} {record.get('split', '?')}{_told(record)}"
    return f"{formatting.count(record.get('num_images'))} images of {name}, pixels {formatting.short(record.get('fingerprint'))}"


def of_pair(pair: Pair) -> dict[str, Any]:
    """A pair with its tests as rows; bars are in percent of one scale, with 0 at its middle."""
    edges = [
        abs(edge) for finding in pair.findings for edge in (finding.difference, *(finding.interval or ()))
    ]
    reach = max(filter(math.isfinite, edges), default=0) or 1.0
    rows = [
        _test(finding, 1.1 * reach, pair.corrected if finding is pair.rests_on else None)
        for finding in pair.findings
    ]
    return {"pair": pair, "rows": rows}


def _test(finding: TestResult, reach: float, corrected: float | None) -> dict[str, Any]:
    low, high = finding.interval or (None, None)
    place = lambda value: round(50 + 50 * value / reach, 2)  # noqa: E731
    return {
        "test": finding.test,
        "of": finding.of,
        "difference": formatting.figure(finite_number(finding.difference), finding.error),
        "low": NO_VALUE if low is None else typeset_minus(round_to_error(low, finding.error).mean),
        "high": NO_VALUE if high is None else typeset_minus(round_to_error(high, finding.error).mean),
        "p": formatting.p_value(finding.two_sided),
        "corrected": formatting.p_value(corrected),
        "bar": None if low is None or high is None else (place(low), round(place(high) - place(low), 2)),
        "dot": place(finding.difference) if math.isfinite(finding.difference) else None,
    }


def config_differences(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """Bindings that are not the same in all configs: of what is trained, then of the rest."""
    known = [run for run in runs if run.config]
    keys = sorted({key for run in known for key in run.config})
    rows = [(key, [run.config.get(key) for run in known]) for key in keys]
    rows = [(key, values) for key, values in rows if len(set(values)) > 1]
    parts = (
        ("Differences in what is trained", False),
        ("Differences that training does not depend on", True),
    )
    return [
        {"title": title, "rows": found, "runs": known}
        for title, free in parts
        if (found := [(key, values) for key, values in rows if serialize.is_free_to_change(key) == free])
    ]


def environments(runs: Sequence[RunData]) -> dict[str, Any]:
    """A column for each environment, headed by the runs that were trained in it, and a row for each fact."""
    columns: dict[tuple[str, ...], list[str]] = {}
    for run in runs:
        for start in run.starts:
            facts = tuple(_fact(key, start.get(key)) for key in ENVIRONMENT)
            columns.setdefault(facts, []).append(f"{run.label} from step {formatting.count(start['step'])}")
    rows = [
        (title, values)
        for title, *values in zip(ENVIRONMENT.values(), *columns, strict=True)
        if set(values) != {NO_VALUE}
    ]
    return {
        "heads": [", ".join(heads) for heads in columns.values()],
        "rows": rows,
        "without": [run for run in runs if not run.starts],
        "evaluated": [
            (
                run,
                [
                    formatting.count(stored_value(run.evaluation, key))
                    for key in ("device", "precision", "matmul_precision")
                ],
            )
            for run in runs
            if run.evaluation
        ],
    }


def _fact(key: str, value: Any) -> str:
    text = formatting.count(value)
    return text[:12] + "+" * text.endswith("+") if key == "commit" else text


def datasets(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """A card for each data set, and the runs of which nothing else is known."""
    found: dict[Any, list[RunData]] = {}
    for run in runs:
        found.setdefault((tuple(_dataset(run)), run.dataset is None), []).append(run)
    return [{"runs": of, "facts": facts, "recorded": not lacks} for (facts, lacks), of in found.items()]


def _dataset(run: RunData) -> list[tuple[str, str]]:
    """What was recorded of its images when a run was trained, and when it was evaluated."""
    card, said = run.dataset or {}, run.evaluation or {}
    source, shape = card.get("source") or said.get("source"), card.get("image_shape")
    facts = (
        ("Name", card.get("dataset") or said.get("dataset")),
        ("Version", source or ("these images lie in no files" if card else None)),
        ("Known by digest", _known(source) if source else None),
        ("Origin", card.get("origin")),
        ("Licence", card.get("licence")),
        ("Image", " × ".join(map(str, shape)) if isinstance(shape, list) else None),
        ("Levels", card.get("num_levels")),
        ("Classes", card.get("num_classes")),
        ("Train images", card.get("train_images")),
        ("Trained on", card.get("train_identity")),
        ("Evaluated split", said.get("split")),
        ("Images of that split", said.get("split_images")),
        ("Images evaluated", said.get("num_images")),
        ("Pixels evaluated", said.get("fingerprint")),
    )
    return [(name, formatting.count(value)) for name, value in facts if value is not None]


def _known(source: Any) -> str:
    if is_published(str(source)):
        return "yes"
    if str(source).startswith(UNKNOWN) or UNKNOWN not in str(source):
        return "no: bits/dim are not comparable with published ones"
    return "in part: bits/dim of the unknown split are not comparable with published ones"
