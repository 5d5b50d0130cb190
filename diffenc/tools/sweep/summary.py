"""What the seeds of one variant came to: mean ± standard error over them of bits/dim and each of its terms."""

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
from diffenc.evaluation import records as evaluations
from diffenc.evaluation.image_error import PassValues
from diffenc.evaluation.records import (
    COMPARABLE_KEYS,
    COMPONENTS,
    REQUIRED_KEYS,
    BrokenSealError,
    RequiredKeys,
)
from diffenc.evaluation.uncertainty_format import MISSING, Figure, round_to_error
from diffenc.files import record_checksum
from diffenc.files.record_checksum import ChecksumState
from diffenc.tools.sweep.formatting import Sheet

Record = Mapping[str, Any]
# What a row of a table is made of.
ROW: RequiredKeys = {
    **REQUIRED_KEYS,
    **dict.fromkeys(COMPONENTS.values(), (int, float, NoneType)),
    **{"num_params": (int,), "precision": (str,)},
}


@dataclasses.dataclass(frozen=True)
class Summary:
    """The runs of one variant that have been evaluated.

    Attributes:
      workdirs: by seed.
      records: by seed, what evaluation.json says.
    """

    name: str
    workdirs: Mapping[int, Path]
    records: Mapping[int, Record]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self.records)

    def values(self, component: str) -> Float[np.ndarray, " seeds"]:
        """Bits/dim by seed; NaN where the run's figure is not finite."""
        found = (record[COMPONENTS[component]] for record in self.records.values())
        return np.array([math.nan if value is None else value for value in found], np.float64)

    def figure(self, component: str) -> Figure:
        """Mean ± standard error over seeds."""
        return mean_and_error(self.values(component))

    def terms(self, seed: int) -> dict[str, PassValues]:
        """Bits/dim of each image in each pass, by component.

        Raises:
          UserError: evaluation.npz is not that of evaluation.json.
        """
        path = self.workdirs[seed] / "evaluation.npz"
        data = path.read_bytes() if path.is_file() else b""
        return evaluations.terms_by_pass(data, self.records[seed], path)

    def of(self, seeds: Sequence[int]) -> "Summary":
        """The same of some of the seeds."""
        workdirs = {seed: self.workdirs[seed] for seed in seeds}
        return Summary(self.name, workdirs, {seed: self.records[seed] for seed in seeds})


def summarise(name: str, workdirs: Mapping[int, Path]) -> Summary:
    """Of `workdirs`, which are by seed, those that hold an evaluation."""
    found = {
        seed: record for seed in sorted(workdirs) if (record := read(workdirs[seed], needed=ROW)) is not None
    }
    return Summary(name, {seed: workdirs[seed] for seed in found}, found)


def read(
    workdir: Path, name: str = "evaluation", needed: RequiredKeys = REQUIRED_KEYS
) -> dict[str, Any] | None:
    """What WORKDIR/NAME.json says; None if it is not there, or with a warning if its content does not match its checksum.

    Raises:
      UserError: it is no JSON, or lacks what is needed.
    """
    path = workdir / f"{name}.json"
    if not path.exists():
        return None
    try:
        found = evaluations.parse_record(path.read_bytes(), path)
    except BrokenSealError as error:
        _warn_once(str(error))
        return None
    fault = evaluations.find_fault(found, needed)
    if fault:
        raise UserError(f"{path} {fault}; delete it, and evaluate the run again")
    return found


@functools.cache
def _warn_once(message: str) -> None:
    logging.warning("%s", message)


def unsealed(records: Sequence[Record]) -> tuple[str, ...]:
    """A line that says how many records have no checksum, if any."""
    count = sum(record_checksum.check_checksum(record) is ChecksumState.MISSING for record in records)
    return (f"records {record_checksum.UNSEALED}: {count} of {len(records)}",) if count else ()


def mean_and_error(values: Float[np.ndarray, " n"]) -> Figure:
    """The mean of at least one value and, from two on, its standard error."""
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return round_to_error(float(values.mean()), error)


def require_alike(summaries: Iterable[Summary]) -> None:
    """Refuse figures of different images, or measured in different ways, in one table.

    Raises:
      UserError: names what differs.
    """
    found = list(_each(summaries))
    require_same_images(record for _, record in found)
    require_same(found, COMPARABLE_KEYS)


def require_same(found: Sequence[tuple[Path, Record]], keys: Sequence[str]) -> None:
    """Refuse records, each with its workdir, that differ in one of `keys`.

    Raises:
      UserError: names two workdirs and what differs.
    """
    for other, two in found[1:]:
        first, one = found[0]
        differing = evaluations.list_differences(one, two, keys)
        if differing:
            raise UserError(
                f"{first} and {other} are not to be compared: {', '.join(differing)}; measure both alike"
            )


def _each(summaries: Iterable[Summary]) -> Iterator[tuple[Path, Record]]:
    for summary in summaries:
        for seed in summary.seeds:
            yield summary.workdirs[seed], summary.records[seed]


def facts(summaries: Sequence[Summary]) -> tuple[str, ...]:
    """Lines that say which images, how measured and how long trained; for records that are alike."""
    records = [record for _, record in _each(summaries)]
    if not records:
        return ("nothing has been evaluated yet",)
    first = records[0]
    chain = "".join(f", {key} {first[key]}" for key in ("times", "variance") if key in first)
    return (
        *unsealed(records),
        f"images: {first['num_images']:,} of {images(first)}",
        f"trained for {first['step']:,} steps",
        f"measured: -ELBO in bits/dim, T {first['T']}{chain}, {first['passes']} pass(es), {first['precision']}",
        f"± is the standard error over seeds; Monte Carlo, which the runs share: {_monte_carlo(records)}",
    )


def images(record: Record) -> str:
    """Which images a record is of, without their number."""
    source = f" ({record['source']})" if record.get("source") else ""
    return f"{describe_images(record)}{source}, pixels {record['fingerprint'][:16]}"


def _monte_carlo(records: Sequence[Record]) -> str:
    errors = [record["bpd_mc_se"] for record in records if record.get("bpd_mc_se") is not None]
    return f"at most {_not_below(max(errors))} in a run's total" if errors else "not known from one pass"


def _not_below(value: float) -> Decimal:
    """`value` to two digits, rounded up: what is at most `value` is at most this."""
    return Context(prec=2, rounding=ROUND_CEILING).create_decimal(repr(float(value)))


def sheet(summaries: Sequence[Summary], title: str = "Bits/dim") -> Sheet:
    """A row for each variant: the components, the number of seeds, and of parameters."""
    rows = tuple((summary.name, *cells(summary)) for summary in summaries)
    return Sheet("table", title, ("variant", *COMPONENTS, "seeds", "parameters"), rows)


def cells(summary: Summary) -> tuple[Figure | int | str, ...]:
    """The components, the number of seeds, and of parameters."""
    if not summary.seeds:
        return (*[MISSING] * len(COMPONENTS), 0, MISSING)
    (params,) = {record["num_params"] for record in summary.records.values()}
    return (*map(summary.figure, COMPONENTS), len(summary.seeds), params)
