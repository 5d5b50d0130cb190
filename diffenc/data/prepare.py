"""Converts a data set into DATA_DIR/FOLDER, the shards that training reads.

All work is done in a folder `.FOLDER.partial` next to the final one, and renamed into place at the end: DATA_DIR/FOLDER
is complete or absent. After an interruption the same call resumes the conversion.
"""

import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffenc import registry
from diffenc.data import (
    digests,
    download,
    existing_conversion,
    image_folder,
    manifest,
    recipe,
    shard_writing,
    tfds_folder,
)
from diffenc.data.image_folder import Folders
from diffenc.data.manifest import Manifest
from diffenc.data.official_files import Download
from diffenc.data.recipe import BadSourceError, Preparable, Recipe
from diffenc.data.workspace import workspace
from diffenc.errors import UserError
from diffenc.files import atomic
from diffenc.files.directories import check_folder_name
from diffenc.runtime.progress import ProgressBars

VERBS = ("folder", "tfds")  # values of `PrepareArgs.name` that are no data set of their own


@dataclasses.dataclass(frozen=True)
class PrepareArgs:
    """A data set to prepare.

    Attributes:
      source: the folder or file to convert; None = download it, or `train` is given.
      folder: the name of the prepared folder; None = `name`, or for `folder` the name of the source.
      size: side in pixels to which the central square is reduced; None = keep the size.
      train: for `folder`, the images of the train split, instead of `source`.
      test: likewise of the test split; None = a tenth of train is held out.
      background: colour on which transparent images are composited; None = refuse them.
      download: whether to download the official files.
    """

    name: str
    source: Path | None
    data_dir: Path
    folder: str | None = None
    size: int | None = None
    train: Path | None = None
    test: Path | None = None
    background: str | None = None
    download: bool = False


def prepare(args: PrepareArgs) -> str:
    """Converts a data set into DATA_DIR/FOLDER; returns a message for the user.

    Does nothing if the same data set was converted already and is intact.

    Raises:
      UserError: unknown name, files absent, damaged or not the official ones, other data in that folder, no
        network, or another process preparing the same data set.
      OSError: a file cannot be read or written.
    """
    if args.name not in VERBS:
        registry.discover()
    bars = ProgressBars()
    make_recipe = _recipe_maker(args, bars)
    if make_recipe is None:
        return f"{args.name} needs no files: nothing to prepare"
    downloads = _downloads(args)
    target = args.data_dir / check_folder_name(args.folder or _default_folder(args), "--as")
    with workspace(target) as work, bars:
        # Within the lock: another process may just have finished the same data set.
        prepared = manifest.read(target)
        # Compared without a download: the manifest has the MD5 of the converted files.
        if prepared is not None and downloads:
            existing_conversion.refuse_other_files(
                prepared, target, _expected_files(args.name, prepared, downloads)
            )
            return _verify(prepared, target, bars)
        if downloads:
            download.fetch(downloads, work / shard_writing.DOWNLOADS, bars)
        to_convert = make_recipe(args.source or work / shard_writing.DOWNLOADS)
        files = {
            name: digests.digest_path(path, bars.start, to_convert.members.get(name))
            for name, path in to_convert.files.items()
        }
        # An existing conversion is kept if it is of the same files, digested above; its shards are verified.
        if prepared is not None:
            existing_conversion.refuse_other_files(prepared, target, files)
            existing_conversion.refuse_other_conversion(prepared, target, to_convert)
            return _with_summary(_verify(prepared, target, bars), to_convert)
        existing_conversion.refuse_strangers(target, to_convert)
        # The source is digested before the conversion, so that an
        # interrupted one is resumed only if the files are the same.
        converted = _convert(to_convert, files, work, bars)
        shutil.rmtree(work / shard_writing.DOWNLOADS, ignore_errors=True)
        _move_into_place(work, target, converted)
    return _with_summary(_message(f"prepared {args.name}", converted, target), to_convert)


def _recipe_maker(args: PrepareArgs, bars: ProgressBars) -> Callable[[Path], Recipe] | None:
    """Returns a function from the source to the recipe; None for a data set that needs no files."""
    if args.name == "folder":
        folders = Folders(args.source, args.train, args.test, args.size, args.background)
        return lambda source: image_folder.make_recipe(folders, bars.start)
    for key in ("size", "train", "test", "background"):
        if getattr(args, key) is not None:
            raise UserError(f"--{key} is for `folder` alone: official images stay as they are")
    if args.name == "tfds":
        return tfds_folder.make_recipe
    dataset: Any = registry.datasets[args.name]
    if not isinstance(dataset, Preparable):
        return None
    return lambda source: recipe.make_recipe(dataset, source)


def _downloads(args: PrepareArgs) -> tuple[Download, ...]:
    """Returns the files to download; none if there is a source."""
    if args.source is not None or args.train is not None:
        return ()
    if args.name in VERBS:
        trees = ", or --train=DIR --test=DIR" * (args.name == "folder")
        address = "; it has no official address" * args.download
        raise UserError(f"{args.name}: give --source=DIR{trees}{address}")
    dataset: Any = registry.datasets[args.name]
    files = dataset.files
    if not args.download:
        flag = ", or --download" if files.downloads else ""
        raise UserError(
            f"where are the files of {args.name} ({files.origin})? give --source=FILE_OR_DIR{flag}"
        )
    if not files.downloads:
        raise UserError(
            f"{args.name} cannot be downloaded from here: download it at {files.origin}; then use --source"
        )
    return files.downloads


def _default_folder(args: PrepareArgs) -> str:
    if args.name not in VERBS:
        return args.name
    if args.name == "tfds" or args.source is None:
        raise UserError(f"{args.name}: give the prepared folder a name with --as=FOLDER")
    return args.source.name


def _expected_files(
    name: str, prepared: Manifest, downloads: Sequence[Download]
) -> dict[str, dict[str, Any]]:
    """Returns the digests that the downloaded files would have; none if `prepared` has the official images already."""
    # The same images may have been converted from another layout of the files, whose digests differ.
    official: Any = registry.datasets[name]
    if prepared.source == official.versions[0].title:
        return {}
    return {file.name: {"md5": file.md5} for file in downloads}


def _convert(
    to_convert: Recipe, files: Mapping[str, Mapping[str, Any]], work: Path, bars: ProgressBars
) -> Manifest:
    try:
        return shard_writing.convert(to_convert, files, work, bars)
    except BadSourceError:
        # Nothing is worth resuming: the shards are of a bad source, and a bad download would be used again.
        shard_writing.clear_work(work)
        shutil.rmtree(work / shard_writing.DOWNLOADS, ignore_errors=True)
        raise


def _move_into_place(work: Path, target: Path, converted: Manifest) -> None:
    """Renames `work` to `target`; if official files are in `target`, moves the shards next to them, the manifest last."""
    if target.exists() and any(target.iterdir()):
        for split in converted.splits.values():
            for shard in split.shards:
                os.replace(work / shard.name, target / shard.name)
        atomic.sync(target)
        # Without its manifest a folder counts as not prepared: it is moved once all shards are on disk.
        os.replace(work / manifest.NAME, target / manifest.NAME)
        atomic.sync(target)
    else:
        os.rename(work, target)
    atomic.sync(target.parent)


def _verify(prepared: Manifest, target: Path, bars: ProgressBars) -> str:
    existing_conversion.verify_shards(prepared, target, bars)
    return _message(f"{prepared.name} is already prepared", prepared, target)


def _message(done: str, made: Manifest, target: Path) -> str:
    note = f"; {made.note}" if made.note else ""
    return f"{done}: {made.counted} in {target}: {made.source}{note}"


def _with_summary(message: str, converted: Recipe) -> str:
    return f"{message}\n{converted.summary}" if converted.summary else message
