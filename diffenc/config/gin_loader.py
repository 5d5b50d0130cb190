"""Builds experiments from gin files and bindings. No other module imports gin."""

import contextlib
import functools
import importlib
import re
import tokenize
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import gin
from absl import logging
from gin import config as gin_state
from gin import config_parser

from diffenc import registry
from diffenc.config import gin_files as files
from diffenc.config import names
from diffenc.config.bindings import (
    MACRO,
    Binding,
    BindingSet,
    Construction,
    Macro,
    Reference,
    missing_field_error,
)
from diffenc.config.experiment import Experiment
from diffenc.config.gin_files import ConfigFile
from diffenc.config.import_rules import PYTHON_HINT, SHELL_HINT, Import, check_imports, import_permission
from diffenc.errors import UserError

COMMAND_LINE = "--gin_bindings"
WRITTEN = (("compress", "file"), ("compress", "decoded"))  # files outside of the workdir that a mode writes

_configurables: set[str] = set()
_constructions: list[Construction] = []  # of the build in progress, in order


def load_experiment(
    gin_files: str | Sequence[str | ConfigFile],
    bindings: str | Sequence[str] = (),
    allow_imports: Sequence[str] = (),
) -> Experiment:
    """Returns the experiment described by the files, in their order, and then the bindings.

    Plugins of installed packages are registered first; others must register themselves before, or in a module that a
    file imports. The config of a run or an export, which may be from another person, may import only modules that another
    file or a binding imports too, modules in `allow_imports`, and installed plugin packages. gin's own configuration, one
    per process, is left unchanged.

    Raises:
      UserError: the files or bindings are invalid; the message has the location.
    """
    registry.discover()
    gin_files = [gin_files] if isinstance(gin_files, str) else gin_files
    bindings = [bindings] if isinstance(bindings, str) else bindings
    given = [file if isinstance(file, ConfigFile) else files.read_file(file) for file in gin_files]
    read: list[ConfigFile] = []
    # 1. Parse everything to statements, with locations; nothing is imported or constructed yet.
    found = [statement for file in given for statement in _expand(file, (), read)]
    found += [
        statement for text in bindings for statement in _expand_text(text, COMMAND_LINE, None, (), read)
    ]
    # 2. Decide on all imports before the first one runs.
    imports = _imports_of(found)
    own = [one.module for one in imports if not one.from_run]
    check_imports(imports, import_permission([*own, *allow_imports]), SHELL_HINT)
    # 3. Import, check names and values, then let gin construct.
    experiment = _build_checked(_bindings_of(found), "Experiment", _settings_bindings())
    files.log_shadowed_files(read)
    # Not a constructor argument, since it is not part of the run; the dataclass is frozen.
    object.__setattr__(experiment, "read_from", files.records_of(read))
    return experiment


def load_part(text: str, selector: str) -> Any:
    """Returns the object named by `selector`, a plugin or a fixed part of a config, with the bindings of `text`.

    Raises:
      UserError: like `load_experiment`.
    """
    return _build_checked(read_bindings(text), selector, [])


def load_untrusted(text: str, name: str, may_import: Callable[[str], bool], **overrides: Any) -> Experiment:
    """Returns the experiment of a config that came with weights of unknown origin, without executing code from them.

    Args:
      text: the config.
      name: its name in messages.
      may_import: decides whether the config may import a module.
      overrides: fields of Experiment that replace those of the text; the text's bindings of these fields, and of plugins
        of these kinds, are ignored.

    Raises:
      UserError: the config is invalid (the message has the location), imports a forbidden module, or includes a file.
    """
    # from_run: an include is refused, so that the text cannot make this process read files.
    found = list(_expand(ConfigFile(text, name, from_run=True), (), []))
    check_imports(_imports_of(found), may_import, PYTHON_HINT)
    # Bindings of overridden fields are dropped: they would count as unread, which is an error.
    kept = [binding for binding in _bindings_of(found) if not _is_overridden(binding, overrides)]
    return _build_checked(kept, "Experiment", _settings_bindings(), overrides)


class _Statement(NamedTuple):
    """A statement of a config; see `Binding` and `ConfigFile` for the other fields."""

    statement: Any
    location: str
    from_command_line: bool
    from_run: bool


def _imports_of(found: Sequence[_Statement]) -> list[Import]:
    return [
        Import(one.statement.module, one.location, one.from_run)
        for one in found
        if isinstance(one.statement, config_parser.ImportStatement)
    ]


def _is_overridden(binding: Binding, overrides: Mapping[str, Any]) -> bool:
    field = binding.selector == "Experiment" and binding.field in overrides
    return field or binding.selector.partition(".")[0] in overrides


def _settings_bindings() -> list[str]:
    return [f"Experiment.{name} = @{name}()" for name in names.SETTINGS]


def _build_checked(
    bindings: Sequence[Binding],
    selector: str,
    settings_bindings: Sequence[str],
    overrides: Mapping[str, Any] | None = None,
) -> Any:
    try:
        checked = BindingSet(bindings)
        try:
            # gin gets lines made from checked, converted values, never
            # the user's text: gin's own errors would lack a location.
            built = _build(selector, [*settings_bindings, *checked.lines()], overrides or {})
        except UserError as error:
            raise checked.with_location(error) from None
        checked.check_unread(_constructions)
    # Parsing and constructing recurse with the nesting of values, which the text alone determines.
    except (RecursionError, MemoryError):
        raise UserError("a value of this config is nested too deeply, with its macros written out") from None
    return built


def read_file(name: str) -> list[Binding]:
    """Returns the bindings of a file and of the files that it includes, in order.

    Args:
      name: a path, or the name of a file that comes with diffenc, as `gin/quickstart.gin`.

    Raises:
      UserError: no such file, or one that is not gin.
    """
    return _bindings_of(_expand(files.read_file(name), (), []))


def read_bindings(text: str) -> list[Binding]:
    """Returns the bindings of one --gin_bindings."""
    return _bindings_of(_expand_text(text, COMMAND_LINE, None, (), []))


class _ValueParser(config_parser.ParserDelegate):
    """Parses references and macros to `Reference` and `Macro` objects, without resolving them."""

    def configurable_reference(self, scoped_configurable_name, evaluate) -> Reference:  # pyright: ignore[reportIncompatibleMethodOverride]
        scope, _, selector = scoped_configurable_name.rpartition("/")
        return Reference(scope, selector, evaluate)

    def macro(self, macro_name) -> Macro:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Macro(macro_name)


def _expand(
    file: ConfigFile, including: tuple[ConfigFile, ...], read: list[ConfigFile]
) -> Iterator[_Statement]:
    """Yields each statement of a file and of the files that it includes; appends every file to `read`."""
    read.append(file)
    yield from _expand_text(file.text, file.name, file, including, read)


def _expand_text(
    text: str, name: str, file: ConfigFile | None, including: tuple[ConfigFile, ...], read: list[ConfigFile]
) -> Iterator[_Statement]:
    from_run = file is not None and file.from_run
    for statement, location in _statements(text, name, file is None):
        if not isinstance(statement, config_parser.IncludeStatement):
            yield _Statement(statement, location, file is None, from_run)
        elif from_run:
            raise UserError(
                f"{location}: includes {statement.filename!r}, and the config of a run or an export must be whole "
                f"(call a file of your own other than {files.CONFIG})"
            )
        else:
            path = (*including, file) if file else including
            yield from _expand(_include(statement.filename, location, path), path, read)


def _include(name: str, location: str, including: tuple[ConfigFile, ...]) -> ConfigFile:
    try:
        found = files.read_include(name, including[-1] if including else None)
    except UserError as error:
        raise UserError(f"{location}: {error}") from None
    if found.path and any(other.path and found.path.samefile(other.path) for other in including):
        raise UserError(f"{location}: {name}: the file includes itself")
    return found


def _statements(text: str, name: str, from_command_line: bool) -> Iterator[tuple[Any, str]]:
    """Yields each statement of a text with its location."""
    line = 1
    try:
        for statement in config_parser.ConfigParser(text, _ValueParser()):
            line = statement.location.line_num
            yield statement, _location(name, line, from_command_line)
    except SyntaxError as error:
        raise _syntax_error(
            text, _location(name, error.lineno or line, from_command_line), error.lineno or line, error.msg
        ) from None
    except (TypeError, ValueError) as error:  # a value that is no literal, as {[1]: 2}
        raise _syntax_error(text, _location(name, line, from_command_line), line, str(error)) from None
    except tokenize.TokenError as error:
        line = error.args[1][0]
        raise _syntax_error(text, _location(name, line, from_command_line), line, error.args[0]) from None
    except (RecursionError, MemoryError):
        raise UserError(f"{name}: a value is nested too deeply") from None


def _bindings_of(found: Iterable[_Statement]) -> list[Binding]:
    """Returns the bindings among statements, and imports the modules of import statements."""
    bindings = []
    for statement, location, from_command_line, from_run in found:
        match statement:
            # Before BindingSet resolves names: the module may register plugins that bindings name.
            case config_parser.ImportStatement(module=module):
                _import(module, location)
            case config_parser.BindingStatement(arg_name=""):
                name = "/".join(filter(None, [statement.scope, statement.selector]))
                bindings.append(Binding("", MACRO, name, statement.value, location, from_command_line))
            case config_parser.BindingStatement(selector=selector, arg_name=field) if (
                from_run and (selector, field) in WRITTEN
            ):
                if statement.value is not None:
                    logging.warning(
                        "%s: %s.%s is ignored: the config of a run, which may be from another person, does not choose where "
                        "files are written; bind it on the command line",
                        *(location, selector, field),
                    )
            case config_parser.BindingStatement():
                scope, selector, field, value, _ = statement
                bindings.append(Binding(scope, selector, field, value, location, from_command_line))
    return bindings


def _import(module: str, location: str) -> None:
    try:
        importlib.import_module(module)
    except Exception as error:  # the module may fail in any way
        raise UserError(f"{location}: import {module} failed: {type(error).__name__}: {error}") from error


def _location(name: str, line: int, from_command_line: bool) -> str:
    return name if from_command_line else f"{name}:{line}"


def _syntax_error(text: str, location: str, line: int, message: str) -> UserError:
    lines = text.splitlines()
    at_fault = lines[min(line, len(lines)) - 1].strip() if lines else ""
    if token := re.search(r"Failed to parse token '(.*)'", message, re.DOTALL):
        message = (
            f"{token[1]} is no value: write a number, 'text', True, False, None, a list, tuple or dict of such, "
            "@plugin.name() or %MACRO; nan and inf are none"
        )
    return UserError(f"{location}: {at_fault!r}: {' '.join(message.split())}")


def _build(selector: str, lines: Sequence[str], overrides: Mapping[str, Any]) -> Any:
    """Returns the object named by `selector`, constructed by gin from checked bindings and the fields in `overrides`."""
    # `_construct` records the constructed objects: only they determine which bindings were read.
    _constructions.clear()
    with _empty_gin():
        _register_all()
        gin.parse_config(list(lines))
        try:
            return gin.get_configurable(selector)(**overrides)
        except UserError as error:  # gin has appended the stack of its calls
            raise UserError(str(error).splitlines()[0]) from None
        except RecursionError:
            raise UserError("the references of this config lead back to themselves") from None


@contextlib.contextmanager
def _empty_gin() -> Iterator[None]:
    """Empties gin's configuration within the context, and restores it: a program that uses diffenc may have its own."""
    parts = gin_state._CONFIG, gin_state._SINGLETONS, gin_state._IMPORTS, gin_state._OPERATIVE_CONFIG
    # Copies, since clear_config empties these objects in place, and gin holds references to them.
    before, locked = [part.copy() for part in parts], gin.config_is_locked()
    gin.clear_config()  # unlocks it too
    try:
        yield
    finally:
        gin.clear_config()
        for part, held in zip(parts, before, strict=True):
            part.update(held)
        gin_state._set_config_is_locked(locked)


def _register_all() -> None:
    """Registers with gin every known class that is not registered yet."""
    for selector in names.known_classes().keys() - _configurables:
        construct = functools.partial(_construct, selector)
        setattr(construct, "__module__", None)  # noqa: B010  # or gin would put it before the selector
        gin.external_configurable(construct, name=selector)
        _configurables.add(selector)


def _construct(selector: str, **values: Any) -> Any:
    """Constructs the class of `selector`, for gin. Raises UserError if a required field has no value."""
    scope = gin.current_scope_str()
    _constructions.append((scope, selector))
    cls = names.known_classes()[selector]
    for field in names.bindable_fields(cls).values():
        if field.required and field.name not in values:
            raise missing_field_error(scope, selector, field)
    try:
        return cls(**values)
    except ValueError as error:  # from a plugin that does not use UserError
        raise UserError(f"{selector}: {error}") from error
