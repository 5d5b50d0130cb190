"""The file of a trained model: its parameters as safetensors, and the metadata needed to use them.

Parameters have the names of parameters.txt. The metadata is one text, "diffenc", of JSON (several would stand in another
order in each file, and no two files would have the same SHA-256):

layout   version of all this
sha256   of the bytes of all parameters in the order of their names
the fields of `WeightsMetadata`, and a digest that binds the config to the parameters (see
`diffenc.export.config_seal`).

Files are treated as untrusted input: no code from them is executed, and only the parameters of the model are read.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
from safetensors.numpy import save

from diffenc.config import serialize
from diffenc.errors import UserError
from diffenc.export import config_seal
from diffenc.files import atomic
from diffenc.safe_io.reading import one_line

LAYOUT = 2  # 1: before the networks' blocks were stacked
FILE = "model.safetensors"
KEY = "diffenc"  # of the metadata
LONGEST_PACKAGES = 2000  # characters

Arrays = dict[str, np.ndarray]

# The format's names of what parameters can be, and numpy's.
_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64", "BOOL": "bool"} | {
    f"{letter}{bits}": f"{kind}{bits}"
    for letter, kind in (("I", "int"), ("U", "uint"))
    for bits in (8, 16, 32, 64)
}


@dataclasses.dataclass(frozen=True)
class WeightsMetadata:
    """The metadata of a file of weights.

    Attributes:
      config: text of the experiment.
      config_hash: as evaluations state it.
      step: the optimiser's.
      code: version of diffenc that wrote the file.
      dataset: what it was trained on, as dataset.json of a workdir has it; of parameters that come from elsewhere its
        name and its kind of images alone.
      origin: where the parameters come from if they were not trained here.
      run: identity of the run they were trained in (WORKDIR/run_id), where it is known.
      packages: the other packages that the model's plugins come from, as "my-pack 0.1.0, …"; files of earlier versions
        do not say.
    """

    config: str
    config_hash: str
    step: int
    code: str
    dataset: Mapping[str, Any]
    origin: str = ""
    run: str = ""
    packages: str = ""


def write(path: Path, arrays: Arrays, about: WeightsMetadata) -> None:
    """Writes the file atomically. Raises UserError if that fails."""
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    said = {"layout": LAYOUT, **dataclasses.asdict(about), "sha256": _digest(arrays)}
    atomic.write_bytes(path, save(arrays, {KEY: atomic.to_json(config_seal.bind_config(said))}))


def read_metadata(path: Path) -> WeightsMetadata:
    """Reads the metadata of the file.

    Raises:
      UserError: it is damaged, its config was changed, or diffenc did not write it.
    """
    with _opened(path) as file:
        metadata = _said(path, file)
    said = {"run": "", "packages": "", **metadata}  # files from before have none
    try:
        _check_types(said)
        _check_dataset(said["dataset"])
        about = WeightsMetadata(
            **{field.name: said[field.name] for field in dataclasses.fields(WeightsMetadata)}
        )
        config_seal.check_binding(str(path), metadata)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _unreadable(path, one_line(error)) from error
    return about


def read(path: Path, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> Arrays:
    """Reads the parameters, which must be those `wanted`: by name, of these shapes and types.

    Raises:
      UserError: it is damaged, or holds other parameters; all that differ are named.
    """
    with _opened(path) as file:
        require_same_arrays(str(path), _held(file), describe_arrays(wanted))
        arrays = {name: file.get_tensor(name) for name in wanted}
        # After the comparison of names, shapes and types, which gives the more useful message.
        if _digest(arrays) != _said(path, file).get("sha256"):
            raise UserError(
                f"{path}: is damaged: its parameters are not those that were written; download it again"
            )
    return arrays


def describe_arrays(named: Mapping[str, Any]) -> dict[str, str]:
    """Returns the type and shape of each array, or `ShapeDtypeStruct`, as text: `float32[3, 3, 64]`."""
    return {name: f"{np.dtype(leaf.dtype)}{list(leaf.shape)}" for name, leaf in named.items()}


def require_same_arrays(where: str, held: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Raises UserError, naming each that differs, unless the parameters held are those wanted (see `describe_arrays`)."""
    differing = {
        "missing": sorted(wanted.keys() - held.keys()),
        "not of this model": sorted(held.keys() - wanted.keys()),
        "of another shape": [
            f"{name} is {held[name]} and not {wanted[name]}"
            for name in sorted(held.keys() & wanted.keys())
            if held[name] != wanted[name]
        ],
    }
    message = "; ".join(f"{what}: {', '.join(names)}" for what, names in differing.items() if names)
    if message:
        raise UserError(f"{where}: holds other parameters than its config's model has: {message}")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Opens the file by safetensors, which checks all sizes and offsets; errors become UserErrors."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            yield file
    except (safetensors.SafetensorError, OSError) as error:
        raise _unreadable(path, one_line(error)) from error


def _held(file: Any) -> dict[str, str]:
    """What `describe_arrays` says, of the file's parameters."""
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    return {name: f"{_dtype(part)}{part.get_shape()}" for name, part in slices.items()}


def _dtype(part: Any) -> str:
    dtype = str(part.get_dtype())
    return _DTYPES.get(dtype, dtype)


def _said(path: Path, file: Any) -> dict[str, Any]:
    """The metadata."""
    try:
        said = json.loads((file.metadata() or {})[KEY])
        layout = said["layout"]
    except KeyError:
        raise UserError(f"{path}: was not written by diffenc: take a file of --mode=export") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise _unreadable(path, one_line(error)) from error
    if layout != LAYOUT:
        raise UserError(
            f"{path}: has layout {layout}, and this version of diffenc reads {LAYOUT}: use the version that wrote it, or "
            "export the run again"
        )
    return said


def _check_types(said: Mapping[str, Any]) -> None:
    """Raise ValueError unless the fields of `WeightsMetadata` are of their types, and of a sensible size."""
    for field in dataclasses.fields(WeightsMetadata):
        kind = {"step": int, "dataset": dict}.get(field.name, str)
        if type(said[field.name]) is not kind:
            raise ValueError(f"{field.name} is no {kind.__name__}")
    if (
        said["step"] < 0
        or len(said["packages"]) > LONGEST_PACKAGES
        or len(said["config"]) > serialize.MAX_CHARACTERS
    ):
        raise ValueError("a step or a config that cannot be")


def _check_dataset(said: Any) -> None:
    """Raise ValueError unless it can be a data set's."""
    shape, bounds = said["image_shape"], {"num_levels": (2, 256), "num_classes": (0, 2**31)}
    if not isinstance(said["dataset"], str):
        raise ValueError("dataset is no name")
    if len(shape) != 3 or not all(type(side) is int and 0 < side <= 2**16 for side in shape):
        raise ValueError("image_shape is not that of images")
    for key, (least, most) in bounds.items():
        if type(said[key]) is not int or not least <= said[key] <= most:
            raise ValueError(f"{key} is not within {least} .. {most}")


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        # In the order of names, not of the file, which the format leaves open.
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


def _unreadable(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: is not a file of weights, or is damaged ({reason}); download it again")
