"""Reading evaluation.json and the per-image terms in evaluation.npz, and deciding which evaluations are comparable."""

import dataclasses
import hashlib
import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
from jaxtyping import Float

from diffenc.config.settings import ResolvedEvaluate
from diffenc.core.rng import USUAL
from diffenc.core.stochasticity import MARKOV
from diffenc.errors import UserError
from diffenc.evaluation.evaluated_bound import bound_metadata
from diffenc.evaluation.evaluation_record import TERMS, TIMES, TRAINED_AT
from diffenc.evaluation.image_error import PassValues
from diffenc.files import record_checksum
from diffenc.registry import stochasticities, time_samplers
from diffenc.runtime.matmul_precision import products_of_float32
from diffenc.safe_io import safe_npz
from diffenc.workdir.fitted_chains import MEASURED_PATH
from diffenc.workdir.measurements import NPZ

COMPONENTS = {"total": "bpd", "latent": "bpd_latent", "diffusion": "bpd_diffusion", "reconstruction": "bpd_reconstruction"}  # fmt: skip
# Evaluations that differ in one of these are not comparable in one table.
COMPARABLE_KEYS = (
    *("split", "T", "times", "variance", "time_sampler", "times_per_image", "passes", "batch_size", "seed"),
    *("stratified", "precision", "matmul_precision", "prng", "step", MEASURED_PATH),
)

# Required keys of a record, with their types.
RequiredKeys = Mapping[str, tuple[type, ...]]
REQUIRED_KEYS: RequiredKeys = {
    **{"dataset": (str,), "split": (str,), "num_images": (int,), "fingerprint": (str,), "T": (int, str)},
    **{"passes": (int,), "step": (int,), "bpd": (int, float, NoneType)},
}

MAX_BYTES = 1 << 30  # limit of the unpacked terms, as protection against archive bombs

Record = Mapping[str, Any]


EVALUATE_AGAIN = "evaluate the run again"
MISMATCH = f"is of another evaluation than its .json; {EVALUATE_AGAIN}"


class ChecksumMismatchError(UserError):
    """The content of a record does not match its checksum."""


class MismatchedTermsError(UserError):
    """Terms of images do not belong to their record."""


def parse_record(data: bytes, name: Path | str, again: str = EVALUATE_AGAIN) -> dict[str, Any]:
    """Parses a record and verifies its checksum, if it has one.

    Args:
      name: of the file, for messages.
      again: advice how to make a new record, for messages.

    Raises:
      ChecksumMismatchError: the content does not match its checksum.
      UserError: the content is not a JSON object.
    """
    try:
        found = json.loads(data.decode())
        if not isinstance(found, dict):
            raise ValueError("not an object")
    # RecursionError: records are untrusted, and deeply nested JSON exceeds the parser's recursion limit.
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: is not valid JSON ({error}); delete it, and {again}") from None
    if record_checksum.is_broken(found):
        raise ChecksumMismatchError(f"{name}: {record_checksum.BROKEN}; its numbers are ignored: {again}")
    if "proposal" in found:  # the name in earlier versions
        found.setdefault("time_sampler", found["proposal"])
    return with_upper_bounds(found)


def with_upper_bounds(record: dict[str, Any]) -> dict[str, Any]:
    """Returns a record in which `KEY_se` is an error over images, or None.

    Earlier versions stored the plain spread of per-image means there, which includes Monte-Carlo noise and so is an
    upper bound; it becomes `KEY_se_upper`.
    """
    errors = [f"{key}_se" for key in record if key.startswith("bpd") and f"{key}_se" in record]
    # Current versions write the uncertainty beside each error: its absence marks a plain spread.
    spreads = [key for key in errors if f"{key}_uncertainty" not in record]
    return record | {f"{key}_upper": record[key] for key in spreads} | dict.fromkeys(spreads)


def find_fault(record: Record, needed: RequiredKeys = REQUIRED_KEYS) -> str | None:
    """Returns `lacks KEYS` for missing keys, else `has KEY VALUE` for those of a wrong type; None if there are none."""
    missing = [key for key in needed if key not in record]
    if missing:
        return f"lacks {', '.join(missing)}"
    # type, not isinstance: JSON's true would pass as an integer.
    wrong = [f"{key} {record[key]!r:.40}" for key, types in needed.items() if type(record[key]) not in types]
    return f"has {', '.join(wrong)}" if wrong else None


def finite_number(value: Any) -> float | None:
    """Returns `value` as a float if it is a finite number, else None."""
    try:
        # Records are untrusted: JSON allows NaN, huge integers, and true where a number is wanted.
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:  # an integer beyond the range of float
        return None
    return number if math.isfinite(number) else None


def has_num_images(record: Record, num_images: int | None) -> bool:
    """Returns whether a record is of `num_images` of its split, or of all images if None or more than there are."""
    whole = record.get("split_images")
    return record["num_images"] == (whole if num_images is None else min(num_images, whole or num_images))


@dataclasses.dataclass(frozen=True)
class EvaluationSpec:
    """Selects the evaluation that represents a run.

    Attributes:
      split: name of the split.
      bound: T, in discrete time also times and variance, and the time sampler, as records spell them.
      num_images: None = all of the split.
      seed: of the choice of images where they are not all.
      measured_path: the path, as records spell it; None = that of training.
    """

    split: Any
    bound: Mapping[str, Any]
    num_images: Any = None
    seed: Any = 0
    measured_path: Any = None


def evaluation_spec(settings: ResolvedEvaluate) -> EvaluationSpec:
    """Returns the spec of the evaluation that the settings describe."""
    bound = {**bound_metadata(settings), "time_sampler": time_samplers.spell(settings.time_sampler)}
    path = None if settings.stochasticity is None else stochasticities.spell(settings.stochasticity)
    return EvaluationSpec(settings.split, bound, settings.num_images, settings.seed, path)


def matches_spec(record: Record, wanted: EvaluationSpec) -> bool:
    """Returns whether a record has the split, bound and images of `wanted`; missing keys count as equal."""
    return (
        record["split"] == wanted.split
        and _selector_tokens(record.get(MEASURED_PATH)) == _selector_tokens(wanted.measured_path)
        and all(
            _selector_tokens(value) == _selector_tokens(record.get(key, value))
            for key, value in wanted.bound.items()
        )
        and _has_images(record, wanted)
    )


def choose_evaluation(records: Mapping[str, Record], wanted: Callable[[Record], bool]) -> str | None:
    """Returns the name of the evaluation that represents a run in a model card or a report.

    This is the newest evaluation for which `wanted` is true (such as the one that the config describes), else the newest; None
    if there are no records.

    Args:
      records: of one config and step, by name, the newest first.
    """
    return next((name for name, record in records.items() if wanted(record)), next(iter(records), None))


def _has_images(record: Record, wanted: EvaluationSpec) -> bool:
    count, whole = wanted.num_images, finite_number(record.get("split_images"))
    # All images of the split, however they are asked for: the seed then chooses nothing.
    if count is None or (isinstance(count, int) and whole is not None and count >= whole):
        return record["num_images"] == (record["num_images"] if whole is None else whole)
    return record["num_images"] == count and record.get("seed", wanted.seed) == wanted.seed


def _selector_tokens(spelling: Any) -> Sequence[str]:
    """Returns the name and the fields of a spelled plugin, sorted, so that the order of fields does not matter."""
    return sorted(re.findall(r"[^(), ]+", str(spelling)))


def list_differences(one: Record, two: Record, keys: Sequence[str]) -> list[str]:
    """Returns `KEY ONE and TWO` for each of `keys` in which two records differ."""
    values = ((key, stored_value(one, key), stored_value(two, key)) for key in keys)
    return [f"{key} {first} and {second}" for key, first, second in values if first != second]


def stored_value(record: Record, key: str) -> Any:
    """Returns `record[key]` as current versions record it; None if it is missing.

    Earlier versions stored JAX's own setting as `matmul_precision`, which depends on the device, and no `prng`,
    since they drew by JAX's defaults. A record without the T of training is of a model trained in
    continuous time, one without a path of a model on the paper's path.
    """
    value, device = record.get(key), record.get("device")
    if key == "prng" and value is None:
        return USUAL
    if key == TRAINED_AT and value is None:
        return "continuous"
    if key == "stochasticity" and value is None:
        return stochasticities.spell(MARKOV)
    if key == "matmul_precision" and value == "default" and record.get("precision") == "float64":
        return "float64"
    if key == "matmul_precision" and isinstance(value, str) and isinstance(device, str):
        return products_of_float32(value, device)
    return value


def terms_by_pass(data: bytes, record: Record, name: Path | str) -> dict[str, PassValues]:
    """Returns bits/dim of each image in each pass, by component.

    Earlier versions stratified times over batches and stored none. Their passes do not separate the error over images
    from Monte-Carlo noise, so only the mean over passes is returned, as one pass.

    Args:
      data: content of evaluation.npz.
      record: parsed evaluation.json.
      name: of the file, for messages.

    Raises:
      MismatchedTermsError: the terms do not belong to `record`.
      UserError: `data` cannot be read.
    """
    try:
        # Records may come from others: only the named arrays, of plain numbers, and no pickles.
        arrays = safe_npz.load(io.BytesIO(data), str(name), (*TERMS, TIMES), MAX_BYTES)
        nats = {term: arrays[term].astype(np.float64) for term in TERMS}
        nats["total"] = np.sum(list(nats.values()), axis=0)
        times = arrays.get(TIMES)
        if nats["total"].ndim != 2 or (times is not None and times.shape[:-1] != nats["total"].shape):
            raise ValueError("shape is not [passes, images]")
    except (UserError, KeyError, ValueError) as error:
        raise UserError(f"{name}: cannot be read ({error}); {EVALUATE_AGAIN}") from None
    per_bit = nats_per_bit(nats["total"].mean(axis=0), record, name)
    if times is None:
        nats = {key: values.mean(axis=0, keepdims=True) for key, values in nats.items()}
    bits = {component: PassValues(nats[component] / per_bit, times) for component in COMPONENTS}
    # None: records of versions that did not store the digest.
    same_file = record.get(NPZ) in (None, hashlib.sha256(data).hexdigest())
    if not same_file or not all(_agree(bits[one].mean, record.get(key)) for one, key in COMPONENTS.items()):
        raise MismatchedTermsError(f"{name}: {MISMATCH}")
    return bits


def _agree(bits: float, recorded: Any) -> bool:
    """Returns whether a mean equals the recorded one to the digits of float32, or none is recorded."""
    number = finite_number(recorded)
    return number is None or math.isclose(bits, number, rel_tol=1e-6, abs_tol=1e-9)


def nats_per_bit(nats: Float[np.ndarray, " images"], record: Record, name: Path | str) -> float:
    """Returns d ln 2, where d, the number of dimensions, is the ratio of `nats` to recorded bits/dim.

    Raises:
      MismatchedTermsError: d is not an integer, so `nats` and `record` do not belong together.
      UserError: there are not as many finite `nats` as recorded images.
    """
    if record["bpd"] is None or len(nats) != record["num_images"] or not np.isfinite(nats).all():
        raise UserError(f"{name}: holds no finite terms of {record['num_images']} images; evaluate again")
    # d follows from the two files: an integer confirms
    # that they belong together.
    dims = float(nats.mean()) / (record["bpd"] * math.log(2) or math.nan)
    if not (math.isfinite(dims) and dims > 0) or abs(dims - round(dims)) > 1e-6 * dims:
        raise MismatchedTermsError(f"{name}: {MISMATCH}")
    return round(dims) * math.log(2)
