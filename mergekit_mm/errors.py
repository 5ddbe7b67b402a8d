"""What the user can mend is a `UserError`; every other exception is a bug, which ends in a traceback."""

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

_BUG = "This is a bug of mergekit-mm"
_HOSTS = ("mergekit", "torch", "transformers", "peft")  # their versions are told where a report is asked for

# What the operating system refuses for reasons outside of the program. A file that is not there is none of them:
# inputs are looked at before they are read, so that one is a bug.
_OUTSIDE = {
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
    """Something that the user can mend; the message says what is wrong, where, and what to do.

    On the command line the message is all that is shown; at the log level DEBUG, the traceback and its causes come
    before it. It is a ValueError, as which mergekit's merge methods refuse what they are given.
    """

    def show(self, file: IO[Any] | None = None) -> None:
        if logging.getLogger().isEnabledFor(logging.DEBUG):
            click.echo("".join(traceback.format_exception(type(self), self, self.__traceback__)), file=file, err=True)
        super().show(file)


class MergeError(UserError):
    """A config or an input is not fit to be merged."""


class EvaluationError(UserError):
    """An evaluation cannot run as it was asked for; `lm_eval` shows the message alone."""


@contextmanager
def system_errors(place: Path | str | None = None) -> Iterator[None]:
    """Raise MergeError for what the operating system refuses: a full disk, a file that must not be read, and so on.

    place: the file or directory in use, for errors that do not name one themselves. Errors of Python, and of the Rust
    libraries (safetensors, tokenizers), are looked at.
    """
    try:
        yield
    except Exception as error:
        refusal = None if isinstance(error, click.ClickException) else _of_the_system(error, place)
        if refusal is None:
            raise
        raise MergeError(refusal) from error


def _of_the_system(error: Exception, place: Path | str | None) -> str | None:
    """One sentence for an error of the operating system that is no bug; None for any other error."""
    if isinstance(error, shutil.Error):  # raised by copying a folder: (source, target, reason) of each file
        return "; ".join(f"{source} cannot be copied to {target}: {why}" for source, target, why in error.args[0])
    code = error.errno if isinstance(error, OSError) else None
    if code is None and (rust := re.search(r"\(os error (\d+)\)", str(error))):
        code = int(rust[1])
    if code not in _OUTSIDE:
        return None
    assert code is not None
    file = getattr(error, "filename", None) or place
    return f"{os.strerror(code)}: {file}" if file else f"{os.strerror(code)}."


@contextmanager
def refused_by(*modules: str, about: str = "") -> Iterator[None]:
    """Raise MergeError for what modules of a host refuse; `about` comes before the host's own words.

    Only errors that these modules raise themselves count. One from deeper down, as from torch or from this package, is
    a bug and passes.
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
    """Ask for a report of every exception that is no `UserError`; it is passed on, with its traceback."""
    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except Exception as error:
        _ask_for_report(error)
        raise


def _ask_for_report(error: Exception) -> None:
    """Put one line below the traceback of an error, once. Python 3.10 has no notes: there it is printed before."""
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
