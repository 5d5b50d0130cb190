"""Checks that a workdir, and each checkpoint in it, belongs to the run that uses it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging

from diffenc.checkpoint.checkpoints import Restored
from diffenc.checkpoint.restore import convert_store_errors
from diffenc.config import gin_files, serialize
from diffenc.config.experiment import FREE_TO_MEASURE, Experiment
from diffenc.config.gin_files import CONFIG
from diffenc.core.rng import changed_draws, draw_settings
from diffenc.errors import UserError
from diffenc.files import atomic, stores
from diffenc.files.stores import PathLike
from diffenc.parallel.distributed import main_process_only
from diffenc.workdir import run_id


def check_config(experiment: Experiment, workdir: Path, also_free: tuple[str, ...] = ()) -> None:
    """Raises UserError if `workdir` holds a run of another config; `also_free`: see `find_differences`."""
    hint = f"choose another --workdir, or go on with its own config, --gin_file={workdir / CONFIG}"
    refuse_other_config(experiment, workdir, also_free, hint)


def refuse_other_config(experiment: Experiment, workdir: Path, also_free: tuple[str, ...], hint: str) -> None:
    """Raises UserError as `check_config` does, with another `hint` on how to fix it."""
    saved = saved_config(workdir)
    if saved is None:
        return
    differing = serialize.find_differences(saved, serialize.config_text(experiment), also_free)
    if differing:
        raise UserError(
            f"{workdir} holds a run of another config ({serialize.format_differences(differing)}): {hint}"
        )


def saved_config(workdir: PathLike) -> str | None:
    """Returns the text of WORKDIR/config.gin; None if there is none."""
    with convert_store_errors(workdir):
        content = stores.open_store(workdir).read(CONFIG)
    return None if content is None else content.decode(errors="replace")  # damaged text then differs


def write_config(experiment: Experiment, workdir: Path, text: str) -> None:
    """Writes config.gin: `text`, under a header that names the gin files of the experiment.

    For an experiment without gin files, created in Python, the existing header is kept.

    Raises:
      UserError: the file cannot be written.
    """
    for name in serialize.unimportable_classes(experiment):
        logging.warning(
            "%s cannot be imported by another program, so no other program can load or evaluate this run: move it to "
            "the top level of a module of its own",
            name,
        )
    path = workdir / CONFIG
    records = experiment.read_from
    for record in records:
        logging.info("config: %s", record)
    if not records and path.is_file():
        records = gin_files.records_in(path.read_text(encoding="utf-8", errors="replace"))
    atomic.write_text(path, gin_files.header_of(records) + text)


def check_data(images: str, restored: Restored, workdir: Path) -> None:
    """Raises UserError if the run in `workdir`, from which `restored` was read, was trained on other images.

    Args:
      images: the identifier of the current train images, from `diffenc.data.sources.train_identity`.
    """
    if restored.metadata["train_images"] != images:
        raise UserError(
            f"{workdir} holds a run on other images than the train split of the data set has now: put back the data "
            "it was trained on (--data_dir, or the data set's folder), or choose another --workdir"
        )


def checkpoint_metadata(config: str, run: str) -> dict[str, Any]:
    """Returns the metadata about its run that a checkpoint stores, for `ExpectedMetadata.check` and `check_draws`."""
    return {
        "config_hash": serialize.hash_text(config),
        "config": config,
        "run": run,
        "draws": draw_settings(),
    }


@dataclasses.dataclass(frozen=True)
class ExpectedMetadata:
    """The metadata that the checkpoints in a workdir must have.

    Attributes:
      place: the user's path or URL of the workdir.
      config: config text of the experiment for which they are read; None = unknown, not compared.
      saved: text of the workdir's config.gin; None if there is none.
      run: the workdir's identity; None = unknown, not compared.
      also_free: see `diffenc.config.serialize.find_differences`.
    """

    place: str
    config: str | None
    saved: str | None
    run: str | None
    also_free: tuple[str, ...] = ()

    def check(self, where: str, metadata: Mapping[str, Any]) -> None:
        """Raises UserError if the checkpoint `where`, with this `checkpoint_metadata`, is of another run or config.

        The checkpoint's config is compared as text; none of it is imported or executed.
        """
        # The run's identity first: another config of another run is
        # reported as another run, with its differences as detail.
        config, identity = metadata.get("config"), metadata.get("run")
        differing = self._differences(where, config) if config is not None else self._hash_differs(metadata)
        if None not in (identity, self.run) and identity != self.run:
            other = f", of another config ({differing})" if differing else ""
            raise UserError(
                f"checkpoint {where} is of another run than {stores.join_path(self.place, run_id.FILE)}{other}: move it "
                "to its own workdir; to start a run from its parameters, bind Experiment.init_from"
            )
        if differing:
            raise UserError(f"checkpoint {where} was trained with another config ({differing}): {self._hint}")

    @main_process_only
    def warn_unchecked(self, restored: Restored) -> None:
        """Logs one warning if the checkpoint `restored`, or the workdir, lacks metadata that `check` compares."""
        if self.config is None and self.run is None:
            return
        of = f"the checkpoint of step {restored.step} in {self.place}"
        if "config" not in restored.metadata:
            logging.warning(
                "%s was saved by an earlier version: only its config_hash was compared; the config itself, and whose "
                "checkpoint it is, could not be",
                of,
            )
        elif self.run is None:
            logging.warning("whose %s is was not compared: %s is not there", of, run_id.FILE)

    def _differences(self, where: str, config: Any) -> str:
        if not isinstance(config, str) or len(config) > serialize.MAX_CHARACTERS:
            raise UserError(f"checkpoint {where} holds no config that can be one: name another checkpoint")
        if self.config is None:
            return ""
        return serialize.format_differences(serialize.find_differences(config, self.config, self.also_free))

    def _hash_differs(self, metadata: Mapping[str, Any]) -> str:
        """Compares the hash in a checkpoint of an earlier version, without a config; returns a difference, or ""."""
        # Either hash is accepted: versions may hash the same config differently, and the version that saved the
        # checkpoint may have written config.gin.
        known = {serialize.hash_text(text) for text in (self.config, self.saved) if text is not None}
        same = not known or metadata.get("config_hash") in known
        return "" if same else "its config_hash differs, and it does not hold the config itself"

    @property
    def _hint(self) -> str:
        if self.saved is None:
            return "give the --gin_file it was trained with, or choose another --workdir"
        config = stores.join_path(self.place, CONFIG)
        return f"undo that in {config}, or start a run in another --workdir from it with Experiment.init_from"


def expected_metadata(
    experiment: Experiment, workdir: PathLike, place: PathLike, also_free: tuple[str, ...] = ()
) -> ExpectedMetadata:
    """Returns the metadata that checkpoints of `experiment` in `workdir`, called `place`, must have. All processes must call it.

    Raises:
      UserError: the store cannot be read, or the workdir's identity is damaged.
    """
    config = serialize.config_text(experiment)
    return ExpectedMetadata(str(place), config, saved_config(workdir), run_id.read(workdir), also_free)


def expected_origin_metadata(workdir: PathLike) -> ExpectedMetadata:
    """Returns the expected metadata for a run that only provides parameters: its checkpoints must agree with its own folder."""
    saved = saved_config(workdir)
    return ExpectedMetadata(str(workdir), saved, saved, run_id.read(workdir), FREE_TO_MEASURE)


def check_draws(restored: Restored, workdir: Path) -> None:
    """Raises UserError if equal keys draw other numbers than when the checkpoint was saved: continuing would be another run.

    A checkpoint of an earlier version, without this record, is accepted.
    """
    saved = restored.metadata.get("draws")
    changed = changed_draws(saved, draw_settings()) if saved else None
    if changed:
        raise UserError(
            f"{workdir} was trained with {changed}, so going on would draw other noise: set it as it was there (each "
            "setting of JAX has an environment variable of its name in capitals), or start another --workdir from "
            "this one by Experiment.init_from"
        )
