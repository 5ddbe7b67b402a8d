"""The directory in which an output is made: found again after an interruption, locked, and moved into place at the end.

It is called `.NAME.unfinished` and is in the output if that exists, else beside it, so that it is on the same file
system. It holds a lock, a journal and, for each output of the merge, a directory with its content.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from mergekit_mm.errors import MergeError, SystemRefusal
from mergekit_mm.execution.journal import NAME, Journal, append_entries, read_journal, sync_tree
from mergekit_mm.execution.key import Key, changes
from mergekit_mm.execution.leftovers import LOCK, lock, staging_directory
from mergekit_mm.execution.settings import Settings
from mergekit_mm.output.directory import clear_earlier, move_contents

_PATIENCE = 1.0  # seconds


class Staging:
    """One merge's staging directory, locked by this process.

    `done` are the entries that an interrupted run of the same merge has left; `journal` takes new ones, as a context.
    """

    def __init__(self, directory: Path, outputs: Sequence[Path], done: Sequence[Mapping[str, Any]]) -> None:
        self.directory, self.outputs, self.done = directory, outputs, done
        self.journal = Journal(directory / NAME)

    def content(self, number: int) -> Path:
        """The directory of what will be the output of this number."""
        return self.directory / str(number)

    @property
    def is_finished(self) -> bool:
        """Whether all contents are complete, so that they only have to be moved."""
        return any("finished" in entry for entry in self.done)

    def finish(self) -> None:
        """Move the complete contents into place. After an interruption this goes on where it was."""
        if not self.is_finished:
            for number in range(len(self.outputs)):
                sync_tree(self.content(number))
            self._note(finished=True)
        cleared = {entry["cleared"] for entry in self.done if "cleared" in entry}
        for number, out in enumerate(self.outputs):
            content = self.content(number)
            if not content.is_dir():  # it has been moved already
                continue
            out.parent.mkdir(parents=True, exist_ok=True)
            if not out.exists():
                content.rename(out)
                continue
            if number not in cleared:
                clear_earlier(out, content)
                self._note(cleared=number)
            move_contents(content, out)
        self.remove()

    def _note(self, **entry: Any) -> None:
        append_entries(self.directory / NAME, [entry])

    def remove(self) -> None:
        """Remove the directory with all that is in it; the journal first, as it speaks of the rest."""
        (self.directory / NAME).unlink(missing_ok=True)
        shutil.rmtree(self.directory, ignore_errors=True)


@contextmanager
def staging(
    out: Path, outputs: Sequence[Path], key: Key, settings: Settings, tell: Callable[[str], None]
) -> Iterator[Staging]:
    """The staging directory of a merge, for as long as the block lasts.

    If the block ends by an error, the directory stays for the same command to go on, unless nothing is done yet, or the
    error is one that would come again.

    Args:
        out: the output, or the directory of all outputs of a sweep.
        outputs: the outputs, in the order of their numbers.
        key: what the merge depends on. What an interrupted merge with another key has left here is removed.
        settings: whether what the same merge has left is removed too, and whether anything stays.
        tell: prints a line.

    Raises:
        MergeError: another merge to this output is running.
    """
    out = out.resolve()
    directory = staging_directory(out)
    with _locked(directory, out):
        done = read_journal(directory / NAME)
        old = done[0].get("key", {}) if done else {}
        changed = changes(old, key) if done else []
        # Nothing is left to move, yet an output is gone: the user has removed it, and wants it anew.
        gone = any("finished" in entry for entry in done) and not all(
            path.exists() or (directory / str(number)).is_dir() for number, path in enumerate(outputs)
        )
        if done and (changed or settings.restart or gone):
            if changed and not settings.restart:
                tell(f"starting afresh: {_listed(changed)} changed since this merge was interrupted")
            _empty(directory)
            done = []
        if not done:
            _empty(directory)
            append_entries(directory / NAME, [{"key": key}])
        found = Staging(directory, [path.resolve() for path in outputs], done)
        try:
            yield found
        except BaseException as error:
            if settings.keeps and _stays(directory, error):
                click.echo(f"What is done of this merge is kept in {directory}: the same command goes on.", err=True)
            else:
                found.remove()
            raise


def _stays(directory: Path, error: BaseException) -> bool:
    """Whether what is done is worth keeping after an error: something is done, and the error need not come again."""
    if isinstance(error, MergeError) and not isinstance(error, SystemRefusal):
        return False
    return any(entry.keys() & {"tensors", "results"} for entry in read_journal(directory / NAME))


@contextmanager
def _locked(directory: Path, out: Path) -> Iterator[None]:
    """Hold the lock of a staging directory. The system frees it when the process ends, in whatever way."""
    while True:
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _soon_locked(handle):
                raise MergeError(f"Another merge to {out} is running. Wait for it, or choose another output.")
            if _is_at(handle, directory / LOCK):  # else a merge that has just ended has removed it
                yield
                return
        finally:
            os.close(handle)


def _soon_locked(handle: int) -> bool:
    """Lock a file; what is left of a merge that was killed right before may take a moment to end."""
    end = time.monotonic() + _PATIENCE
    while not lock(handle):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _empty(directory: Path) -> None:
    """Remove all but the lock; the journal first, as it speaks of the rest."""
    (directory / NAME).unlink(missing_ok=True)
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def _listed(words: Sequence[str]) -> str:
    if len(words) == 1:
        return f"{words[0]} has"
    return f"{', '.join(words[:-1])} and {words[-1]} have"
