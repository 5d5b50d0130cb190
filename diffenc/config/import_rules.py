"""Rules for the modules that a config may import: loading another person's config must not execute their code."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from diffenc import registry
from diffenc.errors import UserError

SHELL_HINT = "give --allow_imports={module}, or a --gin_file of your own that imports it"
PYTHON_HINT = "pass allow_imports=({module!r},)"


class Import(NamedTuple):
    """An import statement, its location, and whether it is in the config of a run or an export."""

    module: str
    location: str
    from_run: bool


def import_permission(allowed: Sequence[str] | str) -> Callable[[str], bool]:
    """Returns a predicate of module names: true for those in `allowed`, installed plugin packages, and their submodules."""
    known = {*registry.plugin_packages(), *([allowed] if isinstance(allowed, str) else allowed)}
    return lambda module: any(module == name or module.startswith(f"{name}.") for name in known)


def check_imports(imports: Iterable[Import], may_import: Callable[[str], bool], permission: str) -> None:
    """Raises UserError if the config of a run imports a forbidden module. Imports nothing.

    Args:
      permission: the part of the message with the way to allow `{module}`.
    """
    for module, location, from_run in imports:
        if from_run and not may_import(module):
            raise UserError(
                f"{location}: imports {module}, and so would run code: if you trust that module, which has to be "
                f"installed here, {permission.format(module=module)}"
            )
