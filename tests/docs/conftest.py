"""README.md, the pages of docs/ and those of experiments/, cut into their code blocks.

What a test needs of hardware, network or other programs stands before a block as `<!-- needs: 8 GPUs -->`, and keeps it
from being executed. `<!-- file: NAME -->` before a block says that it is the content of that file.
"""

import re
import shlex
from collections.abc import Iterator
from itertools import dropwhile
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
LANGUAGES = ("sh", "console", "python", "gin", "toml", "text", "dockerfile")
SHELL = ("sh", "console")
BLOCK = re.compile(r"((?:^<!-- \w+: .*? -->\n)*)^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
VARIABLE = re.compile(r"[A-Z_]+=")
REMARK = re.compile(r"<!-- (\w+): (.*?) -->")
INLINE = re.compile(r"`((?:python -m|make) [^`\n]+)`")


class Block(NamedTuple):
    """A code block; `needs` and `file` are empty where no comment stands before it."""

    page: str
    line: int
    language: str
    text: str
    needs: str
    file: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


class Command(NamedTuple):
    """One command of a block or of the text, as the shell splits it."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"


def page_files() -> list[Path]:
    found = [*(ROOT / "docs").glob("*.md"), *(ROOT / "experiments").rglob("*.md")]
    found = [page for page in found if {"records", "models"}.isdisjoint(page.parts)]
    return [ROOT / "README.md", *sorted(found)]


def blocks_of(page: Path) -> Iterator[Block]:
    text, name = page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix()
    for match in BLOCK.finditer(text):
        said = dict(REMARK.findall(match[1]))
        line = text[: match.start(2)].count("\n") + 1
        yield Block(name, line, match[2], match[3], said.get("needs", ""), said.get("file", ""))


def commands_in(page: str, text: str) -> Iterator[Command]:
    """The commands of a block, a line each but where a line ends in a backslash; without NAME=VALUE in front."""
    for line in text.replace("\\\n", " ").splitlines():
        words = [*dropwhile(VARIABLE.match, shlex.split(line, comments=True))]
        if words:
            yield Command(page, tuple(words))


def commands_of(page: Path) -> Iterator[Command]:
    """The commands of a page: of its shell blocks, and those that its text names."""
    text, name = page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix()
    for block in blocks_of(page):
        if block.language in SHELL:
            yield from commands_in(name, block.text)
    for found in INLINE.findall(BLOCK.sub("", text)):
        yield from commands_in(name, found)


PAGES = page_files()
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
COMMANDS = [command for page in PAGES for command in commands_of(page)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for name, values in {"page": PAGES, "block": BLOCKS, "command": COMMANDS}.items():
        if name in metafunc.fixturenames:
            ids = [str(v.relative_to(ROOT)) if isinstance(v, Path) else str(v) for v in values]
            metafunc.parametrize(name, values, ids=ids)


@pytest.fixture(scope="session")
def blocks() -> list[Block]:
    return BLOCKS


@pytest.fixture(scope="session")
def commands() -> list[Command]:
    return COMMANDS


@pytest.fixture(scope="session")
def pages() -> list[Path]:
    return PAGES
