"""Groups of runs whose configs differ only in the seed."""

import dataclasses
import hashlib
import math
import os
from collections.abc import Sequence

import numpy as np

from diffenc.config import serialize
from diffenc.data.sources import require_same_images
from diffenc.errors import UserError
from diffenc.evaluation import saved_records as evaluations
from diffenc.evaluation.saved_records import COMPARABLE_KEYS, Record, finite_number
from diffenc.tools.report.run_data import RunData

SEED = "Experiment.seed"


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Runs with the same config and different seeds.

    Attributes:
      refusal: the reason why their bits/dim have no mean; None if they have one.
    """

    name: str
    runs: tuple[RunData, ...]
    refusal: str | None = None

    @property
    def evaluated(self) -> tuple[RunData, ...]:
        return tuple(run for run in self.runs if run.evaluation is not None)

    @property
    def records(self) -> tuple[Record, ...]:
        """The evaluation record of each evaluated run."""
        return tuple(run.evaluation for run in self.runs if run.evaluation is not None)

    @property
    def totals(self) -> dict[int, float]:
        """Bits/dim by seed; NaN where it is not finite."""
        return {
            seed: math.nan if value is None else value
            for seed, run in self.by_seed.items()
            for value in [finite_number((run.evaluation or {}).get("bpd"))]
        }

    @property
    def by_seed(self) -> dict[int, RunData]:
        return {_seed_or_number(run): run for run in self.evaluated}

    @property
    def mean(self) -> tuple[float, float] | None:
        """Mean and standard error of bits/dim over seeds; None for fewer than two."""
        values = np.array(list(self.totals.values()))
        if len(values) < 2 or self.refusal:
            return None
        return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


def group_by_config(runs: Sequence[RunData]) -> list[Group]:
    """Returns the groups in the order of their first runs."""
    by_config: dict[object, list[RunData]] = {}
    for run in runs:
        group = by_config.setdefault(_config_key(run), [])
        # A second run of the same config and seed is not another sample over seeds: it becomes a group of its own.
        is_repeated = run.config and run.seed in {other.seed for other in group}
        (by_config.setdefault((run.workdir,), []) if is_repeated else group).append(run)
    labels = [run.label for run in runs]
    return [
        Group(_group_name(group, labels), tuple(group), _find_refusal(group)) for group in by_config.values()
    ]


def find_incompatibility(one: Record, two: Record, keys: Sequence[str]) -> str | None:
    """Returns the reason why two evaluations cannot be compared; None if they can."""
    try:
        require_same_images([one, two])
    except UserError as error:
        return str(error)
    differing = evaluations.list_differences(one, two, keys)
    return f"they were evaluated differently: {', '.join(differing)}" if differing else None


def _config_key(run: RunData) -> object:
    """Returns the bindings that training depends on, without the seed."""
    kept = serialize.fixed_bindings(run.config)
    kept.pop(SEED, None)
    return tuple(sorted(kept.items())) or run.workdir


def _seed_or_number(run: RunData) -> int:
    """Returns the run's seed, or a negative number that no other run of the page has, if the seed is unknown."""
    if run.seed.isdecimal() and len(run.seed) < 100:
        return int(run.seed)
    return -1 - int.from_bytes(hashlib.sha256(run.label.encode()).digest())


def _group_name(runs: Sequence[RunData], labels: Sequence[str]) -> str:
    """Returns the label of a single run; for more, the folder that contains exactly these of the page's runs."""
    if len(runs) == 1:
        return runs[0].label
    parent = os.path.dirname(runs[0].label)
    inside = {label for label in labels if label == parent or os.path.dirname(label) == parent}
    if parent and inside == {run.label for run in runs}:
        return parent
    return f"{runs[0].label} and {len(runs) - 1} more"


def _find_refusal(runs: Sequence[RunData]) -> str | None:
    records = [run.evaluation for run in runs if run.evaluation is not None]
    reasons = (find_incompatibility(records[0], other, COMPARABLE_KEYS) for other in records[1:])
    return next((reason for reason in reasons if reason), None)
