"""What a sweep compares: files and bindings with a name, alone or as the product of grids."""

import dataclasses
import io
import itertools
import re
import tokenize
from collections import Counter
from collections.abc import Iterator, Sequence

from diffenc.errors import UserError

LONGEST = 120  # characters of a name that becomes a folder's
EXAMPLE = "as --grid='network.encoder_unet.blocks = [1, 2, 4]'"
OPENING, CLOSING = "([{", ")]}"
STRAY = (tokenize.COMMENT, tokenize.ERRORTOKEN)


@dataclasses.dataclass(frozen=True)
class Variant:
    """One config, to be run with several seeds.

    Attributes:
      name: of the folder that its runs lie in.
      gin_files: a later one overrides an earlier one.
      bindings: over the files.
    """

    name: str
    gin_files: tuple[str, ...]
    bindings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Grid:
    """Names bound together, and the values that they take in turn, as gin spells them.

    Attributes:
      names: one or more.
      values: rows as long as `names`.
    """

    names: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]


def variants_of(
    gin_files: Sequence[str], bindings: Sequence[str], grids: Sequence[Grid], name: str
) -> list[Variant]:
    """The product of the grids over the files and bindings; without grids the one variant `name`.

    Raises:
      UserError: a name is bound by two grids, or two variants would share a folder.
    """
    names = [name for grid in grids for name in grid.names]
    for bound, count in Counter(names).items():
        if count > 1:
            raise UserError(f"--grid binds {bound} {count} times: name it once")
    rows = [sum(row, ()) for row in itertools.product(*(grid.values for grid in grids))]
    made = [
        Variant(
            _name(names, row) or name,
            tuple(gin_files),
            (*bindings, *(f"{key} = {value}" for key, value in zip(names, row, strict=True))),
        )
        for row in rows
    ]
    for shared, count in Counter(variant.name for variant in made).items():
        if count > 1:
            raise UserError(
                f"--grid: {count} variants would share the folder {shared}: leave out what repeats"
            )
    return made


def parse_grid(text: str) -> Grid:
    """`NAME = [VALUE, ...]`, or `NAME, NAME = [(VALUE, VALUE), ...]` for what only goes together.

    Raises:
      UserError: it is neither.
    """
    text = " ".join(text.splitlines())  # the tokenizer minds how lines are indented
    left, equals, right = text.partition("=")
    names = tuple(name.strip() for name in left.split(","))
    if not equals or not all(names):
        raise UserError(f"--grid={text!r}: no NAME = [VALUE, ...], {EXAMPLE}")
    values = _items(right, "[", "]", text)
    if not values:
        raise UserError(f"--grid={text!r}: no values, {EXAMPLE}")
    if len(names) == 1:
        return Grid(names, tuple((value,) for value in values))
    rows = tuple(tuple(_items(value, "(", ")", text)) for value in values)
    for row in rows:
        if len(row) != len(names):
            raise UserError(f"--grid={text!r}: {len(names)} names, but ({', '.join(row)})")
    return Grid(names, rows)


def _items(text: str, opening: str, closing: str, whole: str) -> list[str]:
    """What stands between the commas of `text`, within one pair of brackets."""
    text = text.strip()
    if not (text.startswith(opening) and text.endswith(closing)):
        raise UserError(f"--grid={whole!r}: {text} should stand in {opening}{closing}, {EXAMPLE}")
    inner = text[1:-1]
    edges = [-1, *_commas(inner, whole), len(inner)]
    items = [inner[first + 1 : last].strip() for first, last in itertools.pairwise(edges)]
    if items[-1] == "":  # after a last comma
        items.pop()
    if not all(items):
        raise UserError(f"--grid={whole!r}: nothing between two commas")
    return items


def _commas(text: str, whole: str) -> Iterator[int]:
    """Where commas stand outside of all brackets and strings."""
    depth = 0
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.OP:
                depth += (token.string in OPENING) - (token.string in CLOSING)
                if token.string == "," and depth == 0:
                    yield token.start[1]
            if depth < 0 or token.type in STRAY:
                raise UserError(f"--grid={whole!r}: {token.string} is out of place")
    except (tokenize.TokenError, SyntaxError, UnicodeError) as error:
        raise UserError(f"--grid={whole!r}: {error.args[0]}") from None


def _name(names: Sequence[str], values: Sequence[str]) -> str:
    """`blocks=2,schedule=linear`: the shortest that tells what is bound."""
    short = Counter(name.rpartition(".")[2] for name in names)

    def shown(name: str) -> str:
        field = name.rpartition(".")[2]
        return _slug(field if short[field] == 1 else name)

    name = ",".join(f"{shown(name)}={_slug(value)}" for name, value in zip(names, values, strict=True))
    if len(name) > LONGEST:
        raise UserError(f"--grid: {name} is too long for a folder's name: put the bindings into gin files")
    return name


def _slug(value: str) -> str:
    """`@encoder.identity()` as `identity`, `"tanh"` as `tanh`; only what any file system takes."""
    reference = re.fullmatch(r"@(?:.*[./])?(\w+)(?:\(\))?", value)
    return re.sub(r"[^\w.+-]+", "_", reference[1] if reference else value, flags=re.ASCII).strip("_")
