"""Arrays that took long to make, each in a file of its own: what is there need not be made again."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import logging
from jaxtyping import Shaped

from diffenc.files import atomic
from diffenc.parallel.distributed import main_process_only


def load_or_compute(
    file: Path, made: Callable[[], np.ndarray], shape: tuple[int, ...], dtype: str
) -> np.ndarray:
    """What is kept in the .npy file, or else what `made()` gives, which is then kept.

    Raises:
      UserError: the disk refused.
    """
    found = load_array(file, shape, dtype)
    if found is not None:
        return found
    new = made()
    save_array(file, new)
    return new


def load_array(file: Path, shape: tuple[int, ...], dtype: str) -> np.ndarray | None:
    """The array kept in the .npy file; None if there is none, or not one of this shape and type."""
    try:
        found = np.load(file, allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        logging.warning("%s is corrupt; recomputing (%s)", file, error)
        return None
    return found if (found.shape, found.dtype.name) == (shape, dtype) else None


@main_process_only
def save_array(file: Path, array: Shaped[np.ndarray, "*shape"]) -> None:
    """Keep `load_or_compute` in the .npy file, all or nothing. Raises UserError if the disk refused."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    with atomic.replace_file(file) as temporary:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(buffer.getvalue())
