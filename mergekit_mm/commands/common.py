"""What commands share: their logging, how merges are carried out, the config, and the values of options."""

from __future__ import annotations

import functools
import inspect
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergekit_mm.console import LOG_FILE, logging_shown
from mergekit_mm.errors import MergeError, UserError, bugs_reported, refused_by, system_errors
from mergekit_mm.execution.settings import PROGRESS, RAY, WAYS, WORKERS, from_environment

if TYPE_CHECKING:
    from mergekit.config import MergeConfiguration

    from mergekit_mm.align.samples import Sample

SEED = click.IntRange(0, 2**32 - 1)


LOG_FILE_OPTION = click.option(
    "--log-file",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar=LOG_FILE,
    help=f"Append all that is told, with times and tracebacks; or {LOG_FILE} in the environment.",
)


@contextmanager
def reported(verbosity: int, log_file: Path | None) -> Iterator[None]:
    """A context in which modules' logs are shown, a log file is written, and errors get into both.

    verbosity: 0 shows warnings, 1 what is being done, 2 all details.

    Raises:
        click.exceptions.Exit: after the message of an error that the user can mend.
    """
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbosity, 2)]
    with logging_shown(level, log_file):
        try:
            with bugs_reported():
                yield
        except UserError as error:
            error.show()
            raise click.exceptions.Exit(error.exit_code) from error


def logged(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command --verbose, --debug, --quiet and --log-file, and ask for a report of an exception that is a bug.

    `quiet` is an argument of commands that have a parameter of that name. Warnings are shown in any case.
    """
    takes_quiet = "quiet" in inspect.signature(command).parameters

    @click.option("-v", "--verbose", count=True, show_default=False, help="Tell what is being done; -vv is --debug.")
    @click.option("--debug", is_flag=True, help="Tell all details, and the full traceback of every error.")
    @click.option("-q", "--quiet/--no-quiet", default=False, help="Tell the result, warnings and errors alone.")
    @LOG_FILE_OPTION
    @functools.wraps(command)
    def run(*args: Any, verbose: int, debug: bool, quiet: bool, log_file: Path | None, **kwargs: Any) -> None:
        with reported(2 if debug else verbose, log_file):
            command(*args, **({"quiet": quiet} if takes_quiet else {}), **kwargs)

    return run


def executed(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command --workers, --restart and --progress, as the argument `settings`."""

    @click.option(
        "--workers",
        type=click.IntRange(min=1),
        help=f"Processes that merge at the same time; or {WORKERS} in the environment.  [default: by cores and memory]",
    )
    @click.option("--restart", is_flag=True, help="Do not go on from where this merge was interrupted.")
    @click.option(
        "--progress",
        type=click.Choice(WAYS),
        help=f"Bars, or a JSON object a line on stderr; or {PROGRESS} in the environment.  [default: {WAYS[0]}]",
    )
    @functools.wraps(command)
    def run(
        *args: Any, workers: int | None, restart: bool, progress: str | None, ray: str | None = None, **kwargs: Any
    ) -> None:
        command(*args, settings=from_environment(workers, restart, progress, ray), **kwargs)

    return run


def on_a_cluster(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command of `executed` --ray."""
    return click.option(
        "--ray",
        metavar="ADDRESS",
        help=f"Merge on a Ray cluster: its address, or auto for that of this machine; or {RAY} in the environment.",
    )(command)


def read_config(path: str) -> tuple[str, MergeConfiguration]:
    """The text of a merge config, and what mergekit reads in it.

    Raises:
        MergeError: it is no YAML, or no merge config.
    """
    from mergekit_mm.hosts.registration import register_methods
    from mergekit_mm.plan.config import read_config

    with refused_by(register_methods.__module__):  # another version of mergekit
        register_methods()
    try:
        source = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise MergeError(f"{path} is no merge config: {error}") from error
    return source, read_config(source, path)


def numbers(value: str, option: str) -> list[float]:
    """The finite numbers in the value of an option, separated by commas."""
    try:
        scales = [float(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers", param_hint=option) from None
    if not all(map(math.isfinite, scales)):
        raise click.BadParameter("strengths must be finite", param_hint=option)
    return scales


def json_object(context: click.Context, option: click.Parameter, value: str) -> dict[str, Any]:
    """The object of --metadata."""
    import json

    try:
        found = json.loads(value)
    except json.JSONDecodeError as error:
        raise click.BadParameter(f"{value!r} is no JSON: {error}", param_hint="--metadata") from None
    if not isinstance(found, dict):
        raise click.BadParameter(f"{value!r} is no JSON object", param_hint="--metadata")
    return found


def of_expert(
    context: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> list[tuple[str | None, Path]]:
    """The files and folders of --samples, with the expert to which one belongs as a whole."""
    found: list[tuple[str | None, Path]] = []
    for value in values:
        expert, is_named, path = value.partition("=")
        found.append((expert, Path(path)) if is_named and not Path(value).exists() else (None, Path(value)))
    return found


def read_samples(given: Iterable[tuple[str | None, Path]]) -> list[Sample]:
    """The samples in the files and folders that `of_expert` found.

    Raises:
        MergeError: one of them cannot be read, or holds no samples.
    """
    from mergekit_mm.align.folders import read_folder
    from mergekit_mm.align.samples import read_samples as read_file

    read: list[Sample] = []
    with system_errors():
        for expert, path in given:
            read += read_folder(path, expert) if path.is_dir() else read_file(path, expert)
    return read
