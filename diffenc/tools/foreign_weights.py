"""Import of parameters trained by other code, as an export."""

import hashlib
import io
import math
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from diffenc.config.experiment import Experiment
from diffenc.errors import UserError
from diffenc.export import export, weights
from diffenc.export.loading import abstract_names
from diffenc.export.weights import Arrays
from diffenc.safe_io import flax_file, safe_npz
from diffenc.safe_io.flax_file import to_dict
from diffenc.safe_io.reading import convert_errors, one_line
from diffenc.workdir import provenance

Translate = Callable[[Mapping[str, np.ndarray]], Arrays]  # theirs by their names to ours by ours

BRANCHES = ("ema_params", "params", "param")  # of a checkpoint, the first that is there
OPENAI = re.compile(
    r"\b(input_blocks|middle_block|output_blocks)\b"
)  # parts of improved-diffusion's U-Net and its kin
INSTEAD = (
    "is no network of this package, and is not imported; for its bits/dim wrap it in a function for diffenc.bound "
    "(docs/nll_of_my_model.md)"
)
MAX_COPIES = 8  # a checkpoint has parameters, their average and two moments, and each may be in float64
_HEADER_BYTES = 1 << 10  # bytes with an array: its name and the like
_MAX_STEP = 1 << 53


def read_checkpoint(path: Path, limit: int) -> tuple[Arrays, int]:
    """Returns the averaged parameters in a file of another program, else its parameters, by name; and the step, 0 if unknown.

    Args:
      path: an .npz with "/" between the parts of names, or a msgpack file of flax.
      limit: maximal size in bytes, both of the file and unpacked.

    Raises:
      UserError: the file cannot be read or exceeds `limit`, or it is known to be of a network that cannot be imported.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    # Size first: the file is untrusted, and a msgpack file is read whole.
    _require_within(limit, path.stat().st_size, path)
    _refuse_torch(path)
    found = _read_npz(path, limit) if zipfile.is_zipfile(path) else flax_file.load(path)
    if any(map(OPENAI.search, found)):
        raise UserError(f"{path}: the U-Net of improved-diffusion {INSTEAD}")
    branches = (f"{branch}/" for branch in BRANCHES)
    # The average before the parameters: evaluations of such models use the average.
    start = next((branch for branch in branches if any(name.startswith(branch) for name in found)), "")
    held = {name.removeprefix(start): array for name, array in found.items() if name.startswith(start)}
    with convert_errors(path):
        named = to_dict((name.removeprefix("params/"), array) for name, array in held.items())
    return named, _parse_step(found.get("step", np.zeros(())), path)


def max_checkpoint_bytes(experiment: Experiment) -> int:
    """Returns the maximal size of a checkpoint of `experiment`'s model: `MAX_COPIES` of its parameters, with headers."""
    leaves = abstract_names(experiment).values()
    parameters = sum(math.prod(leaf.shape) * leaf.dtype.itemsize + _HEADER_BYTES for leaf in leaves)
    return MAX_COPIES * parameters + (1 << 20)


def match_to_model(experiment: Experiment, arrays: Arrays, where: str) -> Arrays:
    """Returns `arrays` as the model's parameters, in its precision.

    Raises:
      UserError: they are not the model's; the message names all missing, unused and misshapen arrays.
    """
    wanted = abstract_names(experiment)
    cast = {
        name: array.astype(wanted[name].dtype) if name in wanted and array.dtype.kind == "f" else array
        for name, array in arrays.items()
    }
    weights.require_same_arrays(where, weights.describe_arrays(cast), weights.describe_arrays(wanted))
    return {name: cast[name] for name in wanted}


def convert_weights(path: Path, experiment: Experiment, output: Path, translate: Translate, what: str) -> int:
    """Writes parameters trained by other code as an export of `experiment`; returns the number of parameters.

    Args:
      what: origin of the parameters, for the card.

    Raises:
      UserError: they cannot be read, or are not the model's; or `output` exists and is not an export.
    """
    if output.exists() and not (output / weights.FILE).is_file():
        raise UserError(f"--output={output}: is there, and no export: name another folder")
    export.refuse_other_files(output)  # before the file is read, which may take long
    theirs, step = read_checkpoint(path, max_checkpoint_bytes(experiment))
    try:
        ours = translate(theirs)
    except ValueError as error:
        raise UserError(f"{path}: {one_line(error)}") from error
    arrays = match_to_model(experiment, ours, str(path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    name = os.fsencode(path.name).decode(errors="replace")
    # The data set is the experiment's: the file does not record the images of its training.
    about = export.describe_parameters(
        experiment,
        step,
        provenance.dataset_metadata(experiment.dataset),
        f"{what}: the file {name}, SHA-256 {digest}",
    )
    export.write_folder(output, arrays, about, None, experiment.model.condition_metadata())
    return sum(array.size for array in arrays.values())


def _read_npz(path: Path, limit: int) -> Arrays:
    with convert_errors(path), zipfile.ZipFile(path) as archive:
        names = list(to_dict((member.filename.removesuffix(".npy"), None) for member in archive.infolist()))
        _require_within(limit, sum(member.file_size for member in archive.infolist()), path)
    return safe_npz.load(io.BytesIO(path.read_bytes()), str(path), names, limit)


def _refuse_torch(path: Path) -> None:
    """Raises UserError for a file of torch.save, an archive or a pickle: no network in PyTorch can be imported."""
    with convert_errors(path), open(path, "rb") as file:
        start = file.read(2)
        if start == b"PK" and zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                torch = any(name.endswith("data.pkl") for name in archive.namelist())
        else:
            # The opcode PROTO 2, with which older files of torch.save begin.
            torch = start == b"\x80\x02"
    if torch:
        raise UserError(f"{path}: a network in PyTorch, such as improved-diffusion's U-Net, {INSTEAD}")


def _require_within(limit: int, size: int, path: Path) -> None:
    if size > limit:
        raise UserError(
            f"{path}: holds {size:,} bytes, more than the {limit:,} that a checkpoint of this model may: is "
            "--gin_file that of its run?"
        )


def _parse_step(step: np.ndarray, path: Path) -> int:
    """Returns the optimizer's step; 0 for an array with one step per device. Raises UserError if it is not a step number."""
    said = step.item() if step.ndim == 0 else 0
    if not (0 <= said <= _MAX_STEP and said == int(said)):
        raise UserError(f"{path}: step = {said}: is no number of steps")
    return int(said)
