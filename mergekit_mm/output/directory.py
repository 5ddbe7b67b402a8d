"""An output directory that holds either the finished merge or nothing of it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mergekit_mm.checkpoints.side_files.model_files import PROCESSOR, TOKENIZER, is_of_tokenizer
from mergekit_mm.errors import MergeError, SystemRefusal

# Files of an earlier model that a loader would take for a part of the new one. Other files are the user's.
OLD_FILES = (
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model-*-of-*.bin", "pytorch_model.bin.index.json"),
    *("adapter_model.safetensors", "adapter_model.bin", "adapter_config.json"),
    "mergekit_config.yml",
)


def check_output(out: Path, inputs: Iterable[Path]) -> None:
    """Refuse an output path that is an input, or holds files to which an input links, or cannot be written.

    Raises:
        MergeError: for such a path; the message says which of these it is.
    """
    if out.exists() and not out.is_dir():
        raise MergeError(f"The output path {out} is a file.")
    resolved = out.resolve()
    for directory in inputs:
        if resolved == directory.resolve():
            raise MergeError(f"The output path {out} is also an input of the merge, which would be overwritten.")
        if linked := next((file for file in directory.iterdir() if file.resolve().parent == resolved), None):
            raise MergeError(
                f"The output path {out} holds {linked.name} of the input {directory}, by a link. Choose another."
            )
    existing = next(path for path in (resolved, *resolved.parents) if path.exists())
    if not existing.is_dir():
        raise MergeError(f"The output path {out} cannot be written: {existing} is a file.")
    if not os.access(existing, os.W_OK):
        raise MergeError(f"The output path {out} cannot be written: {existing} is not writable.")


def check_room(directory: Path, needed_bytes: int) -> None:
    """Check that the disk of a directory has room for an output.

    Raises:
        SystemRefusal: it has not; the message has both sizes.
    """
    free = shutil.disk_usage(directory).free
    if free < needed_bytes:
        raise SystemRefusal(
            f"The output needs {needed_bytes / 1e9:.3g} GB, but {directory.parent} has {free / 1e9:.3g} GB free."
        )


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A directory that becomes the output if the block succeeds, and is removed if the block fails.

    It has to be on the file system of the output, which may be a link or a mounted volume. So it is made inside of the
    output if that exists already, else beside it.
    """
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.unfinished-", dir=out if out.exists() else out.parent))
    try:
        yield staging
        staging.chmod(0o777 & ~_umask())
        if out.exists():
            clear_earlier(out, staging)
            move_contents(staging, out)
        else:
            staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def clear_earlier(out: Path, new: Path) -> None:
    """Remove the files of an earlier merge from `out`, before those in the directory `new` come; other files stay.

    The config is removed first, so that an interrupted merge does not look finished. The earlier tokenizer and
    processor stay if the new model has no tokenizer: --no-copy-tokenizer is for that.
    """
    (out / "config.json").unlink(missing_ok=True)
    has_tokenizer = any(is_of_tokenizer(path.name) for path in new.iterdir())
    for pattern in OLD_FILES + (TOKENIZER + PROCESSOR if has_tokenizer else ()):
        for old in out.glob(pattern):
            if not old.is_dir():
                old.unlink()


def move_contents(directory: Path, out: Path) -> None:
    """Move all that is in a directory into an output, the config last, and remove the directory."""
    for path in sorted(directory.iterdir(), key=lambda p: p.name == "config.json"):
        target = out / path.name
        if target.is_dir():
            shutil.rmtree(target)
        path.replace(target)
    directory.rmdir()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
