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
from mergekit_mm.numerics.relations import Overlap, inner_products, overlap, singular
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
    names_of, deltas = list(experts), [_deltas(folder, checkpoint, values) for folder in experts.values()]
    products = np.zeros((len(deltas), len(deltas)))
    shares: dict[tuple[int, int], list[Overlap]] = {pair: [] for pair in combinations(range(len(deltas)), 2)}
    for name, value in values.items():
        present = [number for number, own in enumerate(deltas) if name in own]
        if present:
            products[np.ix_(present, present)] += inner_products([deltas[at][name] for at in present]).numpy()
        count = max(1, min(value.shape) // len(deltas))
        leading = {at: singular(deltas[at][name], count).left for at in present}
        for one, other in combinations(present, 2):
            if share := overlap(leading[one], leading[other]):
                shares[one, other].append(share)
    norms = np.sqrt(np.diag(products))
    found = []
    for (one, other), own in shares.items():
        share, chance = np.mean(own, axis=0).tolist() if own else (0.0, 0.0)
        both = float(norms[one] * norms[other])
        cosine = float(products[one, other]) / both if both else 0.0
        drift = (float(norms[one]) / size, float(norms[other]) / size)
        found.append(Relation(way, (names_of[one], names_of[other]), cosine, share, chance, drift))
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


def _values(checkpoint: Checkpoint, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Weights of a checkpoint by their names in memory, which here are stored one by one under a single name."""
    on_disk = {checkpoint.group_of[name].disk[0]: name for name in names}
    found: dict[str, torch.Tensor] = {}
    for file in checkpoint.files:
        with safe_open(checkpoint.directory / file, "pt") as opened:
            found |= {on_disk[key]: opened.get_tensor(key) for key in opened.keys() if key in on_disk}
    return {name: found[name] for name in names}


def _deltas(folder: Path, base: Checkpoint, values: Mapping[str, torch.Tensor]) -> dict[str, TaskVector]:
    """The changes of the weights, in float32 or as factors; none for what an adapter leaves alone."""
    if (folder / "adapter_config.json").exists():
        reference = ModelReference.parse(f"{base.directory}+{folder}")
        adaptation = bind_adapter(reference, folder, base, trusted=True)
        return {name: adaptation.task_vector(name, value) for name, value in values.items() if adaptation.changes(name)}
    own = _values(open_checkpoint(str(folder), folder), list(values))
    return {name: TaskVector.between(own[name], value) for name, value in values.items()}
