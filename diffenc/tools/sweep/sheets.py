"""Tables of numbers with standard errors, written to the terminal, Markdown, LaTeX and CSV with the same digits."""

import csv
import dataclasses
import io
import re
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from diffenc.evaluation.uncertainty_format import MISSING, Digits, Figure
from diffenc.files import atomic

Cell = str | int | Figure  # Digits is a str


@dataclasses.dataclass(frozen=True)
class Sheet:
    """A table. In CSV a column with any Figure becomes two: HEAD and HEAD_se.

    Attributes:
      name: stem of its CSV file.
      notes: lines printed below the table.
    """

    name: str
    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        if any(len(row) != len(self.heads) for row in self.rows):
            raise ValueError(f"{self.name}: each row must have {len(self.heads)} cells")

    def column(self, index: int) -> tuple[Cell, ...]:
        return tuple(row[index] for row in self.rows)

    def has_figures(self, index: int) -> bool:
        """Returns whether any cell of the column has a standard error of its own."""
        return any(isinstance(cell, Figure) for cell in self.column(index))

    def is_numeric(self, index: int) -> bool:
        """Returns whether the column is right-aligned."""
        return any(isinstance(cell, int | Figure | Digits) for cell in self.column(index))


@dataclasses.dataclass(frozen=True)
class Page:
    """Sheets about the same runs.

    Attributes:
      facts: lines printed above the sheets: images, measurement, training.
    """

    title: str
    facts: tuple[str, ...]
    sheets: tuple[Sheet, ...]


def write_page(page: Page, folder: Path) -> None:
    """Writes table.md and table.tex with all sheets, and NAME.csv for each sheet.

    Raises:
      UserError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_text(folder / "table.md", to_markdown(page))
    atomic.write_text(folder / "table.tex", to_latex(page))
    for sheet in page.sheets:
        atomic.write_text(folder / f"{sheet.name}.csv", to_csv(sheet))


def print_page(page: Page) -> None:
    """Prints the page without truncating lines: a narrow terminal wraps them, so no number is lost."""
    console = Console(width=1000, soft_wrap=True)
    console.print(f"\n{page.title}", style="bold", markup=False, highlight=False)
    for fact in page.facts:
        console.print(f"  {fact}", markup=False, highlight=False)
    for sheet in page.sheets:
        console.print(_to_rich_table(sheet))
        for note in sheet.notes:
            console.print(f"  {note}", markup=False, highlight=False)


def _to_rich_table(sheet: Sheet) -> Table:
    table = Table(title=escape(sheet.title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, head in enumerate(sheet.heads):
        table.add_column(escape(head), justify="right" if sheet.is_numeric(index) else "left", no_wrap=True)
    for row in sheet.rows:
        table.add_row(*(escape(format_cell(cell)) for cell in row))
    return table


def format_cell(cell: Cell) -> str:
    """Formats a cell, an integer with thousands separators."""
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def to_markdown(page: Page, level: int = 1) -> str:
    """Returns the page as Markdown, its title a heading of `level` and those of its sheets one below."""
    mark = "#" * level
    blocks = [f"{mark} {page.title}", "\n".join(f"- {fact}" for fact in page.facts)]
    for sheet in page.sheets:
        blocks += [f"{mark}# {sheet.title}", _markdown_table(sheet)]
        blocks += ["\n".join(f"- {note}" for note in sheet.notes)] if sheet.notes else []
    return "\n\n".join(block for block in blocks if block) + "\n"


def _markdown_table(sheet: Sheet) -> str:
    rules = ["---:" if sheet.is_numeric(index) else "---" for index in range(len(sheet.heads))]
    rows = [sheet.heads, rules, *([format_cell(cell) for cell in row] for row in sheet.rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows)


def to_csv(sheet: Sheet) -> str:
    """Returns the sheet as CSV: means and errors in separate columns, an unknown error as an empty cell."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    split = [sheet.has_figures(index) for index in range(len(sheet.heads))]  # column by column
    heads = zip(sheet.heads, split, strict=True)
    writer.writerow([name for head, two in heads for name in ([head, f"{head}_se"] if two else [head])])
    for row in sheet.rows:
        writer.writerow(
            part for cell, two in zip(row, split, strict=True) for part in _split_figure(cell, two)
        )
    return out.getvalue()


def _split_figure(cell: Cell, two: bool) -> Sequence[str | int]:
    if isinstance(cell, Figure):
        return [cell.mean, cell.error or ""]
    return ["" if cell == MISSING else cell, *([""] if two else [])]


def to_latex(page: Page) -> str:
    """Returns a LaTeX table for each sheet, with the facts below the first; the document must load booktabs."""
    tables = [
        _latex_table(sheet, f"{page.title}. {sheet.title}", (page.facts if index == 0 else ()) + sheet.notes)
        for index, sheet in enumerate(page.sheets)
    ]
    return "% \\usepackage{booktabs}\n" + "\n".join(tables)


def _latex_table(sheet: Sheet, caption: str, notes: Sequence[str]) -> str:
    aligned = "".join("r" if sheet.is_numeric(index) else "l" for index in range(len(sheet.heads)))
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape_latex(caption)}}}",
        rf"\begin{{tabular}}{{{aligned}}}",
        r"\toprule",
        _latex_row(sheet.heads),
        r"\midrule",
        *map(_latex_row, sheet.rows),
        r"\bottomrule",
        r"\end{tabular}",
        *(rf"\par {{\footnotesize {escape_latex(note)}}}" for note in notes),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_row(row: Sequence[Cell]) -> str:
    return " & ".join(map(_latex_cell, row)) + r" \\"


def _latex_cell(cell: Cell) -> str:
    if isinstance(cell, Digits):
        return f"${_latex_number(cell)}$"
    if not isinstance(cell, Figure):
        return escape_latex(format_cell(cell))
    error = MISSING if cell.error is None else _latex_number(cell.error)
    return rf"${_latex_number(cell.mean)} \pm {error}$"


def _latex_number(digits: str) -> str:
    if digits in ("nan", "inf", "-inf"):
        return rf"\mathrm{{{digits}}}"
    return re.sub(r"e(-?\d+)$", r" \\times 10^{\1}", digits)


_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "×": r"$\times$",
    "–": "--",
    **{letter: rf"\{letter}" for letter in "&%$#_{}"},
}


def escape_latex(text: str) -> str:
    """Escapes `text` for LaTeX's text mode."""
    return "".join(_ESCAPES.get(letter, letter) for letter in text)
