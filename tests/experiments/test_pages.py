"""The sweeps and tables that README.md, docs and the pages of experiments show are of configs that load."""

import re
import shlex
from pathlib import Path

import pytest

from diffenc.cli import sweep, tables
from diffenc.tools.sweep.runs import make_runs
from diffenc.tools.sweep.sweep import parse_seeds, parse_variants
from diffenc.tools.tables.collection import load_lines
from tests.docs.conftest import page_files

PAGES = page_files()


def commands(start: str) -> list[list[str]]:
    """Every command that starts so, in blocks and in the text of all pages; as lists of arguments."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES).replace("\\\n", " ")
    found = re.findall(rf"(?:^ *|`)({re.escape(start)} -[^`\n]*)", text, re.MULTILINE)
    return [shlex.split(command, comments=True) for command in found]


@pytest.mark.parametrize("command", commands("python -m diffenc.sweep"), ids=" ".join)
def test_a_sweep_that_is_shown_is_of_configs_that_load(command):
    given = sweep.parse_args(command[3:])
    _, variants = parse_variants(given)
    runs = make_runs(Path("unused"), variants, parse_seeds(given.seeds)[:1])
    assert len({run.workdir for run in runs}) == len(variants)
    assert len({repr(run.experiment) for run in runs}) == len(variants)


@pytest.mark.parametrize("command", commands("python -m experiments.tables"), ids=" ".join)
def test_a_table_that_is_shown_is_of_configs_that_load(command):
    given = tables.parse_args(command[3:])
    lines = load_lines(given.table, Path("unused"), tables.parse_scale(given), given.rows)
    assert len({line.runs[0].workdir for line in lines}) == len(lines)


def test_a_sweep_is_shown():
    assert commands("python -m diffenc.sweep")


def test_tables_are_shown():
    assert len(commands("python -m experiments.tables")) >= 3
