"""The index of a package of plugins: an `__init__.py` of a docstring, an import for each plugin, and `__all__`."""

import ast
import dataclasses

from diffenc.errors import UserError

WIDTH = 110  # columns


@dataclasses.dataclass(frozen=True)
class Index:
    """The content of an index. `classes` are names of classes by module."""

    doc: str
    classes: dict[str, tuple[str, ...]]

    def __str__(self) -> str:
        imports = [
            _wrap(f"from {module} import ", self.classes[module], "()") for module in sorted(self.classes)
        ]
        exported = sorted(sum(self.classes.values(), ()), key=_constants_first)
        quoted = tuple(f'"{name}"' for name in exported)
        body = [*imports, "", _wrap("__all__ = ", quoted, "[]", always=True)] if imports else []
        return "\n".join([f'"""{self.doc}"""', *([""] if body else []), *body, ""])

    def with_class(self, module: str, name: str) -> "Index":
        """Returns the index with another plugin. Raises UserError if another module has a class of that name."""
        for other, names in self.classes.items():
            if name in names and other != module:
                raise UserError(f"{other} has a class {name} too: choose a NAME with another class name")
        known = self.classes.get(module, ())
        return dataclasses.replace(self, classes={**self.classes, module: tuple(sorted({*known, name}))})


def parse_index(text: str, file: str) -> Index:
    """Parses the text of `file`.

    Raises:
      UserError: the text has other content, which writing the index would lose.
    """
    try:
        found = ast.parse(text)
    except SyntaxError as error:
        raise UserError(f"{file}:{error.lineno}: is not valid Python: {error.msg}") from None
    imports = [node for node in found.body if isinstance(node, ast.ImportFrom) and node.module]
    classes = {str(node.module): tuple(alias.name for alias in node.names) for node in imports}
    index = Index(ast.get_docstring(found, clean=False) or "", classes)
    # The index must reproduce the text exactly: writing it would lose any content that the parse lost.
    if str(index) != text:
        raise UserError(
            f"{file} has more than a docstring, imports and __all__, or in another format: "
            "put the new plugin elsewhere (--package=DIR)"
        )
    return index


def _constants_first(name: str) -> tuple[bool, str]:
    return not (name.isupper() and len(name) > 1), name


def _wrap(start: str, items: tuple[str, ...], brackets: str, always: bool = False) -> str:
    """Returns `start` and the items in one line, or in brackets on a line each if that is longer than WIDTH."""
    line = f"{start}{brackets[0] * always}{', '.join(items)}{brackets[1] * always}"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{start}{brackets[0]}", *(f"    {item}," for item in items), brackets[1]])
