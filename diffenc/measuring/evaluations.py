"""Evaluations read again: what evaluation.json says, and evaluation.npz of each image; and which may be compared."""

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
from jaxtyping import Float

from diffenc.errors import UserError
from diffenc.measuring.evaluate import TERMS
from diffenc.untrusted import safe_npz

COMPONENTS = {"total": "bpd", "latent": "bpd_latent", "diffusion": "bpd_diffusion", "reconstruction": "bpd_reconstruction"}  # fmt: skip
# Figures that differ in one of these do not belong into one table.
ALIKE = (
    *("split", "T", "times", "variance", "proposal", "times_per_image", "passes", "batch_size", "seed"),
    *("precision", "matmul_precision", "step"),
)

# What a record must have, and of which types.
Needed = Mapping[str, tuple[type, ...]]
NEEDED: Needed = {
    **{"dataset": (str,), "split": (str,), "num_images": (int,), "fingerprint": (str,), "T": (int, str)},
    **{"passes": (int,), "step": (int,), "bpd": (int, float, NoneType)},
}

MOST = 1 << 30  # bytes of the terms of all images

Record = Mapping[str, Any]


def parsed(data: bytes, name: Path | str) -> dict[str, Any]:
    """What a record's JSON says; `name` is what messages call it.

    Raises:
      UserError: it is no JSON object.
    """
    try:
        found = json.loads(data.decode())
        if not isinstance(found, dict):
            raise ValueError("not an object")
        return found
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: is no JSON ({error}); delete it, and evaluate the run again") from None


def fault(record: Record, needed: Needed = NEEDED) -> str | None:
    """`lacks KEY` or `has KEY VALUE`, of what `record` has not, or has of another type; None if it is whole."""
    lacking = [key for key in needed if key not in record]
    if lacking:
        return f"lacks {', '.join(lacking)}"
    wrong = [f"{key} {record[key]!r:.40}" for key, types in needed.items() if type(record[key]) not in types]
    return f"has {', '.join(wrong)}" if wrong else None


def number(value: Any) -> float | None:
    """`value`, if it is a finite number."""
    try:
        found = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def of_as_many(record: Record, num_images: int | None) -> bool:
    """Whether a record is of `num_images` of its split, or of all there are."""
    whole = record.get("split_images")
    return record["num_images"] == (whole if num_images is None else min(num_images, whole or num_images))


def differing(one: Record, two: Record, keys: Sequence[str]) -> list[str]:
    """`KEY ONE and TWO` for each of `keys` that two records differ in."""
    return [f"{key} {one.get(key)} and {two.get(key)}" for key in keys if one.get(key) != two.get(key)]


def terms_by_image(data: bytes, record: Record, name: Path | str) -> dict[str, Float[np.ndarray, " images"]]:
    """Bits/dim of each image, by component, the mean over passes.

    Args:
      data: the file evaluation.npz.
      record: what evaluation.json says.
      name: what messages call the file.

    Raises:
      UserError: it cannot be read, or is not that of `record`.
    """
    try:
        arrays = safe_npz.load(io.BytesIO(data), str(name), TERMS, MOST)
        nats = {term: arrays[term].mean(axis=0, dtype=np.float64) for term in TERMS}
        nats["total"] = np.sum(list(nats.values()), axis=0)
        if nats["total"].ndim != 1:
            raise ValueError("other than [passes, images]")
    except (UserError, KeyError, ValueError) as error:
        raise UserError(f"{name}: cannot be read ({error}); evaluate the run again") from None
    per_bit = nats_per_bit(nats["total"], record, name)
    return {component: nats[component] / per_bit for component in COMPONENTS}


def nats_per_bit(nats: Float[np.ndarray, " images"], record: Record, name: Path | str) -> float:
    """d ln 2 of images with d dimensions, which must be whole, or `nats` and `record` do not belong together."""
    if record["bpd"] is None or len(nats) != record["num_images"] or not np.isfinite(nats).all():
        raise UserError(f"{name}: holds no finite terms of {record['num_images']} images; evaluate again")
    dims = float(nats.mean()) / (record["bpd"] * math.log(2) or math.nan)
    if not (math.isfinite(dims) and dims > 0) or abs(dims - round(dims)) > 1e-6 * dims:
        raise UserError(f"{name}: is of another evaluation than evaluation.json; evaluate the run again")
    return round(dims) * math.log(2)
