"""The specification of a new plugin: its kind, its name, and the class name derived from it."""

import builtins
import dataclasses
import dis
import keyword
import string
from importlib import resources

from diffenc.errors import UserError, nearest
from diffenc.registry import REGISTRIES
from diffenc.tools.scaffold.registrations import find_classes


@dataclasses.dataclass(frozen=True)
class PluginSpec:
    """A plugin to create; `check` raises if it is invalid."""

    kind: str
    name: str

    @property
    def class_name(self) -> str:
        """The name of the class, such as MyBlur for my_blur."""
        return "".join(part[:1].upper() + part[1:] for part in self.name.split("_"))

    @property
    def folder(self) -> str:
        """The folder of this kind of plugin in a checkout, such as `encoders`, `features` or `stochasticities`."""
        if self.kind.endswith("y"):
            return f"{self.kind.removesuffix('y')}ies"
        return f"{self.kind.removesuffix('s')}s"

    def text(self, template: str, **more: str) -> str:
        """Returns a filled-in template of the kind."""
        return self._text(template, Class=self.class_name, **more)

    def _text(self, template: str, **more: str) -> str:
        return fill_template(f"{self.kind}/{template}", name=self.name, **more)

    def check(self) -> None:
        """Raises UserError for an unknown kind, or a name that is invalid or taken."""
        if self.kind not in REGISTRIES:
            raise UserError(
                f"no kind of plugin is called {self.kind!r}; nearest: {nearest(self.kind, REGISTRIES)}; "
                f"kinds: {', '.join(REGISTRIES)}"
            )
        require_identifier(self.name, "NAME")
        if known := find_classes(self.kind).get(self.name):
            raise UserError(f"{self.kind}.{self.name} is already {known}: choose another NAME")
        self._check_class()

    def _check_class(self) -> None:
        message = f"NAME {self.name!r}: its class would be called {self.class_name}"
        if keyword.iskeyword(self.class_name) or hasattr(builtins, self.class_name):
            raise UserError(f"{message}, which is a word of Python's: choose another, of two words")
        # The class has a dummy name here, so that it does not hide an equal name that the files use.
        files = self._text("plugin.py", Class="_"), self._text("test.py", Class="_", module="_")
        if self.class_name in set().union(*map(_top_level_names, files)):
            raise UserError(f"{message}, a name that its files use otherwise: choose another, of two words")


def require_identifier(word: str, label: str) -> None:
    """Raises UserError, which starts with `label`, unless `word` can name Python files, classes and configs."""
    if not (word.isidentifier() and word.isascii() and word[0].isalpha()):
        raise UserError(
            f"{label} {word!r}: must be a letter, then letters, digits and underscores, as my_blur"
        )
    if keyword.iskeyword(word):
        raise UserError(f"{label} {word!r} is a word of Python's: choose another")


def fill_template(template: str, **values: str) -> str:
    """Returns a template of this package with its variables replaced."""
    text = (
        resources.files("diffenc.tools.scaffold")
        .joinpath("templates", f"{template}.txt")
        .read_text(encoding="utf-8")
    )
    return string.Template(text).substitute(values)


def _top_level_names(code: str) -> set[str]:
    """Returns the names that a module imports, assigns and defines at its top level, from its bytecode."""
    compiled = compile(code, "plugin.py", "exec")
    # Bytecode holds every form of binding as STORE_NAME; the code is compiled and never executed.
    return {each.argval for each in dis.get_instructions(compiled) if each.opname == "STORE_NAME"}
