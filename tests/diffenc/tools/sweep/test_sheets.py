"""Digits, and each form of a table read back."""

import csv
import io
import re

import pytest

from diffenc.evaluation.uncertainty_format import Figure, format_digits
from diffenc.tools.sweep import sheets
from diffenc.tools.sweep.sheets import Page, Sheet

SHEET = Sheet(
    "table",
    "Bits/dim",
    ("model", "seeds", "total"),
    (
        ("DiffEnc_8 50% & {a|b}", 12_345, Figure("2.783", "0.004")),
        (r"C:\x^2 ~ #$1", "-", Figure("1.6e-5", "2.0e-8")),
        ("VDMv", 1, Figure("0.37")),
        ("missing", 0, "-"),
    ),
    ("p < 0.05 ± 1",),
)
PAGE = Page("Table 4", ("trained for 10 steps", "pixels ab_cd"), (SHEET, Sheet("tests", "Tests", ("a",), ())))


def test_a_row_has_a_cell_for_each_head():
    with pytest.raises(ValueError, match="3 cells"):
        Sheet("table", "", ("a", "b", "c"), (("1", "2"),))


def test_csv_read_back():
    head, *rows = csv.reader(io.StringIO(sheets.to_csv(SHEET)))
    assert head == ["model", "seeds", "total", "total_se"]
    assert rows == [
        ["DiffEnc_8 50% & {a|b}", "12345", "2.783", "0.004"],
        [r"C:\x^2 ~ #$1", "", "1.6e-5", "2.0e-8"],
        ["VDMv", "1", "0.37", ""],
        ["missing", "0", "", ""],
    ]


def test_markdown_read_back():
    lines = sheets.to_markdown(PAGE).splitlines()
    assert lines[0] == "# Table 4"
    assert lines[2:4] == ["- trained for 10 steps", "- pixels ab_cd"]
    table = [line for line in lines if line.startswith("|")][:6]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]
    assert cells[:3] == [
        ["model", "seeds", "total"],
        ["---", "---:", "---:"],
        [r"DiffEnc_8 50% & {a\|b}", "12,345", "2.783 ± 0.004"],
    ]
    assert cells[4:] == [["VDMv", "1", "0.37 ± -"], ["missing", "0", "-"]]
    assert "- p < 0.05 ± 1" in lines


def test_headings_of_markdown_start_at_the_level():
    lines = sheets.to_markdown(PAGE, level=3).splitlines()
    titles = [f"#### {sheet.title}" for sheet in PAGE.sheets]
    assert [line for line in lines if line.startswith("#")] == ["### Table 4", *titles]


def unescaped(latex):
    """What LaTeX would set, of the commands that occur here."""
    for command, letter in {"backslash": "\\", "asciitilde": "~", "asciicircum": "^", "less": "<", "bar": "|"}.items():  # fmt: skip
        latex = latex.replace(rf"\text{command}{{}}", letter)
    return re.sub(r"\\([&%$#_{}])", r"\1", latex.replace(r"$\pm$", "±"))


@pytest.mark.parametrize("letter", "&%$#_{}")
def test_what_latex_reads_as_a_command_is_escaped(letter):
    assert sheets.escape_latex(f"a{letter}b") == f"a\\{letter}b"


def test_latex_read_back():
    latex = sheets.to_latex(PAGE)
    latex.encode("ascii")  # what pdflatex sets without further packages
    (body,) = re.findall(r"\\begin{tabular}{lrr}\n\\toprule\n(.*?)\\bottomrule", latex, re.DOTALL)
    rows = [line.removesuffix(r" \\") for line in body.splitlines() if line != r"\midrule"]
    cells = [re.split(r"(?<!\\) & ", row) for row in rows]
    assert cells[0] == ["model", "seeds", "total"]
    assert [unescaped(row[0]) for row in cells[1:]] == [row[0] for row in SHEET.rows]
    assert [row[2] for row in cells[1:]] == [
        r"$2.783 \pm 0.004$",
        r"$1.6 \times 10^{-5} \pm 2.0 \times 10^{-8}$",
        r"$0.37 \pm -$",
        "-",
    ]
    assert unescaped(latex).count("p < 0.05 ± 1") == 1
    assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") == 2
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", latex):
        depth += 1 if brace == "{" else -1
        assert depth >= 0
    assert depth == 0


def test_a_number_without_an_error_is_set_as_one():
    sheet = Sheet("table", "", ("p",), ((format_digits(-0.0123, 0.1),), (format_digits(None),)))
    assert sheet.is_numeric(0)
    assert sheets.to_csv(sheet) == 'p\n-0.01\n""\n'
    assert "$-0.01$ " in sheets.to_latex(Page("", (), (sheet,)))
    assert "| -0.01 |\n| - |" in sheets.to_markdown(Page("", (), (sheet,)))


def test_not_a_number_is_set_upright():
    sheet = Sheet("table", "", ("a",), ((Figure("nan"),),))
    assert r"$\mathrm{nan} \pm -$" in sheets.to_latex(Page("", (), (sheet,)))


def test_all_forms_are_written_and_printed(tmp_path, capsys):
    sheets.write_page(PAGE, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["table.csv", "table.md", "table.tex", "tests.csv"]  # fmt: skip
    assert (tmp_path / "out" / "table.csv").read_text() == sheets.to_csv(SHEET)
    sheets.print_page(PAGE)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) < 80
    for words in ("2.783 ± 0.004", "12,345", "pixels ab_cd", "p < 0.05", "{a|b}"):
        assert words in printed
