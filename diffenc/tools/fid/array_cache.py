"""Arrays that are expensive to compute, each cached in a file of its own."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import logging
from jaxtyping import Shaped

from diffenc.files import atomic
from diffenc.parallel.distributed import main_process_only


def load_or_compute(
    file: Path, compute: Callable[[], np.ndarray], shape: tuple[int, ...], dtype: str
) -> np.ndarray:
    """Returns the array in the .npy file; if there is none, the result of `compute()`, which is then written there.

    Raises:
      UserError: writing failed.
    """
    found = load_array(file, shape, dtype)
    if found is not None:
        return found
    new = compute()
    save_array(file, new)
    return new


def load_array(file: Path, shape: tuple[int, ...], dtype: str) -> np.ndarray | None:
    """Returns the array in the .npy file; None if there is no file, it is corrupt, or has another shape or dtype."""
    try:
        # Mapped: a file that claims another size is not read, nor is memory taken for it.
        found = np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        logging.warning("%s is corrupt; recomputing (%s)", file, error)
        return None
    if not isinstance(found, np.memmap) or (found.shape, found.dtype.name) != (shape, dtype):
        return None
    return np.array(found)


@main_process_only
def save_array(file: Path, array: Shaped[np.ndarray, "*shape"]) -> None:
    """Writes the array to the .npy file atomically, in the main process only. Raises UserError if writing fails."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    with atomic.replace_file(file) as temporary:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(buffer.getvalue())
