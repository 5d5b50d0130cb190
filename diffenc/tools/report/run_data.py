"""Reads the contents of a workdir for the report; the workdir may be incomplete or damaged. Writes nothing."""

import dataclasses
import hashlib
import io
import json
import os
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from types import NoneType

import numpy as np

from diffenc.config import serialize
from diffenc.errors import UserError
from diffenc.evaluation import saved_records
from diffenc.evaluation.saved_records import REQUIRED_KEYS, MismatchedTermsError, RequiredKeys, finite_number
from diffenc.files import record_checksum, stores
from diffenc.files.record_checksum import ChecksumState
from diffenc.safe_io import safe_npz
from diffenc.tools.report import evaluation_spec
from diffenc.tools.report.reader import CHECKPOINT, Record, WorkdirReader
from diffenc.workdir import loss_curves, provenance
from diffenc.workdir.config_check import CONFIG
from diffenc.workdir.writers import METRICS

ARRAYS = ("x", "change", "x_phi", "levels")  # of figures
MAX_ARRAY_BYTES = 1 << 28  # of each of them
PARAMETERS, EVALUATION = "parameters.txt", "evaluation.json"
NUMBERED_EVALUATION = r"evaluations/(\d{1,9})\.json"
MAX_STEP = 2**53  # integers above it are not exact in JSON
NEEDED_OF_FIGURES: RequiredKeys = {"of": (dict,), "npz": (str, NoneType)}


@dataclasses.dataclass(frozen=True, eq=False)
class FigureData:
    """The data of a figure, as written by --mode=figures."""

    record: Record
    arrays: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class RunData:
    """The contents of one workdir.

    Attributes:
      workdir: as given on the command line.
      label: name of the run on the page.
      config: bindings of config.gin; empty if there is none.
      rows: metrics by ascending step, finite numbers only.
      evaluation: the record selected by `saved_records.choose_evaluation`; None if the run was not evaluated.
      terms: the bytes of the record's .npz file.
      terms_name: name of that file in the workdir.
      num_evaluations: number of records of the same step.
      figures: data of the figures, by name.
      loss: the diffusion loss by log-SNR, as written by --mode=diagnose.
      samples: name, step and bytes of the newest grid.
      checkpoint: step of the last checkpoint.
      parameters: number of parameters.
      dataset: dataset.json.
      starts: the entries of environment.json.
      problems: sentences on files that could not be read.
    """

    workdir: str
    label: str
    config: dict[str, str]
    config_text: str
    rows: tuple[Record, ...]
    evaluation: Record | None
    terms: bytes
    terms_name: str
    num_evaluations: int
    figures: dict[str, FigureData]
    loss: Record | None
    samples: tuple[str, int, bytes] | None
    checkpoint: int | None
    parameters: int | None
    dataset: Record | None
    starts: tuple[Record, ...]
    problems: tuple[str, ...]

    @property
    def seed(self) -> str:
        return self.config.get("Experiment.seed", "?")

    @property
    def step(self) -> int | None:
        """The latest step among checkpoints and metrics."""
        known = [self.checkpoint, *(row["step"] for row in self.rows[-1:])]
        return max((step for step in known if step is not None), default=None)


def read_runs(workdirs: Sequence[str]) -> list[RunData]:
    """Reads each of `workdirs`, folders or URLs, under unique labels.

    Raises:
      UserError: a workdir holds no run, or is given twice.
    """
    plain = [workdir.rstrip("/") or workdir for workdir in workdirs]
    paths = [_canonical_path(workdir) for workdir in plain]
    repeated = [workdir for k, workdir in enumerate(plain) if paths[k] in paths[:k]]
    if repeated:
        raise UserError(f"{repeated[0]} is named twice; name each workdir once")
    return [read_run(workdir, label) for workdir, label in zip(plain, unique_labels(plain), strict=True)]


def _canonical_path(workdir: str) -> str:
    """Returns the path of a local folder without links and dots; a URL as it is."""
    if stores.is_url(workdir) and not workdir.startswith("file:///"):
        return workdir
    return os.path.realpath(workdir.removeprefix("file://"))


def unique_labels(workdirs: Sequence[str]) -> list[str]:
    """Returns the shortest tails of the paths, of equally many parts, that are all different."""
    parts = [[part for part in workdir.split("/") if part] or ["/"] for workdir in workdirs]
    for depth in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(names[-depth:]) for names in parts]
        if len(set(labels)) == len(labels):
            return labels
    return list(workdirs)


def read_run(workdir: str, label: str) -> RunData:
    """Reads one workdir.

    Raises:
      UserError: it holds no run, or the store cannot be read.
    """
    try:
        return _read_files(WorkdirReader(workdir), label)
    except OSError as error:
        raise stores.read_error(workdir, error) from error


def _read_files(reader: WorkdirReader, label: str) -> RunData:
    text = reader.text(CONFIG)
    config = serialize.parse_bindings(text)
    evaluations = _read_evaluations(reader)
    chosen = saved_records.choose_evaluation(
        evaluations, lambda record: evaluation_spec.matches_config(record, config)
    )
    terms_name = (chosen or EVALUATION).removesuffix(".json") + ".npz"
    evaluation, terms = _check_terms(reader, evaluations[chosen], terms_name) if chosen else (None, b"")
    loss = reader.record(f"{loss_curves.FOLDER}/loss.json")
    dataset, environment = reader.record(provenance.DATASET), reader.record(provenance.ENVIRONMENT)
    figures, parameters = _read_figures(reader), _read_parameter_count(reader, evaluation)
    rows, samples = _read_metrics(reader), _find_samples(reader)
    if reader.unsealed:
        files = reader.unsealed[:3] + ["..."] * (len(reader.unsealed) > 3)
        reader.add_problem(
            f"{', '.join(files)}: {record_checksum.UNSEALED}, so damage to them cannot be detected."
        )
    reader.check_newest_checkpoint()
    return RunData(
        workdir=reader.workdir,
        label=label,
        config=config,
        config_text=text,
        rows=rows,
        evaluation=evaluation,
        terms=terms,
        terms_name=terms_name,
        num_evaluations=len(evaluations),
        figures=figures,
        loss=loss,
        samples=samples,
        checkpoint=_last_step(reader, CHECKPOINT.pattern),
        parameters=parameters,
        dataset=dataset,
        starts=tuple(provenance.parse_starts(environment)),
        problems=tuple(reader.problems),
    )


def _read_evaluations(reader: WorkdirReader) -> dict[str, Record]:
    """Returns the records of the latest evaluated step, by file name, newest first."""
    numbered = [
        (int(match[1]), name) for name in reader.files if (match := re.fullmatch(NUMBERED_EVALUATION, name))
    ]
    names = [name for _, name in sorted(numbered, reverse=True)] or [EVALUATION]
    read = {name: record for name in names if (record := reader.record(name, REQUIRED_KEYS)) is not None}
    latest = max((record["step"] for record in read.values()), default=None)
    return {name: record for name, record in read.items() if record["step"] == latest}


def _check_terms(reader: WorkdirReader, evaluation: Record, name: str) -> tuple[Record | None, bytes]:
    """Returns the evaluation and the bytes of its terms, after checking that they belong together.

    If they do not, a record without checksum is left out: either file may be the damaged one.
    """
    data = reader.data(name) or b""
    if data and finite_number(evaluation["bpd"]) is not None:
        try:
            saved_records.terms_by_pass(data, evaluation, name)
        except MismatchedTermsError as error:
            reader.add_problem(f"{error}.")
            return (
                None if record_checksum.check_checksum(evaluation) is ChecksumState.MISSING else evaluation
            ), data
        except UserError as error:
            reader.add_problem(f"{error}.")
    return evaluation, data


def _read_metrics(reader: WorkdirReader) -> tuple[Record, ...]:
    rows: dict[int, Record] = {}  # by step; later lines override earlier ones
    # Rows end in a line feed: the part after the last line feed is empty, or a row cut short by a kill.
    *lines, incomplete = (reader.data(METRICS) or b"").split(b"\n")
    num_invalid = 0
    for line in filter(None, lines):
        row = _parse_metrics_row(line)
        if row is None:
            num_invalid += 1
        else:
            # A step may have several rows: training's means, and evaluations.
            rows[row["step"]] = rows.get(row["step"], {}) | row
    if incomplete:
        reader.add_problem(
            f"The last line of {METRICS} is incomplete, as after a kill during a write, and is left out."
        )
    if num_invalid:
        reader.add_problem(f"{METRICS} has {num_invalid} invalid line(s), which are left out.")
    return tuple(rows[step] for step in sorted(rows))


def _parse_metrics_row(line: bytes) -> Record | None:
    """Returns the finite numbers of a line; None if it is not a JSON object with a valid step."""
    try:
        record = json.loads(line)
        step = record["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if not isinstance(step, int) or not 0 <= step < MAX_STEP:
        return None
    values = {str(key): finite_number(value) for key, value in record.items()}
    return {key: value for key, value in values.items() if value is not None} | {"step": step}


def _read_figures(reader: WorkdirReader) -> dict[str, FigureData]:
    names = (re.fullmatch(r"figures/(\w+)\.json", name) for name in sorted(reader.files))
    figures = {match[1]: _read_figure(reader, match[1]) for match in names if match}
    return {name: figure for name, figure in figures.items() if figure is not None}


def _read_figure(reader: WorkdirReader, name: str) -> FigureData | None:
    record = reader.record(f"figures/{name}.json", NEEDED_OF_FIGURES)
    if record is None:
        return None
    data = reader.data(f"figures/{name}.npz") if record["npz"] else b""
    if record["npz"] and hashlib.sha256(data or b"").hexdigest() != record["npz"]:
        return reader.add_problem(f"figures/{name}.npz does not match figures/{name}.json and is left out.")
    try:
        arrays = safe_npz.load(io.BytesIO(data), name, ARRAYS, MAX_ARRAY_BYTES) if data else {}
    except UserError as error:
        return reader.add_problem(f"figures/{name}.npz is left out: {error}.")
    return FigureData(record, arrays)


def _find_samples(reader: WorkdirReader) -> tuple[str, int, bytes] | None:
    """Returns name, step and bytes of the grid of the latest step; of several, the last by name."""
    matches = ((re.match(r"samples/(\d+)[^/]*\.png$", name), name) for name in reader.files)
    newest = max(((int(match[1]), name) for match, name in matches if match), default=None)
    return newest and (PurePosixPath(newest[1]).name, newest[0], reader.data(newest[1]) or b"")


def _last_step(reader: WorkdirReader, pattern: str) -> int | None:
    matches = (re.fullmatch(pattern, name) for name in reader.files)
    return max((int(match[1]) for match in matches if match), default=None)


def _read_parameter_count(reader: WorkdirReader, evaluation: Record | None) -> int | None:
    recorded = finite_number((evaluation or {}).get("num_params"))
    if recorded is not None or PARAMETERS not in reader.files:
        return None if recorded is None else int(recorded)
    # Bounded: int() of a very long text of digits takes quadratic time.
    total = re.search(r"^Total: (\d[\d,]{,30})(?![\d,])", reader.text(PARAMETERS), re.MULTILINE)
    return (
        int(total[1].replace(",", ""))
        if total
        else reader.add_problem(f"{PARAMETERS} has no total and is left out.")
    )
