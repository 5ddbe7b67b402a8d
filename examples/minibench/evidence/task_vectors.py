"""How the task vectors of experts relate: drift from the base, cosine, and overlap of their subspaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from mergekit.common import ModelReference
from safetensors import safe_open

from mergekit_mm.checkpoints.adapters.binding import bind_adapter
from mergekit_mm.checkpoints.checkpoint import Checkpoint, open_checkpoint
from mergekit_mm.checkpoints.roles import Role
from mergekit_mm.numerics.task_vector import TaskVector


@dataclass(frozen=True)
class Relation:
    """Two experts of one run.

    cosine: of their task vectors, all linear weights of the language model as one vector. overlap: the share of one's
    leading left singular subspace that lies in the other's, from 0 to 1, the mean over matrices; chance: what random
    subspaces of these sizes have. drift: by expert, the norm of its task vector over that of the base's weights.
    """

    way: str
    experts: tuple[str, str]
    cosine: float
    overlap: float
    chance: float
    drift: tuple[float, float]


def relations(way: str, base: Path, experts: Mapping[str, Path]) -> list[Relation]:
    """All pairs of the experts of one run.

    Args:
        base: the folder of the model that they were trained from.
        experts: by name, the folder of a model or of an adapter on the base.

    The rank of a subspace is that of OptMerge, the smaller side of the matrix over the number of experts, but at most
    the rank of the task vector itself, as a LoRA has no more directions.
    """
    checkpoint = open_checkpoint(str(base), base)
    names = [
        name for name, info in checkpoint.tensors.items() if info.role is Role.LANGUAGE_MODEL and len(info.shape) == 2
    ]
    values = _values(checkpoint, names)
    size = float(np.sqrt(sum(float(value.double().square().sum()) for value in values.values())))
    deltas = {each: _deltas(folder, checkpoint, values) for each, folder in experts.items()}
    products = {pair: _inner(deltas[pair[0]], deltas[pair[1]]) for pair in _pairs(experts)}
    norms = {each: float(np.sqrt(_inner(own, own))) for each, own in deltas.items()}
    leading = {
        each: {name: _leading(delta, len(experts)) for name, delta in own.items()} for each, own in deltas.items()
    }
    found = []
    for one, other in _pairs(experts):
        matrices = (_share(leading[one][name], leading[other][name]) for name in values)
        shares = [share for share in matrices if share]
        overlap, chance = np.mean(shares, axis=0) if shares else (0.0, 0.0)
        cosine = products[one, other] / (norms[one] * norms[other]) if norms[one] * norms[other] else 0.0
        drift = (norms[one] / size, norms[other] / size)
        found.append(Relation(way, (one, other), cosine, float(overlap), float(chance), drift))
    return found


def averaged(runs: Sequence[Sequence[Relation]]) -> list[Relation]:
    """The means over runs of the same pairs of experts of one way."""
    found = []
    for same in zip(*runs, strict=True):
        first = same[0]
        cosine, overlap, chance, one, other = np.mean(
            [[each.cosine, each.overlap, each.chance, *each.drift] for each in same], axis=0
        ).tolist()
        found.append(Relation(first.way, first.experts, cosine, overlap, chance, (one, other)))
    return found


def _pairs(experts: Mapping[str, object]) -> list[tuple[str, str]]:
    return list(combinations(experts, 2))


def _values(checkpoint: Checkpoint, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Weights of a checkpoint by their names in memory, which here are stored one by one under a single name."""
    on_disk = {checkpoint.group_of[name].disk[0]: name for name in names}
    found: dict[str, torch.Tensor] = {}
    for file in checkpoint.files:
        with safe_open(checkpoint.directory / file, "pt") as opened:
            found |= {on_disk[key]: opened.get_tensor(key) for key in opened.keys() if key in on_disk}
    return {name: found[name] for name in names}


def _deltas(folder: Path, base: Checkpoint, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The changes of the weights, in float32; zeros where an adapter changes nothing."""
    if (folder / "adapter_config.json").exists():
        reference = ModelReference.parse(f"{base.directory}+{folder}")
        adaptation = bind_adapter(reference, folder, base, trusted=True)
        changes = {
            name: adaptation.task_vector(name, value) for name, value in values.items() if adaptation.changes(name)
        }
    else:
        own = _values(open_checkpoint(str(folder), folder), list(values))
        changes = {name: TaskVector.between(own[name], value) for name, value in values.items()}
    zeros = {name: torch.zeros(value.shape) for name, value in values.items() if name not in changes}
    return {**zeros, **{name: each.dense(torch.float32) for name, each in changes.items()}}


def _inner(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    return sum(float((delta.double() * other[name].double()).sum()) for name, delta in one.items())


def _leading(delta: torch.Tensor, experts: int) -> torch.Tensor:
    """The leading left singular vectors (out, rank) of a task vector (out, in)."""
    left, values, _ = torch.linalg.svd(delta.double(), full_matrices=False)
    own = int((values > 1e-6 * values[0]).sum()) if values[0] > 0 else 0
    return left[:, : min(max(1, min(delta.shape) // experts), own)]


def _share(one: torch.Tensor, other: torch.Tensor) -> tuple[float, float] | None:
    """How much of the smaller subspace lies in the larger one, and what is expected of random ones."""
    smaller, larger = sorted((one.shape[1], other.shape[1]))
    if not smaller:
        return None
    return float((one.T @ other).square().sum()) / smaller, larger / one.shape[0]
