"""Functions of the entries of tensors, computed block by block."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

BLOCK = 1 << 18  # entries: what is computed with so many in float32 stays in the cache of a core

Key = TypeVar("Key")
Tensors = Mapping[Key, torch.Tensor]


def in_blocks(function: Callable[[Tensors[Key]], torch.Tensor | None], tensors: Tensors[Key]) -> torch.Tensor | None:
    """`function(tensors)`, for a function that makes each entry of its result of the same entry of every tensor.

    Of temporaries as large as a tensor, the system clears every page on first use, which takes longer than to add
    tensors. The result is the same, bit for bit: torch computes entries in groups of at most a few hundred, and those
    that are left at the end one by one, which may round otherwise. A block is a multiple of such groups, and the end
    of the last block, which takes the rest too, is that of the tensor.

    Tensors of other devices, of several shapes, or that do not lie in one piece are computed in one go.
    """
    first = next(iter(tensors.values()))
    count = first.numel()
    are_alike = all(t.shape == first.shape and t.is_contiguous() and t.device.type == "cpu" for t in tensors.values())
    if count < 2 * BLOCK or not are_alike:
        return function(tensors)
    flat = {key: tensor.view(-1) for key, tensor in tensors.items()}
    result: torch.Tensor | None = None
    begin = 0
    for end in (*range(BLOCK, count - BLOCK + 1, BLOCK), count):
        part = function({key: tensor[begin:end] for key, tensor in flat.items()})
        assert part is not None
        result = torch.empty(count, dtype=part.dtype) if result is None else result
        result[begin:end] = part
        begin = end
    return None if result is None else result.view(first.shape)
