"""The description of a checkpoint that `mergekit-mm inspect` prints."""

from __future__ import annotations

import math
from collections.abc import Iterator

from mergekit_mm.checkpoints.checkpoint import Checkpoint, layer_stack
from mergekit_mm.checkpoints.roles import Role


def describe(checkpoint: Checkpoint) -> Iterator[str]:
    """Lines of text: roles with counts and sizes, layout on disk, tied and unknown tensors."""
    config = checkpoint.config
    known = "built by transformers" if checkpoint.meta_model else "not transformers' own: known by its names on disk"
    yield f"{checkpoint.name}: {config.get('model_type')} {config.get('architectures')} ({known})"
    size = sum(tensor.nbytes for tensor in checkpoint.disk.values())
    yield f"  {len(checkpoint.disk)} tensors in {len(checkpoint.files)} files, {size / 1e9:.3g} GB"
    yield f"  {'role':<15} {'module':<15} {'tensors':>7} {'parameters':>14}  e.g."
    for role in Role:
        infos = [info for info in checkpoint.tensors.values() if info.role is role]
        if infos:
            count = sum(math.prod(info.shape) for info in infos)
            yield f"  {role.value:<15} {role.module:<15} {len(infos):>7} {count:>14,}  {infos[0].name}"
    stack = layer_stack(list(checkpoint.backbone.values()))
    if stack:
        yield f"  layers of the language model: {stack}"
    renamed = [group for group in checkpoint.groups if group.disk != group.memory]
    if renamed:
        converted = [group for group in renamed if group.conversion is not None]
        yield (
            f"  names on disk differ from those in memory for {sum(len(g.disk) for g in renamed)} tensors, "
            f"e.g. {renamed[0].disk[0]} -> {renamed[0].memory[0]}; {len(converted)} groups are stored converted"
        )
    if checkpoint.meta_model:
        for name, source in checkpoint.meta_model.aliases.items():
            yield f"  tied: {name} = {source}"
    for name in sorted(checkpoint.unknown):
        yield f"  unknown to the model: {name}"
