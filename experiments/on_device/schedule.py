"""Stages run in sequence within a time limit, with a table that is written after each."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import logging

from diffenc.safe_io.reading import one_line

Rows = Mapping[str, str]  # what was found, as it is shown


class Stage(NamedTuple):
    """One part of the program.

    Attributes:
      seconds: maximal duration; with less time left the stage is skipped.
      run: runs the stage; returns its rows.
    """

    name: str
    seconds: float
    run: Callable[[], Rows]


@dataclasses.dataclass
class Record:
    """The results so far.

    Attributes:
      results: rows of each stage that ended, by name.
      seconds: duration of each stage.
      failed: names of stages that raised an error.
      left_out: names of stages skipped for lack of time.
    """

    command: str
    date: str
    results: dict[str, Rows] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    failed: list[str] = dataclasses.field(default_factory=list)
    left_out: list[str] = dataclasses.field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        """Returns the record as a dict, for JSON."""
        return dataclasses.asdict(self)

    def table(self) -> str:
        """Returns a Markdown table."""
        lines = [f"`{self.command}`, {self.date}.", "", "| stage | what | |", "|---|---|--:|"]
        for name, rows in self.results.items():
            shown = {**rows, "seconds in all": f"{self.seconds[name]:.0f}"}
            lines += [f"| {name} | {what} | {value} |" for what, value in shown.items()]
        lines += [f"| {name} | left out: no time | |" for name in self.left_out]
        return "\n".join([*lines, ""])


def run_stages(
    stages: Sequence[Stage], seconds: float, record: Record, save: Callable[[Record], None]
) -> None:
    """Runs the stages that fit into the time, and saves the record after each; an error ends its stage alone."""
    end = time.monotonic() + seconds
    for stage in stages:
        began = time.monotonic()
        if end - began < stage.seconds:
            record.left_out.append(stage.name)
            logging.warning("%s: left out, %.0f seconds are left", stage.name, end - began)
        else:
            logging.info("%s: %.0f seconds are left", stage.name, end - began)
            record.results[stage.name] = _try(stage, record)
            record.seconds[stage.name] = time.monotonic() - began
        save(record)


def _try(stage: Stage, record: Record) -> Rows:
    try:
        return stage.run()
    except Exception as error:  # whatever it is, the time of the machine goes on
        logging.exception("%s failed", stage.name)
        record.failed.append(stage.name)
        return {"failed": one_line(error)[:300].replace("|", "/")}
