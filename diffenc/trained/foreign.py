"""Parameters that other code trained, as an export: `python -m MODULE FILE --gin_file=… --output=DIR`.

MODULE knows the names that the other code gives its parameters, and calls `main` with a function that translates them.
"""

import argparse
import hashlib
import io
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffenc import config, registry
from diffenc.data.paths import one_line, reading
from diffenc.errors import UserError
from diffenc.experiment import Experiment
from diffenc.interfaces import Dataset
from diffenc.measuring.evaluate import dataset_name
from diffenc.trained import export, weights
from diffenc.trained.loading import abstract_names
from diffenc.trained.weights import Arrays
from diffenc.untrusted import flax_file, safe_npz

Translate = Callable[[Mapping[str, np.ndarray]], Arrays]  # theirs by their names to ours by ours

BRANCHES = ("ema_params", "params", "param")  # of a checkpoint, the first that is there
LARGEST = 1 << 32  # bytes of one array in an .npz


def read(path: Path) -> tuple[Arrays, int]:
    """The averaged parameters in a file of another program, else its parameters, by their names; and the step, 0 if unknown.

    Args:
      path: an .npz, whose names have "/" between their parts, or what flax writes as msgpack.

    Raises:
      UserError: it cannot be read.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    found = _npz(path) if zipfile.is_zipfile(path) else flax_file.load(path)
    branches = (f"{branch}/" for branch in BRANCHES)
    start = next((branch for branch in branches if any(name.startswith(branch) for name in found)), "")
    held = {name.removeprefix(start): array for name, array in found.items() if name.startswith(start)}
    step = found.get("step", np.zeros(()))
    named = {name.removeprefix("params/"): array for name, array in held.items()}
    return named, int(step) if step.ndim == 0 else 0


def adopt(experiment: Experiment, arrays: Arrays, where: str) -> Arrays:
    """`arrays` as the model's parameters, in its precision.

    Raises:
      UserError: they are not the model's; all that are missing, of no use or misshapen are named.
    """
    wanted = abstract_names(experiment)
    cast = {
        name: array.astype(wanted[name].dtype) if name in wanted and array.dtype.kind == "f" else array
        for name, array in arrays.items()
    }
    weights.require_same(where, weights.described(cast), weights.described(wanted))
    return {name: cast[name] for name in wanted}


def convert(path: Path, experiment: Experiment, output: Path, translate: Translate, what: str) -> int:
    """Write parameters that other code trained as an export of `experiment`; returns how many there are.

    Args:
      what: whose they are, for the card.

    Raises:
      UserError: they cannot be read, or are not the model's; or something else is at `output`.
    """
    if output.exists() and not (output / weights.FILE).is_file():
        raise UserError(f"--output={output}: is there, and no export: name another folder")
    theirs, step = read(path)
    try:
        ours = translate(theirs)
    except ValueError as error:
        raise UserError(f"{path}: {one_line(error)}") from error
    arrays = adopt(experiment, ours, str(path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    origin = f"{what}: the file {path.name}, SHA-256 {digest}"
    about = export.about(experiment, step, _kind(experiment.dataset), origin)
    export.write_folder(output, arrays, about, None)
    return sum(array.size for array in arrays.values())


def _kind(dataset: Dataset) -> dict[str, Any]:
    """What is known of a data set whose images need not be there: which of them they saw is not."""
    return {
        "dataset": dataset_name(dataset),
        "image_shape": list(dataset.image_shape),
        "num_levels": dataset.num_levels,
        "num_classes": dataset.num_classes,
    }


def parse(description: str, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "file", type=Path, help="a checkpoint of flax (msgpack), or an .npz of the same names"
    )
    parser.add_argument(
        "--gin_file", action="append", required=True, help="the run that these parameters are of"
    )
    parser.add_argument("--gin_bindings", action="append", default=[], help="a binding over the files")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    return parser.parse_args(argv)


def main(translate: Translate, what: str, description: str, argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    given = parse(description, argv)
    registry.discover()
    try:
        experiment = config.load(given.gin_file, given.gin_bindings)
        count = convert(given.file, experiment, given.output, translate, what)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{count:,} parameters in {given.output}: diffenc.load({str(given.output)!r}) reads them")
    return 0


def _npz(path: Path) -> Arrays:
    with reading(path), zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
    return safe_npz.load(io.BytesIO(path.read_bytes()), str(path), names, LARGEST)
