"""--mode=export: a trained model as one folder to keep, to share and to load.

WORKDIR/export holds model.safetensors, which suffices alone (see `diffenc.export.weights`), the config, and README.md,
the model card. The folder is there whole or not at all; on an object store its files are, each for itself.
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
from diffenc.evaluation.restore import restore_checked
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
_OLD = "-old"  # ends the name of what is being replaced


@on_local_copy
def export(experiment: Experiment, workdir: Path) -> Path:
    """Write the averaged parameters of a checkpoint, that of `evaluate.step`, to WORKDIR/export; returns the folder.

    Raises:
      UserError: no run there, one of another config, or no such checkpoint; or the disk refuses.
    """
    mesh = data_mesh(experiment.mesh)
    restored = restore_checked(experiment, workdir, mesh, experiment.evaluate.step)
    arrays = fetch_parameters(restored.tree["ema"], mesh)
    data, run = provenance.training_data(experiment, workdir), str(restored.metadata.get("run", ""))
    said = dataclasses.replace(describe_parameters(experiment, restored.step, data), run=run)
    _write(workdir, arrays, said, experiment)
    return workdir / FOLDER


def fetch_parameters(params: Any, mesh: Mesh) -> Arrays:
    """The whole of each parameter by name. All processes have to ask."""
    whole = jax.jit(lambda leaf: leaf, out_shardings=replicated(mesh))
    return {name: np.asarray(whole(leaf)) for name, leaf in name_leaves(params).items()}


def describe_parameters(
    experiment: Experiment, step: int, dataset: Mapping[str, Any], origin: str = ""
) -> WeightsMetadata:
    """What a file says of parameters of `experiment`."""
    # the step it was asked for means nothing to a reader
    newest = dataclasses.replace(experiment.evaluate, step=None)
    config = serialize.config_text(dataclasses.replace(experiment, evaluate=newest))
    packages = provenance.plugin_packages(experiment)
    return WeightsMetadata(
        config, serialize.config_hash(experiment), step, code_version(), dataset, origin, packages=packages
    )


def code_version() -> str:
    """The version of what runs, and its git commit where it is a checkout."""
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
        logging.info(
            "its card states no bits/dim: --mode=evaluate, and then --mode=export again, put them there"
        )


def find_evaluation(
    workdir: Path, about: WeightsMetadata, settings: ResolvedEvaluate
) -> dict[str, Any] | None:
    """The evaluation of the same config and step that states the run's figure (`evaluations.choose`).

    None if there is none. Files that cannot be read, or whose checksum does not match, are warned of.
    """
    found = [path for path in (workdir / "evaluations").glob("*.json") if path.stem.isdecimal()]
    newest = sorted(found, key=lambda path: int(path.stem), reverse=True)
    read = {path.name: said for path in newest if (said := _read(path)) is not None}
    of_this = about.config_hash, about.step
    same = {name: said for name, said in read.items() if (said["config_hash"], said["step"]) == of_this}
    wanted = saved_records.evaluation_spec(settings)
    chosen = saved_records.choose_evaluation(same, lambda record: saved_records.matches_spec(record, wanted))
    return None if chosen is None else same[chosen]


def _read(path: Path) -> dict[str, Any] | None:
    """A record that has what the card states, and agrees with its terms; None with a warning if it has not."""
    try:
        said = saved_records.parse_record(path.read_bytes(), path)
        fault = saved_records.find_fault({"split_images": None, **said}, model_card.NEEDED)
        if fault is not None:
            raise UserError(f"{path}: {fault}")
        terms = path.with_suffix(".npz")
        if terms.is_file() and saved_records.finite_number(said["bpd"]) is not None:
            saved_records.terms_by_pass(terms.read_bytes(), said, terms)
    except (UserError, OSError) as error:
        logging.warning("passed over: %s", error)
        return None
    return said


def write_folder(
    folder: Path,
    arrays: Arrays,
    about: WeightsMetadata,
    evaluation: Mapping[str, Any] | None,
    told: Mapping[str, Any],
) -> None:
    """Write an export, all or nothing; one that is there is replaced, if nothing else is in its folder.

    Args:
      told: what the model is told of an image (`Model.condition_metadata`), for the card.

    Raises:
      UserError: something else is in the folder, or the disk refuses.
    """
    refuse_other_files(folder)
    num_params = sum(array.size for array in arrays.values())
    with replace_folder(folder) as temporary:
        weights.write(temporary / FILE, arrays, about)
        atomic.write_text(temporary / CONFIG, about.config)
        atomic.write_text(temporary / README, model_card.render_card(about, evaluation, num_params, told))


def refuse_other_files(folder: Path) -> None:
    """Raise UserError if `folder` holds what no export wrote: replacing the folder would delete it."""
    try:
        there = sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise atomic.write_error(folder, error) from error
    other = next((path.name for path in there if path.name not in WRITTEN or path.is_dir()), None)
    if other is not None:
        raise UserError(
            f"{folder} holds {other}, which no export wrote and which would be deleted: move it out of there, "
            "or write to another folder"
        )


@contextlib.contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """An empty folder; on leaving it takes the place of `folder`, or of what that links to. If the body raises, it is removed.

    A kill leaves a hidden folder beside it, which the next call sweeps up, and `folder` whole: as it was, as it is now,
    or for a moment between two renamings not there; then the hidden one is as it was, until the next is in place.

    Raises:
      UserError: the disk refused.
    """
    place = Path(os.path.realpath(folder))
    temporary = temporaries.temporary_name(place)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _sweep(place, lambda name: not name.endswith(_OLD))
        temporary.mkdir()
        with temporaries.lock_folder(temporary):
            try:
                yield temporary
                atomic.sync_all(temporary)
                _put_in_place(temporary, place)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        _sweep(place, lambda name: name.endswith(_OLD))
    except OSError as error:
        raise atomic.write_error(folder, error) from error


def _put_in_place(new: Path, folder: Path) -> None:
    old = new.with_name(new.name + _OLD)
    if folder.is_dir():
        os.replace(folder, old)
    try:
        os.replace(new, folder)
    except OSError:
        if old.exists():
            os.replace(old, folder)
        raise
    atomic.sync(folder.parent)


def _sweep(folder: Path, of: Callable[[str], bool]) -> None:
    """Remove what earlier calls left beside `folder`, those whose names are `of` it, unless a live process is writing it."""
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.tmp-*"):
        if of(left.name) and left.is_dir() and not left.is_symlink():
            temporaries.remove_unlocked(left)
        elif of(left.name):
            left.unlink(missing_ok=True)
