"""--mode=export: writes a trained model as one folder, for archiving, sharing and loading.

WORKDIR/export holds model.safetensors, which is self-contained (see `diffenc.export.weights`), the config, and
README.md, the model card. The folder is replaced atomically; on an object store, each file is.
"""

import contextlib
import dataclasses
import glob
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from diffenc.config import serialize
from diffenc.config.experiment import Experiment
from diffenc.config.settings import ResolvedEvaluate
from diffenc.core.parameters import name_leaves
from diffenc.errors import UserError
from diffenc.evaluation import saved_records
from diffenc.evaluation.restore_params import restore_checked
from diffenc.export import model_card, weights
from diffenc.export.weights import FILE, Arrays, WeightsMetadata
from diffenc.files import atomic, temporaries
from diffenc.parallel.distributed import main_process_only
from diffenc.parallel.sharding import data_mesh, replicated
from diffenc.workdir import provenance
from diffenc.workdir.config_check import CONFIG
from diffenc.workdir.mirror import display_name, on_local_copy

FOLDER = "export"  # in a workdir
README = "README.md"
WRITTEN = frozenset({FILE, CONFIG, README})
_OLD = "-old"  # suffix of a folder that is being replaced


@on_local_copy
def export(experiment: Experiment, workdir: Path) -> Path:
    """Writes the averaged parameters of the checkpoint of `evaluate.step` to WORKDIR/export; returns the folder.

    Raises:
      UserError: no run, a run of another config, no such checkpoint, or a failed write.
    """
    mesh = data_mesh(experiment.mesh)
    restored = restore_checked(experiment, workdir, mesh, experiment.evaluate.step)
    arrays = fetch_parameters(restored.tree["ema"], mesh)
    data, run = provenance.training_data(experiment, workdir), str(restored.metadata.get("run", ""))
    about = dataclasses.replace(describe_parameters(experiment, restored.step, data), run=run)
    _write(workdir, arrays, about, experiment)
    return workdir / FOLDER


def fetch_parameters(params: Any, mesh: Mesh) -> Arrays:
    """Returns each parameter unsharded, by name. All processes must call it."""
    # Leaf by leaf, so that only one replicated parameter at a time takes device memory, not the whole model.
    gather = jax.jit(lambda leaf: leaf, out_shardings=replicated(mesh))
    return {name: np.asarray(gather(leaf)) for name, leaf in name_leaves(params).items()}


def describe_parameters(
    experiment: Experiment, step: int, dataset: Mapping[str, Any], origin: str = ""
) -> WeightsMetadata:
    """Returns the metadata of a file with parameters of `experiment`."""
    # The file has one step, so the requested `evaluate.step` would be misleading in its config.
    settings = dataclasses.replace(experiment.evaluate, step=None)
    config = serialize.config_text(dataclasses.replace(experiment, evaluate=settings))
    packages = provenance.plugin_packages(experiment)
    return WeightsMetadata(
        config, serialize.config_hash(experiment), step, code_version(), dataset, origin, packages=packages
    )


def code_version() -> str:
    """Returns the version of diffenc, and the git commit if it runs from a checkout."""
    commit = provenance.git_commit(Path(__file__).parents[2])
    return (provenance.installed_version("diffenc") or "of no version") + (
        f", commit {commit}" if commit else ""
    )


@main_process_only
def _write(workdir: Path, arrays: Arrays, about: WeightsMetadata, experiment: Experiment) -> None:
    evaluation, name = find_evaluation(workdir, about, experiment.evaluation), display_name(workdir)
    write_folder(workdir / FOLDER, arrays, about, evaluation, experiment.model.condition_metadata())
    logging.info("step %d in %s/%s: %s, %s", about.step, name, FOLDER, FILE, README)
    if evaluation is None:
        logging.info("the model card has no bits/dim: run --mode=evaluate, then --mode=export again")


def find_evaluation(
    workdir: Path, about: WeightsMetadata, settings: ResolvedEvaluate
) -> dict[str, Any] | None:
    """Returns the evaluation of the same config and step that represents the run (`saved_records.choose_evaluation`).

    Returns None if there is none. Skips unreadable files and those with a wrong checksum, with a warning.
    """
    paths = [path for path in (workdir / "evaluations").glob("*.json") if path.stem.isdecimal()]
    newest_first = sorted(paths, key=lambda path: int(path.stem), reverse=True)
    read = {path.name: record for path in newest_first if (record := _read(path)) is not None}
    key = about.config_hash, about.step
    same = {name: record for name, record in read.items() if (record["config_hash"], record["step"]) == key}
    wanted = saved_records.evaluation_spec(settings)
    chosen = saved_records.choose_evaluation(same, lambda record: saved_records.matches_spec(record, wanted))
    return None if chosen is None else same[chosen]


def _read(path: Path) -> dict[str, Any] | None:
    """Returns a record that has all values for the card and agrees with its terms; else None, with a warning."""
    try:
        record = saved_records.parse_record(path.read_bytes(), path)
        fault = saved_records.find_fault({"split_images": None, **record}, model_card.REQUIRED_KEYS)
        if fault is not None:
            raise UserError(f"{path}: {fault}")
        terms = path.with_suffix(".npz")
        if terms.is_file() and saved_records.finite_number(record["bpd"]) is not None:
            saved_records.terms_by_pass(terms.read_bytes(), record, terms)
    except (UserError, OSError) as error:
        logging.warning("skipped: %s", error)
        return None
    return record


def write_folder(
    folder: Path,
    arrays: Arrays,
    about: WeightsMetadata,
    evaluation: Mapping[str, Any] | None,
    condition_metadata: Mapping[str, Any],
) -> None:
    """Writes an export atomically; replaces an earlier export if the folder has no other files.

    Args:
      condition_metadata: as of `Model.condition_metadata`, for the card.

    Raises:
      UserError: the folder holds other files, or a failed write.
    """
    refuse_other_files(folder)
    num_params = sum(array.size for array in arrays.values())
    with replace_folder(folder) as temporary:
        weights.write(temporary / FILE, arrays, about)
        atomic.write_text(temporary / CONFIG, about.config)
        card = model_card.render_card(about, evaluation, num_params, condition_metadata)
        atomic.write_text(temporary / README, card)


def refuse_other_files(folder: Path) -> None:
    """Raises UserError if `folder` has files that no export wrote: replacing the folder would delete them."""
    try:
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise atomic.write_error(folder, error) from error
    other = next((path.name for path in paths if path.name not in WRITTEN or path.is_dir()), None)
    if other is not None:
        raise UserError(
            f"{folder} holds {other}, which no export wrote and which would be deleted: move it out of there, "
            "or write to another folder"
        )


@contextlib.contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder, which on exit replaces `folder`, or the target of its link; removes it if the body raises.

    A killed process leaves a hidden folder next to `folder`, which the next call removes. `folder` itself is complete,
    old or new, except between the two renames, when it is missing and the hidden folder is the old one; the old one is
    kept until the next call has renamed its folder into place.

    Raises:
      UserError: a failed write.
    """
    target = Path(os.path.realpath(folder))
    temporary = temporaries.temporary_name(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Folders with the suffix _OLD are kept: one may be the only complete copy until the new folder is in place.
        _remove_leftovers(target, lambda name: not name.endswith(_OLD))
        temporary.mkdir()
        with temporaries.lock_folder(temporary):
            try:
                yield temporary
                # Synced before the rename: after a crash `folder` must not have incomplete files.
                atomic.sync_all(temporary)
                _move_into_place(temporary, target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        _remove_leftovers(target, lambda name: name.endswith(_OLD))
    except OSError as error:
        raise atomic.write_error(folder, error) from error


def _move_into_place(new: Path, folder: Path) -> None:
    """Replaces `folder` by `new` in two renames, since a rename cannot replace a folder that is not empty."""
    old = new.with_name(new.name + _OLD)
    if folder.is_dir():
        os.replace(folder, old)
    try:
        os.replace(new, folder)
    except OSError:
        # Restores the old folder, so that a failed export does not remove the previous one.
        if old.exists():
            os.replace(old, folder)
        raise
    atomic.sync(folder.parent)


def _remove_leftovers(folder: Path, matches: Callable[[str], bool]) -> None:
    """Removes matching temporary folders of killed calls; those of live processes are locked and kept."""
    for path in folder.parent.glob(f".{glob.escape(folder.name)}.tmp-*"):
        if matches(path.name) and path.is_dir() and not path.is_symlink():
            temporaries.remove_unlocked(path)
        elif matches(path.name):
            path.unlink(missing_ok=True)
