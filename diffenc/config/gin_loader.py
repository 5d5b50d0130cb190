"""gin files and bindings to an experiment. No other module imports gin."""

import contextlib
import functools
import importlib
import re
import tokenize
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import gin
from gin import config as gin_state
from gin import config_parser

from diffenc import registry
from diffenc.config import gin_files as files
from diffenc.config import names
from diffenc.config.bindings import MACRO, Binding, Macro, Reference, Settings, Visit, missing_field
from diffenc.config.experiment import Experiment
from diffenc.config.gin_files import ConfigFile
from diffenc.config.import_rules import AT_A_SHELL, IN_PYTHON, Import, check_imports, names_modules
from diffenc.errors import UserError

COMMAND_LINE = "--gin_bindings"

_configurables: set[str] = set()
_visits: list[Visit] = []  # what the build under way has constructed so far


def load_experiment(
    gin_files: str | Sequence[str | ConfigFile],
    bindings: str | Sequence[str] = (),
    allow_imports: Sequence[str] = (),
) -> Experiment:
    """Returns the experiment that the files, in their order, and then the bindings describe.

    Plugins of installed packages are registered first; others must register themselves before, or in a module that a
    file imports. The config of a run or an export, which may be somebody else's, imports only what one of the other
    files or a binding imports too, what `allow_imports` names, and installed plugin packages. gin's own configuration,
    one a process, stays as it is.

    Raises:
      UserError: anything at fault in files or bindings, with its place.
    """
    registry.discover()
    gin_files = [gin_files] if isinstance(gin_files, str) else gin_files
    bindings = [bindings] if isinstance(bindings, str) else bindings
    given = [file if isinstance(file, ConfigFile) else files.read_file(file) for file in gin_files]
    read: list[ConfigFile] = []
    found = [said for file in given for said in _expand(file, (), read)]
    found += [said for text in bindings for said in _expand_text(text, COMMAND_LINE, None, (), read)]
    imports = _imports_of(found)
    own = [one.module for one in imports if not one.from_run]
    check_imports(imports, names_modules([*own, *allow_imports]), AT_A_SHELL)
    experiment = _loaded(_bindings_of(found), "Experiment", _wiring())
    files.log_hiding(read)
    object.__setattr__(experiment, "read_from", files.records_of(read))
    return experiment


def load_part(text: str, selector: str) -> Any:
    """What `selector` names, a plugin or one of a config's fixed parts, as `text` describes it.

    Raises:
      UserError: like `load_experiment`.
    """
    return _loaded(read_bindings(text), selector, [])


def load_foreign(text: str, name: str, may_import: Callable[[str], bool], **given: Any) -> Experiment:
    """The experiment of a config that came with somebody's weights: reading it runs no code of theirs.

    Args:
      text: the config.
      name: what messages call it.
      may_import: whether a module that the config imports may be.
      given: fields of Experiment to take as they are; what the text says of them, and of plugins of that kind, is
        not looked at.

    Raises:
      UserError: anything at fault in it, with its place; an import that may not be, or any include.
    """
    found = list(_expand(ConfigFile(text, name, from_run=True), (), []))
    check_imports(_imports_of(found), may_import, IN_PYTHON)
    said = [binding for binding in _bindings_of(found) if not _is_given(binding, given)]
    return _loaded(said, "Experiment", _wiring(), given)


class _Said(NamedTuple):
    """A statement of a config. `where` is its place; see `Binding` and `ConfigFile` for the others."""

    statement: Any
    where: str
    typed: bool
    from_run: bool


def _imports_of(found: Sequence[_Said]) -> list[Import]:
    return [
        Import(said.statement.module, said.where, said.from_run)
        for said in found
        if isinstance(said.statement, config_parser.ImportStatement)
    ]


def _is_given(binding: Binding, given: Mapping[str, Any]) -> bool:
    field = binding.selector == "Experiment" and binding.field in given
    return field or binding.selector.partition(".")[0] in given


def _wiring() -> list[str]:
    return [f"Experiment.{name} = @{name}()" for name in names.SETTINGS]


def _loaded(
    said: Sequence[Binding], selector: str, wiring: Sequence[str], given: Mapping[str, Any] | None = None
) -> Any:
    try:
        settings = Settings(said)
        try:
            built = _build(selector, [*wiring, *settings.lines()], given or {})
        except UserError as error:
            raise settings.placed(error) from None
        settings.check_read(_visits)
    except (RecursionError, MemoryError):
        raise UserError("a value of this config is nested too deeply, with its macros written out") from None
    return built


def read_file(name: str) -> list[Binding]:
    """The bindings of a file and of what it includes, in order.

    Args:
      name: a path, or the name of a file that comes with diffenc, as `gin/quickstart.gin`.

    Raises:
      UserError: no such file, or one that is not gin.
    """
    return _bindings_of(_expand(files.read_file(name), (), []))


def read_bindings(text: str) -> list[Binding]:
    """The bindings of one --gin_bindings."""
    return _bindings_of(_expand_text(text, COMMAND_LINE, None, (), []))


class _Values(config_parser.ParserDelegate):
    """What stands for references and macros in parsed values."""

    def configurable_reference(self, scoped_configurable_name, evaluate) -> Reference:  # pyright: ignore[reportIncompatibleMethodOverride]
        scope, _, selector = scoped_configurable_name.rpartition("/")
        return Reference(scope, selector, evaluate)

    def macro(self, macro_name) -> Macro:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Macro(macro_name)


def _expand(file: ConfigFile, including: tuple[ConfigFile, ...], read: list[ConfigFile]) -> Iterator[_Said]:
    """Each statement of a file and of what it includes; appends to `read` every file that was read."""
    read.append(file)
    yield from _expand_text(file.text, file.name, file, including, read)


def _expand_text(
    text: str, name: str, file: ConfigFile | None, including: tuple[ConfigFile, ...], read: list[ConfigFile]
) -> Iterator[_Said]:
    from_run = file is not None and file.from_run
    for statement, where in _statements(text, name, file is None):
        if not isinstance(statement, config_parser.IncludeStatement):
            yield _Said(statement, where, file is None, from_run)
        elif from_run:
            raise UserError(
                f"{where}: includes {statement.filename!r}, and the config of a run or an export must be whole "
                f"(call a file of your own other than {files.CONFIG})"
            )
        else:
            path = (*including, file) if file else including
            yield from _expand(_include(statement.filename, where, path), path, read)


def _include(name: str, where: str, including: tuple[ConfigFile, ...]) -> ConfigFile:
    try:
        found = files.read_include(name, including[-1] if including else None)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if found.path and any(other.path and found.path.samefile(other.path) for other in including):
        raise UserError(f"{where}: {name}: the file includes itself")
    return found


def _statements(text: str, name: str, typed: bool) -> Iterator[tuple[Any, str]]:
    """Each statement of a text, and its place."""
    line = 1
    try:
        for statement in config_parser.ConfigParser(text, _Values()):
            line = statement.location.line_num
            yield statement, _place(name, line, typed)
    except SyntaxError as error:
        raise _syntax_error(
            text, _place(name, error.lineno or line, typed), error.lineno or line, error.msg
        ) from None
    except (TypeError, ValueError) as error:  # a value that is no literal, as {[1]: 2}
        raise _syntax_error(text, _place(name, line, typed), line, str(error)) from None
    except tokenize.TokenError as error:
        line = error.args[1][0]
        raise _syntax_error(text, _place(name, line, typed), line, error.args[0]) from None
    except (RecursionError, MemoryError):
        raise UserError(f"{name}: a value is nested too deeply") from None


def _bindings_of(found: Iterable[_Said]) -> list[Binding]:
    """The bindings that statements make; modules are imported on the way."""
    bindings = []
    for statement, where, typed, _ in found:
        match statement:
            case config_parser.ImportStatement(module=module):
                _import(module, where)
            case config_parser.BindingStatement(arg_name=""):
                name = "/".join(filter(None, [statement.scope, statement.selector]))
                bindings.append(Binding("", MACRO, name, statement.value, where, typed))
            case config_parser.BindingStatement():
                scope, selector, field, value, _ = statement
                bindings.append(Binding(scope, selector, field, value, where, typed))
    return bindings


def _import(module: str, where: str) -> None:
    try:
        importlib.import_module(module)
    except Exception as error:  # the module may fail in any way
        raise UserError(f"{where}: import {module} failed: {type(error).__name__}: {error}") from error


def _place(name: str, line: int, typed: bool) -> str:
    return name if typed else f"{name}:{line}"


def _syntax_error(text: str, where: str, line: int, message: str) -> UserError:
    lines = text.splitlines()
    culprit = lines[min(line, len(lines)) - 1].strip() if lines else ""
    if token := re.search(r"Failed to parse token '(.*)'", message, re.DOTALL):
        message = (
            f"{token[1]} is no value: write a number, 'text', True, False, None, a list, tuple or dict of such, "
            "@plugin.name() or %MACRO; nan and inf are none"
        )
    return UserError(f"{where}: {culprit!r}: {' '.join(message.split())}")


def _build(selector: str, lines: Sequence[str], given: Mapping[str, Any]) -> Any:
    """Let gin construct what `selector` names from bindings that have been checked, and the fields `given`."""
    _visits.clear()
    with _empty_gin():
        _register_all()
        gin.parse_config(list(lines))
        try:
            return gin.get_configurable(selector)(**given)
        except UserError as error:  # gin has appended the stack of its calls
            raise UserError(str(error).splitlines()[0]) from None
        except RecursionError:
            raise UserError("the references of this config lead back to themselves") from None


@contextlib.contextmanager
def _empty_gin() -> Iterator[None]:
    """gin has one configuration a process, which may be that of a program that uses diffenc: it gets it back."""
    parts = gin_state._CONFIG, gin_state._SINGLETONS, gin_state._IMPORTS, gin_state._OPERATIVE_CONFIG
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
    """Make known to gin what it does not know yet."""
    for selector in names.classes().keys() - _configurables:
        construct = functools.partial(_construct, selector)
        setattr(construct, "__module__", None)  # noqa: B010  # or gin would put it before the selector
        gin.external_configurable(construct, name=selector)
        _configurables.add(selector)


def _construct(selector: str, **values: Any) -> Any:
    """What gin calls for `selector`: its class, after a check that every required field has a value."""
    scope = gin.current_scope_str()
    _visits.append((scope, selector))
    cls = names.classes()[selector]
    for field in names.fields_of(cls).values():
        if field.required and field.name not in values:
            raise missing_field(scope, selector, field)
    try:
        return cls(**values)
    except ValueError as error:  # how a class that does not know UserError refuses a value
        raise UserError(f"{selector}: {error}") from error
