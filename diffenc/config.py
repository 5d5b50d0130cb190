"""gin files and bindings to an experiment. No other module imports gin."""

import contextlib
import functools
import importlib
import tokenize
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gin
from gin import config as gin_state
from gin import config_parser

import diffenc
from diffenc.configs import names
from diffenc.configs.bindings import MACRO, Binding, Macro, Reference, Settings, Visit, missing_field
from diffenc.errors import UserError
from diffenc.experiment import Experiment

COMMAND_LINE = "--gin_bindings"

_configurables: set[str] = set()
_visits: list[Visit] = []  # what the build under way has constructed so far


def load(gin_files: Sequence[str], bindings: Sequence[str]) -> Experiment:
    """The experiment that the files, in their order, and then the bindings describe.

    Plugins must have registered themselves before (`registry.discover`), or do so in a module that a
    file imports. gin's own configuration, one a process, stays as it is.

    Raises:
      UserError: anything at fault in files or bindings, with its place.
    """
    said = [binding for file in gin_files for binding in read_file(file)]
    said += [binding for text in bindings for binding in read_bindings(text)]
    return _loaded(said, "Experiment", _wiring())


def load_part(text: str, selector: str) -> Any:
    """What `selector` names, a plugin or one of a config's fixed parts, as `text` describes it.

    Raises:
      UserError: like `load`.
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
    try:
        for statement, where in _statements(text, name):
            _refuse_foreign(statement, where, may_import)
        said = [binding for binding in _parse(text, name, ()) if not _is_given(binding, given)]
        return _loaded(said, "Experiment", _wiring(), given)
    except (RecursionError, MemoryError):
        raise UserError(f"{name}: a value is nested too deeply") from None


def _refuse_foreign(statement: Any, where: str, may_import: Callable[[str], bool]) -> None:
    """Raise UserError if a statement reaches for what is not in its text."""
    match statement:
        case config_parser.ImportStatement(module=module) if not may_import(module):
            raise UserError(
                f"{where}: imports {module}, and so would run code: if you trust that module, which has to be "
                f"installed here, pass allow_imports=({module!r},)"
            )
        case config_parser.IncludeStatement(filename=file):
            raise UserError(f"{where}: includes {file!r}, and a config that comes with weights must be whole")


def _is_given(binding: Binding, given: Mapping[str, Any]) -> bool:
    field = binding.selector == "Experiment" and binding.field in given
    return field or binding.selector.partition(".")[0] in given


def _wiring() -> list[str]:
    return [f"Experiment.{name} = @{name}()" for name in names.SETTINGS]


def _loaded(
    said: Sequence[Binding], selector: str, wiring: Sequence[str], given: Mapping[str, Any] | None = None
) -> Any:
    settings = Settings(said)
    try:
        built = _build(selector, [*wiring, *settings.lines()], given or {})
    except UserError as error:
        raise settings.placed(error) from None
    settings.check_read(_visits)
    return built


def read_file(name: str) -> list[Binding]:
    """The bindings of a file and of what it includes, in order.

    Args:
      name: a path, or the name of a file that comes with diffenc, as `gin/quickstart.gin`.

    Raises:
      UserError: no such file, or one that is not gin.
    """
    return _parse(*_open(name, ()))


def read_bindings(text: str) -> list[Binding]:
    """The bindings of one --gin_bindings."""
    return _parse(text, None, ())


def find_file(name: str) -> Path:
    """Where the file is: at the path given, or else among those that come with diffenc.

    Raises:
      UserError: nowhere; the most similar name is offered.
    """
    shipped = name.removeprefix("gin/")
    candidates = [Path(name), *(folder / shipped for folder in _shipped_folders())]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        raise UserError(f"{name}: no such file; nearest: {names.nearest(name, _known_files(name))}")
    return found.resolve()


def shipped_files() -> list[str]:
    """Names of the run files that come with diffenc, as one gives them on the command line."""
    return sorted({f"gin/{path.name}" for folder in _shipped_folders() for path in folder.glob("*.gin")})


def _shipped_folders() -> list[Path]:
    root = Path(str(diffenc.__path__[0])).parent
    return [root / "diffenc_gin", root / "gin"]  # installed; a checkout


def _known_files(name: str) -> list[str]:
    beside = Path(name).parent
    return shipped_files() + ([str(path) for path in beside.glob("*.gin")] if beside.is_dir() else [])


class _Values(config_parser.ParserDelegate):
    """What stands for references and macros in parsed values."""

    def configurable_reference(self, scoped_configurable_name, evaluate) -> Reference:  # pyright: ignore[reportIncompatibleMethodOverride]
        scope, _, selector = scoped_configurable_name.rpartition("/")
        return Reference(scope, selector, evaluate)

    def macro(self, macro_name) -> Macro:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Macro(macro_name)


Source = tuple[str, str | None, tuple[Path, ...]]  # text; the file's name, None = command line; see _open


def _open(name: str, including: tuple[Path, ...]) -> Source:
    """What _parse takes, for a file that the files `including` led to, itself appended to them."""
    path = find_file(name)
    if path in including:
        raise UserError(f"{name}: the file includes itself")
    try:
        return path.read_text(encoding="utf-8"), name, (*including, path)
    except (OSError, UnicodeError) as error:
        raise UserError(f"{name}: cannot be read: {error}") from None


def _parse(text: str, file: str | None, including: tuple[Path, ...]) -> list[Binding]:
    """The bindings of a source."""
    said = _statements(text, file)
    return [binding for one, where in said for binding in _interpret(one, where, file is None, including)]


def _statements(text: str, file: str | None) -> Iterator[tuple[Any, str]]:
    """Each statement of a source, and its place."""
    try:
        for statement in config_parser.ConfigParser(text, _Values()):
            yield statement, _place(file, statement.location.line_num)
    except SyntaxError as error:
        raise _syntax_error(text, file, error.lineno or 1, error.msg) from None
    except (TypeError, ValueError) as error:  # a value that is no literal, as {[1]: 2}
        raise _syntax_error(text, file, 1, str(error)) from None
    except tokenize.TokenError as error:
        raise _syntax_error(text, file, error.args[1][0], error.args[0]) from None


def _interpret(statement: Any, where: str, typed: bool, including: tuple[Path, ...]) -> list[Binding]:
    """The bindings that one statement makes."""
    match statement:
        case config_parser.IncludeStatement(filename=name):
            try:
                source = _open(name, including)
            except UserError as error:
                raise UserError(f"{where}: {error}") from None
            return _parse(*source)
        case config_parser.ImportStatement(module=module):
            _import(module, where)
        case config_parser.BindingStatement(arg_name=""):
            name = "/".join(filter(None, [statement.scope, statement.selector]))
            return [Binding("", MACRO, name, statement.value, where, typed)]
        case config_parser.BindingStatement():
            scope, selector, field, value, _ = statement
            return [Binding(scope, selector, field, value, where, typed)]
    return []


def _import(module: str, where: str) -> None:
    try:
        importlib.import_module(module)
    except Exception as error:  # the module may fail in any way
        raise UserError(f"{where}: import {module} failed: {type(error).__name__}: {error}") from error


def _place(file: str | None, line: int) -> str:
    return f"{file}:{line}" if file else COMMAND_LINE


def _syntax_error(text: str, file: str | None, line: int, message: str) -> UserError:
    lines = text.splitlines()
    culprit = lines[min(line, len(lines)) - 1].strip() if lines else ""
    return UserError(f"{_place(file, line)}: {culprit!r}: {' '.join(message.split())}")


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
