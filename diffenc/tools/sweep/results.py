"""Results of one variant over its seeds: mean ± standard error of bits/dim and of each of its terms."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import ROUND_CEILING, Context, Decimal
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Float

from diffenc.data.sources import describe_images, require_same_images
from diffenc.errors import UserError
from diffenc.evaluation import saved_records as evaluation_records
from diffenc.evaluation.evaluation_record import describe_path
from diffenc.evaluation.image_error import PassValues
from diffenc.evaluation.saved_records import (
    COMPARABLE_KEYS,
    COMPONENTS,
    REQUIRED_KEYS,
    ChecksumMismatchError,
    RequiredKeys,
)
from diffenc.evaluation.uncertainty_format import MISSING, Figure, round_to_error
from diffenc.files import record_checksum
from diffenc.files.record_checksum import ChecksumState
from diffenc.tools.sweep.sheets import Sheet

Record = Mapping[str, Any]
# Keys of an evaluation record that a row of a table needs.
NEEDED_FOR_ROW: RequiredKeys = {
    **REQUIRED_KEYS,
    **dict.fromkeys(COMPONENTS.values(), (int, float, NoneType)),
    **{"num_params": (int,), "precision": (str,)},
}


@dataclasses.dataclass(frozen=True)
class VariantResults:
    """The evaluated runs of one variant.

    Attributes:
      workdirs: workdirs of the runs, by seed.
      records: contents of evaluation.json, by seed.
    """

    name: str
    workdirs: Mapping[int, Path]
    records: Mapping[int, Record]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self.records)

    def values(self, component: str) -> Float[np.ndarray, " seeds"]:
        """Returns bits/dim by seed; NaN where it is recorded as not finite."""
        recorded = (record[COMPONENTS[component]] for record in self.records.values())
        return np.array([math.nan if value is None else value for value in recorded], np.float64)

    def mean(self, component: str) -> Figure:
        """Returns mean ± standard error over seeds."""
        return mean_and_standard_error(self.values(component))

    def terms(self, seed: int) -> dict[str, PassValues]:
        """Returns bits/dim of each image in each pass, by component.

        Raises:
          UserError: evaluation.npz does not belong to evaluation.json.
        """
        path = self.workdirs[seed] / "evaluation.npz"
        data = path.read_bytes() if path.is_file() else b""
        return evaluation_records.terms_by_pass(data, self.records[seed], path)

    def select(self, seeds: Sequence[int]) -> "VariantResults":
        """Returns the results of some of the seeds."""
        workdirs = {seed: self.workdirs[seed] for seed in seeds}
        return VariantResults(self.name, workdirs, {seed: self.records[seed] for seed in seeds})


def read_results(name: str, workdirs: Mapping[int, Path], record_name: str = "evaluation") -> VariantResults:
    """Reads the evaluations WORKDIR/RECORD_NAME.json of `workdirs`, given by seed; workdirs without one are left out."""
    records = {
        seed: record
        for seed in sorted(workdirs)
        if (record := read_record(workdirs[seed], record_name, NEEDED_FOR_ROW)) is not None
    }
    return VariantResults(name, {seed: workdirs[seed] for seed in records}, records)


def read_record(
    workdir: Path, name: str = "evaluation", needed: RequiredKeys = REQUIRED_KEYS
) -> dict[str, Any] | None:
    """Reads WORKDIR/NAME.json; None if it is absent, or, with a warning, if it does not match its checksum.

    Raises:
      UserError: it is not valid JSON, or lacks `needed` keys.
    """
    path = workdir / f"{name}.json"
    if not path.exists():
        return None
    try:
        record = evaluation_records.parse_record(path.read_bytes(), path)
    except ChecksumMismatchError as error:
        _warn_once(str(error))
        return None
    fault = evaluation_records.find_fault(record, needed)
    if fault:
        raise UserError(f"{path} {fault}; delete it, and evaluate the run again")
    return record


@functools.cache
def _warn_once(message: str) -> None:
    logging.warning("%s", message)


def checksum_note(records: Sequence[Record]) -> tuple[str, ...]:
    """Returns a line with the number of records without checksum; none if all have one."""
    count = sum(record_checksum.check_checksum(record) is ChecksumState.MISSING for record in records)
    return (f"records {record_checksum.UNSEALED}: {count} of {len(records)}",) if count else ()


def mean_and_standard_error(values: Float[np.ndarray, " n"]) -> Figure:
    """Returns the mean of one or more values, with its standard error if there are two or more."""
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return round_to_error(float(values.mean()), error)


def require_comparable(variants: Iterable[VariantResults], keys: Sequence[str] = COMPARABLE_KEYS) -> None:
    """Requires that all evaluations are of the same images, and agree in `keys`, their settings.

    Raises:
      UserError: they differ; the message names the differences.
    """
    evaluated = list(_workdirs_and_records(variants))
    require_same_images(record for _, record in evaluated)
    require_same_metadata(evaluated, keys)


def require_same_metadata(evaluated: Sequence[tuple[Path, Record]], keys: Sequence[str]) -> None:
    """Requires that records, each given with its workdir, agree in all `keys`.

    Raises:
      UserError: they differ; the message names two workdirs and the differences.
    """
    for other, two in evaluated[1:]:
        first, one = evaluated[0]
        differing = evaluation_records.list_differences(one, two, keys)
        if differing:
            raise UserError(
                f"{first} and {other} cannot be compared: {', '.join(differing)}; evaluate both with the same settings"
            )


def _workdirs_and_records(variants: Iterable[VariantResults]) -> Iterator[tuple[Path, Record]]:
    for variant in variants:
        for seed in variant.seeds:
            yield variant.workdirs[seed], variant.records[seed]


def describe_evaluations(variants: Sequence[VariantResults]) -> tuple[str, ...]:
    """Returns lines on the images, the measurement and the length of training; for comparable records."""
    records = [record for _, record in _workdirs_and_records(variants)]
    if not records:
        return ("nothing has been evaluated yet",)
    first = records[0]
    chain = "".join(f", {key} {first[key]}" for key in ("times", "variance") if key in first)
    return (
        *checksum_note(records),
        f"images: {first['num_images']:,} of {describe_evaluated_images(first)}",
        f"trained for {' or '.join(f'{step:,}' for step in sorted({record['step'] for record in records}))} steps",
        f"measured: -ELBO in bits/dim, T {first['T']}{chain}{describe_path(first)}, {first['passes']} pass(es), {first['precision']}",
        f"± is the standard error over seeds; Monte Carlo, shared by the runs: {_monte_carlo_error(records)}",
    )


def describe_evaluated_images(record: Record) -> str:
    """Returns a description of a record's images, without their number."""
    source = f" ({record['source']})" if record.get("source") else ""
    return f"{describe_images(record)}{source}, pixels {record['fingerprint'][:16]}"


def _monte_carlo_error(records: Sequence[Record]) -> str:
    errors = [record["bpd_mc_se"] for record in records if record.get("bpd_mc_se") is not None]
    return f"at most {_round_up(max(errors))} in a run's total" if errors else "unknown, as there is one pass"


def _round_up(value: float) -> Decimal:
    """Rounds `value` up to two significant digits, so that an upper bound remains one."""
    return Context(prec=2, rounding=ROUND_CEILING).create_decimal(repr(float(value)))


def results_sheet(variants: Sequence[VariantResults], title: str = "Bits/dim") -> Sheet:
    """Returns a sheet with a row for each variant: its components, number of seeds and number of parameters."""
    rows = tuple((variant.name, *result_cells(variant)) for variant in variants)
    return Sheet("table", title, ("variant", *COMPONENTS, "seeds", "parameters"), rows)


def result_cells(variant: VariantResults) -> tuple[Figure | int | str, ...]:
    """Returns the components, the number of seeds and the number of parameters."""
    if not variant.seeds:
        return (*[MISSING] * len(COMPONENTS), 0, MISSING)
    (params,) = {record["num_params"] for record in variant.records.values()}
    return (*map(variant.mean, COMPONENTS), len(variant.seeds), params)
