"""Loads a trained model from a workdir, an export or a file of weights."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from diffenc import registry
from diffenc.checkpoint.checkpoints import FOLDER as CHECKPOINTS
from diffenc.checkpoint.restore import convert_store_errors
from diffenc.config import gin_loader
from diffenc.config.experiment import FREE_TO_MEASURE, Experiment
from diffenc.config.gin_files import CONFIG, decode
from diffenc.config.import_rules import import_permission
from diffenc.core.parameters import name_leaves
from diffenc.data.array_dataset import DatasetSpec
from diffenc.errors import UserError
from diffenc.evaluation.restore_params import read_ema, to_default_precision
from diffenc.export import config_seal, weights
from diffenc.export.trained_model import TrainedModel
from diffenc.export.weights import FILE, WeightsMetadata
from diffenc.files import stores
from diffenc.files.stores import PathLike
from diffenc.files.user_paths import expand_path
from diffenc.interfaces import Params
from diffenc.parallel.sharding import data_mesh, replicated
from diffenc.workdir import provenance
from diffenc.workdir.config_check import expected_metadata, saved_config


def load(path: PathLike, step: int | None = None, *, allow_imports: Sequence[str] = ()) -> TrainedModel:
    """Loads a trained model: its averaged parameters, ready to sample, evaluate and encode.

    Loading never executes code from the files. A config that imports modules is refused, except for those of installed
    plugin packages (entry points `diffenc.plugins`) and those allowed here.

    Args:
      path: a run's workdir, the folder of an export or its model.safetensors; a path or a URL such as gs://….
      step: the checkpoint of a workdir; None = the newest.
      allow_imports: modules, or packages of modules, that the config may import.

    Raises:
      UserError: there is no trained model, it is damaged, or its plugins are not installed.
    """
    registry.discover()
    if not isinstance(path, str | os.PathLike):
        raise UserError(
            f"path = {path!r}: must be the path of a workdir, of an export or of a .safetensors file"
        )
    path = expand_path(os.fspath(path), "path")
    with convert_store_errors(path):
        store = stores.open_store(path)
        # The folder of an export has a config.gin too, but no checkpoints.
        text = store.read(CONFIG) if CHECKPOINTS in store.names() else None
        if text is not None:
            return _of_workdir(path, text, step, import_permission(allow_imports))
    if step is not None:
        raise UserError(f"{path}: step = {step} is for a workdir, and this is none: weights are of one step")
    with _file(path) as file:
        about = weights.read_metadata(file)
        _check_beside(path, about)
        return _of_file(file, about, os.fspath(path), import_permission(allow_imports))


def _of_workdir(
    path: PathLike, text: bytes, step: int | None, may_import: Callable[[str], bool]
) -> TrainedModel:
    where = str(stores.join_path(path, CONFIG))
    experiment = gin_loader.load_untrusted(decode(text, where), where, may_import)
    wanted = expected_metadata(experiment, path, path, FREE_TO_MEASURE)
    # On a mesh of this machine's devices: that of the run may need another number of devices.
    restored = read_ema(
        stores.join_path(path, CHECKPOINTS),
        experiment,
        data_mesh(),
        step,
        wanted.check,
    )
    wanted.warn_unchecked(restored)
    params = jax.tree.map(to_default_precision, restored.tree["ema"])
    workdir = None if stores.is_url(path) else Path(path)
    return TrainedModel(experiment, params, restored.step, os.fspath(path), workdir)


def _check_beside(path: PathLike, about: WeightsMetadata) -> None:
    """Raises UserError if `path` is a folder with a config.gin that differs from the config in the file of weights."""
    beside = None if os.fspath(path).endswith(".safetensors") else saved_config(path)
    if beside is not None:
        hint = f"undo that, or load {stores.join_path(path, FILE)}, which has a config of its own"
        config_seal.refuse_other(str(stores.join_path(path, CONFIG)), about.config, beside, hint)


def _of_file(
    file: Path, about: WeightsMetadata, name: str, may_import: Callable[[str], bool]
) -> TrainedModel:
    experiment = _experiment(about, name, may_import)
    arrays = weights.read(file, abstract_names(experiment))
    params = unflatten_named(
        experiment, {leaf: to_default_precision(jnp.asarray(array)) for leaf, array in arrays.items()}
    )
    return TrainedModel(experiment, jax.device_put(params, replicated(data_mesh())), about.step, name)


def _experiment(about: WeightsMetadata, name: str, may_import: Callable[[str], bool]) -> Experiment:
    """Returns the experiment of a file's config. Errors name the plugin packages that are not installed."""
    try:
        return gin_loader.load_untrusted(
            about.config, f"{name}: config", may_import, dataset=make_dataset_spec(about)
        )
    except UserError as error:
        absent = " ".join(provenance.missing_packages(about.packages).split())
        hint = f"; its plugins come from {absent}, which is not installed" if absent else ""
        raise UserError(f"{error}{hint}") from None


def abstract_params(experiment: Experiment) -> Params:
    """Returns shapes and dtypes of the parameters, as in training.

    Raises:
      UserError: a plugin cannot be built for these images.
    """
    # Training is in float32: with x64, `init` would give float64 parameters, which no file has.
    with jax.enable_x64(False):
        return experiment.abstract_params()


def abstract_names(experiment: Experiment) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes and dtypes of the parameters by name."""
    return name_leaves(abstract_params(experiment))


def unflatten_named(experiment: Experiment, named: dict[str, jax.Array]) -> Params:
    """Returns the parameters of a model, given its leaves by name."""
    abstract = abstract_params(experiment)
    return jax.tree.unflatten(jax.tree.structure(abstract), [named[name] for name in name_leaves(abstract)])


def make_dataset_spec(about: WeightsMetadata) -> DatasetSpec:
    said = about.dataset
    return DatasetSpec(
        str(said["dataset"]), tuple(said["image_shape"]), said["num_levels"], said["num_classes"]
    )


@contextlib.contextmanager
def _file(path: PathLike) -> Iterator[Path]:
    """Yields the path, on a disk, of the file of weights at `path` or in the folder `path`; an object is copied first.

    Raises:
      UserError: there is no such file.
    """
    text = os.fspath(path)
    place, name = (os.path.split(text)) if text.endswith(".safetensors") else (text, FILE)
    if not stores.is_url(text):
        if not Path(place, name).is_file():
            raise _nothing(path)
        yield Path(place, name)
        return
    with tempfile.TemporaryDirectory() as folder, convert_store_errors(path):
        data = stores.open_store(place).read(name)
        if data is None:
            raise _nothing(path)
        copy = Path(folder, FILE)
        copy.write_bytes(data)
        yield copy


def _nothing(path: PathLike) -> UserError:
    return UserError(
        f"{path}: no trained model there: name a workdir, which has {CONFIG} and {CHECKPOINTS}/, the folder of an export, which has {FILE}, "
        "or such a file"
    )
