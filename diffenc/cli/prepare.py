"""Convert a data set, once, into the shards that training reads.

  python -m diffenc.prepare mnist|cifar10|imagenet32|imagenet32_oord --source=FILE_OR_DIR [--data_dir=DIR] [--as=FOLDER]
  python -m diffenc.prepare mnist|cifar10 --download [--data_dir=DIR] [--as=FOLDER]
  python -m diffenc.prepare folder --source=DIR_OF_IMAGES [--size=32] [--background=white] [--data_dir=DIR] [--as=FOLDER]
  python -m diffenc.prepare folder --train=DIR [--test=DIR] --as=FOLDER [--size=32] [--background=white] [--data_dir=DIR]
  python -m diffenc.prepare tfds --source=DIR --as=FOLDER [--data_dir=DIR]

Everything happens in a folder `.FOLDER.partial` beside the final one, which is renamed into place at the end:
DATA_DIR/FOLDER is whole or absent. Stopped at any moment, the same command goes on.
"""

import argparse
import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffenc import registry
from diffenc.cli.console import status_of
from diffenc.data import digests, download, existing, image_folder, manifest, recipe, shards, tfds_folder
from diffenc.data.image_folder import Folders
from diffenc.data.manifest import Manifest
from diffenc.data.official_files import Download
from diffenc.data.recipe import BadSourceError, Preparable, Recipe
from diffenc.data.workspace import workspace
from diffenc.errors import UserError
from diffenc.files import atomic
from diffenc.files.directories import data_directory, plain_name
from diffenc.runtime.progress import ProgressBars
from diffenc.safe_io.reading import one_line

VERBS = ("folder", "tfds")  # what is no data set of its own


@dataclasses.dataclass(frozen=True)
class PrepareArgs:
    """What a user wants prepared.

    Attributes:
      source: the folder or file to convert; None = download it, or `train` is given.
      folder: the name of the prepared folder; None = `name`, or for any images that of their folder.
      size: side in pixels that images are cut and reduced to; None = they stay as they are.
      train: for any images, the folder of the train split, where `source` does not tell.
      test: likewise; None = a tenth of train is held out.
      background: colour that transparent images are put on; None = they are refused.
    """

    name: str
    source: Path | None
    data_dir: Path
    folder: str | None = None
    size: int | None = None
    train: Path | None = None
    test: Path | None = None
    background: str | None = None


def prepare(asked: PrepareArgs) -> str:
    """Convert a data set into DATA_DIR/FOLDER. Returns what was done, for people.

    Does nothing if the same was converted already and is still good.

    Raises:
      UserError: unknown name, files absent, damaged or not the official ones, other data there already, no
        network, or another process preparing the same.
      OSError: the disk refused.
    """
    bars = ProgressBars()
    make = _maker(asked, bars)
    if make is None:
        return f"{asked.name} needs no files: nothing to prepare"
    downloads = _downloads(asked)
    target = asked.data_dir / plain_name(asked.folder or _folder(asked), "--as")
    with workspace(target) as work, bars:
        there = manifest.read(target)
        if there is not None and downloads:
            existing.refuse_other_files(there, target, _expected(asked.name, there, downloads))
            return _verified(there, target, bars)
        if downloads:
            download.fetch(downloads, work / shards.DOWNLOADS, bars)
        wanted = make(asked.source or work / shards.DOWNLOADS)
        files = {
            name: digests.of(path, bars.start, wanted.members.get(name))
            for name, path in wanted.files.items()
        }
        if there is not None:
            existing.refuse_other_files(there, target, files)
            existing.refuse_other_conversion(there, target, wanted)
            return _with_summary(_verified(there, target, bars), wanted)
        existing.refuse_strangers(target, wanted)
        made = _converted(wanted, files, work, bars)
        shutil.rmtree(work / shards.DOWNLOADS, ignore_errors=True)
        _settle(work, target, made)
    return _with_summary(_said(f"prepared {asked.name}", made, target), wanted)


def _maker(asked: PrepareArgs, bars: ProgressBars) -> Callable[[Path], Recipe] | None:
    """What makes the recipe, given the source; None for a data set that needs no files."""
    if asked.name == "folder":
        folders = Folders(asked.source, asked.train, asked.test, asked.size, asked.background)
        return lambda source: image_folder.recipe(folders, bars.start)
    for key in ("size", "train", "test", "background"):
        if getattr(asked, key) is not None:
            raise UserError(f"--{key} is for `folder` alone: official images stay as they are")
    if asked.name == "tfds":
        return tfds_folder.recipe
    dataset: Any = registry.datasets[asked.name]
    if not isinstance(dataset, Preparable):
        return None
    return lambda source: recipe.of(dataset, source)


def _downloads(asked: PrepareArgs) -> tuple[Download, ...]:
    """What to fetch; nothing if there is a source."""
    if asked.source is not None or asked.train is not None:
        return ()
    files = getattr(registry.datasets[asked.name], "files", None) if asked.name not in VERBS else None
    if files is None:
        raise UserError(f"{asked.name} takes --source=DIR: it has no official address")
    if not files.downloads:
        raise UserError(
            f"{asked.name} cannot be downloaded from here: get it at {files.origin}; then use --source"
        )
    return files.downloads


def _folder(asked: PrepareArgs) -> str:
    """The name of the prepared folder where none is given."""
    if asked.name not in VERBS:
        return asked.name
    if asked.name == "tfds" or asked.source is None:
        raise UserError(f"{asked.name}: give the prepared folder a name with --as=FOLDER")
    return asked.source.name


def _expected(name: str, there: Manifest, downloads: Sequence[Download]) -> dict[str, dict[str, Any]]:
    """The files that a download would be converted from; none where these images are there from others."""
    official: Any = registry.datasets[name]
    if there.source == official.versions[0].title:
        return {}
    return {wanted.name: {"md5": wanted.md5} for wanted in downloads}


def _converted(
    wanted: Recipe, files: Mapping[str, Mapping[str, Any]], work: Path, bars: ProgressBars
) -> Manifest:
    try:
        return shards.convert(wanted, files, work, bars)
    except BadSourceError:
        shards.clear(work)
        shutil.rmtree(work / shards.DOWNLOADS, ignore_errors=True)
        raise


def _settle(work: Path, target: Path, made: Manifest) -> None:
    """Bring everything into place; beside the official files, where they lie in `target`, the manifest last."""
    if target.exists() and any(target.iterdir()):
        for split in made.splits.values():
            for shard in split.shards:
                os.replace(work / shard.name, target / shard.name)
        atomic.sync(target)
        os.replace(work / manifest.NAME, target / manifest.NAME)
        atomic.sync(target)
    else:
        os.rename(work, target)
    atomic.sync(target.parent)


def _verified(there: Manifest, target: Path, bars: ProgressBars) -> str:
    existing.verify(there, target, bars)
    return _said(f"{there.name} is already prepared", there, target)


def _said(done: str, made: Manifest, target: Path) -> str:
    note = f"; {made.note}" if made.note else ""
    return f"{done}: {made.counted} in {target}: {made.source}{note}"


def _with_summary(said: str, wanted: Recipe) -> str:
    return f"{said}\n{wanted.summary}" if wanted.summary else said


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m diffenc.prepare",
        description="Convert a data set into the shards that training reads, in DATA_DIR/FOLDER.",
    )
    parser.add_argument(
        "name",
        help="mnist, cifar10, imagenet32, imagenet32_oord or another registered data set in its official "
        "files; folder: any folder of images; tfds: what tensorflow-datasets has prepared as array_record",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--source", metavar="FILE_OR_DIR", help="the files: a folder, or one of them")
    where.add_argument("--download", action="store_true", help="fetch them (mnist, cifar10)")
    where.add_argument(
        "--train", metavar="DIR", help="folder: the train split, whose sub-folders are classes"
    )
    parser.add_argument(
        "--test", metavar="DIR", help="folder: the test split; default: a tenth of --train is held out"
    )
    parser.add_argument("--data_dir", metavar="DIR", help="default: $DIFFENC_DATA, else a per-user cache")
    parser.add_argument("--as", metavar="FOLDER", dest="folder", help="its name in DATA_DIR; default: NAME")
    parser.add_argument(
        "--size",
        type=int,
        metavar="N",
        help="folder: cut the square in the centre of every image and reduce it to N x N",
    )
    parser.add_argument(
        "--background",
        metavar="COLOUR",
        help="folder: put transparent images on this colour (white, #808080); default: they are refused",
    )
    return parser


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    return _parser().parse_args(argv)


def _asked(given: argparse.Namespace) -> PrepareArgs:
    source, train, test = (
        None if path is None else _absolute(path) for path in (given.source, given.train, given.test)
    )
    if test is not None and train is None:
        raise UserError(f"--test={given.test}: give --train=DIR too, in place of --source")
    if source is None and train is None and not given.download:
        _require_none(given.name)
    data_dir = _absolute(given.data_dir) if given.data_dir else data_directory()
    return PrepareArgs(given.name, source, data_dir, given.folder, given.size, train, test, given.background)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    given = parse(argv)

    def perform() -> None:
        registry.discover()
        print(prepare(_asked(given)))

    return status_of(
        perform,
        "interrupted; the same command goes on",
        lambda error: f"{one_line(error)}; mended, the same command goes on",
    )


def _require_none(name: str) -> None:
    """Raise UserError if the data set `name` lies in files."""
    if name in VERBS:
        raise UserError(f"{name}: give --source=DIR" + ", or --train=DIR --test=DIR" * (name == "folder"))
    dataset = registry.datasets[name]
    if isinstance(dataset, Preparable):
        download = ", or --download" if dataset.files.downloads else ""
        raise UserError(
            f"where are the files of {name} ({dataset.files.origin})? give --source=FILE_OR_DIR{download}"
        )


def _absolute(path: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))
