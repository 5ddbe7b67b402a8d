"""Merged deltas in files, so that one merge at another strength need not be solved again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mergekit_mm.numerics.task_vector import TaskVector

_DENSE, _LEFT, _RIGHT, _NONE = "delta", "left", "right", "none"


@dataclass(frozen=True, eq=False)
class Solutions:
    """A directory of merged deltas, one file for each tensor of the output and each way to merge it.

    key: equal for merges whose deltas differ by nothing but what is asked of `file`: the config that they share, the
    values of their inputs, and where they are computed.
    """

    directory: Path
    key: str

    def file(self, what: Mapping[str, Any]) -> Path:
        """The file of one delta. what: what is merged and how, in types that JSON has."""
        text = json.dumps([self.key, what], sort_keys=True)
        return self.directory / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"


def write(file: Path, delta: TaskVector | None) -> None:
    """Write a merged delta in the form that it has; None stands for a tensor that a merge keeps. All bits stay."""
    if delta is None:
        made = {_NONE: torch.zeros(1)}
    elif delta.right is None:
        made = {_DENSE: delta.left}
    else:
        made = {_LEFT: delta.left, _RIGHT: delta.right}
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".unfinished")
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in made.items()}, unfinished)
    os.replace(unfinished, file)


def read(file: Path) -> TaskVector | None:
    """The delta that `write` wrote."""
    with safe_open(str(file), framework="pt") as stored:
        parts = {name: stored.get_tensor(name) for name in stored.keys()}
    if _NONE in parts:
        return None
    return TaskVector.low_rank(parts[_LEFT], parts[_RIGHT]) if _LEFT in parts else TaskVector.of(parts[_DENSE])
