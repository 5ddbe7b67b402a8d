"""Deltas to merge, and the public way to merge them, shared by the tests of the methods."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mergekit import merge_methods
from torch import Tensor

from mergekit_mm.hosts.registration import register_methods
from mergekit_mm.numerics.task_vector import TaskVector

register_methods()  # which the start-up hook does, where there is one
ADAPTER_RANK = 4
KINDS = ["adapter", "flat", "steep"]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_deltas(shape: tuple[int, int], count: int, kind: str, std: float = 1e-3, seed: int = 0) -> list[Tensor]:
    """float32 deltas: `adapter` of rank 4, `flat` full rank, or `steep` with singular values 1 / j."""
    deltas = []
    for i in range(count):
        x = randn(*shape, seed=100 * seed + i)
        if kind == "adapter":
            x = randn(shape[0], ADAPTER_RANK, seed=100 * seed + i) @ randn(
                ADAPTER_RANK, shape[1], seed=100 * seed + i + 50
            )
        elif kind == "steep":
            u, _, vh = torch.linalg.svd(x, full_matrices=False)
            x = (u / torch.arange(1, min(shape) + 1)) @ vh
        deltas.append(x * (std / x.std()))
    return deltas


def make_factors(shape: tuple[int, int], ranks: Sequence[int], seed: int = 0) -> list[TaskVector]:
    """float32 adapters of these ranks; rank 0 has no factors at all."""
    return [
        TaskVector.low_rank(randn(shape[0], r, seed=seed + i), randn(r, shape[1], seed=seed + i + 500) * 1e-3)
        for i, r in enumerate(ranks)
    ]


def merged_delta(method: str, deltas: Sequence[Tensor], **parameters: object) -> Tensor:
    """Through mergekit, over a zero base so that no rounding of base + delta hides the delta."""
    return merge_methods.merge_tensors(
        [torch.zeros_like(deltas[0]), *deltas],
        method,
        base_index=0,
        parameters=parameters,
        name="layers.0.up_proj.weight",
    )


def relative(value: Tensor, reference: Tensor) -> float:
    return float((value.double() - reference.double()).norm() / reference.double().norm())
