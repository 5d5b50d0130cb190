"""Provenance of a run: WORKDIR/environment.json and WORKDIR/dataset.json, written when training starts."""

import json
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from absl import logging

from diffenc import registry
from diffenc.config.experiment import Experiment
from diffenc.config.network_precision import network_precision
from diffenc.data.sources import dataset_name, source_name, train_identity
from diffenc.fields.values import nested_objects
from diffenc.files import record_checksum
from diffenc.interfaces import Dataset
from diffenc.runtime.matmul_precision import matmul_precision

ENVIRONMENT = "environment.json"
DATASET = "dataset.json"
PACKAGES = ("jax", "jaxlib", "numpy", "optax", "dm-haiku")

Record = dict[str, Any]


def write_provenance(experiment: Experiment, workdir: Path, step: int, num_train: int) -> None:
    """Writes both records of a run that starts, or resumes, at `step`.

    The environment is a list, since a run may resume elsewhere: each entry is valid from its `step` on.

    Args:
      num_train: images in the train split.

    Raises:
      UserError: a file cannot be written.
    """
    # Entries from `step` on describe steps that are about to be trained again.
    earlier = [entry for entry in parse_starts(_read(workdir / ENVIRONMENT)) if entry["step"] < step]
    now = describe_environment(experiment)
    # A new entry only if something differs, so that a run that is resumed often keeps a short list.
    if not earlier or {**now, "step": earlier[-1]["step"]} != earlier[-1]:
        earlier.append({"step": step, **now})
    record_checksum.write_record(workdir / DATASET, dataset_card(experiment, num_train))
    record_checksum.write_record(workdir / ENVIRONMENT, {"starts": earlier})


def parse_starts(record: Any) -> list[Record]:
    """Returns the entries of a parsed environment.json; none if it is malformed."""
    found = record.get("starts") if isinstance(record, dict) else None
    entries = found if isinstance(found, list) else []
    return [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("step"), int)]


def describe_environment(experiment: Experiment) -> Record:
    """Returns versions, devices and precision, but no names of users, hosts or folders."""
    kinds = Counter(device.device_kind for device in jax.devices())
    return {
        "diffenc": installed_version("diffenc"),
        "commit": git_commit(Path(__file__).parents[2]),
        "python": platform.python_version(),
        **{name: installed_version(name) for name in PACKAGES},
        "platform": f"{platform.system()} {platform.machine()}",
        "backend": jax.default_backend(),
        "devices": ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items())),
        "processes": jax.process_count(),
        "precision": network_precision(experiment),
        "matmul_precision": matmul_precision(),
        **({"plugins": found} if (found := plugin_packages(experiment)) else {}),
    }


def plugin_packages(experiment: Experiment) -> str:
    """Returns names and versions of the other packages whose plugins are in the experiment: "my-pack 0.1.0, …".

    Modules that belong to no installed package, such as one in the current folder, are not included.
    """
    roots = {type(item).__module__.partition(".")[0] for item in nested_objects(experiment)}
    dists = registry.plugin_distributions()
    if not roots <= {*dists, "diffenc", "__main__"}:  # it reads what all installed packages bring
        providers = metadata.packages_distributions()
        dists |= {
            root: one for root in roots - dists.keys() if (one := _provider(root, providers)) is not None
        }
    found = {dist.name: dist.version for root, dist in dists.items() if root in roots}
    found.pop("diffenc", None)
    return ", ".join(f"{name} {found[name]}" for name in sorted(found))


def _provider(root: str, providers: Mapping[str, list[str]]) -> metadata.Distribution | None:
    """Returns the distribution that installed the imported module `root`, if the module's file is the installed one."""
    file = getattr(sys.modules.get(root), "__file__", None)
    for name in sorted(set(providers.get(root, []))):
        dist = metadata.distribution(name)
        places = (dist.locate_file(place) for place in (f"{root}/__init__.py", f"{root}.py"))
        if file is not None and any(Path(str(place)) == Path(file) for place in places):
            return dist
    return None


def missing_plugins(record: bytes | None) -> str:
    """Returns the plugin packages of the last entry of an environment.json that are not installed, by name and version."""
    try:
        entries = parse_starts(json.loads(record or b"{}"))
    except ValueError:
        return ""
    return missing_packages(str(entries[-1].get("plugins", ""))) if entries else ""


def missing_packages(named: str) -> str:
    """Returns the packages of a `plugin_packages` text that are not installed now."""
    return ", ".join(
        one for one in named.split(", ") if one.split() and installed_version(one.split()[0]) is None
    )


def installed_version(package: str) -> str | None:
    """Returns the installed version; None if the package is not installed, such as diffenc in a checkout on the path."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_commit(folder: Path) -> str | None:
    """Returns the git commit of a checkout, with "+" if tracked files differ from it; None if `folder` is not a checkout."""
    if not (folder / ".git").exists():  # git itself would ask the folders above, too
        return None
    head, changed = (
        _git(folder, *words)
        for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
    )
    return None if not head else head + ("+" if changed else "")


def training_data(experiment: Experiment, workdir: Path) -> Record:
    """Returns the record of the training data that the run wrote at its start; without one, a record of the current data."""
    said = _read(workdir / DATASET)
    if isinstance(said, dict) and {**said, **dataset_metadata(experiment.dataset)} == said:
        return said
    return dataset_card(experiment, len(experiment.dataset.source("train")))


def dataset_metadata(dataset: Dataset) -> Record:
    """Returns a data set's name and the shape, levels and classes of its images, without reading its files."""
    return {
        "dataset": dataset_name(dataset),
        "image_shape": list(dataset.image_shape),
        "num_levels": dataset.num_levels,
        "num_classes": dataset.num_classes,
    }


def dataset_card(experiment: Experiment, num_train: int) -> Record:
    """Returns the record of the training data, without reading the images."""
    dataset = experiment.dataset
    return {
        **dataset_metadata(dataset),
        "source": source_name(dataset),
        **getattr(dataset, "terms", {}),
        "train_images": num_train,
        "train_identity": train_identity(dataset),
    }


def _git(folder: Path, *words: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _read(path: Path) -> Record | None:
    found = record_checksum.read_intact(path)
    if found is None and path.exists():
        logging.warning("%s: is damaged or was edited; ignoring it", path)
    return found
