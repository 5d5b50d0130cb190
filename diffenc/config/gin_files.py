"""gin files: finding and reading them, and the records of them in config.gin."""

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import logging

from diffenc.errors import UserError, nearest
from diffenc.files.user_paths import expand_path

CONFIG = "config.gin"  # the config of a run or of an export
MAX_BYTES = 1 << 20  # bytes; a longer file is no config

_RECORD = re.compile(r"# (Read from [^\x00-\x1f\x7f-\x9f]{1,500})")
_MOST_RECORDS = 100


@dataclasses.dataclass(frozen=True)
class ConfigFile:
    """A gin file as it was read.

    Attributes:
      text: its content.
      name: its name in messages.
      path: its path; None for a pipe or an object in a store, which have no folder for relative includes.
      shipped: whether it comes with diffenc.
      from_run: whether it is the config of a run or an export, which may be from another person: it must not include other
        files, and its imports need permission.
    """

    text: str
    name: str
    path: Path | None = None
    shipped: bool = False
    from_run: bool = False

    @property
    def record(self) -> str:
        """One line with the name, the path and the digest of the file."""
        place = "comes with diffenc" if self.shipped else _abbreviate(self.path) if self.path else "a pipe"
        digest = hashlib.sha256(self.text.encode()).hexdigest()[:12]
        return " ".join(f"Read from {self.name} ({place}; SHA-256 {digest})".split())


def read_file(name: str) -> ConfigFile:
    """Reads the file at a path, or one that comes with diffenc, as `gin/quickstart.gin`.

    Raises:
      UserError: no such file, or no text.
    """
    path = Path(expand_path(name, "--gin_file"))
    return _read(name, [path, *shipped_paths(name)], [path.parent])


def read_include(name: str, including: ConfigFile | None) -> ConfigFile:
    """Reads the file of an `include`: relative to the including file, or one that comes with diffenc.

    The current folder is not searched: otherwise a file could describe different runs in different folders.

    Args:
      including: None for an include on the command line, which is looked up as a file given there.

    Raises:
      UserError: no such file, or no text.
    """
    if including is None:
        return read_file(name)
    path = Path(expand_path(name, "include"))
    # Next to the including file first, so that a file describes the same run wherever the program is started.
    siblings = [including.path.parent / path] if including.path else []
    candidates = [*siblings, *([path] if path.is_absolute() else []), *shipped_paths(name)]
    hint = "; an include is looked up beside the file that it is in, then among those that come with diffenc"
    return _read(name, candidates, [one.parent for one in siblings], hint)


def run_config(data: bytes, workdir: str) -> ConfigFile:
    """Returns the config of the run in `workdir` from its content. Raises UserError if it is not text."""
    name = f"{workdir}/{CONFIG}"
    if len(data) > MAX_BYTES:
        raise UserError(f"{name}: has more than {MAX_BYTES:,} bytes: that is no config")
    return ConfigFile(decode(data, name), name, from_run=True)


def find_file(name: str) -> Path:
    """Returns the path of a --gin_file. Raises UserError, with the most similar name, if there is none."""
    path = Path(expand_path(name, "--gin_file"))
    return _find(name, [path, *shipped_paths(name)], [path.parent]).resolve()


def shipped_paths(name: str) -> list[Path]:
    """Returns the possible paths of a file with this name that comes with diffenc; none for an absolute path."""
    return (
        []
        if Path(name).is_absolute()
        else [folder / name.removeprefix("gin/") for folder in _shipped_folders()]
    )


def shipped_files() -> list[str]:
    """Returns the names of the run files that come with diffenc, as given on the command line."""
    return sorted({f"gin/{path.name}" for folder in _shipped_folders() for path in folder.glob("*.gin")})


def log_shadowed_files(read: Sequence[ConfigFile]) -> None:
    """Logs each file in `read` that shadows a file that comes with diffenc."""
    for file in read:
        other = next((path for path in shipped_paths(file.name) if path.is_file()), None)
        if other is not None and file.path is not None and not file.shipped:
            logging.info(
                "%s is the file %s, not the one that comes with diffenc, %s", file.name, file.path, other
            )


def header_of(records: tuple[str, ...]) -> str:
    """Returns the comment lines at the beginning of config.gin."""
    return "".join(f"# {record}\n" for record in records[:_MOST_RECORDS])


def records_of(read: Sequence[ConfigFile]) -> tuple[str, ...]:
    """Returns the records of the files in `read`; for the config of a run, the records in its header instead."""
    found = [record for one in read for record in (records_in(one.text) if one.from_run else [one.record])]
    return tuple(dict.fromkeys(found))


def records_in(text: str) -> tuple[str, ...]:
    """Returns the records in the header of a config: the files from which the run was once read."""
    matches = map(_RECORD.fullmatch, text.splitlines()[:_MOST_RECORDS])
    return tuple(match[1] for match in matches if match)


def _read(name: str, candidates: list[Path], folders: list[Path], hint: str = "") -> ConfigFile:
    path = _find(name, candidates, folders, hint)
    # Resolved paths: a link to a run's config.gin counts as that config, and a link in a shipped folder does not make
    # its target a shipped file.
    shipped = any(path.resolve().is_relative_to(folder.resolve()) for folder in _shipped_folders())
    return ConfigFile(
        _text(path, name),
        name,
        path if path.is_file() else None,
        shipped,
        CONFIG in (path.name, path.resolve().name) and not shipped,
    )


def _find(name: str, candidates: list[Path], folders: list[Path], hint: str = "") -> Path:
    # exists, not is_file: a pipe is a valid config file.
    found = next((path for path in candidates if os.path.exists(path)), None)
    if found is None:
        known = [*shipped_files(), *_gin_files_in(folders)]
        raise UserError(f"{name}: no such file; nearest: {nearest(name, known)}{hint}")
    if found.is_dir():
        raise UserError(f"{name}: is a folder; name a gin file, as {name.rstrip('/')}/{CONFIG}")
    return found


def _text(path: Path, name: str) -> str:
    """Reads the file's text, without a byte-order mark; once, since a pipe cannot be read twice."""
    try:
        with open(path, "rb") as file:
            # One byte more than allowed, to notice a longer file without reading all of it.
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{name}: cannot be read: {error.strerror or error}") from None
    if len(data) > MAX_BYTES:
        raise UserError(f"{name}: has more than {MAX_BYTES:,} bytes: that is no config")
    return decode(data, name)


def decode(data: bytes, name: str) -> str:
    """Returns the text of a config. Raises UserError if it is not text."""
    try:
        # utf-8-sig drops a byte-order mark, which gin's tokenizer would refuse.
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name}: cannot be read: is no UTF-8 text ({error.reason} at byte {error.start})"
        ) from None
    if "\0" in text:
        raise UserError(f"{name}: cannot be read: is no text, for it has a NUL character")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _abbreviate(path: Path) -> str:
    """Returns the absolute path, with ~ for the home folder: config.gin is exported, and must not contain the user's name."""
    text, home = os.path.abspath(path), os.path.expanduser("~").rstrip("/")
    return f"~{text[len(home) :]}" if home and text.startswith(f"{home}/") else text


def _shipped_folders() -> list[Path]:
    root = Path(__file__).parents[2]
    return [root / "diffenc_gin", root / "gin"]  # installed; a checkout


def _gin_files_in(folders: list[Path]) -> Iterator[str]:
    for folder in folders:
        if folder.is_dir():
            yield from map(str, folder.glob("*.gin"))
