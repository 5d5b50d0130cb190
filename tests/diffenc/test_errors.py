"""Messages are safe to print, and of bounded length."""

import io
import logging as std_logging

import pytest
from absl import logging
from rich.console import Console

from diffenc.errors import MAX_MESSAGE, UserError, printable
from diffenc.evaluation.evaluation_record import errors_table
from diffenc.runtime.console import exit_status
from diffenc.runtime.log_format import show_log_lines_plainly


def test_a_message_keeps_its_beginning_and_its_end():
    message = str(UserError("config.gin:3: Experiment.seed = '" + "x" * 10**6 + "': expected int"))
    assert len(message) <= MAX_MESSAGE + 3
    assert message.startswith("config.gin:3: Experiment.seed = 'xxx")
    assert message.endswith("xxx': expected int")
    assert "x … x" in message
    assert str(UserError("x" * MAX_MESSAGE)) == "x" * MAX_MESSAGE


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\rb\x7f\x9b", "a\\rb\\x7f\\x9b"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\ud800", "\\ud800"),
        ("Ünï → 中\n\tnext", "Ünï → 中\n\tnext"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text, shown):
    assert printable(text) == shown == str(UserError(text))


def test_what_a_disk_says_is_bounded_and_safe(capsys):
    def perform():
        raise OSError(2, "No such file or directory", "\x1b[2J" + "y" * 10**5)

    assert exit_status(perform) == 1
    err = capsys.readouterr().err
    assert len(err) < 2 * MAX_MESSAGE
    assert "\x1b" not in err


def test_log_lines_are_safe_and_bounded():
    handler = logging.get_absl_handler()
    before = handler.formatter
    try:
        show_log_lines_plainly()
        record = std_logging.LogRecord("x", 20, "f", 1, "dataset %s: %s", ("\x1b[31mred", "z" * 10**6), None)
        line = handler.format(record)
    finally:
        handler.setFormatter(before)
    assert "dataset \\x1b[31mred: zzz" in line
    assert len(line) < 11_000


def test_a_table_shows_brackets_as_they_are():
    out = io.StringIO()
    Console(file=out, width=80).print(
        errors_table({"bpd": 1.0}, ("bpd",), "[red]name[/red]", "pixels [bold]f00")
    )
    assert "[red]name[/red]" in out.getvalue()
    assert "[bold]f00" in out.getvalue()
