"""The path fitted to a trained run, in WORKDIR/fits/path.json."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from diffenc.errors import UserError
from diffenc.files import record_checksum
from diffenc.parallel.distributed import main_process_only
from diffenc.workdir.fitted_chains import FOLDER, NO_WORKDIR


def path_file(workdir: Path) -> Path:
    """Returns the file of a run's fitted path."""
    return workdir / FOLDER / "path.json"


@main_process_only
def save_path(workdir: Path, record: dict[str, Any]) -> None:
    """Writes the record of a fitted path, with a checksum."""
    path_file(workdir).parent.mkdir(parents=True, exist_ok=True)
    record_checksum.write_record(path_file(workdir), record)


def load_path(workdir: Path | None, step: int | None = None) -> dict[str, Any]:
    """Returns the record of a run's fitted path.

    Args:
      step: the step of the checkpoint in use; a path fitted to another one is logged as a warning.

    Raises:
      UserError: there is no workdir or no fit, or its file is damaged.
    """
    if workdir is None:
        raise UserError(f"evaluate.stochasticity = @stochasticity.fitted(): {NO_WORKDIR}")
    file = path_file(workdir)
    if not file.is_file():
        raise UserError(
            f"evaluate.stochasticity = @stochasticity.fitted(): {file} is not there; run the same command with "
            "--mode=fit_stochasticity first"
        )
    try:
        record = json.loads(file.read_bytes())
        if record_checksum.is_broken(record):
            raise ValueError(record_checksum.BROKEN)
        # Checked before a plugin is made from it, since the plugin's messages would not name the file.
        edges, eta_2 = (np.asarray(record[key], np.float64) for key in ("log_snr", "eta_2"))
        fitted_at = record["path_of"]["step"]
        valid = eta_2.ndim == 1 and edges.shape == (len(eta_2) + 1,) and len(eta_2) > 0
        # Checked explicitly: Python's json also accepts NaN and Infinity.
        valid = valid and bool(np.all(np.isfinite(eta_2) & (eta_2 > 0)) and np.all(np.diff(edges) > 0))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is not a fitted path ({type(error).__name__}: {error}): delete it and fit again"
        ) from error
    if not valid:
        raise UserError(f"{file} is not a fitted path (its values do not match): delete it and fit again")
    if step is not None and fitted_at != step:
        logging.warning(
            "%s was fitted at step %s, not %d: fit again for the best bound", file, fitted_at, step
        )
    return record
