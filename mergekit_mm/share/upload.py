"""The upload of an output to the hub."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub

# The documentation has these three here; the package re-exports them in a way that mypy does not take for public.
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from mergekit_mm.checkpoints.listing import size_of
from mergekit_mm.errors import system_errors
from mergekit_mm.output.directory import OLD_FILES
from mergekit_mm.share.destination import Destination
from mergekit_mm.share.folder import uploaded
from mergekit_mm.share.refusals import refused

_MESSAGE = "Upload a merge, by mergekit-mm"


def upload(out: Path, destination: Destination, report: Path | None, quiet: bool, tell: Callable[[str], None]) -> str:
    """Upload a finished output, and return its address. An upload that broke off goes on where it was.

    `upload_folder` of the hub's library is the one function that all of its supported versions have for this: it sends
    large files in parts, several at once, leaves out what the hub has already, and lists all files in as few commits
    as the hub takes, after their contents are there.

    Args:
        report: as for `folder.uploaded`.
        quiet: show no progress.
        tell: takes the lines that tell what is done.

    Raises:
        MergeError: the output is not finished, the repository holds another model and may not be overwritten, the hub
            refuses the upload, or it broke off.
    """
    with system_errors(out), uploaded(out, destination.repo, report) as (content, folder):
        destination.require_free(content.files)
        for note in [*content.notes, *([destination.note] if destination.note else [])]:
            tell(f"note: {note}")
        tell(f"uploading {len(content.files)} files, {size_of(content.nbytes)}, to {destination.url}")
        again = "The output is complete on this machine: the same command again, or `mergekit-mm push`, sends the rest."
        with _progress(quiet), refused(destination.repo, "The upload", again):
            huggingface_hub.HfApi().upload_folder(
                repo_id=destination.repo,
                folder_path=folder,
                revision=destination.revision,
                commit_message=_MESSAGE,
                delete_patterns=list(OLD_FILES) if destination.stale(content.files) else None,
            )
    return destination.url


@contextmanager
def _progress(quiet: bool) -> Iterator[None]:
    """A context in which the hub's library shows no progress, if `quiet`, and says nothing but errors."""
    library = logging.getLogger("huggingface_hub")
    level, shown = library.level, not are_progress_bars_disabled()
    if quiet:
        library.setLevel(logging.ERROR)
        disable_progress_bars()
    try:
        yield
    finally:
        library.setLevel(level)
        if quiet and shown:
            enable_progress_bars()
