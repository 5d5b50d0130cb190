"""Experiments as complete and canonical config texts, and the comparison of such texts."""

import ast
import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from diffenc.config import names
from diffenc.config.experiment import ADDED_LATER, FREE_TO_CHANGE, TRAINED_PLUGINS, Experiment
from diffenc.errors import UserError
from diffenc.fields.values import coerce, format_value, leaf_values, nested_objects
from diffenc.registry import plugin_packages

MAX_CHARACTERS = 1 << 20  # characters of a config text that is read as such
MAX_LITERAL = 200  # characters of a value that is compared by more than its spelling
MAX_DIFFERENCES = 8  # differences in a message

_BOOLEANS = ("True", "False")  # equal to 1 and 0 in Python, but different values of a config

SPELLABLE = (bool, int, float, str, bytes, type(None))

Path = tuple[str, ...]  # the fields that lead to an object from the experiment


@dataclasses.dataclass(frozen=True)
class _Object:
    """An object of the experiment. `values` holds literals, and _Objects for other objects."""

    selector: str
    values: dict[str, Any]
    path: Path

    def __str__(self) -> str:
        """The object in one line, the same for equal objects."""
        values = [f"{name}={format_value(value, str)}" for name, value in self.values.items()]
        return f"{self.selector}({', '.join(values)})"

    @property
    def scope(self) -> str:
        """The path as a name; doubled underscores distinguish `a_b.c` from `a.b_c`."""
        return "_".join(step.replace("_", "__") for step in self.path)


def config_text(experiment: Any) -> str:
    """Returns every field of every object in the experiment, or in a part of one, as sorted gin bindings, one per line.

    Defaults are written out, and there are no macros. Objects of one class with different values have scopes named
    after their paths: `@model_network/network.unet()`. Modules outside the packages of entry points are imported.

    Raises:
      UserError: an object's class is not registered, or a value cannot be written.
    """
    objects = list(_walk(_read(experiment, ())))
    # A scope is needed only where objects of one class differ. Equal objects share their bindings, which keeps
    # texts short, and independent of whether fields hold the same object or equal ones.
    variants = defaultdict(set)
    for item in objects:
        variants[item.selector].add(str(item))
    ambiguous = {selector for selector, forms in variants.items() if len(forms) > 1}
    # A set, then sorted: equal experiments have equal texts, regardless of the order of construction.
    lines = {line for item in objects for line in _lines(item, ambiguous)}
    discovered = {"diffenc", "__main__", *plugin_packages()}  # once: it reads what is installed
    known = names.known_classes()
    modules = {known[item.selector].__module__ for item in objects}
    imports = {f"import {module}" for module in modules if module.partition(".")[0] not in discovered}
    return "".join(f"{line}\n" for line in [*sorted(imports), *sorted(lines)])


def unimportable_classes(experiment: Any) -> list[str]:
    """Returns the full names of the experiment's classes that cannot be imported: defined in the program or in a function."""
    classes = {type(item) for item in nested_objects(experiment)}
    names_of = {f"{cls.__module__}.{cls.__qualname__}" for cls in classes}
    return sorted(name for name in names_of if name.startswith("__main__.") or "<locals>" in name)


def config_hash(experiment: Experiment) -> str:
    """Returns the hex SHA-256 of the config text without bindings that are free to change during a run."""
    return hash_text(config_text(experiment))


def hash_text(text: str) -> str:
    """Returns the hex SHA-256 of a config text without comments and without bindings that are free to change during a run."""
    bindings = parse_bindings(text)
    # The hash is over the lines as written, so that hashes in records of earlier versions stay valid.
    kept, written = fixed_bindings(bindings), text.splitlines()
    canonical = canonical_bindings(bindings)
    if canonical != bindings:  # in the order of a text that is written without these scopes
        imports = [line for line in written if " = " not in line]
        written = [*imports, *sorted(f"{key} = {value}" for key, value in canonical.items())]
    lines = [
        line
        for line in written
        if line
        and not line.startswith("#")
        and line not in ADDED_LATER
        and (" = " not in line or line.partition(" = ")[0] in kept)
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def hparams(text: str) -> dict[str, Any]:
    """Returns the bindings of a config text; numbers, booleans and strings with their types, so that tools can sort by them."""
    pairs = (line.partition(" = ") for line in text.splitlines() if " = " in line)
    return {key: _literal(value) for key, _, value in pairs}


def _literal(value: str) -> bool | int | float | str:
    try:
        read = ast.literal_eval(value)
    except (ValueError, SyntaxError):  # a reference
        return value
    return read if isinstance(read, bool | int | float | str) else value


def format_differences(differing: Sequence[str]) -> str:
    """Returns the first results of `find_differences` as text of bounded length, without control characters."""
    shown = [
        _clipped("".join(c if c.isprintable() else ascii(c)[1:-1] for c in one))
        for one in differing[:MAX_DIFFERENCES]
    ]
    more = len(differing) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")


def _clipped(text: str, most: int = 160) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def find_differences(old_text: str, new_text: str, also_free: tuple[str, ...] = ()) -> list[str]:
    """Returns `KEY: OLD -> NEW` for each binding that differs between two config texts and is not free to change.

    A field that the old text lacks and the new one has at its default was added by a later version, and is no difference;
    nor is another spelling of the same number or string.

    Args:
      also_free: patterns of further bindings that are free to change.
    """
    old, new = (fixed_bindings(parse_bindings(text), also_free) for text in (old_text, new_text))
    # A field added by a later version, at its default, does not change the run.
    new = {key: value for key, value in new.items() if key in old or value != _default(key)}
    return [
        f"{key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}"
        for key in sorted(old.keys() | new.keys())
        if not _same_value(old.get(key), new.get(key))
    ]


def _same_value(old: str | None, new: str | None) -> bool:
    if old == new:
        return True
    if old is None or new is None or max(len(old), len(new)) > MAX_LITERAL:
        return False
    try:
        # literal_eval executes no code. `1e-4` and `0.0001` are the same value; True and 1 are different ones.
        return ast.literal_eval(old) == ast.literal_eval(new) and (old in _BOOLEANS) == (new in _BOOLEANS)
    except (
        ValueError,
        SyntaxError,
        TypeError,
        RecursionError,
        MemoryError,
    ):  # references, or no value at all
        return False


def parse_bindings(text: str) -> dict[str, str]:
    """Returns the bindings of a config text, as texts of the values by key."""
    lines = [line for line in text.splitlines() if " = " in line and not line.startswith("#")]
    return {key: value for key, _, value in (line.partition(" = ") for line in lines)}


def canonical_bindings(bindings: Mapping[str, str]) -> dict[str, str]:
    """Returns the bindings of a config with the scopes of `TRAINED_PLUGINS` removed.

    They have a scope only if measurement uses an object of the same class with other values; the trained model is the same
    with and without the scope.
    """
    named = (bindings.get(field, "").strip("@()") for field in TRAINED_PLUGINS)
    scoped = {name: name.rpartition("/")[2] for name in named if "/" in name}
    renamed = {}
    for key, value in bindings.items():
        name, _, field = key.rpartition(".")
        if name in scoped:
            renamed[f"{scoped[name]}.{field}"] = value
        elif key in TRAINED_PLUGINS and value.strip("@()") in scoped:
            renamed[key] = f"@{scoped[value.strip('@()')]}()"
    return {key: value for key, value in bindings.items() if key.rpartition(".")[0] not in scoped} | renamed


def fixed_bindings(bindings: Mapping[str, str], also_free: tuple[str, ...] = ()) -> dict[str, str]:
    """Returns the `canonical_bindings` of a config that are not free to change during a run."""
    bindings = canonical_bindings(bindings)
    trained = {bindings.get(field, "").strip("@()") for field in TRAINED_PLUGINS}
    return {
        key: value
        for key, value in bindings.items()
        if key.rpartition(".")[0] in trained or not is_free_to_change(key, also_free)
    }


def _default(key: str) -> str | None:
    """Returns the default of `[scope/]selector.field` as a config spells it; None if it has none."""
    selector, _, name = key.rpartition("/")[2].rpartition(".")
    cls = names.known_classes().get(selector)
    if cls is None:
        return None
    fields = [field for field in dataclasses.fields(cls) if field.name == name]
    if not fields or fields[0].default is dataclasses.MISSING:
        return None
    # With the same conversions as a value of an experiment, so that the texts can be compared.
    value = _read_value(coerce(fields[0].default, names.bindable_fields(cls)[name].hint), (name,))
    return format_value(value, lambda other: f"@{other.selector}()")


def is_free_to_change(line: str, also_free: tuple[str, ...] = ()) -> bool:
    """Returns whether a binding, given as a line or a key, may change during a run, regardless of other bindings."""
    key = line.partition(" = ")[0].rpartition("/")[2]
    return any(fnmatchcase(key, free) for free in (*FREE_TO_CHANGE, *also_free))


def _lines(item: _Object, ambiguous: set[str]) -> Iterator[str]:
    """Yields the bindings of `item`, without the bindings of the objects in it."""

    def name(item: _Object) -> str:
        scoped = item.scope and item.selector in ambiguous
        return f"{item.scope}/{item.selector}" if scoped else item.selector

    for field, value in item.values.items():
        yield f"{name(item)}.{field} = {format_value(value, lambda other: f'@{name(other)}()')}"


def _walk(item: _Object) -> Iterator[_Object]:
    yield item
    for part in leaf_values(list(item.values.values())):
        if isinstance(part, _Object):
            yield from _walk(part)


def _read(item: Any, path: Path) -> _Object:
    selector = names.find_selector(type(item))
    if selector is None:
        raise UserError(
            f"{type(item).__module__}.{type(item).__qualname__} as {'.'.join(path)} is not registered, so no "
            "config can name it: put the decorator on its class, as @networks.register('NAME')"
        )
    values = {}
    for field in names.bindable_fields(type(item)).values():
        try:
            value = coerce(getattr(item, field.name), field.hint)
            values[field.name] = _read_value(value, (*path, field.name))
        except TypeError as error:
            raise UserError(f"{selector}.{field.name} = {getattr(item, field.name)!r}: {error}") from None
    return _Object(selector, values, path)


def _read_value(value: Any, path: Path) -> Any:
    """Returns `value` with _Objects for dataclasses; raises TypeError if a config cannot express it."""
    if isinstance(value, tuple | list):
        return type(value)(_read_value(item, (*path, str(i))) for i, item in enumerate(value))
    if isinstance(value, dict):
        return {key: _read_value(item, (*path, str(key))) for key, item in value.items()}
    if dataclasses.is_dataclass(value):
        return _read(value, path)
    if type(value) not in SPELLABLE:
        raise TypeError("a config cannot say this")
    return value
