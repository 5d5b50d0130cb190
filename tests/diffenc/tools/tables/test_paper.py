"""The numbers carried over from the paper hang together, and where it is at hand are those of the text."""

import json
import re

import pytest

from diffenc.tools.sweep.results import COMPONENTS
from diffenc.tools.tables import paper

PARTS = [name for name in COMPONENTS if name != "total"]


def half_unit(digits):
    """How far a printed number may be from what was rounded to it."""
    mantissa, _, power = digits.partition("e")
    return 0.5 * 10.0 ** (int(power or 0) - len(mantissa.partition(".")[2]))


@pytest.mark.parametrize("table", paper.COMPONENT_TABLES)
def test_components_add_up_to_the_total(table):
    for row in paper.load_rows(table):
        assert set(row.figures) == set(COMPONENTS)
        parts = sum(float(row.figures[name].mean) for name in PARTS)
        slack = sum(half_unit(figure.mean) for figure in row.figures.values())
        assert abs(parts - float(row.figures["total"].mean)) <= slack + 1e-12, row


def test_tables_are_of_the_published_size():
    counts = {table: len(paper.load_rows(table)) for table in paper.TABLES if table != 1}
    assert counts == {2: 2, 3: 6, 4: 6, 5: 2, 6: 2, 7: 2, 8: 2}
    assert len(paper.other_models()) == 13


@pytest.mark.parametrize("table", [table for table in paper.TABLES if table != 1])
def test_a_folder_is_of_one_row(table):
    names = [row.name for row in paper.load_rows(table)]
    assert len(set(names)) == len(names)
    assert all((row.noise in row.name) == (table in (3, 4)) for row in paper.load_rows(table))


def test_a_figure_of_imagenet32_is_of_one_of_the_two():
    lines = {line["model"]: line for line in paper.other_models()}
    assert {name for name, line in lines.items() if "imagenet32" in line} == {
        "Flow Matching OT",
        "Flow Matching TN",
        "VDM with v-parameterization (8M; 1.5M steps)",
        "DiffEnc with a trainable encoder (8M; 1.5M steps)",
    }
    assert not any({"imagenet32", "imagenet32_oord"} <= set(line) for line in lines.values())
    assert paper.published_images("imagenet32") != paper.published_images("imagenet32_oord")


def test_notes_are_of_their_table():
    assert any("van den Oord" in note for note in paper.paper_notes(1))
    assert any("one-sided" in note for note in paper.paper_notes(2))
    assert paper.paper_notes(6) == []


def number(digits):
    """A printed number as the paper's text has it, as a pattern."""
    mantissa, _, power = digits.partition("e")
    mantissa = re.escape(mantissa)
    return rf"\(?{mantissa}× 10−{power[1:]}\)?" if power else mantissa


@pytest.mark.parametrize("table", [table for table in paper.TABLES if table != 1])
def test_every_row_is_printed_so(table, shared):
    text = re.sub(r"\s+", " ", (shared / "paper.txt").read_text(encoding="utf-8")).replace(" ×", "×")
    (caption,) = [match.end() for match in re.finditer(rf"Table {table}: ", text)]
    section = text[caption : caption + 2200]
    for row in paper.load_rows(table):
        figures = (rf"{number(f.mean)} ?± {number(f.error or '')}" for f in row.figures.values())
        start = row.model if row.noise == "fixed" else ""
        noise = f"{row.noise} " if table in (3, 4) else ""
        assert re.search(rf"{start} {noise}{' '.join(figures)}", section), row


def test_the_numbers_are_those_of_the_reference(shared):
    reference = json.loads((shared / "paper_results.json").read_text(encoding="utf-8"))
    for table in paper.COMPONENT_TABLES:
        known = reference[f"table{table}"]
        for row in paper.load_rows(table):
            line = known[row.model]
            line = line.get(row.noise, line)
            numbers = {name: [float(f.mean), float(f.error or "nan")] for name, f in row.figures.items()}
            assert numbers == {name: line[name] for name in COMPONENTS}
            assert row.seeds == line.get("seeds", known.get("seeds"))
            assert (row.steps, row.batch_size) == (known["steps"], known.get("batch_size", 128))
