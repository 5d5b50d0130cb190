"""Published sets of images, recognised split by split from digests of files or of pixels."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from diffenc.registry import datasets

UNKNOWN = "unknown version of "

# By split, the title of its version and the name of the part of that split (empty = all); None = not recognised.
Identity = Mapping[str, tuple[str, str] | None]


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Digests of the images of one split, as uint8 [N, H, W, C].

    Attributes:
      sha256: hex SHA-256 of the pixels in their order.
      images_sha256: hex SHA-256 of the images' sorted SHA-256s, the same in every order; empty = not known.
    """

    sha256: str
    images_sha256: str = ""


@dataclasses.dataclass(frozen=True)
class Part:
    """A published split, or a named part of one; recognised by any of its digests.

    Attributes:
      split: "train" or "test".
      name: the part of the split, such as "first 1,000 of test"; empty = all of it.
      pixels: digests of the images; None = not known.
      files: sets of official files, each name -> hex MD5 or SHA-256; one whole set suffices.
    """

    split: str
    name: str = ""
    pixels: Pixels | None = None
    files: tuple[Mapping[str, str], ...] = ()

    def has_pixels(self, found: Pixels) -> bool:
        """Whether `found` are the images of this part, in any order."""
        if self.pixels is None:
            return False
        same_set = bool(found.images_sha256) and found.images_sha256 == self.pixels.images_sha256
        return same_set or found.sha256 == self.pixels.sha256

    def has_files(self, digests: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether a complete set of this part's files is among those in `digests`, regardless of their folders."""
        held = {name.rpartition("/")[2]: entry for name, entry in digests.items()}
        return any(
            all(
                name in held and digest in (held[name].get("md5"), held[name].get("sha256"))
                for name, digest in known.items()
            )
            for known in self.files
        )


@dataclasses.dataclass(frozen=True)
class Version:
    """A published set of images.

    Attributes:
      title: its name with its authors.
      origin: its authors, the material it was made from, and where it is published.
      licence: the terms stated for it, or a remark that none are stated.
    """

    title: str
    parts: tuple[Part, ...]
    origin: str = ""
    licence: str = ""


def identify(
    name: str,
    image_shape: tuple[int, int, int],
    splits: Mapping[str, Pixels],
    digests: Mapping[str, Mapping[str, Any]],
) -> Identity:
    """Returns the published version of each split.

    Pixels are compared with those of every registered data set of the same shape. Files are compared with those
    of the data set `name` alone: another data set may read other images from the same files.

    Args:
      name: the data set as which the files were read.
      splits: digests of the pixels by split.
      digests: by file name, its "md5" and "sha256".
    """
    own, others = _registered(name, image_shape)
    return {split: _known(split, pixels, digests, own, others) for split, pixels in splits.items()}


def _known(
    split: str,
    pixels: Pixels,
    digests: Mapping[str, Mapping[str, Any]],
    own: Iterable[Version],
    others: Iterable[Version],
) -> tuple[str, str] | None:
    # Pixels identify images regardless of the data set that read them; files do so only for the data set they belong to.
    for versions, files in ((own, digests), (others, {})):
        for version in versions:
            for part in version.parts:
                if part.split == split and (part.has_pixels(pixels) or part.has_files(files)):
                    return version.title, part.name
    return None


def describe(found: Identity, otherwise: str) -> str:
    """Returns the result of `identify` as one line: the title alone if every split is whole and of one version."""
    known = dict.fromkeys(held for held in found.values() if held is not None)
    titles = list(dict.fromkeys(title for title, _ in known))
    if not titles:
        return otherwise
    if set(found.values()) == {(titles[0], "")}:
        return titles[0]
    if len(titles) == 1:
        return f"{titles[0]}: {', '.join(_part(split, held) for split, held in found.items())}"
    return "; ".join(_part(split, held) + (f" of {held[0]}" if held else "") for split, held in found.items())


def _part(split: str, held: tuple[str, str] | None) -> str:
    if held is None:
        return f"{UNKNOWN}{split}"
    return held[1] or f"all of {split}"


def unknown_version(name: str) -> str:
    """Returns the description of images read as the data set `name` and not recognised; empty if it has no known versions."""
    titles = (
        [version.title for version in getattr(datasets[name], "versions", ())]
        if name in set(datasets)
        else []
    )
    return f"{UNKNOWN}{titles[0]}" if titles else ""


def is_unknown(source: str, split: str) -> bool:
    """Whether `source`, as `describe` writes it, describes `split` as of an unknown version."""
    return source.startswith(UNKNOWN) or f"{UNKNOWN}{split}" in source


def published_terms(source: str) -> dict[str, str]:
    """Returns "origin" and "licence" of the published images that `source`, as `describe` writes it, names."""
    found = [version for version in _all_versions() if version.title in source]
    stated = {key: [getattr(version, key) for version in found] for key in ("origin", "licence")}
    return {key: "; ".join(filter(None, texts)) for key, texts in stated.items() if any(texts)}


def _all_versions() -> list[Version]:
    return [version for name in datasets for version in getattr(datasets[name], "versions", ())]


def is_published(source: str) -> bool:
    """Whether `source`, as `describe` writes it, names a published version and no unknown split."""
    return UNKNOWN not in source and any(version.title in source for version in _all_versions())


def _registered(name: str, image_shape: tuple[int, int, int]) -> tuple[list[Version], list[Version]]:
    """Returns the versions of the data set `name`, and those of all other data sets of the same shape."""
    own, others = [], []
    for other in datasets:
        kind: Any = datasets[other]
        if getattr(kind, "image_shape", None) == image_shape:
            (own if other == name else others).extend(getattr(kind, "versions", ()))
    return own, others
