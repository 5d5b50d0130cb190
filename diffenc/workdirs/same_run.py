"""Whether a workdir holds the run that it is about to be used for."""

from pathlib import Path

from diffenc.checkpoints.checkpoint import Restored
from diffenc.configs import describe, files
from diffenc.configs.files import CONFIG
from diffenc.errors import UserError
from diffenc.experiment import Experiment
from diffenc.files import atomic


def check_config(experiment: Experiment, workdir: Path, also_free: tuple[str, ...] = ()) -> None:
    """Raise UserError if `workdir` holds a run of another config; `also_free`: see `describe.differences`."""
    way_out = f"choose another --workdir, or go on with its own config, --gin_file={workdir / CONFIG}"
    refuse_other_config(experiment, workdir, also_free, way_out)


def refuse_other_config(
    experiment: Experiment, workdir: Path, also_free: tuple[str, ...], way_out: str
) -> None:
    """`check_config`, for one who knows another way out."""
    saved = workdir / CONFIG
    if not saved.is_file():
        return
    text = saved.read_text(encoding="utf-8", errors="replace")  # a damaged one differs
    differing = describe.differences(text, describe.config_text(experiment), also_free)
    if differing:
        raise UserError(f"{workdir} holds a run of another config ({'; '.join(differing)}): {way_out}")


def write_config(experiment: Experiment, workdir: Path, text: str) -> None:
    """Write config.gin: `text`, under a header that names the gin files it was read from.

    The header stays as it is for an experiment that Python made, as for one that goes on.

    Raises:
      UserError: the disk refused.
    """
    path = workdir / CONFIG
    records = experiment.read_from
    if not records and path.is_file():
        records = files.records_in(path.read_text(encoding="utf-8", errors="replace"))
    atomic.write_text(path, files.header_of(records) + text)


def check_data(images: str, restored: Restored, workdir: Path) -> None:
    """Raise UserError if the run in `workdir`, of which this was restored, was trained on others than `images`.

    Args:
      images: as `diffenc.data.sources.train_identity` tells them.
    """
    if restored.metadata["train_images"] != images:
        raise UserError(
            f"{workdir} holds a run on other images than the train split of the data set has now: put back the data "
            "it was trained on (--data_dir, or the data set's folder), or choose another --workdir"
        )
