"""The numerics of an analysis: factors against dense deltas, and both against the definitions in plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_deltas import make_factors, randn

from mergekit_mm.numerics.interaction import Interaction, interactions
from mergekit_mm.numerics.rank_rules import effective_rank, stable_rank
from mergekit_mm.numerics.relations import inner_products, overlap, signs, singular
from mergekit_mm.numerics.task_vector import TaskVector, weighted_sum

SHAPES = st.tuples(st.integers(1, 24), st.integers(1, 24))
RANKS = st.lists(st.integers(0, 5), min_size=2, max_size=4)


def dense(task_vectors: list[TaskVector]) -> list[TaskVector]:
    return [TaskVector.of(each.dense(torch.float64)) for each in task_vectors]


def arrays(task_vectors: list[TaskVector]) -> list[np.ndarray]:
    return [each.dense(torch.float64).numpy() for each in task_vectors]


@settings(max_examples=40, deadline=None)
@given(SHAPES, RANKS, st.integers(0, 99))
def test_inner_products_of_factors_of_dense_deltas_and_of_both(
    shape: tuple[int, int], ranks: list[int], seed: int
) -> None:
    factored = make_factors(shape, ranks, seed)
    vectors = np.stack([each.ravel() for each in arrays(factored)])
    expected = vectors @ vectors.T
    for several in (factored, dense(factored), [factored[0], *dense(factored[1:])]):
        np.testing.assert_allclose(inner_products(several), expected, rtol=1e-6, atol=1e-9 * abs(expected).max())


def test_inner_products_of_many_rows_and_of_a_scalar() -> None:
    one, other = randn(1500, 900), randn(1500, 900, seed=1)
    base = randn(1500, 900, seed=2).to(torch.bfloat16)
    between = [TaskVector.between(each, base) for each in (one, other)]
    vectors = torch.stack([one.double() - base.double(), other.double() - base.double()]).flatten(1)
    torch.testing.assert_close(inner_products(between), vectors @ vectors.T)
    scalars = [TaskVector.between(torch.tensor(3.0), torch.tensor(1.0)), TaskVector.of(torch.tensor(-0.5))]
    assert inner_products(scalars).tolist() == [[4.0, -1.0], [-1.0, 0.25]]
    assert signs(scalars).equal.tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_signs_are_counted_where_both_change() -> None:
    one = torch.tensor([[1.0, -2.0, 0.0], [3.0, 0.0, -1.0]])
    other = torch.tensor([[4.0, 2.0, 1.0], [0.0, 0.0, -7.0]])
    found = signs([TaskVector.of(one), TaskVector.of(other)])
    assert found.changed.tolist() == [[4, 3], [3, 4]]
    assert found.equal.tolist() == [[4, 2], [2, 4]]


def test_signs_of_rows_stand_for_all_rows() -> None:
    one = torch.ones(1000, 2)
    other = torch.where(torch.arange(1000) < 500, 1.0, -1.0).unsqueeze(1).expand(1000, 2)
    found = signs([TaskVector.of(one), TaskVector.of(other)])
    assert found.changed[0, 1] == pytest.approx(2000)
    assert found.equal[0, 1] == pytest.approx(1000)


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.integers(0, 5), st.integers(0, 30), st.integers(0, 99))
def test_singular_values_and_vectors(shape: tuple[int, int], rank: int, count: int, seed: int) -> None:
    (factored,) = make_factors(shape, [rank], seed)
    expected = np.linalg.svd(factored.dense(torch.float64).numpy(), compute_uv=False)
    expected = expected[expected > 1e-5 * expected.max(initial=0)]
    for form in (factored, *dense([factored])):
        found = singular(form, count)
        np.testing.assert_allclose(found.values, expected, rtol=1e-5)
        kept = min(count, len(expected))
        for vectors, side in ((found.left, shape[0]), (found.right, shape[1])):
            assert vectors.shape == (side, kept)
            torch.testing.assert_close(vectors.T @ vectors, torch.eye(kept, dtype=torch.float64), rtol=0, atol=1e-6)
        product = found.left.T @ factored.dense(torch.float64) @ found.right
        torch.testing.assert_close(
            product, torch.diag(found.values[:kept]), rtol=1e-5, atol=1e-6 * expected.max(initial=1)
        )


def test_overlap_is_one_within_zero_beside_and_chance_between() -> None:
    axes = torch.eye(8, dtype=torch.float64)
    assert overlap(axes[:, :2], axes[:, :5]) == (1.0, 5 / 8)
    assert overlap(axes[:, :2], axes[:, 4:7]) == (0.0, 3 / 8)
    assert overlap(axes[:, :0], axes) is None
    bases = [torch.linalg.qr(randn(60, 12, seed=seed).double()).Q for seed in range(40)]
    found = [overlap(one, other) for one, other in zip(bases[::2], bases[1::2], strict=True)]
    assert np.mean([each.share for each in found if each]) == pytest.approx(12 / 60, rel=0.1)


def test_ranks_of_known_spectra() -> None:
    equal = torch.full((7,), 0.3, dtype=torch.float64)
    assert effective_rank(equal) == pytest.approx(7)
    assert stable_rank(equal) == pytest.approx(7)
    one = torch.tensor([5.0, 1e-9], dtype=torch.float64)
    assert effective_rank(one) == pytest.approx(1, abs=1e-6)
    assert stable_rank(one) == pytest.approx(1)


def loss(x: np.ndarray, deltas: list[np.ndarray]) -> float:
    """WUDI's objective as it is written."""
    changed = [tau for tau in deltas if tau.any()]
    return sum(float(np.square((x - tau) @ tau.T).sum() / np.square(tau).sum()) for tau in changed)


@settings(max_examples=40, deadline=None)
@given(SHAPES, RANKS, st.floats(-2, 3), st.integers(0, 99))
def test_the_interaction_is_the_loss_at_every_strength(
    shape: tuple[int, int], ranks: list[int], strength: float, seed: int
) -> None:
    """Also of a delta that lies outside of what the experts span."""
    factored = make_factors(shape, ranks, seed)
    total = weighted_sum(factored, [1.0] * len(factored))
    foreign = TaskVector.of(randn(*shape, seed=seed + 7) * 1e-3)
    expected = arrays(factored)
    unmerged = loss(np.zeros(shape), expected)
    for several in (factored, dense(factored)):
        for merged, found in zip((total, foreign), interactions(several, [total, foreign]), strict=True):
            x = strength * merged.dense(torch.float64).numpy()
            if not unmerged:
                assert found.share_left(strength) is None
                continue
            assert found.share_left(strength) == pytest.approx(loss(x, expected) / unmerged, rel=1e-5, abs=1e-9)


def test_the_best_strength_has_the_least_loss() -> None:
    deltas = [TaskVector.of(randn(12, 9, seed=seed)) for seed in range(3)]
    (found,) = interactions(deltas, [weighted_sum(deltas, [1.0] * 3)])
    best = found.best_strength
    assert best is not None
    left = found.share_left(best)
    assert left is not None
    assert all(left < (found.share_left(best * factor) or 0) for factor in (0.9, 1.1))
    assert interactions([deltas[0]], [deltas[0]])[0].share_left(1.0) == pytest.approx(0, abs=1e-12)
    assert Interaction().best_strength is None
