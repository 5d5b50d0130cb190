"""The second head fitted to a trained run, in WORKDIR/fits/second_head.{json,npz}."""

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffenc.errors import UserError
from diffenc.files import atomic, record_checksum
from diffenc.parallel.distributed import main_process_only
from diffenc.safe_io import safe_npz
from diffenc.workdir.fitted_chains import FOLDER

ORIGIN, NPZ = "second_head_of", "npz"
MOST_RECORD = 1 << 20  # bytes
HEADER = 1024  # bytes of an array's file beside its numbers, at most

Arrays = dict[str, np.ndarray]


def head_file(workdir: Path) -> Path:
    """Returns the record of a run's second head; its parameters are in the .npz of the same name."""
    return workdir / FOLDER / "second_head.json"


@main_process_only
def save_head(workdir: Path, arrays: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> None:
    """Writes the parameters by name, then the record with their SHA-256 and its own checksum."""
    # The record last: interrupted in between, its digest does not match, and loading fails instead of mixing two fits.
    file = head_file(workdir)
    file.parent.mkdir(parents=True, exist_ok=True)
    data = atomic.encode_npz(arrays)
    atomic.write_bytes(file.with_suffix(".npz"), data)
    record_checksum.write_record(file, {**record, NPZ: hashlib.sha256(data).hexdigest()})


def load_head(
    workdir: Path, wanted: Mapping[str, jax.ShapeDtypeStruct]
) -> tuple[Arrays, dict[str, Any]] | None:
    """Returns the parameters by name and the origin of a run's second head; None if none was fitted.

    Args:
      wanted: shapes and dtypes of the parameters by name.

    Raises:
      UserError: the files are damaged, or of another network.
    """
    file = head_file(workdir)
    if not file.is_file():
        return None
    try:
        if file.stat().st_size > MOST_RECORD:
            raise ValueError(f"it is larger than {MOST_RECORD:,} bytes")
        record = json.loads(file.read_bytes())
        if record_checksum.is_broken(record):
            raise ValueError(record_checksum.BROKEN)
        origin, digest = record[ORIGIN], record[NPZ]
        if not isinstance(origin["step"], int):
            raise TypeError("its step is no number")
        arrays = _read_arrays(file.with_suffix(".npz"), digest, wanted)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, UserError) as error:
        raise UserError(
            f"{file} is not a second head of this run ({type(error).__name__}: {error}): delete it and run --mode=fit_ode again"
        ) from error
    return arrays, origin


def _read_arrays(file: Path, digest: str, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> Arrays:
    """Returns the arrays. Raises ValueError unless they match the digest and the wanted shapes and dtypes."""
    sizes = [int(np.prod(leaf.shape)) * leaf.dtype.itemsize + HEADER for leaf in wanted.values()]
    # A bound on the memory before the file is read; the factor 2 leaves room for the archive's own structures.
    if file.stat().st_size > 2 * sum(sizes) + HEADER:
        raise ValueError("the file is larger than the network's parameters")
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(f"{file.name} is not the file that was written with it")
    arrays = safe_npz.load(io.BytesIO(data), file.name, wanted, max(sizes))
    held = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    if held != {name: (leaf.shape, leaf.dtype) for name, leaf in wanted.items()}:
        raise ValueError("it holds other parameters than the model's network has")
    return arrays
