"""Which images these are: the known versions of data sets, told by digests."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

UNKNOWN = "unknown version of "


@dataclasses.dataclass(frozen=True)
class Version:
    """A published set of images.

    Attributes:
      title: what it is called, with its authors.
      pixels: hex SHA-256 of the raw pixels by split, where it is known.
      files: sets of official files, each name -> hex MD5 or SHA-256; one whole set tells the version.
    """

    title: str
    pixels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    files: tuple[Mapping[str, str], ...] = ()

    def has_pixels(self, pixels: Mapping[str, str]) -> bool:
        """Whether all splits have this version's pixels."""
        return bool(self.pixels) and dict(pixels) == dict(self.pixels)

    def has_files(self, digests: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether the files are this version's, whatever the folder they lie in."""
        held = {name.rpartition("/")[2]: entry for name, entry in digests.items()}
        return any(
            set(known) == set(held)
            and all(known[name] in (held[name].get("md5"), held[name].get("sha256")) for name in known)
            for known in self.files
        )


def identify(
    versions: Sequence[Version],
    pixels: Mapping[str, str],
    digests: Mapping[str, Mapping[str, Any]],
    otherwise: str,
) -> str:
    """The title of the version that these pixels or files are; else `otherwise`.

    Args:
      pixels: hex SHA-256 of the raw pixels by split.
      digests: by file name, its "md5" and "sha256".
    """
    for version in versions:
        if version.has_pixels(pixels) or version.has_files(digests):
            return version.title
    return otherwise
