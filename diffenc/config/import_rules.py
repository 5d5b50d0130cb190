"""Which modules a config may import: reading the config of somebody else's run must not run their code."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from diffenc import registry
from diffenc.errors import UserError

AT_A_SHELL = "give --allow_imports={module}, or a --gin_file of your own that imports it"
IN_PYTHON = "pass allow_imports=({module!r},)"


class Import(NamedTuple):
    """An import statement, where it stands, and whether that is the config of a run or an export."""

    module: str
    where: str
    from_run: bool


def names_modules(allowed: Sequence[str] | str) -> Callable[[str], bool]:
    """Whether a module is one of `allowed` or of an installed plugin package, or lies in one of them."""
    known = {*registry.plugin_packages(), *([allowed] if isinstance(allowed, str) else allowed)}
    return lambda module: any(module == name or module.startswith(f"{name}.") for name in known)


def check_imports(imports: Iterable[Import], may_import: Callable[[str], bool], permission: str) -> None:
    """Raise UserError if the config of a run imports what it may not. Nothing has to be imported yet.

    Args:
      permission: how to allow `{module}`, for the message.
    """
    for module, where, from_run in imports:
        if from_run and not may_import(module):
            raise UserError(
                f"{where}: imports {module}, and so would run code: if you trust that module, which has to be "
                f"installed here, {permission.format(module=module)}"
            )
