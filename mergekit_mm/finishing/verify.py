"""The last check before a merge is called finished: would transformers load exactly what was written?"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from mergekit_mm.architecture.checkpoint import open_checkpoint
from mergekit_mm.errors import MergeError


def verify_written(directory: Path, expected: Collection[str]) -> None:
    """Check the written shards against the output's config, on the meta device.

    Raises:
        MergeError: a tensor is missing, unexpected or of the wrong shape.
    """
    checkpoint = open_checkpoint("The merged model", directory)
    missing, extra = set(expected) - set(checkpoint.disk), set(checkpoint.disk) - set(expected)
    if missing or extra:
        raise MergeError(
            f"The merge wrote other tensors than planned: missing {sorted(missing)[:5]}, extra {sorted(extra)[:5]}."
        )
