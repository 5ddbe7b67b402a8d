"""What people see of a command, with one look on a terminal and plain text elsewhere; and its log in a file.

On a terminal the marks of lines have colours: `note:`, `Error:`, the states of `mergekit-mm doctor`. Where NO_COLOR is
set (https://no-color.org), where TERM is `dumb`, and in pipes and files, the same lines are plain. What programs read
(JSON, CSV, addresses) is never coloured. Bars are drawn on terminals; elsewhere a line now and then tells how far the
work is. click and tqdm, which are needed anyway, are enough for that.

A log file gets everything that is told, what modules log, and tracebacks, each with its time.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from threading import RLock
from typing import IO, TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tqdm import tqdm

LOG_FILE = "MERGEKIT_MM_LOG_FILE"  # in the environment, for the stock commands and for ours
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_EVERY = 30.0  # seconds between two lines on progress where there is no terminal

# What is told goes to the log file through this logger, and not once more to the terminal.
_told = logging.getLogger("mergekit_mm.told")
_told.propagate = False
_told.setLevel(logging.INFO)
_told.addHandler(logging.NullHandler())  # without any handler, logging itself would print errors once more

_YELLOW, _RED = {"fg": "yellow"}, {"fg": "red", "bold": True}
# The start of a line -> the style of what the group `mark` matches.
_MARKS: tuple[tuple[re.Pattern[str], dict[str, Any]], ...] = (
    (re.compile(r"^ *(?P<mark>note:)", re.MULTILINE), _YELLOW),
    (re.compile(r"^(?P<mark>warning:)", re.MULTILINE), _YELLOW),
    (re.compile(r"^(?P<mark>note) {3}", re.MULTILINE), _YELLOW),  # this and the next two: findings of `doctor`
    (re.compile(r"^(?P<mark>ok) {5}", re.MULTILINE), {"fg": "green"}),
    (re.compile(r"^(?P<mark>BROKEN) ", re.MULTILINE), _RED),
    (re.compile(r"^(?P<mark>Error:)", re.MULTILINE), _RED),
    (re.compile(r"^(?P<mark>\w+ of \d+ models in the layout of .*)$", re.MULTILINE), {"bold": True}),
    (re.compile(r"^(?P<mark>Not used:)$", re.MULTILINE), {"bold": True}),
)


def tell(text: str) -> None:
    """Tell people something, on the standard error."""
    _told.info(text)
    _echo(text, None, err=True)


def teller(quiet: bool) -> Callable[[str], None]:
    """`tell`, or if `quiet` what puts the same into the log file alone."""
    return _told.info if quiet else tell


def show(text: str) -> None:
    """Show people the result of a command, on the standard output."""
    _told.info(text)
    _echo(text, None, err=False)


def columns() -> int | None:
    """How many characters a line of the standard output has; None where it is no terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def tell_error(message: str, error: BaseException, file: IO[Any] | None = None) -> None:
    """Tell people why a command ends."""
    log_error(message, error)
    _echo(f"Error: {message}", file, err=True)


def log_error(message: str, error: BaseException) -> None:
    """Put an error into the log file, with its traceback, that is printed by other means."""
    _told.error(message, exc_info=error)


def _echo(text: str, file: IO[Any] | None, err: bool) -> None:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    click.echo(text if plain else styled(text), file=file, err=err)  # takes colours off unless it is a terminal


def styled(text: str) -> str:
    """A text with the marks of its lines in colour."""
    for pattern, style in _MARKS:
        text = pattern.sub(partial(_coloured, style=style), text)
    return text


def _coloured(found: re.Match[str], style: dict[str, Any]) -> str:
    before = found[0][: found.start("mark") - found.start()]
    return before + click.style(found["mark"], **style) + found[0][len(before) + len(found["mark"]) :]


def bar(**options: Any) -> tqdm[Any]:
    """tqdm with these options: a bar on a terminal; elsewhere, of work that takes long, a line twice a minute."""
    if sys.stderr.isatty():
        return _kind_of_bar()(dynamic_ncols=True, **options)
    form = "{desc}: {n_fmt} of {total_fmt} ({percentage:.0f} %), {elapsed} so far, {remaining} left"
    lines = {"file": _Lines(), "bar_format": form, "mininterval": _EVERY, "maxinterval": _EVERY, "delay": _EVERY}
    return _kind_of_bar()(**{**lines, **options})


@cache
def _kind_of_bar() -> type[tqdm[Any]]:
    """tqdm with a lock of this process. Its own is shared with all forks: one that is killed may hold it for ever."""
    from tqdm import tqdm  # local: most commands draw no bar, and `--help` is to be instant

    kind: type[tqdm[Any]] = type("bar", (tqdm,), {"_lock": RLock()})
    os.register_at_fork(after_in_child=lambda: kind.set_lock(RLock()))  # a thread that is not here may hold this one
    return kind


class _Lines:
    """A file to which tqdm writes, that makes a line of each of its pictures. The last picture comes twice."""

    def __init__(self) -> None:
        self._last = ""

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        if line and line != self._last:
            tell(line)
            self._last = line

    def flush(self) -> None:
        """There is nothing to flush."""


class _Terminal(logging.Handler):
    """Shows what modules log: warnings with their mark, all else with the name of its module."""

    def emit(self, record: logging.LogRecord) -> None:
        mark = "warning" if record.levelno >= logging.WARNING else record.name
        text = f"{mark}: {record.getMessage()}"
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        _echo(text, None, err=True)


@contextmanager
def logging_shown(level: int, log_file: Path | None = None) -> Iterator[None]:
    """A context in which what modules log is shown from this level on, and a log file is written.

    Raises:
        click.FileError: the log file cannot be written.
    """
    root, before = logging.getLogger(), list(logging.getLogger().handlers)
    root_level, levels = root.level, [handler.level for handler in before]
    root.setLevel(level)
    root.addHandler(_Terminal())
    try:
        if log_file:
            log_to(log_file)
        yield
    finally:
        for handler in [each for each in root.handlers if each not in before]:
            for logger in (root, _told):
                logger.removeHandler(handler)
            handler.close()
        root.setLevel(root_level)
        for handler, old in zip(before, levels, strict=True):
            handler.setLevel(old)


def log_to(file: Path) -> None:
    """Append everything to a log file from now on: from INFO on, or from the root logger's own level if that is lower.

    Raises:
        click.FileError: it cannot be written.
    """
    root = logging.getLogger()
    files = [each.baseFilename for each in root.handlers if isinstance(each, logging.FileHandler)]
    if os.path.abspath(file) in files:
        return
    try:
        handler = logging.FileHandler(file, encoding="utf-8")
    except OSError as error:
        raise click.FileError(str(file), f"The log file cannot be written: {error.strerror}.") from error
    handler.setFormatter(logging.Formatter(_FORMAT))
    for other in root.handlers:  # the terminal goes on to show what it showed
        other.setLevel(max(other.level, root.level))
    root.setLevel(min(root.level, logging.INFO))
    for logger in (root, _told):
        logger.addHandler(handler)
    _told.info(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]))


def log_by_environment() -> None:
    """Write the log file that the environment names, if it names one; for the stock commands.

    Raises:
        click.FileError: it cannot be written.
    """
    if name := os.environ.get(LOG_FILE):
        log_to(Path(name))
