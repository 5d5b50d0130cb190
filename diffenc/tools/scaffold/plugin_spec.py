"""What is to be made: a kind, a name, and the class's name that goes with it."""

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
    """A plugin to make. `check` says whether it can be."""

    kind: str
    name: str

    @property
    def class_name(self) -> str:
        """my_blur's is MyBlur."""
        return "".join(part[:1].upper() + part[1:] for part in self.name.split("_"))

    @property
    def folder(self) -> str:
        """Where plugins of the kind lie in a checkout: `encoders`, `features`, `stochasticities`."""
        if self.kind.endswith("y"):
            return f"{self.kind.removesuffix('y')}ies"
        return f"{self.kind.removesuffix('s')}s"

    def text(self, template: str, **more: str) -> str:
        """A template of the kind, filled in."""
        return self._text(template, Class=self.class_name, **more)

    def _text(self, template: str, **more: str) -> str:
        return fill_template(f"{self.kind}/{template}", name=self.name, **more)

    def check(self) -> None:
        """Raise UserError if there is no such kind, or the name cannot be had."""
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
        would = f"NAME {self.name!r}: its class would be called {self.class_name}"
        if keyword.iskeyword(self.class_name) or hasattr(builtins, self.class_name):
            raise UserError(f"{would}, which is a word of Python's: choose another, of two words")
        # the class itself is one of a file's names; under another it does not hide what is there without it
        files = self._text("plugin.py", Class="_"), self._text("test.py", Class="_", module="_")
        if self.class_name in set().union(*map(_top_level_names, files)):
            raise UserError(
                f"{would}, as something else is that its files need: choose another, of two words"
            )


def require_identifier(word: str, what: str) -> None:
    """Raise UserError unless Python files, classes and configs can be called so."""
    if not (word.isidentifier() and word.isascii() and word[0].isalpha()):
        raise UserError(
            f"{what} {word!r}: must be a letter, then letters, digits and underscores, as my_blur"
        )
    if keyword.iskeyword(word):
        raise UserError(f"{what} {word!r} is a word of Python's: choose another")


def fill_template(template: str, **values: str) -> str:
    """A template of this package with its blanks filled in."""
    text = (
        resources.files("diffenc.tools.scaffold")
        .joinpath("templates", f"{template}.txt")
        .read_text(encoding="utf-8")
    )
    return string.Template(text).substitute(values)


def _top_level_names(code: str) -> set[str]:
    """What a module's own names are: imported, assigned and defined."""
    found = compile(code, "plugin.py", "exec")
    return {each.argval for each in dis.get_instructions(found) if each.opname == "STORE_NAME"}
