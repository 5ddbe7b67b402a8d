"""An output directory that is either the finished merge or not there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mergekit_mm.architecture.disk import CheckpointError

_OLD_WEIGHTS = (
    *("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.bin.index.json"),
    *("adapter_model.bin", "adapter_config.json"),  # beside a model, transformers would take it for an adapter
)


def check_output(out: Path, inputs: Iterable[Path]) -> None:
    """Refuse an output path that would destroy an input, or cannot be made.

    Raises:
        CheckpointError: saying which.
    """
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"The output path {out} is a file.")
    for directory in inputs:
        if out.resolve() == directory.resolve():
            raise CheckpointError(f"The output path {out} is also an input of the merge, which would be overwritten.")
    parent = next(p for p in out.resolve().parents if p.exists())
    if not os.access(parent, os.W_OK):
        raise CheckpointError(f"The output path {out} cannot be made: {parent} is not writable.")


def check_room(directory: Path, needed_bytes: int) -> None:
    """Refuse an output that the disk has no room for.

    Raises:
        CheckpointError: with both sizes.
    """
    free = shutil.disk_usage(directory).free
    if free < needed_bytes:
        raise CheckpointError(
            f"The output needs {needed_bytes / 1e9:.1f} GB, but {directory.parent} has {free / 1e9:.1f} GB free."
        )


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A directory beside the output path, moved into place if the block succeeds and removed if it does not."""
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.unfinished-", dir=out.parent))
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
    interruption leaves a directory that does not look finished."""
    (out / "config.json").unlink(missing_ok=True)
    for pattern in _OLD_WEIGHTS:
        for old in out.glob(pattern):
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
