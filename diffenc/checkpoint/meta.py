"""META.json, the file that marks a folder as a committed checkpoint, and the names of such folders.

format     version of the layout
step       optimizer steps taken
parts      number of processes that saved the checkpoint
leaves     {name: [shape, dtype]}; a name is the path of the leaf, joined by "/"
metadata   metadata of the caller
checksum   SHA-256 of the above
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from diffenc.errors import UserError
from diffenc.files import checksummed_json
from diffenc.files.checksummed_json import UnreadableError
from diffenc.files.stores import Store

FORMAT = 3  # 2: before the networks' blocks were stacked
META = "META.json"


class Name(NamedTuple):
    """Name of a checkpoint's folder: the step, and the number of earlier saves of that step."""

    step: int
    generation: int

    def __str__(self) -> str:
        return f"{self.step:09d}-{self.generation}" if self.generation else f"{self.step:09d}"

    @staticmethod
    def parse(text: str) -> "Name | None":
        """Returns the name with this text; None if it is not the name of a checkpoint's folder."""
        # At least nine digits: from 10^9 steps on names are longer, which is fine, as they are sorted as numbers.
        found = re.fullmatch(r"(\d{9,})(?:-(\d+))?", text)
        return Name(int(found[1]), int(found[2] or 0)) if found else None


def list_checkpoints(store: Store) -> dict[Name, bool]:
    """Returns the name of every checkpoint folder, and whether it is committed."""
    parsed = {Name.parse(folder): META in files for folder, files in store.names().items()}
    return {name: committed for name, committed in parsed.items() if name is not None}


def part_folder(name: str, index: int) -> str:
    """Returns the folder in the checkpoint `name` that process `index` writes."""
    return f"{name}/process_{index}".lstrip("/")


def format_meta(content: Mapping[str, Any]) -> str:
    """Returns the text of META.json with `content`. Raises TypeError if `content` has no JSON form."""
    return checksummed_json.dumps({"format": FORMAT, **content})


def read_meta(store: Store, name: str) -> dict[str, Any]:
    """Reads META.json of the checkpoint `name`.

    Raises:
      UnreadableError: the file is absent or damaged.
      UserError: the checkpoint has another format.
      OSError: the store cannot be read.
    """
    content = checksummed_json.read(store, f"{name}/{META}".lstrip("/"))
    if content.get("format") != FORMAT:
        raise UserError(
            f"checkpoint {store}/{name} has format {content.get('format')}, not {FORMAT}; use the version of diffenc that wrote it"
        )
    # The checksum is valid, so that this is no damage: the file was forged, or written by a bug.
    if not _is_valid(content):
        raise UnreadableError(f"{META} is not that of a checkpoint")
    return content


def _is_valid(content: Mapping[str, Any]) -> bool:
    """Whether the content has all fields, of their types; the metadata are for their readers to check."""
    step, parts, leaves = content.get("step"), content.get("parts"), content.get("leaves")
    return (
        type(step) is int
        and step >= 0
        and type(parts) is int
        and parts >= 1
        and isinstance(content.get("metadata"), Mapping)
        and isinstance(leaves, Mapping)
        and all(_is_leaf(leaf) for leaf in leaves.values())
    )


def _is_leaf(leaf: Any) -> bool:
    match leaf:
        case [list(shape), str()]:
            return all(type(n) is int and n >= 0 for n in shape)
    return False
