"""META.json, which makes a folder a checkpoint, and the names of such folders.

format     version of the layout
step       the step the tree stood at
leaves     {name: [shape, dtype]}; a name is the path of the leaf, parts joined by "/"
metadata   what the caller gave
checksum   SHA-256 of the above
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from diffenc.errors import UserError
from diffenc.files import checksummed_json
from diffenc.files.stores import Store

FORMAT = 2
META = "META.json"


class Name(NamedTuple):
    """Of a checkpoint's folder: the step, and how often that had been saved before."""

    step: int
    generation: int

    def __str__(self) -> str:
        return f"{self.step:09d}-{self.generation}" if self.generation else f"{self.step:09d}"

    @staticmethod
    def parse(text: str) -> "Name | None":
        found = re.fullmatch(r"(\d{9,})(?:-(\d+))?", text)
        return Name(int(found[1]), int(found[2] or 0)) if found else None


def found(store: Store) -> dict[Name, bool]:
    """Every checkpoint, and whether it is committed."""
    parsed = {Name.parse(folder): META in files for folder, files in store.names().items()}
    return {name: committed for name, committed in parsed.items() if name is not None}


def part_of(name: str, index: int) -> str:
    """The folder of what process `index` wrote of the checkpoint `name`."""
    return f"{name}/process_{index}".lstrip("/")


def text(content: Mapping[str, Any]) -> str:
    """The file that says `content`. Raises TypeError if that has no JSON form."""
    return checksummed_json.text({"format": FORMAT, **content})


def read(store: Store, name: str) -> dict[str, Any]:
    """What the checkpoint `name` says of itself.

    Raises:
      UnreadableError: it is damaged.
      UserError: it is of another format.
      OSError: the store refused.
    """
    content = checksummed_json.read(store, f"{name}/{META}".lstrip("/"))
    if content["format"] != FORMAT:
        raise UserError(
            f"checkpoint {store}/{name} has format {content['format']}, not {FORMAT}; use the version it is of"
        )
    return content
