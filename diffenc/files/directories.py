"""The user's folders of runs, data sets and caches."""

import os
from pathlib import Path

from diffenc.errors import UserError

ENVIRONMENT_VARIABLE = "DIFFENC_DATA"


def data_directory() -> Path:
    """Returns the folder that holds one folder per data set: $DIFFENC_DATA, else the per-user cache."""
    chosen = os.environ.get(ENVIRONMENT_VARIABLE)
    if chosen:
        return Path(chosen).expanduser().absolute()
    return cache_directory("data")


def check_folder_name(name: str, key: str) -> str:
    """Returns `name` if it can name a folder in the data directory, else raises UserError, naming `key`."""
    if not name or name.startswith(".") or Path(name).name != name:
        raise UserError(f"{key} = {name!r}: must be the name of a folder, without / and no . in front")
    return name


def cache_directory(name: str) -> Path:
    """Returns the folder `name` in the per-user cache: $XDG_CACHE_HOME, else ~/.cache.

    Raises:
      UserError: $XDG_CACHE_HOME is not set, and there is no home folder.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "")
    if not cache.is_absolute():  # the XDG specification has relative paths ignored
        cache = _home() / ".cache"
    return cache / "diffenc" / name


def make_directory(folder: Path, option: str = "--workdir") -> Path:
    """Creates `folder` and its parents if necessary, and returns it. Raises UserError, naming `option`, if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        file = next(path for path in (folder, *folder.parents) if path.exists())
        raise UserError(
            f"cannot make the folder {folder}: {file} is a file; choose another {option}"
        ) from error
    except OSError as error:
        raise UserError(
            f"cannot make the folder {folder}: {error.strerror}; choose another {option}"
        ) from error
    return folder


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # as of a container's user whom no list of users has
        raise UserError(
            "this user has no home folder: set $XDG_CACHE_HOME to a folder for caches and data sets; --data_dir and "
            "$DIFFENC_DATA name one for data sets alone"
        ) from None
