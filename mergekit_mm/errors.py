"""Errors that the user can mend are `UserError`s; every other exception is a bug and ends in a traceback."""

from __future__ import annotations

import errno
import importlib.metadata
import logging
import os
import platform
import re
import shutil
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import click

from mergekit_mm import __version__
from mergekit_mm.console import log_error, tell_error

_BUG = "This is a bug of mergekit-mm"
_HOSTS = ("mergekit", "torch", "transformers", "peft")  # packages whose versions a bug report should have

# Codes of errors of the operating system whose reasons are outside of the program. That a file does not exist is not
# among them: inputs are looked at before they are read, so such an error is a bug.
_EXTERNAL_ERRORS = {
    getattr(errno, name)
    for name in (
        *("EACCES", "EPERM", "EROFS"),
        *("ENOSPC", "EDQUOT", "EFBIG", "ENAMETOOLONG", "ELOOP"),
        *("EIO", "ESTALE", "ENXIO", "ENODEV", "ETIMEDOUT", "EBUSY", "ETXTBSY"),
        *("EMFILE", "ENFILE", "ENOMEM"),
    )
    if hasattr(errno, name)
}


class UserError(click.ClickException, ValueError):
    """An error that the user can mend. Its message says what is wrong, where, and what to do.

    On the command line only the message is shown; at the log level DEBUG, the traceback and its causes come before it.
    It is a ValueError, like the errors with which mergekit's merge methods refuse their inputs.
    """

    def show(self, file: IO[Any] | None = None) -> None:
        if logging.getLogger().isEnabledFor(logging.DEBUG):
            click.echo("".join(traceback.format_exception(type(self), self, self.__traceback__)), file=file, err=True)
        tell_error(self.format_message(), self, file)


class MergeError(UserError):
    """A config or an input is not fit to be merged."""


class SystemRefusal(MergeError):
    """The system does not let a merge go on, whose config and inputs may be fit: the same command can succeed later."""


class EvaluationError(UserError):
    """An evaluation cannot run with the given arguments; `lm_eval` shows the message alone."""


@contextmanager
def system_errors(place: Path | str | None = None) -> Iterator[None]:
    """A context that raises SystemRefusal for errors of the operating system, as of a full disk or missing permissions.

    They may come from Python, or from the Rust libraries safetensors and tokenizers.

    place: the file or directory in use, for errors that do not name one themselves.
    """
    try:
        yield
    except Exception as error:
        refusal = None if isinstance(error, click.ClickException) else _of_the_system(error, place)
        if refusal is None:
            raise
        raise SystemRefusal(refusal) from error


def _of_the_system(error: Exception, place: Path | str | None) -> str | None:
    """One sentence for an error of the operating system that is no bug; None for any other error."""
    if isinstance(error, shutil.Error):  # raised by copying a folder: (source, target, reason) of each file
        return "; ".join(f"{source} cannot be copied to {target}: {why}" for source, target, why in error.args[0])
    code = error.errno if isinstance(error, OSError) else None
    if code is None and (rust := re.search(r"\(os error (\d+)\)", str(error))):
        code = int(rust[1])
    if code not in _EXTERNAL_ERRORS:
        return None
    assert code is not None
    file = getattr(error, "filename", None) or place
    return f"{os.strerror(code)}: {file}" if file else f"{os.strerror(code)}."


@contextmanager
def refused_by(*modules: str, about: str = "") -> Iterator[None]:
    """A context that raises MergeError for errors by which modules of a host refuse their input.

    Only errors that the code of these modules raises itself count. An error from deeper down, from torch or from this
    package, is a bug and passes.

    about: the beginning of the message, before the host's own words.
    """
    try:
        yield
    except (ValueError, RuntimeError, AssertionError) as error:
        if isinstance(error, click.ClickException) or _raised_in(error) not in modules:
            raise
        raise MergeError(f"{about}{error}") from error


def _raised_in(error: Exception) -> str:
    """The name of the module whose line raised an error."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return str(last.tb_frame.f_globals.get("__name__")) if last else ""


@contextmanager
def bugs_reported() -> Iterator[None]:
    """A context that asks for a report of every exception that is no `UserError`; the exception itself passes."""
    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except Exception as error:
        _ask_for_report(error)
        log_error("a bug", error)
        raise


def _ask_for_report(error: Exception) -> None:
    """Put one line below the traceback of an error, once. Python 3.10 has no notes; there the line is printed first."""
    if any(note.startswith(_BUG) for note in getattr(error, "__notes__", ())):
        return
    versions = [f"mergekit-mm {__version__}", *map(_version, _HOSTS), f"Python {platform.python_version()}"]
    line = (
        f"{_BUG} or of a package that it uses, not a mistake of yours: please report it, with the traceback and the "
        f"config ({', '.join(versions)})."
    )
    if sys.version_info >= (3, 11):
        error.add_note(line)
    else:
        vars(error)["__notes__"] = [line]
        click.echo(line, err=True)


def _version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"no {package}"
