"""What config files and the command line say, checked before anything is built from it."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from absl import logging

from diffenc.config import names
from diffenc.errors import UserError, nearest
from diffenc.fields.values import coerce, parts, spell, spell_hint
from diffenc.registry import REGISTRIES

REQUIRED = "gin.REQUIRED"
MOST_VALUES = 100_000  # in one binding
MACRO = "%"  # stands for the selector in a macro's key

Visit = tuple[str, str]  # the scope and the selector of something that was built
Key = tuple[str, str, str]  # scope, selector, field


@dataclasses.dataclass(frozen=True)
class Reference:
    """`@scope/selector()`, or without parentheses where it is not `called`."""

    scope: str
    selector: str
    called: bool

    def __str__(self) -> str:
        return "@" + _scoped(self.scope, self.selector) + "()" * self.called


@dataclasses.dataclass(frozen=True)
class Macro:
    """`%name`."""

    name: str

    def __str__(self) -> str:
        return f"%{self.name}"


@dataclasses.dataclass(frozen=True)
class Binding:
    """`scope/selector.field = value`, or `name = value` with the selector MACRO and the name as field.

    Attributes:
      where: the place it was read from, as the user knows it: `gin/x.gin:12` or `--gin_bindings`.
      typed: whether it stood on the command line rather than in a file.
    """

    scope: str
    selector: str
    field: str
    value: Any
    where: str
    typed: bool

    @property
    def key(self) -> Key:
        return self.scope, self.selector, self.field

    @property
    def name(self) -> str:
        if self.selector == MACRO:
            return self.field
        return _scoped(self.scope, f"{self.selector}.{self.field}")

    def __str__(self) -> str:
        return f"{self.name} = {spell(self.value, str)}"

    def error(self, message: str) -> UserError:
        return UserError(f"{self.where}: {message}")


class Settings:
    """The bindings of one load: all that were said, and for each key the last, which is in effect."""

    def __init__(self, said: Sequence[Binding]):
        """Checks every name and, of what is in effect, every value.

        Raises:
          UserError: with the place of the first binding at fault.
        """
        self._said = [_with_full_names(binding) for binding in said]
        self._written_out = 0  # values of the binding that macros are written out in
        self._in_effect = {binding.key: binding for binding in self._said}
        for macro in self._mentioned_macros():
            self._macro(macro)
        self._values = {
            binding.key: self._fitted(binding)
            for binding in self._in_effect.values()
            if binding.selector != MACRO
        }

    def lines(self) -> list[str]:
        """The bindings in effect in gin's language: no macros, each value as its field holds it."""
        return [
            f"{self._in_effect[key].name} = {spell(value, str)}"
            for key, value in self._values.items()
            if Macro(REQUIRED) not in parts(value)
        ]

    def placed(self, error: UserError) -> UserError:
        """The error with its place, where its message starts with the name of a binding."""
        culprit = next((b for b in self._in_effect.values() if str(error).startswith(f"{b.name} ")), None)
        return UserError(f"{self._place(culprit)}: {error}") if culprit else error

    def check_read(self, visits: Iterable[Visit]) -> None:
        """Judge what nothing read, given all that was built.

        A file's bindings of a plugin that has been replaced are dropped with a line in the log.

        Raises:
          UserError: for any other binding that nothing reads, and for a value still %gin.REQUIRED.
        """
        visits = set(visits)
        read = self._read_by(visits)
        dropped = defaultdict(list)
        for key, binding in self._in_effect.items():
            if key in read:
                self._check_given(binding)
            elif binding.typed or self._is_stray(binding, visits):
                raise binding.error(f"{binding}: {self._why_unread(binding, visits, read)}")
            elif self._is_replaced(binding, visits):
                used = binding.selector in {selector for _, selector in visits}
                plugin = _scoped(binding.scope * used, binding.selector)
                dropped[plugin].append(binding.where)
        for plugin, places in dropped.items():
            logging.info("%s is not used in this experiment; dropped: %s", plugin, ", ".join(places))

    def _macro(self, mention: tuple[str, Binding]) -> Binding:
        name, mentioned_by = mention
        if ("", MACRO, name) not in self._in_effect:
            macros = [binding.field for binding in self._said if binding.selector == MACRO]
            raise mentioned_by.error(f"no macro is called {name!r}; nearest: {nearest(name, macros)}")
        return self._in_effect["", MACRO, name]

    def _mentioned_macros(self) -> Iterator[tuple[str, Binding]]:
        for binding in self._said:
            for part in parts(binding.value):
                if isinstance(part, Macro) and part.name != REQUIRED:
                    yield part.name, binding

    def _inlined(self, value: Any, user: Binding, path: tuple[str, ...] = ()) -> Any:
        """`value` without macros; what is %gin.REQUIRED stays."""
        self._written_out += 1
        if self._written_out > MOST_VALUES:  # ten macros of ten times the one before would fill any memory
            raise user.error(f"more than {MOST_VALUES:,} values, with all macros written out")
        if isinstance(value, list | tuple):
            return type(value)(self._inlined(item, user, path) for item in value)
        if isinstance(value, dict):
            return {k: self._inlined(item, user, path) for k, item in value.items()}
        if not isinstance(value, Macro) or value.name == REQUIRED:
            return value
        if value.name in path:
            raise user.error(f"{user}: the macro {value.name!r} is defined by itself")
        macro = self._macro((value.name, user))
        return self._inlined(macro.value, user, (*path, value.name))

    def _fitted(self, binding: Binding) -> Any:
        """The binding's value as its field holds it."""
        hint = names.fields_of(names.classes()[binding.selector])[binding.field].hint
        self._written_out = 0
        value = self._inlined(binding.value, binding)
        try:
            for part in parts(value):
                if isinstance(part, Reference):
                    _check_kind(part, hint)
            return coerce(value, hint)
        except TypeError as error:
            kinds = names.kinds_in(hint)
            expected = f"expected {_example(kinds)}" if kinds else str(error)
            raise UserError(
                f"{self._place(binding)}: {binding.name} = {spell(value, str)}: {expected}"
            ) from None

    def _place(self, binding: Binding) -> str:
        """Where the value was read: at the binding, or at the macro that the binding is."""
        source = binding
        while isinstance(source.value, Macro) and source.value.name != REQUIRED:
            source = self._macro((source.value.name, binding))
        return binding.where if source is binding else f"{source.where} ({source.field}) for {binding.where}"

    def _read_by(self, visits: set[Visit]) -> set[Key]:
        """Keys of the bindings and macros that `visits` took values from."""
        read = set()
        for scope, selector in visits:
            for field in names.fields_of(names.classes()[selector]):
                keys = [(outer, selector, field) for outer in _outwards(scope)]
                read.update([key for key in keys if key in self._in_effect][:1])
        waiting = list(read)
        while waiting:
            for part in parts(self._in_effect[waiting.pop()].value):
                if isinstance(part, Macro) and part.name != REQUIRED and ("", MACRO, part.name) not in read:
                    read.add(("", MACRO, part.name))
                    waiting.append(("", MACRO, part.name))
        return read

    def _check_given(self, binding: Binding) -> None:
        if binding.selector != MACRO and Macro(REQUIRED) in parts(self._values[binding.key]):
            raise binding.error(f"{binding.name} must be given: add {binding.name} = VALUE")

    def _is_stray(self, binding: Binding, visits: set[Visit]) -> bool:
        """Whether a file's unread binding cannot be meant for anything that was ever to be built."""
        if binding.selector == MACRO:
            return binding.field not in {name for name, _ in self._mentioned_macros()}
        scopes = {scope for part in self._references() for scope in part.scope.split("/")}
        used = binding.selector in {selector for _, selector in visits}
        return used and bool(binding.scope) and not scopes.issuperset(binding.scope.split("/"))

    def _is_replaced(self, binding: Binding, visits: set[Visit]) -> bool:
        """Whether nothing was built that could have read the binding."""
        return binding.selector != MACRO and not any(
            binding.selector == selector and binding.scope in _outwards(scope) for scope, selector in visits
        )

    def _references(self) -> Iterator[Reference]:
        for binding in self._said:
            yield from (part for part in parts(binding.value) if isinstance(part, Reference))

    def _why_unread(self, binding: Binding, visits: set[Visit], read: set[Key]) -> str:
        used = {selector for _, selector in visits}
        if binding.selector == MACRO:
            candidates = {key[2] for key in read if key[1] == MACRO}
        else:
            candidates = {self._in_effect[key].name for key in read if key[1] != MACRO}
            candidates |= {f"{s}.{field}" for s in used for field in names.fields_of(names.classes()[s])}
        candidates.discard(binding.name)
        unused = binding.selector != MACRO and binding.selector not in used
        reason = f"{binding.selector} is not used in this experiment" if unused else "nothing reads it"
        places = names.places_for(binding.selector) if unused else []
        way_out = f"; to use it, bind {' or '.join(places)}" * bool(places)
        return f"{reason}; nearest: {nearest(binding.name, candidates)}{way_out}"


def missing_field(scope: str, selector: str, field: names.Field) -> UserError:
    """The error of a required field that nothing binds."""
    name = _scoped(scope, f"{selector}.{field.name}")
    kinds = names.kinds_in(field.hint)
    known = ", ".join(f"{kind}.{known}" for kind in kinds if kind in REGISTRIES for known in REGISTRIES[kind])
    way_out = _example(kinds) if kinds else "VALUE"
    return UserError(f"{name} is not bound: add {name} = {way_out}" + f" (known: {known})" * bool(known))


def _with_full_names(binding: Binding) -> Binding:
    """The binding with every selector in full.

    Raises:
      UserError: a selector or field is unknown; the nearest one is named.
    """
    try:
        value = _with_full_references(binding.value)
        if binding.selector == MACRO:
            return dataclasses.replace(binding, value=value)
        selector = names.resolve(binding.selector)
    except UserError as error:
        raise binding.error(str(error)) from None
    fields = names.fields_of(names.classes()[selector])
    if binding.field not in fields:
        if new := names.RENAMED_FIELDS.get((selector, binding.field)):
            raise binding.error(f"{selector}.{binding.field} is now called {selector}.{new}: rename it")
        near = nearest(binding.field, fields)
        raise binding.error(f"{selector} has no field {binding.field!r}; nearest: {selector}.{near}")
    return dataclasses.replace(binding, selector=selector, value=value)


def _with_full_references(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_with_full_references(item) for item in value)
    if isinstance(value, dict):
        return {_with_full_references(k): _with_full_references(v) for k, v in value.items()}
    if isinstance(value, Reference):
        return dataclasses.replace(value, selector=names.resolve(value.selector))
    return value


def _check_kind(reference: Reference, hint: Any) -> None:
    """Raise TypeError unless what `reference` makes may stand in a field of type `hint`."""
    accepted = names.kinds_in(hint)
    kind = reference.selector.partition(".")[0]
    if not reference.called or not {kind, reference.selector}.intersection(accepted):
        raise TypeError(f"expected {spell_hint(hint)}")


def _example(kinds: Sequence[str]) -> str:
    """References of these kinds, as one could write them."""
    known = names.classes()
    return " or ".join(f"@{kind}()" if kind in known else f"@{kind}.NAME()" for kind in kinds)


def _outwards(scope: str) -> list[str]:
    """`a/b`, `a` and the empty scope: where a value is looked for, in this order."""
    steps = scope.split("/") if scope else []
    return ["/".join(steps[:i]) for i in range(len(steps), -1, -1)]


def _scoped(scope: str, name: str) -> str:
    return f"{scope}/{name}" if scope else name
