"""Checks of the folder in which a data set is to be prepared: existing data must be the same, and intact."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffenc.data import digests
from diffenc.data.manifest import Manifest
from diffenc.data.recipe import Recipe
from diffenc.errors import UserError
from diffenc.runtime.progress import ProgressBars


def refuse_other_conversion(there: Manifest, target: Path, wanted: Recipe) -> None:
    """Raises UserError if the images in `target` were converted, or divided into splits, in another way than `wanted`."""
    # Official data sets have no `counts`, `classes` and `otherwise` in their recipe: their files identify them.
    counts = {name: split.count for name, split in there.splits.items()}
    same = (
        there.image_shape == wanted.image_shape
        and (not wanted.counts or dict(wanted.counts) == counts)
        and (not wanted.classes or wanted.classes == there.classes)
        and (not there.otherwise or there.otherwise == wanted.otherwise)
    )
    if not same:
        raise _other_data(target, f"{there.counted}, {there.image_shape}: {there.otherwise or there.source}")


def refuse_other_files(there: Manifest, target: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises UserError if the images in `target` were converted from other files."""
    for name, digest in files.items():
        held = there.files.get(name, {})
        if any(held.get(key) != value for key, value in digest.items()):
            raise _other_data(target, f"{there.source}; {name} differs or is absent", name.endswith("/"))


def _other_data(target: Path, what: str, of_folder: bool = False) -> UserError:
    hint = (
        "; of folders that hold official files, and of what an older version prepared, every file counts, so a text beside "
        "the images may be all that was edited: then what is there can be used"
    ) * of_folder
    return UserError(
        f"{target} already holds other data ({what}); to have both give this one a name with --as=FOLDER, to replace "
        f"that one delete its folder{hint}"
    )


def verify_shards(there: Manifest, target: Path, bars: ProgressBars) -> None:
    """Raises UserError if a shard in `target` is damaged or missing."""
    shards = [shard for split in there.splits.values() for shard in split.shards]
    advance = bars.start(f"verifying {target.name}", sum(shard.bytes for shard in shards))
    for shard in shards:
        path = target / shard.name
        if not path.is_file() or digests.digest_file(path, advance)["sha256"] != shard.sha256:
            raise UserError(f"{path}: is damaged or missing; delete {target} and run the same command again")


def refuse_strangers(target: Path, wanted: Recipe) -> None:
    """Raises UserError if `target` is not empty, unless the files to be converted are in it."""
    if not target.exists():
        return
    ours = {path.absolute() for path in wanted.files.values()}
    inside = any(target in path.parents for path in ours)
    if not target.is_dir() or (any(target.iterdir()) and not inside):
        raise UserError(
            f"{target} already holds something else; delete it, or choose another name with --as=FOLDER"
        )
