"""Runs that differ in no more than their seed, together."""

import dataclasses
import math
import os
from collections.abc import Sequence

import numpy as np

from diffenc.config import serialize
from diffenc.data.sources import require_same_images
from diffenc.errors import UserError
from diffenc.evaluation import records as evaluations
from diffenc.evaluation.records import COMPARABLE_KEYS, Record, finite_number
from diffenc.tools.report.run_data import RunData

SEED = "Experiment.seed"


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Runs of one config, each of its own seed.

    Attributes:
      refused: why their figures have no mean; None if they have.
    """

    name: str
    runs: tuple[RunData, ...]
    refused: str | None = None

    @property
    def evaluated(self) -> tuple[RunData, ...]:
        return tuple(run for run in self.runs if run.evaluation is not None)

    @property
    def records(self) -> tuple[Record, ...]:
        """What evaluation.json says of each run that was evaluated."""
        return tuple(run.evaluation for run in self.runs if run.evaluation is not None)

    @property
    def totals(self) -> dict[int, float]:
        """Bits/dim by seed; NaN where a run's figure is not finite."""
        return {
            place: math.nan if value is None else value
            for place, run in self.by_seed.items()
            for value in [finite_number((run.evaluation or {}).get("bpd"))]
        }

    @property
    def by_seed(self) -> dict[int, RunData]:
        return {_seed(run, place): run for place, run in enumerate(self.evaluated)}

    @property
    def mean(self) -> tuple[float, float] | None:
        """Mean and standard error over seeds of bits/dim; None of fewer than two."""
        values = np.array(list(self.totals.values()))
        if len(values) < 2 or self.refused:
            return None
        return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


def together(runs: Sequence[RunData]) -> list[Group]:
    """Groups in the order of their first runs."""
    by_config: dict[object, list[RunData]] = {}
    for run in runs:
        same = by_config.setdefault(_config(run), [])
        again = run.config and run.seed in {other.seed for other in same}
        (by_config.setdefault((run.place,), []) if again else same).append(run)
    labels = [run.label for run in runs]
    return [Group(_name(group, labels), tuple(group), _refused(group)) for group in by_config.values()]


def not_alike(one: Record, two: Record, keys: Sequence[str]) -> str | None:
    """Why two evaluations are not to be compared; None if they are."""
    try:
        require_same_images([one, two])
    except UserError as error:
        return str(error)
    differing = evaluations.list_differences(one, two, keys)
    return f"they were measured differently: {', '.join(differing)}" if differing else None


def _config(run: RunData) -> object:
    """All that is trained, but for the seed."""
    kept = (
        (key, value)
        for key, value in run.config.items()
        if key != SEED and not serialize.is_free_to_change(key)
    )
    return tuple(sorted(kept)) or run.place


def _seed(run: RunData, place: int) -> int:
    return int(run.seed) if run.seed.isdecimal() and len(run.seed) < 100 else -1 - place


def _name(runs: Sequence[RunData], labels: Sequence[str]) -> str:
    """Of one run its label; of more the folder that holds these of the page's runs and no other."""
    if len(runs) == 1:
        return runs[0].label
    parent = os.path.dirname(runs[0].label)
    inside = {label for label in labels if label == parent or os.path.dirname(label) == parent}
    if parent and inside == {run.label for run in runs}:
        return parent
    return f"{runs[0].label} and {len(runs) - 1} more"


def _refused(runs: Sequence[RunData]) -> str | None:
    records = [run.evaluation for run in runs if run.evaluation is not None]
    reasons = (not_alike(records[0], other, COMPARABLE_KEYS) for other in records[1:])
    return next((reason for reason in reasons if reason), None)
