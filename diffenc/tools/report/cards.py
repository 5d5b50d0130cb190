"""Cards and tables about runs: headlines, tests, configs, environments and data sets."""

import math
from collections.abc import Sequence
from typing import Any

from diffenc.config import serialize
from diffenc.data.versions import UNKNOWN, is_published
from diffenc.evaluation.evaluation_record import describe_path
from diffenc.evaluation.measurement_text import NO_VALUE, format_measurement, typeset_minus
from diffenc.evaluation.saved_records import finite_number, stored_value
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


def make_group_card(group: Group, runs: Sequence[RunData]) -> dict[str, Any]:
    """Returns the card of a group and of each of its runs; facts common to all its runs are listed once."""
    mean = _mean_over_seeds(group)
    by_run = [_run_facts(run) for run in group.runs]
    shared = [fact for fact in by_run[0] if all(fact in facts for facts in by_run)] if len(by_run) > 1 else []
    return {
        "name": group.name,
        "mean": mean,
        "refusal": group.refusal,
        "shared": shared,
        "runs": [
            {
                "run": run,
                "index": runs.index(run),
                "bpd": format_measurement(run.evaluation, "bpd") if run.evaluation else None,
                "facts": [fact for fact in facts if fact not in shared],
            }
            for run, facts in zip(group.runs, by_run, strict=True)
        ],
    }


def _mean_over_seeds(group: Group) -> dict[str, Any] | None:
    if group.mean is None:
        return None
    records = [run.evaluation for run in group.evaluated if run.evaluation]
    return {"value": formatting.format_mean_over_seeds(*group.mean, records), "seeds": len(group.totals)}


def _run_facts(run: RunData) -> list[tuple[str, str]]:
    """Returns (name, value) pairs on the evaluation and the training of a run."""
    facts: list[tuple[str, str]] = []
    evaluation = run.evaluation
    if evaluation:
        facts += [
            ("Data", f"{evaluation['dataset']} {evaluation['split']}{_condition_suffix(evaluation)}"),
            ("Version", data_version(evaluation)),
            ("Images", format_image_count(evaluation)),
            ("Pixels", formatting.shorten_digest(evaluation["fingerprint"])),
            ("T", format_chain(evaluation)),
            ("Passes", formatting.format_count(evaluation["passes"])),
            ("Step", formatting.format_count(evaluation["step"])),
        ]
        facts += _evaluation_choice(run)
    else:
        facts += _training_evaluations(run)
    if run.step is not None and (not evaluation or evaluation["step"] != run.step):
        facts.append(("Trained to", f"step {run.step:,}{_format_total_steps(run)}"))
    return [*facts, *([("Parameters", formatting.format_count(run.parameters))] if run.parameters else [])]


def _evaluation_choice(run: RunData) -> list[tuple[str, str]]:
    """Returns a fact that names the shown evaluation, if there are several of the step."""
    if run.num_evaluations < 2:
        return []
    matches = evaluation_spec.matches_config(run.evaluation, run.config)
    reason = "the newest that matches the config" if matches else "the newest, as none matches the config"
    return [("Evaluation", f"{run.terms_name.removesuffix('.npz')} of {run.num_evaluations}, {reason}")]


def _training_evaluations(run: RunData) -> list[tuple[str, str]]:
    """Returns the latest bits/dim of each split that were measured during training."""
    latest: dict[str, str] = {}
    for row in run.rows:
        for split in SPLITS:
            if f"{split}_bpd" in row:
                value = formatting.format_figure(row[f"{split}_bpd"], row.get(f"{split}_bpd_se"))
                latest[split] = f"{split} {value} at step {row['step']:,}"
    return [("While training", text) for text in latest.values()]


def _format_total_steps(run: RunData) -> str:
    steps = run.config.get("Experiment.steps", "")
    return f" of {int(steps):,}" if steps.isdecimal() and len(steps) < 16 else ""


def _condition_suffix(record: Record) -> str:
    return f" | {record['condition']}" if record.get("condition") else ""


def format_chain(record: Record) -> str:
    """Returns T of a bound, with times and variance of a discrete chain, and its path where it is not that of training."""
    chain = " ".join(str(record[key]) for key in ("T", "times", "variance") if key in record)
    return f"{chain}{' (times, variance)' if 'times' in record else ''}{describe_path(record)}"


def data_version(record: Record) -> str:
    """Returns the version of the images, as identified by their digests."""
    return str(record.get("source") or "comes with the program, or not recorded")


def format_image_count(record: Record) -> str:
    """Returns e.g. "2,000 of 10,000"."""
    whole = record.get("split_images")
    of = f" of {formatting.format_count(whole)}" if whole and whole != record["num_images"] else ""
    return f"{formatting.format_count(record['num_images'])}{of}"


def describe_images(record: Record) -> str:
    """Returns a line on the images of a record."""
    name = f"{record.get('dataset', '?')} {record.get('split', '?')}{_condition_suffix(record)}"
    return f"{formatting.format_count(record.get('num_images'))} images of {name}, pixels {formatting.shorten_digest(record.get('fingerprint'))}"


def make_pair_card(pair: Pair) -> dict[str, Any]:
    """Returns a pair with its tests as rows; positions of bars are in percent of a common scale centred on 0."""
    extents = [
        abs(value) for result in pair.results for value in (result.difference, *(result.interval or ()))
    ]
    largest = max(filter(math.isfinite, extents), default=0) or 1.0
    rows = [
        _test_row(result, 1.1 * largest, pair.corrected if result is pair.primary else None)
        for result in pair.results
    ]
    return {"pair": pair, "rows": rows}


def _test_row(result: TestResult, scale: float, corrected: float | None) -> dict[str, Any]:
    low, high = result.interval or (None, None)

    def percent(value: float) -> float:
        return round(50 + 50 * value / scale, 2)

    return {
        "test": result.test,
        "of": result.of,
        "difference": formatting.format_figure(finite_number(result.difference), result.error),
        "low": NO_VALUE if low is None else typeset_minus(round_to_error(low, result.error).mean),
        "high": NO_VALUE if high is None else typeset_minus(round_to_error(high, result.error).mean),
        "p": formatting.format_p(result.two_sided),
        "corrected": formatting.format_p(corrected),
        "bar": None
        if low is None or high is None
        else (percent(low), round(percent(high) - percent(low), 2)),
        "dot": percent(result.difference) if math.isfinite(result.difference) else None,
    }


def config_differences(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """Returns the bindings that differ between configs: first those that training depends on, then the others."""
    known = [run for run in runs if run.config]
    configs = [serialize.canonical_bindings(run.config) for run in known]
    keys = sorted({key for config in configs for key in config})
    rows = [(key, [config.get(key) for config in configs]) for key in keys]
    rows = [(key, values) for key, values in rows if len(set(values)) > 1]
    fixed = {key for config in configs for key in serialize.fixed_bindings(config)}
    parts = (
        ("Differences that affect training", False),
        ("Differences that do not affect training", True),
    )
    return [
        {"title": title, "rows": selected, "runs": known}
        for title, is_free in parts
        if (selected := [(key, values) for key, values in rows if (key not in fixed) == is_free])
    ]


def environment_table(runs: Sequence[RunData]) -> dict[str, Any]:
    """Returns a table with a column for each environment, headed by its runs, and a row for each fact."""
    columns: dict[tuple[str, ...], list[str]] = {}
    for run in runs:
        for start in run.starts:
            facts = tuple(_environment_value(key, start.get(key)) for key in ENVIRONMENT)
            columns.setdefault(facts, []).append(
                f"{run.label} from step {formatting.format_count(start['step'])}"
            )
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
                    formatting.format_count(stored_value(run.evaluation, key))
                    for key in ("device", "precision", "matmul_precision")
                ],
            )
            for run in runs
            if run.evaluation
        ],
    }


def _environment_value(key: str, value: Any) -> str:
    text = formatting.format_count(value)
    return text[:12] + "+" * text.endswith("+") if key == "commit" else text


def dataset_cards(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """Returns a card for each data set with its runs; `recorded` is whether these have a dataset.json."""
    by_facts: dict[Any, list[RunData]] = {}
    for run in runs:
        by_facts.setdefault((tuple(_dataset_facts(run)), run.dataset is not None), []).append(run)
    return [
        {"runs": members, "facts": facts, "recorded": recorded}
        for (facts, recorded), members in by_facts.items()
    ]


def _dataset_facts(run: RunData) -> list[tuple[str, str]]:
    """Returns the facts about the images that were recorded at training and at evaluation of a run."""
    card, evaluation = run.dataset or {}, run.evaluation or {}
    source, shape = card.get("source") or evaluation.get("source"), card.get("image_shape")
    facts = (
        ("Name", card.get("dataset") or evaluation.get("dataset")),
        ("Version", source or ("these images are not read from files" if card else None)),
        ("Known by digest", _describe_provenance(source) if source else None),
        ("Origin", card.get("origin")),
        ("Licence", card.get("licence")),
        ("Image", " × ".join(map(str, shape)) if isinstance(shape, list) else None),
        ("Levels", card.get("num_levels")),
        ("Classes", card.get("num_classes")),
        ("Train images", card.get("train_images")),
        ("Trained on", card.get("train_identity")),
        ("Evaluated split", evaluation.get("split")),
        ("Images of that split", evaluation.get("split_images")),
        ("Images evaluated", evaluation.get("num_images")),
        ("Pixels evaluated", evaluation.get("fingerprint")),
    )
    return [(name, formatting.format_count(value)) for name, value in facts if value is not None]


def _describe_provenance(source: Any) -> str:
    if is_published(str(source)):
        return "yes"
    if str(source).startswith(UNKNOWN) or UNKNOWN not in str(source):
        return "no: bits/dim cannot be compared with published values"
    return "in part: bits/dim of the unknown split cannot be compared with published values"
