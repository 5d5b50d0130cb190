"""Variants that a sweep compares: named sets of gin files and bindings, which grids multiply."""

import dataclasses
import io
import itertools
import re
import tokenize
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from diffenc.errors import UserError

MAX_NAME_LENGTH = 120  # characters; names become folders
EXAMPLE = "e.g. --grid='network.encoder_unet.blocks = [1, 2, 4]'"
OPENING, CLOSING = "([{", ")]}"
MISPLACED = (tokenize.COMMENT, tokenize.ERRORTOKEN)


@dataclasses.dataclass(frozen=True)
class Variant:
    """One config, run with several seeds.

    Attributes:
      name: name of the folder with its runs.
      gin_files: later files override earlier ones.
      bindings: override the files.
    """

    name: str
    gin_files: tuple[str, ...]
    bindings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Grid:
    """Names that are bound together, and their values in gin syntax.

    Attributes:
      names: one or more names of parameters.
      values: rows of one value for each name.
    """

    names: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]


def make_variants(
    gin_files: Sequence[str],
    bindings: Sequence[str],
    grids: Sequence[Grid],
    name: str,
    variant_files: Sequence[str] = (),
) -> list[Variant]:
    """Returns the product of the variant files and the grids, each over the files and bindings.

    Args:
      name: name of the variant if there are neither files nor grids.
      variant_files: gin files of one variant each, named after it, which stack on `gin_files`.

    Raises:
      UserError: two grids bind the same name, or two variants would share a folder.
    """
    names = [name for grid in grids for name in grid.names]
    for bound, count in Counter(names).items():
        if count > 1:
            raise UserError(f"--grid binds {bound} {count} times: name it once")
    rows = [sum(row, ()) for row in itertools.product(*(grid.values for grid in grids))]
    variants = [
        Variant(
            ",".join(filter(None, (Path(file).stem, _variant_name(names, row)))) or name,
            (*gin_files, *filter(None, [file])),
            (*bindings, *(f"{key} = {value}" for key, value in zip(names, row, strict=True))),
        )
        for file in variant_files or [""]
        for row in rows
    ]
    for shared, count in Counter(variant.name for variant in variants).items():
        if count > 1:
            raise UserError(
                f"--grid, --variant: {count} variants would share the folder {shared}: remove duplicate values, or rename a file"
            )
    return variants


def parse_grid(text: str) -> Grid:
    """Parses `NAME = [VALUE, ...]`, or `NAME, NAME = [(VALUE, VALUE), ...]` for names that vary together.

    Raises:
      UserError: the text has neither form.
    """
    text = " ".join(text.splitlines())  # on one line, as the tokenizer rejects indented lines
    left, equals, right = text.partition("=")
    names = tuple(name.strip() for name in left.split(","))
    if not equals or not all(names):
        raise UserError(f"--grid={text!r}: not of the form NAME = [VALUE, ...], {EXAMPLE}")
    values = _split_items(right, "[", "]", text)
    if not values:
        raise UserError(f"--grid={text!r}: no values, {EXAMPLE}")
    if len(names) == 1:
        return Grid(names, tuple((value,) for value in values))
    rows = tuple(tuple(_split_items(value, "(", ")", text)) for value in values)
    for row in rows:
        if len(row) != len(names):
            raise UserError(f"--grid={text!r}: {len(names)} names, but ({', '.join(row)})")
    return Grid(names, rows)


def _split_items(text: str, opening: str, closing: str, whole: str) -> list[str]:
    """Returns the items of a bracketed list, split at its top-level commas."""
    text = text.strip()
    if not (text.startswith(opening) and text.endswith(closing)):
        raise UserError(f"--grid={whole!r}: {text} must be enclosed in {opening}{closing}, {EXAMPLE}")
    inner = text[1:-1]
    commas = [-1, *_find_commas(inner, whole), len(inner)]
    items = [inner[first + 1 : last].strip() for first, last in itertools.pairwise(commas)]
    if items[-1] == "":  # after a trailing comma
        items.pop()
    if not all(items):
        raise UserError(f"--grid={whole!r}: nothing between two commas")
    return items


def _find_commas(text: str, whole: str) -> Iterator[int]:
    """Returns the positions of commas outside brackets and strings."""
    depth = 0
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.OP:
                depth += (token.string in OPENING) - (token.string in CLOSING)
                if token.string == "," and depth == 0:
                    yield token.start[1]
            if depth < 0 or token.type in MISPLACED:
                raise UserError(f"--grid={whole!r}: unexpected {token.string}")
    except (tokenize.TokenError, SyntaxError, UnicodeError) as error:
        raise UserError(f"--grid={whole!r}: {error.args[0]}") from None


def _variant_name(names: Sequence[str], values: Sequence[str]) -> str:
    """Returns a name such as `blocks=2,schedule=linear`, with fields alone where these are unambiguous."""
    fields = Counter(name.rpartition(".")[2] for name in names)

    def shorten(name: str) -> str:
        field = name.rpartition(".")[2]
        return _slug(field if fields[field] == 1 else name)

    name = ",".join(f"{shorten(name)}={_slug(value)}" for name, value in zip(names, values, strict=True))
    if len(name) > MAX_NAME_LENGTH:
        raise UserError(f"--grid: {name} is too long for a folder name: put the bindings into gin files")
    return name


def _slug(value: str) -> str:
    """Returns `identity` for `@encoder.identity()` and `tanh` for `"tanh"`, with characters valid on any file system."""
    reference = re.fullmatch(r"@(?:.*[./])?(\w+)(?:\(\))?", value)
    return re.sub(r"[^\w.+-]+", "_", reference[1] if reference else value, flags=re.ASCII).strip("_")
