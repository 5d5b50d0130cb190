"""Names of registered plugins, parsed from their sources, since importing them would take seconds."""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from diffenc import registry


def find_classes(kind: str) -> dict[str, str]:
    """Returns `module.Class` by registered name, for classes of installed plugin packages of a kind.

    Finds decorators `@encoders.register("NAME")` and `@registry.encoders.register("NAME")`, of the registry of `kind`.
    A duplicate of a name registered in another form is only refused when plugins are imported.
    """
    return {
        name: f"{module}.{node.name}"
        for package in sorted(registry.plugin_packages())
        for module, path in _modules_of(package)
        for node in ast.walk(_parse(path))
        if isinstance(node, ast.ClassDef)
        for name in filter(None, (_registered_name(decorator, kind) for decorator in node.decorator_list))
    }


def _modules_of(package: str) -> Iterator[tuple[str, Path]]:
    spec = importlib.util.find_spec(package)
    for folder in map(Path, (spec and spec.submodule_search_locations) or ()):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join([package, *(part for part in parts if part != "__init__")]), path
    if spec and spec.origin and not spec.submodule_search_locations:
        yield package, Path(spec.origin)


def _parse(path: Path) -> ast.AST:
    try:
        text = path.read_text(encoding="utf-8")
        return ast.parse(text if ".register(" in text else "")
    except (OSError, ValueError, SyntaxError):  # a package that cannot be imported registers nothing
        return ast.Module([], [])


def _registered_name(decorator: ast.expr, kind: str) -> str | None:
    match decorator:
        case ast.Call(ast.Attribute(value, "register"), [ast.Constant(str(name))]):
            owner = value.id if isinstance(value, ast.Name) else getattr(value, "attr", None)
            found = getattr(registry, owner or "", None)
            return name if found is registry.REGISTRIES[kind] else None
    return None
