"""Put a data set's official files where its plugin reads them, verified.

  python -m diffenc.prepare mnist|cifar10|imagenet32 --source=FILE_OR_DIR [--data_dir=DIR]
  python -m diffenc.prepare mnist|cifar10 --download [--data_dir=DIR]

Everything happens in a folder `.NAME.partial` beside the final one, which is renamed into place at the end:
DATA_DIR/NAME is whole or absent. The next call clears what an interrupted one left.
"""

import argparse
import contextlib
import fcntl
import hashlib
import http.client
import importlib.metadata
import os
import shutil
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from diffenc import atomic, data, registry
from diffenc.errors import UserError
from diffenc.interfaces import Source
from diffenc.paths import Download, OfficialFiles, Stream, data_directory, one_line

MANIFEST = "manifest.json"
_CHUNK = 2**20  # bytes copied at a time
_TIMEOUT = 60  # seconds without a byte


@runtime_checkable
class Preparable(Protocol):
    """What the class of a data set that lies in files has beside the interface `Dataset`."""

    @property
    def files(self) -> OfficialFiles: ...

    @property
    def image_shape(self) -> tuple[int, int, int]: ...

    @property
    def num_levels(self) -> int: ...

    @property
    def num_classes(self) -> int: ...

    def read(self, folder: Path, split: str) -> Source:
        """Split "train" or "test" from the files in `folder`; raises UserError if they are not good."""
        ...


def prepare(name: str, source: Path | None, data_dir: Path) -> str:
    """Bring the files of data set `name` to `data_dir`/`name`, from `source` or (None) from the net.

    Returns one line that says what was done. Does nothing if the same files are there already.

    Raises:
      UserError: unknown name, files absent, damaged or not the official ones, other files there already,
        no network, or another process preparing the same.
    """
    dataset: Any = registry.datasets[name]
    if not isinstance(dataset, Preparable):
        return f"{name} needs no files: nothing to prepare"
    if source is None and not dataset.files.downloads:
        raise UserError(
            f"{name} cannot be downloaded from here: get it at {dataset.files.origin}; then use --source"
        )
    target = data_dir / name
    found = None if source is None else dataset.files.locate(source)
    with _workspace(target) as folder, _progress() as progress:
        if target.is_dir() and any(target.iterdir()):
            return _already(dataset, target, found)
        if found is None:
            _fetch(dataset.files.downloads, folder, progress)
        else:
            _copy(found, folder, progress)
        manifest = _verified(dataset, folder, found)
        atomic.write_json(folder / MANIFEST, manifest)
        os.rename(folder, target)
        atomic.sync(data_dir)
    return f"prepared {name}: {_counted(manifest)} in {target}"


def _already(dataset: Preparable, target: Path, found: Mapping[str, Path] | None) -> str:
    """Says that `target` holds what would be put there; without a manifest (files put there by hand) adds it."""
    if found is None:
        expected = {wanted.name: wanted.md5 for wanted in dataset.files.downloads}
    else:
        expected = {name: _digest(path, "md5") for name, path in found.items()}
    for name, digest in expected.items():
        held = target / name
        if not held.is_file() or _digest(held, "md5") != digest:
            raise UserError(
                f"{target} already holds other files ({name} differs or is absent); to replace them delete that folder"
            )
    if not (target / MANIFEST).is_file():
        found = {name: target / name for name in expected}
        atomic.write_json(target / MANIFEST, _verified(dataset, target, found))
    return f"{dataset.files.name} is already prepared in {target}"


def _verified(dataset: Preparable, folder: Path, found: Mapping[str, Path] | None) -> dict[str, Any]:
    """The manifest of `folder`, every split of which has been read by the data set's own reader."""
    splits = {}
    for split in ("train", "test"):
        source = dataset.read(folder, split)
        splits[split] = {"count": len(source), "fingerprint": data.fingerprint(source)}
    names = [wanted.name for wanted in dataset.files.downloads] if found is None else list(found)
    return {
        "name": dataset.files.name,
        "image_shape": list(dataset.image_shape),
        "num_levels": dataset.num_levels,
        "num_classes": dataset.num_classes,
        "splits": splits,
        "files": {name: {"sha256": _digest(folder / name, "sha256")} for name in names},
        "diffenc_version": importlib.metadata.version("diffenc"),
    }


def _counted(manifest: dict[str, Any]) -> str:
    return ", ".join(f"{entry['count']:,} {split} images" for split, entry in manifest["splits"].items())


@contextlib.contextmanager
def _workspace(target: Path) -> Iterator[Path]:
    """The empty folder `.NAME.partial` beside `target`, locked while open, removed at the end if still there."""
    folder = target.with_name(f".{target.name}.partial")
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, folder)
        for left_over in folder.iterdir():  # by a call that was killed
            shutil.rmtree(left_over) if left_over.is_dir() else left_over.unlink()
        try:
            yield folder
        finally:
            if _is_at(descriptor, folder):  # renamed into place, it may already have a successor there
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    """Death releases the lock, so a folder that can be locked is nobody's."""
    busy = UserError(f"{folder} is in use: another process prepares the same data set; wait for it")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise busy from None
    if not _is_at(descriptor, folder):  # its owner renamed or removed it between our open and our lock
        raise busy


def _is_at(descriptor: int, folder: Path) -> bool:
    return folder.exists() and os.path.samestat(os.fstat(descriptor), os.stat(folder))


def _copy(found: Mapping[str, Path], folder: Path, progress: Progress) -> None:
    for name, path in found.items():
        with open(path, "rb") as stream:
            _pour(stream, folder / name, path.stat().st_size, progress)


def _fetch(downloads: Sequence[Download], folder: Path, progress: Progress) -> None:
    """Download every file, its checksum verified.

    Raises:
      UserError: a file cannot be fetched, is cut short, or has another checksum.
    """
    for wanted in downloads:
        try:
            with urllib.request.urlopen(wanted.url, timeout=_TIMEOUT) as stream:
                size = int(stream.headers.get("Content-Length") or 0)
                got = _pour(stream, folder / wanted.name, size, progress)
        except (OSError, http.client.HTTPException) as error:
            raise UserError(f"{wanted.url}: cannot be downloaded ({one_line(error)})") from error
        if size and got < size:
            raise UserError(
                f"{wanted.url}: the download was cut short at {got:,} of {size:,} bytes; try again"
            )
        if _digest(folder / wanted.name, "md5") != wanted.md5:
            raise UserError(f"{wanted.url}: what came has not the MD5 {wanted.md5} of the official file")


def _pour(stream: Stream, target: Path, size: int, progress: Progress) -> int:
    """Write `stream` to the new file `target`, down to the disk; returns the number of bytes."""
    task = progress.add_task(target.name, total=size or None)
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "xb") as out:
        while chunk := stream.read(_CHUNK):
            out.write(chunk)
            progress.advance(task, len(chunk))
        out.flush()
        os.fsync(out.fileno())
    atomic.sync(target.parent)
    return target.stat().st_size


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=Console(stderr=True))


def _digest(path: Path, algorithm: str) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m diffenc.prepare",
        description="Copy or download a data set's official files, verify them, and put them in DATA_DIR/NAME.",
    )
    parser.add_argument("name", help="mnist, cifar10, imagenet32, or another registered data set")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--source", metavar="FILE_OR_DIR", help="the official files: a folder, or one of them")
    where.add_argument("--download", action="store_true", help="fetch them (mnist, cifar10)")
    parser.add_argument("--data_dir", metavar="DIR", help="default: $DIFFENC_DATA, else a per-user cache")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    given = _parser().parse_args(argv)
    registry.discover()
    try:
        source = None if given.source is None else _absolute(given.source)
        if source is None and not given.download:
            _require_none(given.name)
        print(prepare(given.name, source, _absolute(given.data_dir) if given.data_dir else data_directory()))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # a full disk, a folder that may not be written to
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _require_none(name: str) -> None:
    """Raise UserError if the data set `name` lies in files."""
    dataset = registry.datasets[name]
    if isinstance(dataset, Preparable):
        download = ", or --download" if dataset.files.downloads else ""
        raise UserError(
            f"where are the files of {name} ({dataset.files.origin})? give --source=FILE_OR_DIR{download}"
        )


def _absolute(path: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))


if __name__ == "__main__":
    sys.exit(main())
