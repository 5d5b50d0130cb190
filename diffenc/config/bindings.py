"""The bindings of config files and the command line, checked before anything is constructed from them."""

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from absl import logging

from diffenc.config import names
from diffenc.errors import UserError, nearest
from diffenc.fields.values import coerce, format_type, format_value, leaf_values
from diffenc.registry import REGISTRIES

REQUIRED = "gin.REQUIRED"
MAX_VALUES = 100_000  # in one binding
MACRO = "%"  # the selector of a macro's key

Construction = tuple[str, str]  # the scope and the selector of an object that was constructed
Key = tuple[str, str, str]  # scope, selector, field


@dataclasses.dataclass(frozen=True)
class Reference:
    """`@scope/selector()`; without parentheses if it is not `called`."""

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
      location: for messages: `gin/x.gin:12` or `--gin_bindings`.
      from_command_line: whether it was given on the command line rather than in a file.
    """

    scope: str
    selector: str
    field: str
    value: Any
    location: str
    from_command_line: bool

    @property
    def key(self) -> Key:
        return self.scope, self.selector, self.field

    @property
    def name(self) -> str:
        if self.selector == MACRO:
            return self.field
        return _scoped(self.scope, f"{self.selector}.{self.field}")

    def __str__(self) -> str:
        return f"{self.name} = {format_value(self.value, str)}"

    def error(self, message: str) -> UserError:
        return UserError(f"{self.location}: {message}")


class BindingSet:
    """All parsed bindings, and the effective one for each key: the last."""

    def __init__(self, bindings: Sequence[Binding]):
        """Checks every name, and the values of effective bindings.

        Raises:
          UserError: a binding is invalid; the message has the location of the first one.
        """
        self._all = [_resolve_binding(binding) for binding in bindings]
        self._num_values = 0  # in the binding whose macros are being replaced
        # Later bindings replace earlier ones: files in their order, then the command line.
        self._effective = {binding.key: binding for binding in self._all}
        # Every macro that is mentioned must exist, also in bindings that
        # later ones replace: a misspelt name is an error in any case.
        for macro in self._macro_mentions():
            self._macro(macro)
        # All values are converted before anything is constructed:
        # plugins only ever see values of their fields' types.
        self._values = {
            binding.key: self._coerced(binding)
            for binding in self._effective.values()
            if binding.selector != MACRO
        }

    def lines(self) -> list[str]:
        """Returns the effective bindings in gin's language, without macros, values converted to their fields' types."""
        return [
            f"{self._effective[key].name} = {format_value(value, str)}"
            for key, value in self._values.items()
            if Macro(REQUIRED) not in leaf_values(value)
        ]

    def with_location(self, error: UserError) -> UserError:
        """Returns the error, with the location of the binding if its message starts with the name of one."""
        at_fault = next((b for b in self._effective.values() if str(error).startswith(f"{b.name} ")), None)
        return UserError(f"{self._location_of(at_fault)}: {error}") if at_fault else error

    def check_unread(self, built: Iterable[Construction]) -> None:
        """Checks the bindings that no object in `built` read.

        Bindings in files of a plugin that has been replaced are dropped, and logged.

        Raises:
          UserError: for any other unread binding, and for a value that is still %gin.REQUIRED.
        """
        built = set(built)
        read = self._keys_read(built)
        dropped = defaultdict(list)
        for key, binding in self._effective.items():
            if key in read:
                self._check_required(binding)
            # gin ignores a valid binding that nothing reads. From the command line it is an error, since the
            # user just typed it; in a file it may belong to a plugin that another file replaced.
            elif binding.from_command_line or self._is_stray(binding, built):
                raise binding.error(f"{binding}: {self._unread_reason(binding, built, read)}")
            elif self._is_replaced(binding, built):
                used = binding.selector in {selector for _, selector in built}
                plugin = _scoped(binding.scope * used, binding.selector)
                dropped[plugin].append(binding.location)
        for plugin, locations in dropped.items():
            _log_once(f"{plugin} is not used in this experiment; dropped: {', '.join(locations)}")

    def _macro(self, mention: tuple[str, Binding]) -> Binding:
        name, mentioned_by = mention
        if ("", MACRO, name) not in self._effective:
            macros = [binding.field for binding in self._all if binding.selector == MACRO]
            raise mentioned_by.error(f"no macro is called {name!r}; nearest: {nearest(name, macros)}")
        return self._effective["", MACRO, name]

    def _macro_mentions(self) -> Iterator[tuple[str, Binding]]:
        for binding in self._all:
            for part in leaf_values(binding.value):
                if isinstance(part, Macro) and part.name != REQUIRED:
                    yield part.name, binding

    def _without_macros(self, value: Any, user: Binding, path: tuple[str, ...] = ()) -> Any:
        """Returns `value` with macros replaced by their values; %gin.REQUIRED is kept."""
        self._num_values += 1
        if self._num_values > MAX_VALUES:  # ten macros, each ten times the one before, would fill any memory
            raise user.error(f"more than {MAX_VALUES:,} values, with all macros written out")
        if isinstance(value, list | tuple):
            return type(value)(self._without_macros(item, user, path) for item in value)
        if isinstance(value, dict):
            return {k: self._without_macros(item, user, path) for k, item in value.items()}
        if not isinstance(value, Macro) or value.name == REQUIRED:
            return value
        if value.name in path:
            raise user.error(f"{user}: the macro {value.name!r} is defined by itself")
        macro = self._macro((value.name, user))
        return self._without_macros(macro.value, user, (*path, value.name))

    def _coerced(self, binding: Binding) -> Any:
        """Returns the binding's value, converted to the type of its field."""
        hint = names.bindable_fields(names.known_classes()[binding.selector])[binding.field].hint
        self._num_values = 0
        value = self._without_macros(binding.value, binding)
        try:
            for part in leaf_values(value):
                if isinstance(part, Reference):
                    _check_kind(part, hint)
            return coerce(value, hint)
        except TypeError as error:
            kinds = names.accepted_kinds(hint)
            expected = f"expected {_example(kinds)}" if kinds else str(error)
            raise UserError(
                f"{self._location_of(binding)}: {binding.name} = {format_value(value, str)}: {expected}"
            ) from None

    def _location_of(self, binding: Binding) -> str:
        """Returns the location of the value: that of the binding, or of the macro that it refers to."""
        source = binding
        # Terminates, since `_without_macros` has refused macros that refer to themselves.
        while isinstance(source.value, Macro) and source.value.name != REQUIRED:
            source = self._macro((source.value.name, binding))
        return (
            binding.location
            if source is binding
            else f"{source.location} ({source.field}) for {binding.location}"
        )

    def _keys_read(self, built: set[Construction]) -> set[Key]:
        """Returns the keys of the bindings and macros that the objects in `built` read."""
        read = set()
        for scope, selector in built:
            for field in names.bindable_fields(names.known_classes()[selector]):
                keys = [(outer, selector, field) for outer in _enclosing_scopes(scope)]
                # Only the innermost scope is read; it shadows outer bindings of the same field.
                read.update([key for key in keys if key in self._effective][:1])
        # Transitive closure: macros in the values that are read, and macros in the values of those macros.
        waiting = list(read)
        while waiting:
            for part in leaf_values(self._effective[waiting.pop()].value):
                if isinstance(part, Macro) and part.name != REQUIRED and ("", MACRO, part.name) not in read:
                    read.add(("", MACRO, part.name))
                    waiting.append(("", MACRO, part.name))
        return read

    def _check_required(self, binding: Binding) -> None:
        if binding.selector != MACRO and Macro(REQUIRED) in leaf_values(self._values[binding.key]):
            raise binding.error(f"{binding.name} must be given: add {binding.name} = VALUE")

    def _is_stray(self, binding: Binding, built: set[Construction]) -> bool:
        """Returns whether an unread binding of a file belongs to no object that this config could construct."""
        if binding.selector == MACRO:
            return binding.field not in {name for name, _ in self._macro_mentions()}
        scopes = {scope for part in self._references() for scope in part.scope.split("/")}
        used = binding.selector in {selector for _, selector in built}
        return used and bool(binding.scope) and not scopes.issuperset(binding.scope.split("/"))

    def _is_replaced(self, binding: Binding, built: set[Construction]) -> bool:
        """Returns whether no constructed object could have read the binding."""
        return binding.selector != MACRO and not any(
            binding.selector == selector and binding.scope in _enclosing_scopes(scope)
            for scope, selector in built
        )

    def _references(self) -> Iterator[Reference]:
        for binding in self._all:
            yield from (part for part in leaf_values(binding.value) if isinstance(part, Reference))

    def _unread_reason(self, binding: Binding, built: set[Construction], read: set[Key]) -> str:
        used = {selector for _, selector in built}
        if binding.selector == MACRO:
            candidates = {key[2] for key in read if key[1] == MACRO}
        else:
            candidates = {self._effective[key].name for key in read if key[1] != MACRO}
            candidates |= {
                f"{s}.{field}" for s in used for field in names.bindable_fields(names.known_classes()[s])
            }
        candidates.discard(binding.name)
        unused = binding.selector != MACRO and binding.selector not in used
        reason = f"{binding.selector} is not used in this experiment" if unused else "nothing reads it"
        users = names.bindings_that_use(binding.selector) if unused else []
        hint = f"; to use it, bind {' or '.join(users)}" * bool(users)
        return f"{reason}; nearest: {nearest(binding.name, candidates)}{hint}"


def missing_field_error(scope: str, selector: str, field: names.Field) -> UserError:
    """Returns the error of a required field without a binding."""
    name = _scoped(scope, f"{selector}.{field.name}")
    kinds = names.accepted_kinds(field.hint)
    known = ", ".join(f"{kind}.{known}" for kind in kinds if kind in REGISTRIES for known in REGISTRIES[kind])
    value = _example(kinds) if kinds else "VALUE"
    return UserError(f"{name} is not bound: add {name} = {value}" + f" (known: {known})" * bool(known))


def _resolve_binding(binding: Binding) -> Binding:
    """Returns the binding with every selector in full.

    Raises:
      UserError: a selector or field is unknown; the message names the nearest one.
    """
    try:
        value = _resolve_references(binding.value)
        if binding.selector == MACRO:
            return dataclasses.replace(binding, value=value)
        selector = names.resolve_selector(binding.selector)
    except UserError as error:
        raise binding.error(str(error)) from None
    fields = names.bindable_fields(names.known_classes()[selector])
    if binding.field not in fields:
        if new := names.RENAMED_FIELDS.get((selector, binding.field)):
            raise binding.error(f"{selector}.{binding.field} is now called {selector}.{new}: rename it")
        near = nearest(binding.field, fields)
        raise binding.error(f"{selector} has no field {binding.field!r}; nearest: {selector}.{near}")
    return dataclasses.replace(binding, selector=selector, value=value)


def _resolve_references(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_resolve_references(item) for item in value)
    if isinstance(value, dict):
        return {_resolve_references(k): _resolve_references(v) for k, v in value.items()}
    if isinstance(value, Reference):
        return dataclasses.replace(value, selector=names.resolve_selector(value.selector))
    return value


def _check_kind(reference: Reference, hint: Any) -> None:
    """Raises TypeError unless a field of type `hint` accepts the object of `reference`."""
    accepted = names.accepted_kinds(hint)
    kind = reference.selector.partition(".")[0]
    if not reference.called or not {kind, reference.selector}.intersection(accepted):
        raise TypeError(f"expected {format_type(hint)}")


def _example(kinds: Sequence[str]) -> str:
    """Returns example references of these kinds, for a message."""
    known = names.known_classes()
    return " or ".join(f"@{kind}()" if kind in known else f"@{kind}.NAME()" for kind in kinds)


def _enclosing_scopes(scope: str) -> list[str]:
    """Returns the scopes in which the value of a field is looked up, in order: `a/b`, `a` and the empty scope."""
    steps = scope.split("/") if scope else []
    return ["/".join(steps[:i]) for i in range(len(steps), -1, -1)]


def _scoped(scope: str, name: str) -> str:
    return f"{scope}/{name}" if scope else name


@functools.cache
def _log_once(line: str) -> None:
    """Logs a line, unless this process has logged it before: a sweep reads the same files for every run."""
    logging.info("%s", line)
