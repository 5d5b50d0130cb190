"""Evaluations read again: what evaluation.json says, and evaluation.npz of each image; and which may be compared."""

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
from diffenc.errors import UserError
from diffenc.evaluation.evaluated_bound import bound_metadata
from diffenc.evaluation.evaluation_record import TERMS, TIMES, TRAINED_AT
from diffenc.evaluation.image_error import PassValues
from diffenc.files import record_checksum
from diffenc.registry import time_samplers
from diffenc.runtime.matmul_precision import products_of_float32
from diffenc.safe_io import safe_npz
from diffenc.workdir.measurements import NPZ

COMPONENTS = {"total": "bpd", "latent": "bpd_latent", "diffusion": "bpd_diffusion", "reconstruction": "bpd_reconstruction"}  # fmt: skip
# Figures that differ in one of these do not belong into one table.
COMPARABLE_KEYS = (
    *("split", "T", "times", "variance", "time_sampler", "times_per_image", "passes", "batch_size", "seed"),
    *("stratified", "precision", "matmul_precision", "prng", "step"),
)

# What a record must have, and of which types.
RequiredKeys = Mapping[str, tuple[type, ...]]
REQUIRED_KEYS: RequiredKeys = {
    **{"dataset": (str,), "split": (str,), "num_images": (int,), "fingerprint": (str,), "T": (int, str)},
    **{"passes": (int,), "step": (int,), "bpd": (int, float, NoneType)},
}

MAX_BYTES = 1 << 30  # bytes of the terms of all images

Record = Mapping[str, Any]


EVALUATE_AGAIN = "evaluate the run again"
MISMATCH = f"is of another evaluation than the .json beside it; {EVALUATE_AGAIN}"


class BrokenSealError(UserError):
    """A record whose content does not match its checksum."""


class OtherTermsError(UserError):
    """Terms of images that are not those of the record beside them."""


def parse_record(data: bytes, name: Path | str, again: str = EVALUATE_AGAIN) -> dict[str, Any]:
    """Returns a record from its JSON, with its checksum, if it has one.

    Args:
      name: the file, for messages.
      again: how to make a new record, for messages.

    Raises:
      BrokenSealError: its content does not match its checksum.
      UserError: it is no JSON object.
    """
    try:
        found = json.loads(data.decode())
        if not isinstance(found, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: is no JSON ({error}); delete it, and {again}") from None
    if record_checksum.is_broken(found):
        raise BrokenSealError(f"{name}: {record_checksum.BROKEN}; its figures are left out: {again}")
    if "proposal" in found:  # how earlier versions called it
        found.setdefault("time_sampler", found["proposal"])
    return with_upper_bounds(found)


def with_upper_bounds(record: dict[str, Any]) -> dict[str, Any]:
    """Returns a record in which `KEY_se` is an error over images.

    Earlier versions wrote the plain spread of per-image means there, Monte-Carlo noise included: an upper bound.
    """
    errors = [f"{key}_se" for key in record if key.startswith("bpd") and f"{key}_se" in record]
    spreads = [key for key in errors if f"{key}_uncertainty" not in record]
    return record | {f"{key}_upper": record[key] for key in spreads} | dict.fromkeys(spreads)


def find_fault(record: Record, needed: RequiredKeys = REQUIRED_KEYS) -> str | None:
    """`lacks KEY` or `has KEY VALUE`, of what `record` has not, or has of another type; None if it is whole."""
    lacking = [key for key in needed if key not in record]
    if lacking:
        return f"lacks {', '.join(lacking)}"
    wrong = [f"{key} {record[key]!r:.40}" for key, types in needed.items() if type(record[key]) not in types]
    return f"has {', '.join(wrong)}" if wrong else None


def finite_number(value: Any) -> float | None:
    """`value`, if it is a finite number."""
    try:
        found = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def has_num_images(record: Record, num_images: int | None) -> bool:
    """Whether a record is of `num_images` of its split, or of all there are."""
    whole = record.get("split_images")
    return record["num_images"] == (whole if num_images is None else min(num_images, whole or num_images))


@dataclasses.dataclass(frozen=True)
class EvaluationSpec:
    """Which evaluation states the figure of a run.

    Attributes:
      split: the split's name.
      bound: T, and for a chain of steps its times and variance; and the time sampler; as records spell them.
      num_images: None = all of the split.
      seed: draws the images where they are not all.
    """

    split: Any
    bound: Mapping[str, Any]
    num_images: Any = None
    seed: Any = 0


def evaluation_spec(settings: ResolvedEvaluate) -> EvaluationSpec:
    """Returns the evaluation that the settings ask for."""
    bound = {**bound_metadata(settings), "time_sampler": time_samplers.spell(settings.time_sampler)}
    return EvaluationSpec(settings.split, bound, settings.num_images, settings.seed)


def matches_spec(record: Record, wanted: EvaluationSpec) -> bool:
    """Whether a record is of the split, bound and images that are wanted; what it does not state is taken to agree."""
    return (
        record["split"] == wanted.split
        and all(_words(value) == _words(record.get(key, value)) for key, value in wanted.bound.items())
        and _of_images(record, wanted)
    )


def choose_evaluation(records: Mapping[str, Record], wanted: Callable[[Record], bool]) -> str | None:
    """Returns the name of the evaluation that states a run's figure: in a model card, in a report.

    It is the newest that is `wanted`, which is the one that the config asks for; else the newest; None if there is none.

    Args:
      records: of one config and step, by name, the newest first.
    """
    return next((name for name, record in records.items() if wanted(record)), next(iter(records), None))


def _of_images(record: Record, wanted: EvaluationSpec) -> bool:
    count, whole = wanted.num_images, finite_number(record.get("split_images"))
    if count is None or (isinstance(count, int) and whole is not None and count >= whole):
        return record["num_images"] == (record["num_images"] if whole is None else whole)
    return record["num_images"] == count and record.get("seed", wanted.seed) == wanted.seed


def _words(spelt: Any) -> Sequence[str]:
    """The name of a plugin and its fields, in any order."""
    return sorted(re.findall(r"[^(), ]+", str(spelt)))


def list_differences(one: Record, two: Record, keys: Sequence[str]) -> list[str]:
    """`KEY ONE and TWO` for each of `keys` that two records differ in."""
    told = ((key, stored_value(one, key), stored_value(two, key)) for key in keys)
    return [f"{key} {first} and {second}" for key, first, second in told if first != second]


def stored_value(record: Record, key: str) -> Any:
    """`record[key]` as it is recorded now; None if it is not there.

    Records used to hold JAX's setting as `matmul_precision`, whose meaning the device decides, and no `prng`: the draws were
    those of JAX's defaults. A model whose T of training is not stated was trained in continuous time.
    """
    value, device = record.get(key), record.get("device")
    if key == "prng" and value is None:
        return USUAL
    if key == TRAINED_AT and value is None:
        return "continuous"
    if key == "matmul_precision" and value == "default" and record.get("precision") == "float64":
        return "float64"
    if key == "matmul_precision" and isinstance(value, str) and isinstance(device, str):
        return products_of_float32(value, device)
    return value


def terms_by_pass(data: bytes, record: Record, name: Path | str) -> dict[str, PassValues]:
    """Returns bits/dim of each image in each pass, by component.

    Of an evaluation whose times were stratified over batches, as earlier versions drew them, only the mean over passes:
    its passes do not separate the error over images from Monte-Carlo noise.

    Args:
      data: the file evaluation.npz.
      record: what evaluation.json says.
      name: what messages call the file.

    Raises:
      OtherTermsError: they are not those of `record`.
      UserError: it cannot be read.
    """
    try:
        arrays = safe_npz.load(io.BytesIO(data), str(name), (*TERMS, TIMES), MAX_BYTES)
        nats = {term: arrays[term].astype(np.float64) for term in TERMS}
        nats["total"] = np.sum(list(nats.values()), axis=0)
        times = arrays.get(TIMES)
        if nats["total"].ndim != 2 or (times is not None and times.shape[:-1] != nats["total"].shape):
            raise ValueError("other than [passes, images]")
    except (UserError, KeyError, ValueError) as error:
        raise UserError(f"{name}: cannot be read ({error}); {EVALUATE_AGAIN}") from None
    per_bit = nats_per_bit(nats["total"].mean(axis=0), record, name)
    if times is None:
        nats = {key: values.mean(axis=0, keepdims=True) for key, values in nats.items()}
    bits = {component: PassValues(nats[component] / per_bit, times) for component in COMPONENTS}
    same_file = record.get(NPZ) in (None, hashlib.sha256(data).hexdigest())
    if not same_file or not all(_agree(bits[one].mean, record.get(key)) for one, key in COMPONENTS.items()):
        raise OtherTermsError(f"{name}: {MISMATCH}")
    return bits


def _agree(bits: float, stated: Any) -> bool:
    """Whether a mean is the stated one, to the digits that float32 leaves; what is not stated agrees."""
    figure = finite_number(stated)
    return figure is None or math.isclose(bits, figure, rel_tol=1e-6, abs_tol=1e-9)


def nats_per_bit(nats: Float[np.ndarray, " images"], record: Record, name: Path | str) -> float:
    """d ln 2 of images with d dimensions, which must be whole, or `nats` and `record` do not belong together."""
    if record["bpd"] is None or len(nats) != record["num_images"] or not np.isfinite(nats).all():
        raise UserError(f"{name}: holds no finite terms of {record['num_images']} images; evaluate again")
    dims = float(nats.mean()) / (record["bpd"] * math.log(2) or math.nan)
    if not (math.isfinite(dims) and dims > 0) or abs(dims - round(dims)) > 1e-6 * dims:
        raise OtherTermsError(f"{name}: {MISMATCH}")
    return round(dims) * math.log(2)
