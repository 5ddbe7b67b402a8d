"""An output directory that is either the finished merge or not there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mergekit_mm.checkpoints.side_files.model_files import PROCESSOR, TOKENIZER, is_of_tokenizer
from mergekit_mm.errors import MergeError

# what a loader would take for a part of the new model; other files are the user's
_OLD_WEIGHTS = (
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model-*-of-*.bin", "pytorch_model.bin.index.json"),
    *("adapter_model.safetensors", "adapter_model.bin", "adapter_config.json"),
    "mergekit_config.yml",
)


def check_output(out: Path, inputs: Iterable[Path]) -> None:
    """Refuse an output path that would destroy an input, or files that one links to, or that cannot be written.

    Raises:
        MergeError: saying which.
    """
    if out.exists() and not out.is_dir():
        raise MergeError(f"The output path {out} is a file.")
    place = out.resolve()
    for directory in inputs:
        if place == directory.resolve():
            raise MergeError(f"The output path {out} is also an input of the merge, which would be overwritten.")
        if linked := next((file for file in directory.iterdir() if file.resolve().parent == place), None):
            raise MergeError(
                f"The output path {out} holds {linked.name} of the input {directory}, by a link. Choose another."
            )
    there = next(p for p in (place, *place.parents) if p.exists())
    if not there.is_dir():
        raise MergeError(f"The output path {out} cannot be written: {there} is a file.")
    if not os.access(there, os.W_OK):
        raise MergeError(f"The output path {out} cannot be written: {there} is not writable.")


def check_room(directory: Path, needed_bytes: int) -> None:
    """Refuse an output that the disk has no room for.

    Raises:
        MergeError: with both sizes.
    """
    free = shutil.disk_usage(directory).free
    if free < needed_bytes:
        raise MergeError(
            f"The output needs {needed_bytes / 1e9:.3g} GB, but {directory.parent} has {free / 1e9:.3g} GB free."
        )


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A directory that becomes the output if the block succeeds, and is removed if it does not.

    It is on the file system of the output, which may be a link or a mounted volume: inside, if that is there already.
    """
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.unfinished-", dir=out if out.exists() else out.parent))
    try:
        yield staging
        staging.chmod(0o777 & ~_umask())
        if out.exists():
            _replace_contents(out, staging)
        else:
            staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _replace_contents(out: Path, staging: Path) -> None:
    """Files of an earlier merge make way; others stay. The config goes first and comes last, so that an
    interruption leaves a directory that does not look finished.

    Its tokenizer and processor stay too where the new one has no tokenizer, which is what --no-copy-tokenizer is for.
    """
    (out / "config.json").unlink(missing_ok=True)
    has_tokenizer = any(is_of_tokenizer(path.name) for path in staging.iterdir())
    for pattern in _OLD_WEIGHTS + (TOKENIZER + PROCESSOR if has_tokenizer else ()):
        for old in out.glob(pattern):
            if not old.is_dir():
                old.unlink()
    for path in sorted(staging.iterdir(), key=lambda p: p.name == "config.json"):
        target = out / path.name
        if target.is_dir():
            shutil.rmtree(target)
        path.replace(target)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
