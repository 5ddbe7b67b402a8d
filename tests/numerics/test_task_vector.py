"""The numerics under the merge methods: each fast form against the slow definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_deltas import relative
from torch import Tensor

from mergekit_mm.numerics.eigen import gram, gram_root, top_eigenpairs_
from mergekit_mm.numerics.filters import apply_quotient_, heavy_ball_quotient
from mergekit_mm.numerics.low_rank import truncate
from mergekit_mm.numerics.task_vector import TaskVector, joint_core


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_a_difference_is_taken_after_widening() -> None:
    base = torch.tensor([[1.0, 256.0]], dtype=torch.bfloat16)
    tuned = torch.tensor([[1.0078125, 258.0]], dtype=torch.bfloat16)
    assert TaskVector.between(tuned, base).dense(torch.float32).tolist() == [[0.0078125, 2.0]]


def test_a_difference_of_many_rows_is_the_difference() -> None:
    base, tuned = randn(600, 3, seed=1).to(torch.bfloat16).T.contiguous().T, randn(600, 3).float()
    assert torch.equal(TaskVector.between(tuned, base).dense(torch.float64), tuned.double() - base.double())
    scalar = TaskVector.between(tuned[0, 0], base[0, 0]).dense(torch.float32)
    assert torch.equal(scalar, tuned[0, 0] - base[0, 0].float())


def test_a_dense_copy_can_be_overwritten_without_touching_the_input() -> None:
    delta = randn(3, 4)
    TaskVector.of(delta).dense(torch.float64).zero_()
    assert torch.equal(delta, randn(3, 4))


@pytest.mark.parametrize(
    "build",
    [
        lambda: TaskVector.low_rank(randn(3, 2), randn(3, 4)),
        lambda: TaskVector.between(randn(3, 2), randn(2, 3)),
        lambda: TaskVector(randn(3, 2), right=randn(2, 4), base=randn(3, 4)),
    ],
)
def test_parts_that_do_not_fit_are_refused(build: object) -> None:
    with pytest.raises(ValueError, match=r"factors do not chain|differ in shape|takes no base"):
        build()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 99))
def test_the_joint_core_reproduces_every_factored_delta(rows: int, columns: int, ranks: list[int], seed: int) -> None:
    factored = [
        TaskVector.low_rank(randn(rows, r, seed=seed + i), randn(r, columns, seed=seed + i + 50))
        for i, r in enumerate(ranks)
    ]
    joint = joint_core(factored, torch.float64)
    assert max(joint.left.shape[1], joint.right.shape[0]) <= sum(ranks)
    for core, original in zip(joint.cores, factored, strict=True):
        expanded = joint.expand(core)
        assert expanded.is_factored
        assert expanded.shape == original.shape
        assert torch.allclose(expanded.dense(torch.float64), original.dense(torch.float64), atol=1e-12)


def test_the_joint_core_wants_factors_only() -> None:
    with pytest.raises(ValueError, match="factored"):
        joint_core([TaskVector.low_rank(randn(4, 2), randn(2, 4)), TaskVector.of(randn(4, 4))], torch.float64)


@pytest.mark.parametrize("shape", [(1, 5), (7, 3), (300, 20), (513, 40)])
def test_gram_equals_the_product(shape: tuple[int, int]) -> None:
    x = randn(*shape)
    assert torch.allclose(gram(x), x @ x.T, atol=1e-12)


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (40, 40), (300, 310), (310, 300)])
@pytest.mark.parametrize("rank", [1, 12, 30, 400])
def test_truncation_is_that_of_the_singular_value_decomposition(shape: tuple[int, int], rank: int) -> None:
    x = randn(*shape)
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ vh[:rank]
    cut = truncate(x, rank)
    found = cut.left if cut.right is None else cut.left @ cut.right
    assert relative(found, best) < 1e-10
    assert relative(cut.rows.T @ cut.rows, best.T @ best) < 1e-10
    assert relative(gram_root(x).T @ gram_root(x), x.T @ x) < 1e-12


@pytest.mark.parametrize("rank", [3, 290])
def test_leading_eigenpairs_inside_a_null_space_are_still_orthonormal(rank: int) -> None:
    """Asking for 60 pairs of a matrix of rank 3 is what adapters merged into a checkpoint do."""
    x = randn(300, rank)
    values, vectors = top_eigenpairs_(gram(x), 60)
    assert torch.allclose(vectors.T @ vectors, torch.eye(60, dtype=torch.float64), atol=1e-10)
    assert torch.allclose(gram(x) @ vectors, vectors * values, atol=1e-9)
    assert bool((values[:-1] >= values[1:] - 1e-9).all())


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 5), st.floats(1e-5, 0.1), st.floats(0, 0.95), st.integers(0, 30))
def test_the_heavy_ball_quotient_is_what_the_optimiser_does(lam: float, rate: float, mu: float, steps: int) -> None:
    x = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=rate, momentum=mu)
    for _ in range(steps):
        optimizer.zero_grad()
        (lam * x.square() - 2 * 3.0 * x).sum().backward()  # gradient 2 (lam x - 3)
        optimizer.step()
    quotient = heavy_ball_quotient(torch.tensor([lam], dtype=torch.float64), rate, mu, steps)
    assert float(2.0 + quotient * (3.0 - 2.0 * lam)) == pytest.approx(x.item(), rel=1e-9)


@pytest.mark.parametrize("rate", [1e-4, 5e-2])
@pytest.mark.parametrize("rows", [3, 400])
def test_a_filter_applied_to_a_matrix_equals_its_definition(rate: float, rows: int) -> None:
    """The short filter runs as a polynomial, the long one on many rows through the eigenvectors."""
    half = randn(40, 60)
    matrix = half.T @ half / 400
    coefficients = randn(rows, 60, seed=1)
    values, vectors = torch.linalg.eigh(matrix)
    weights = heavy_ball_quotient(values, rate, 0.9, 300)
    expected = (coefficients @ vectors * weights) @ vectors.T

    def quotient(lam: Tensor) -> Tensor:
        return heavy_ball_quotient(lam, rate, 0.9, 300)

    assert relative(apply_quotient_(coefficients.clone(), matrix.clone(), quotient), expected) < 1e-10
    assert relative(apply_quotient_(coefficients.float(), matrix.float(), quotient), expected) < 1e-5


def test_a_short_filter_of_many_rows_keeps_single_precision() -> None:
    """There eigenvectors cost less than the polynomial; float32 ones would not be quite orthonormal."""
    spectrum = torch.arange(1, 401, dtype=torch.float64) ** -1.4
    vectors = torch.linalg.qr(randn(400, 400)).Q
    coefficients = randn(4000, 400, seed=1)

    def quotient(lam: Tensor) -> Tensor:
        return heavy_ball_quotient(lam, 1e-4, 0.9, 300)

    matrix = ((vectors * spectrum) @ vectors.T).float()
    result = apply_quotient_(coefficients.float(), matrix, quotient)
    assert relative(result, (coefficients @ vectors * quotient(spectrum)) @ vectors.T) < 1e-6


@pytest.mark.parametrize(
    "spectrum",
    [
        torch.linspace(0, 1, 200),
        0.7 ** torch.arange(200),
        torch.eye(200)[3] * 2,
        torch.ones(200),
        torch.eye(200)[0] + 1,
    ],
    ids=["even", "geometric", "rank one", "flat", "one spike"],
)
@pytest.mark.parametrize("rate", [1e-4, 1e-3, 5e-2])
def test_no_spectrum_escapes_the_interval_of_the_polynomial(spectrum: Tensor, rate: float) -> None:
    """A bound below the largest eigenvalue would show at once: outside its interval the series explodes."""
    spectrum = spectrum.double()
    vectors = torch.linalg.qr(randn(200, 200)).Q
    weights = heavy_ball_quotient(spectrum, rate, 0.9, 300)
    coefficients = randn(3, 200, seed=1)
    result = apply_quotient_(
        coefficients.clone(), (vectors * spectrum) @ vectors.T, lambda lam: heavy_ball_quotient(lam, rate, 0.9, 300)
    )
    assert relative(result, (coefficients @ vectors * weights) @ vectors.T) < 1e-10


def test_a_filter_of_nothing_is_its_slope() -> None:
    result = apply_quotient_(torch.ones(2, 3), torch.zeros(3, 3), lambda lam: 7.0 + lam)
    assert torch.equal(result, torch.full((2, 3), 7.0))
