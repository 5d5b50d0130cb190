"""The file of a trained model: its parameters as safetensors, and the metadata needed to use them.

Parameters have the names of parameters.txt. The metadata is a single entry "diffenc" with JSON text (the order of several
entries would vary between files, and with it the SHA-256 of equal exports):

layout   version of the format
sha256   SHA-256 of the bytes of all parameters in the order of their names
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

# Names of the parameters' dtypes in safetensors, and in numpy.
_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64", "BOOL": "bool"} | {
    f"{letter}{bits}": f"{kind}{bits}"
    for letter, kind in (("I", "int"), ("U", "uint"))
    for bits in (8, 16, 32, 64)
}


@dataclasses.dataclass(frozen=True)
class WeightsMetadata:
    """The metadata of a file of weights.

    Attributes:
      config: config text of the experiment.
      config_hash: hash of the config, as in evaluations.
      step: number of optimiser steps.
      code: version of diffenc that wrote the file.
      dataset: record of the training data, as in dataset.json of a workdir; for parameters trained by other code only
        its name and the shape, levels and classes of its images.
      origin: source of parameters that other code trained; else empty.
      run: identity of the run that trained them (WORKDIR/run_id), if known.
      packages: the other packages of the model's plugins, as "my-pack 0.1.0, …"; empty in files of earlier versions.
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
    """Writes the file atomically. Raises UserError if it cannot be written."""
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    said = {"layout": LAYOUT, **dataclasses.asdict(about), "sha256": _digest(arrays)}
    atomic.write_bytes(path, save(arrays, {KEY: atomic.to_json(config_seal.bind_config(said))}))


def read_metadata(path: Path) -> WeightsMetadata:
    """Reads the metadata of the file.

    Raises:
      UserError: the file is damaged, its config was changed, or diffenc did not write it.
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
    """Returns the parameters, which must be exactly those `wanted`, with their shapes and dtypes.

    Raises:
      UserError: the file is damaged, or has other parameters; the message names all differences.
    """
    with _opened(path) as file:
        require_same_arrays(str(path), _held(file), describe_arrays(wanted))
        arrays = {name: file.get_tensor(name) for name in wanted}
        # After the comparison of names, shapes and dtypes, which has the more useful message.
        if _digest(arrays) != _said(path, file).get("sha256"):
            raise UserError(
                f"{path}: is damaged: its parameters are not those that were written; download it again"
            )
    return arrays


def describe_arrays(named: Mapping[str, Any]) -> dict[str, str]:
    """Returns dtype and shape of each array, or `ShapeDtypeStruct`, as text: `float32[3, 3, 64]`."""
    return {name: f"{np.dtype(leaf.dtype)}{list(leaf.shape)}" for name, leaf in named.items()}


def require_same_arrays(where: str, held: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Raises UserError, naming all differences, unless the parameters held are those wanted (see `describe_arrays`)."""
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
    """Opens the file with safetensors, which checks all sizes and offsets; errors become UserErrors."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            yield file
    except (safetensors.SafetensorError, OSError) as error:
        raise _unreadable(path, one_line(error)) from error


def _held(file: Any) -> dict[str, str]:
    """Returns dtype and shape of each parameter in the file, in the form of `describe_arrays`."""
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    return {name: f"{_dtype(part)}{part.get_shape()}" for name, part in slices.items()}


def _dtype(part: Any) -> str:
    dtype = str(part.get_dtype())
    return _DTYPES.get(dtype, dtype)


def _said(path: Path, file: Any) -> dict[str, Any]:
    """Returns the metadata. Raises UserError if there are none of diffenc, or they have another layout."""
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
    """Raises ValueError unless the fields of `WeightsMetadata` have their types and admissible sizes."""
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
    """Raises ValueError unless the values are possible for a data set."""
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
        # In the order of names: the format does not define the order in the file.
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


def _unreadable(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: is not a file of weights, or is damaged ({reason}); download it again")
