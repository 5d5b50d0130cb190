"""What a workdir holds, half-trained, half-written or damaged as it may be. Nothing is written."""

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
from diffenc.evaluation import records
from diffenc.evaluation.records import REQUIRED_KEYS, OtherTermsError, RequiredKeys, finite_number
from diffenc.files import record_checksum, stores
from diffenc.files.record_checksum import ChecksumState
from diffenc.safe_io import safe_npz
from diffenc.tools.report import evaluation_spec
from diffenc.tools.report.checkpoint_match import mismatch
from diffenc.tools.report.reader import Reader, Record
from diffenc.workdir import loss_curves, provenance
from diffenc.workdir.config_check import CONFIG
from diffenc.workdir.writers import METRICS

ARRAYS = ("x", "change", "x_phi", "levels")  # of figures
MOST = 1 << 28  # bytes of one of them
PARAMETERS, EVALUATION = "parameters.txt", "evaluation.json"
NUMBERED = r"evaluations/(\d{1,9})\.json"
LATEST = 2**53  # a step
OF_FIGURES: RequiredKeys = {"of": (dict,), "npz": (str, NoneType)}


@dataclasses.dataclass(frozen=True, eq=False)
class FigureData:
    """A figure's numbers, as --mode=figures files them."""

    record: Record
    arrays: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class RunData:
    """What there is of one run.

    Attributes:
      place: the workdir, as its user calls it.
      label: what the page calls it.
      config: bindings of config.gin; empty where there is none.
      rows: metrics by ascending step, finite numbers only.
      evaluation: the one that states the run's figure (`evaluations.choose`); None where the run was not evaluated.
      terms: the bytes of the .npz beside it.
      terms_name: that file's name in the workdir.
      evaluations: how many there are to choose from.
      figures: by name.
      loss: what --mode=diagnose filed of the diffusion loss.
      samples: the newest grid: its name in the workdir, its step and its bytes.
      parameters: their number.
      dataset: dataset.json.
      starts: the entries of environment.json.
      oddities: what could not be read, in words.
    """

    place: str
    label: str
    config: dict[str, str]
    config_text: str
    rows: tuple[Record, ...]
    evaluation: Record | None
    terms: bytes
    terms_name: str
    evaluations: int
    figures: dict[str, FigureData]
    loss: Record | None
    samples: tuple[str, int, bytes] | None
    checkpoint: int | None
    parameters: int | None
    dataset: Record | None
    starts: tuple[Record, ...]
    oddities: tuple[str, ...]

    @property
    def seed(self) -> str:
        return self.config.get("Experiment.seed", "?")

    @property
    def step(self) -> int | None:
        """How far it is trained, as far as its files tell."""
        known = [self.checkpoint, *(row["step"] for row in self.rows[-1:])]
        return max((step for step in known if step is not None), default=None)

    def numbers(self, *names: str) -> FigureData | None:
        """The figure of these names' first that there is."""
        return next((self.figures[name] for name in names if name in self.figures), None)


def read_all(places: Sequence[str]) -> list[RunData]:
    """Each of `places`, a folder or an address, under a label that tells it from the others.

    Raises:
      UserError: there is no run, or the same place is named twice.
    """
    plain = [place.rstrip("/") or place for place in places]
    folders = [_folder(place) for place in plain]
    twice = [place for k, place in enumerate(plain) if folders[k] in folders[:k]]
    if twice:
        raise UserError(f"{twice[0]} is named twice; name each workdir once")
    return [read(place, label) for place, label in zip(plain, labels(plain), strict=True)]


def _folder(place: str) -> str:
    """One name of a local folder, whatever links and dots lead to it."""
    if stores.is_url(place) and not place.startswith("file:///"):
        return place
    return os.path.realpath(place.removeprefix("file://"))


def labels(places: Sequence[str]) -> list[str]:
    """The last parts of each path: as many as it takes to tell them all apart."""
    parts = [[part for part in place.split("/") if part] or ["/"] for place in places]
    for depth in range(1, max(map(len, parts)) + 1):
        found = ["/".join(names[-depth:]) for names in parts]
        if len(set(found)) == len(found):
            return found
    return list(places)


def read(place: str, label: str) -> RunData:
    """One workdir.

    Raises:
      UserError: there is no run, or the store refuses to be read.
    """
    try:
        return _read(Reader(place), label)
    except OSError as error:
        raise stores.read_error(place, error) from error


def _read(reader: Reader, label: str) -> RunData:
    text = reader.text(CONFIG)
    config = serialize.parse_bindings(text)
    found = _evaluations(reader)
    chosen = records.choose_evaluation(found, lambda record: evaluation_spec.is_asked_for(record, config))
    terms_name = (chosen or EVALUATION).removesuffix(".json") + ".npz"
    evaluation, terms = _with_terms(reader, found[chosen], terms_name) if chosen else (None, b"")
    loss = reader.record(f"{loss_curves.FOLDER}/loss.json")
    dataset, environment = reader.record(provenance.DATASET), reader.record(provenance.ENVIRONMENT)
    figures, parameters = _figures(reader), _parameters(reader, evaluation)
    rows, samples = _rows(reader), _samples(reader)
    if reader.unsealed:
        files = reader.unsealed[:3] + ["..."] * (len(reader.unsealed) > 3)
        reader.odd(f"{', '.join(files)}: {record_checksum.UNSEALED}, so that damage to them would not show.")
    strange = mismatch(reader.place, reader.files, text, reader.text)
    if strange is not None:
        reader.odd(strange)
    return RunData(
        place=reader.place,
        label=label,
        config=config,
        config_text=text,
        rows=rows,
        evaluation=evaluation,
        terms=terms,
        terms_name=terms_name,
        evaluations=len(found),
        figures=figures,
        loss=loss,
        samples=samples,
        checkpoint=_last_step(reader, r"checkpoints/(\d+)/META\.json"),
        parameters=parameters,
        dataset=dataset,
        starts=tuple(provenance.parse_starts(environment)),
        oddities=tuple(reader.oddities),
    )


def _evaluations(reader: Reader) -> dict[str, Record]:
    """Those of the latest step that was evaluated, by file, the newest first."""
    numbered = [(int(match[1]), name) for name in reader.files if (match := re.fullmatch(NUMBERED, name))]
    names = [name for _, name in sorted(numbered, reverse=True)] or [EVALUATION]
    read = {name: record for name in names if (record := reader.record(name, REQUIRED_KEYS)) is not None}
    latest = max((record["step"] for record in read.values()), default=None)
    return {name: record for name, record in read.items() if record["step"] == latest}


def _with_terms(reader: Reader, evaluation: Record, name: str) -> tuple[Record | None, bytes]:
    """The evaluation and the terms of its images, with a word on it where the two do not belong together.

    Then a record without a checksum is left out, for nothing tells which of both is damaged.
    """
    data = reader.data(name) or b""
    if data and finite_number(evaluation["bpd"]) is not None:
        try:
            records.terms_by_pass(data, evaluation, name)
        except OtherTermsError as error:
            reader.odd(f"{error}.")
            return (
                None if record_checksum.check_checksum(evaluation) is ChecksumState.MISSING else evaluation
            ), data
        except UserError as error:
            reader.odd(f"{error}.")
    return evaluation, data


def _rows(reader: Reader) -> tuple[Record, ...]:
    found: dict[int, Record] = {}  # what stands of a step, later lines over earlier ones
    *lines, torn = (reader.data(METRICS) or b"").split(b"\n")
    bad = 0
    for line in filter(None, lines):
        row = _row(line)
        if row is None:
            bad += 1
        else:
            found[row["step"]] = found.get(row["step"], {}) | row
    if torn:
        reader.odd(
            f"The last line of {METRICS} is torn, as a process killed while it wrote leaves it: left out."
        )
    if bad:
        reader.odd(f"{METRICS} has {bad} line(s) that are no rows: left out.")
    return tuple(found[step] for step in sorted(found))


def _row(line: bytes) -> Record | None:
    """The finite numbers of a line; None if it is no row."""
    try:
        said = json.loads(line)
        step = said["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if not isinstance(step, int) or not 0 <= step < LATEST:
        return None
    values = {str(key): finite_number(value) for key, value in said.items()}
    return {key: value for key, value in values.items() if value is not None} | {"step": step}


def _figures(reader: Reader) -> dict[str, FigureData]:
    names = (re.fullmatch(r"figures/(\w+)\.json", name) for name in sorted(reader.files))
    found = {match[1]: _figure(reader, match[1]) for match in names if match}
    return {name: filed for name, filed in found.items() if filed is not None}


def _figure(reader: Reader, name: str) -> FigureData | None:
    record = reader.record(f"figures/{name}.json", OF_FIGURES)
    if record is None:
        return None
    data = reader.data(f"figures/{name}.npz") if record["npz"] else b""
    if record["npz"] and hashlib.sha256(data or b"").hexdigest() != record["npz"]:
        return reader.odd(f"figures/{name}.npz is not what figures/{name}.json was written with: left out.")
    try:
        arrays = safe_npz.load(io.BytesIO(data), name, ARRAYS, MOST) if data else {}
    except UserError as error:
        return reader.odd(f"figures/{name}.npz is left out: {error}.")
    return FigureData(record, arrays)


def _samples(reader: Reader) -> tuple[str, int, bytes] | None:
    """Of the latest step; among those of one step, the last by name."""
    steps = ((re.match(r"samples/(\d+)[^/]*\.png$", name), name) for name in reader.files)
    found = max(((int(match[1]), name) for match, name in steps if match), default=None)
    return found and (PurePosixPath(found[1]).name, found[0], reader.data(found[1]) or b"")


def _last_step(reader: Reader, pattern: str) -> int | None:
    matches = (re.fullmatch(pattern, name) for name in reader.files)
    return max((int(match[1]) for match in matches if match), default=None)


def _parameters(reader: Reader, evaluation: Record | None) -> int | None:
    said = finite_number((evaluation or {}).get("num_params"))
    if said is not None or PARAMETERS not in reader.files:
        return None if said is None else int(said)
    total = re.search(r"^Total: (\d[\d,]{,30})(?![\d,])", reader.text(PARAMETERS), re.MULTILINE)
    return int(total[1].replace(",", "")) if total else reader.odd(f"{PARAMETERS} has no total: left out.")
