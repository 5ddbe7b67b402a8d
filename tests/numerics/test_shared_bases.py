"""The bases of one rank that hold most of several adapters."""

from __future__ import annotations

import pytest
import torch
from random_deltas import make_factors, randn, relative

from mergekit_mm.methods import method_named
from mergekit_mm.numerics.shared_bases import shared_core
from mergekit_mm.numerics.task_vector import TaskVector


def compressed(task_vectors: list[TaskVector], rank: int) -> list[TaskVector]:
    joint = shared_core(task_vectors, rank)
    assert joint is not None
    return [joint.expand(core) for core in joint.cores]


def dense(task_vectors: list[TaskVector]) -> list[torch.Tensor]:
    return [t.dense(torch.float64) for t in task_vectors]


def targets(deltas: list[torch.Tensor]) -> list[torch.Tensor]:
    mean = sum(float(d.norm()) for d in deltas) / len(deltas)
    return [0.25 * d + 0.75 * mean * d / d.norm() for d in deltas]


@pytest.mark.parametrize("shape", [(30, 50), (50, 30)])
@pytest.mark.parametrize("rank", [1, 3, 6])
def test_no_other_bases_hold_more(shape: tuple[int, int], rank: int) -> None:
    """Not those of each side by itself, with which the search begins, and none of a few drawn near the result."""
    given = make_factors(shape, [4, 5, 3])
    given[1] = TaskVector.low_rank(given[1].left * 30, given[1].right)
    wanted, deltas = targets(dense(given)), dense(given)
    found = dense(compressed(given, rank))
    u, v = (torch.linalg.svd(torch.cat([side(d) for d in found]).T)[0][:, :rank] for side in (torch.t, lambda d: d))
    for delta, projected in zip(deltas, found, strict=True):
        assert relative(projected, u @ u.T @ delta @ v @ v.T) < 1e-9

    def kept(left: torch.Tensor, right: torch.Tensor) -> float:
        return sum(float((left.T @ t @ right).square().sum()) for t in wanted)

    best = kept(u, v)
    alone = [torch.linalg.svd(torch.cat([side(t) for t in wanted]).T)[0][:, :rank] for side in (torch.t, lambda t: t)]
    assert best >= kept(*alone)
    for seed in range(20):
        near = [torch.linalg.qr(x + 0.05 * randn(*x.shape, seed=seed).double())[0] for x in (u, v)]
        assert best >= kept(*near)
    if rank < 6:
        assert best < 0.99 * sum(float(t.square().sum()) for t in wanted), "everything would fit"


def test_what_fits_is_left_alone() -> None:
    given = make_factors((30, 50), [2, 3])
    assert shared_core(given, 5) is None
    one_basis = [TaskVector.low_rank(given[1].left @ randn(3, 3, seed=i), given[1].right) for i in range(4)]
    for before, after in zip(dense(one_basis), dense(compressed(one_basis, 3)), strict=True):
        assert relative(after, before) < 1e-6


def test_one_adapter_alone_shares_nothing() -> None:
    (given,) = make_factors((30, 50), [6])
    assert shared_core([given, *make_factors((30, 50), [0])], 2) is None
    zeros = [TaskVector.low_rank(t.left * 0, t.right) for t in make_factors((30, 50), [3, 3])]
    assert shared_core(zeros, 2) is None
    assert shared_core([given, zeros[0]], 2) is None


def test_equal_adapters_have_their_best_approximation() -> None:
    (given,) = make_factors((30, 50), [6])
    u, s, vh = torch.linalg.svd(given.dense(torch.float64))
    unused = TaskVector.low_rank(given.left * 0, given.right)
    found = dense(compressed([given, given, unused], 2))
    assert relative(found[0], (u[:, :2] * s[:2]) @ vh[:2]) < 1e-9
    assert relative(found[1], found[0]) < 1e-12
    assert not found[2].any()


@pytest.mark.parametrize(
    ("method", "parameters"),
    [("iso_c", {}), ("wudi", {"solver": "exact", "weights": "equal"}), ("swudi", {"rank_of": "numerical"})],
)
def test_merging_the_cores_is_merging_what_they_stand_for(method: str, parameters: dict[str, str]) -> None:
    """Of methods that commute with rotations, and look at no share of the matrix's size."""
    given = make_factors((30, 50), [4, 5, 3])
    joint = shared_core(given, 3)
    assert joint is not None
    merged = joint.expand(method_named(method).solve(joint.cores, **parameters))
    projected = method_named(method).solve(compressed(given, 3), **parameters)
    assert merged.left.shape[1] == 3
    assert relative(merged.dense(torch.float64), projected.dense(torch.float64)) < 1e-9


@pytest.mark.parametrize("method", ["tsv", "dc_merge"])
def test_shares_of_the_size_are_of_the_cores(method: str) -> None:
    """Three experts keep a third of the rank each, and not all of it, as a third of the matrix's size would allow."""
    joint = shared_core(make_factors((30, 50), [9, 9, 9]), 6)
    assert joint is not None
    cores = [core.dense(torch.float64) for core in joint.cores]
    u, s, vh = torch.linalg.svd(torch.stack(cores))
    leading = [TaskVector.of((u[i, :, :2] * s[i, :2]) @ vh[i, :2]) for i in range(3)]
    solve = method_named(method).solve
    assert relative(solve(leading).dense(torch.float64), solve(joint.cores).dense(torch.float64)) < 1e-3
