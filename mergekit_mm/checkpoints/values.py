"""Values of a checkpoint's tensors: one read as a whole, or two compared block by block without either in memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from mergekit_mm.checkpoints.checkpoint import Checkpoint
from mergekit_mm.checkpoints.disk import DiskTensor, unpickled
from mergekit_mm.checkpoints.expert_stacks import Part, part_of
from mergekit_mm.checkpoints.mapped import Fetched, opened
from mergekit_mm.numerics.low_rank import widened

_ROWS = 4096


def same_values(checkpoint: Checkpoint, one: str, other: str) -> bool:
    """Whether two tensors, by their names in memory, hold the same values. Reading ends at the first other block.

    A tensor that is stored converted counts as equal to none. Where only headers are at hand, two tensors of one shape
    and dtype count as equal.
    """
    shapes = [checkpoint.tensors[name].shape for name in (one, other)]
    if shapes[0] != shapes[1] or any(not _is_plain(checkpoint, name) for name in (one, other)):
        return False
    if checkpoint.is_headers_only:
        return checkpoint.tensors[one].dtype == checkpoint.tensors[other].dtype
    with ExitStack() as files:
        first, second = (_open(checkpoint, name, files) for name in (one, other))
        if not shapes[0]:
            return torch.equal(first[...], second[...])
        blocks = ((first[i : i + _ROWS], second[i : i + _ROWS]) for i in range(0, shapes[0][0], _ROWS))
        return all(torch.equal(a.double(), b.double()) for a, b in blocks)


def read_tensor(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """One tensor, by its name in memory, in the dtype of its file; in float32 or wider if factors are folded in."""
    with ExitStack() as files:
        return read_group(checkpoint, name, lambda tensor: _read(checkpoint, tensor, files))[name]


def read_group(
    checkpoint: Checkpoint, name: str, read: Callable[[DiskTensor], torch.Tensor], part: Part | None = None
) -> dict[str, torch.Tensor]:
    """All tensors, by their names in memory, that are stored together with the one of this name.

    read: gives the value of one tensor on disk. part: the experts that are read of a stack, None for the whole; of a
    stack that is one tensor on disk, `read` gives that part.
    """
    group = checkpoint.group_of[name] if part is None else part_of(checkpoint, name, part)
    tensors = {key: read(checkpoint.disk[key]) for key in group.disk}
    if checkpoint.is_folded(name):  # A group may have some tensors with factors, which are wider, and some without.
        tensors = {key: widened(t) if t.is_floating_point() else t for key, t in tensors.items()}
    return group.to_memory(tensors)


def equal_values(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are the same but for their dtype."""
    return a.shape == b.shape and torch.equal(a.float(), b.float())


def holds_value(checkpoint: Checkpoint, name: str, value: torch.Tensor) -> bool:
    """Whether a tensor, by its name in memory, has these values. A tensor that is stored converted has not."""
    if checkpoint.tensors[name].shape != tuple(value.shape) or not _is_plain(checkpoint, name):
        return False
    with ExitStack() as files:
        stored = _open(checkpoint, name, files)
        blocks = ((stored[i : i + _ROWS], value[i : i + _ROWS]) for i in range(0, value.shape[0], _ROWS))
        return all(torch.equal(a.double(), b.double()) for a, b in blocks)


def _is_plain(checkpoint: Checkpoint, name: str) -> bool:
    """Whether the stored tensor is the one in memory, without a conversion or factors of an adapter."""
    return checkpoint.group_of[name].conversion is None and not checkpoint.is_folded(name)


def _open(checkpoint: Checkpoint, name: str, files: ExitStack) -> Any:
    """An opened tensor, whose values are read when it is indexed."""
    tensor = checkpoint.disk[checkpoint.group_of[name].disk[0]]
    return _opened(checkpoint, tensor.file, tensor.key, files)


def _read(checkpoint: Checkpoint, tensor: DiskTensor, files: ExitStack) -> torch.Tensor:
    def value(key: str) -> torch.Tensor:
        found: torch.Tensor = _opened(checkpoint, tensor.file, key, files)[...]
        return found.detach()

    return value(tensor.name) if tensor.stored is None else tensor.stored.value(value)


def _opened(checkpoint: Checkpoint, file: str, key: str, files: ExitStack) -> Any:
    path = checkpoint.directory / file
    if path.suffix == ".safetensors":
        return Fetched(path, key, files.enter_context(opened(path)).get_tensor)
    return unpickled(path)[key]
