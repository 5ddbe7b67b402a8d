"""`svc` of every method: against its definition, its identities, and the same from factors as from matrices."""

from __future__ import annotations

import pytest
import torch
from end_to_end import checkpoint, experts, merge, refused, with_method
from hypothesis import given, settings
from hypothesis import strategies as st
from random_deltas import ADAPTER_RANK, KINDS, make_deltas, make_factors, merged_delta, randn, relative
from torch import Tensor

from mergekit_mm.methods import catalogue, method_named, reference
from mergekit_mm.numerics.calibration import calibrated
from mergekit_mm.numerics.task_vector import TaskVector

METHODS = [method.name for method in catalogue() if not method.needs_factors]  # those have a file of their own
FLAT = ("iso_c", "iso_cts")  # their singular values coincide
SHAPES = [(30, 50), (50, 30), (36, 36)]


def of(merged: Tensor, deltas: list[Tensor], alpha: float | None = None) -> Tensor:
    return calibrated(TaskVector.of(merged), [TaskVector.of(d) for d in deltas], alpha).dense(torch.float64)


def rank_of(kind: str, shape: tuple[int, int], count: int) -> int:
    return min(count * ADAPTER_RANK, *shape) if kind == "adapter" else min(shape)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("alpha", [None, 0.6, 1.0])
def test_singular_values_are_rescaled_as_defined(kind: str, shape: tuple[int, int], alpha: float | None) -> None:
    deltas = [d.double() for d in make_deltas(shape, 3, kind, std=1.0)]
    for merged in (sum(deltas), sum(deltas) / 3):
        published = reference.calibrated(merged, deltas, alpha, rank_of(kind, shape, 3))
        rounding = 1e-6 if kind == "adapter" else 1e-9  # of the float32 products
        assert relative(of(merged, deltas, alpha), published) < rounding
    assert relative(of(sum(deltas), deltas, alpha), sum(deltas)) > 1e-2, "this test could not fail"


@pytest.mark.parametrize("method", [name for name in METHODS if name not in FLAT])
@pytest.mark.parametrize("kind", KINDS)
def test_every_method_has_it(method: str, kind: str) -> None:
    deltas = [d.double() for d in make_deltas((30, 44), 3, kind, std=1e-2)]
    plain = merged_delta(method, deltas)
    rank = int(torch.linalg.matrix_rank(plain, rtol=1e-5))
    for alpha in (None, 1.0):
        published = reference.calibrated(plain, deltas, alpha, rank)
        assert relative(merged_delta(method, deltas, svc=True, svc_alpha=alpha), published) < 1e-6
    assert torch.equal(merged_delta(method, deltas, svc=False, svc_alpha=1.0), plain)


@pytest.mark.parametrize("method", FLAT)
@pytest.mark.parametrize("kind", KINDS)
def test_directions_that_coincide_share_one_factor(method: str, kind: str) -> None:
    """Any rotation of them is as good, so that one by one they would be rescaled at random."""
    deltas = [d.double() for d in make_deltas((30, 44), 3, kind)]
    plain = merged_delta(method, deltas)
    u, s, _ = torch.linalg.svd(plain, full_matrices=False)
    u = u[:, s > 1e-5 * s[0]]
    shares = [float((plain * d).sum() / (u.T @ d).square().sum()) for d in deltas]
    expected = plain * 3 / sum(max(1 / 3, share) for share in shares)
    assert relative(merged_delta(method, deltas, svc=True), expected) < 1e-6


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (12, 50), (50, 12)])
def test_factors_give_what_their_products_give(method: str, shape: tuple[int, int]) -> None:
    factors = make_factors(shape, [2, 8, 5, 4])
    factors[1].left[:, 3:] = 0  # a rank that training never used
    factors[3].left.zero_()  # an adapter still at its initial value
    found = method_named(method)
    plain, merged = found.solve(factors), found.solve(factors, svc=True)
    assert merged.is_factored == plain.is_factored == found.keeps_factors({"svc": True})
    if merged.right is not None and plain.right is not None:
        assert len(merged.right) == len(plain.right)
    dense = found.solve([TaskVector.of(t.dense(torch.float64)) for t in factors], svc=True)
    assert relative(merged.dense(torch.float64), dense.dense(torch.float64)) < 1e-5
    if method in ("optmerge", "tsv", "iso_c"):  # where experts hardly share rows, the others are what it would make
        assert relative(plain.dense(torch.float64), dense.dense(torch.float64)) > 1e-3


def test_the_sum_itself_can_be_calibrated() -> None:
    """OptMerge that starts at the sum and takes no step, whose factors stay factors."""
    factors = make_factors((30, 50), [3, 4])
    merged = method_named("optmerge").solve(factors, init="sum", iterations=0, svc=True)
    assert merged.is_factored
    deltas = [t.dense(torch.float64) for t in factors]
    assert relative(merged.dense(torch.float64), reference.calibrated(sum(deltas), deltas, rank=7)) < 1e-6


# --- identities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_sum_of_equal_experts_is_shortened_to_the_expert(kind: str, count: int) -> None:
    delta = make_deltas((30, 50), 1, kind)[0].double()
    assert relative(of(count * delta, [delta] * count), delta) < 1e-6
    assert relative(of(delta, [delta] * count), delta) < 1e-6
    assert relative(of(delta / 8, [delta] * count, 1.0), delta / 8) < 1e-6, "1 only damps"
    assert relative(of(delta / 8, [delta] * count, 1 / 8), delta) < 1e-6, "less amplifies too"


def test_experts_that_share_nothing_are_left_alone() -> None:
    """Each direction is one expert's, and the other has no response to it."""
    deltas = [torch.zeros(20, 24), torch.zeros(20, 24)]
    deltas[0][:10, :12], deltas[1][10:, 12:] = randn(10, 12, seed=1), randn(10, 12, seed=2)
    assert relative(of(sum(deltas), deltas), sum(deltas)) < 1e-6
    _, silent = deltas
    assert relative(of(deltas[0], [silent, torch.zeros(20, 24)]), deltas[0]) < 1e-12, "nobody answers"


@pytest.mark.parametrize("method", METHODS)
def test_an_expert_that_left_the_matrix_alone_has_no_say(method: str) -> None:
    deltas = make_deltas((20, 30), 2, "adapter")
    plain = method_named(method).solve([TaskVector.of(d) for d in [*deltas, torch.zeros(20, 30)]])
    with_it, without = (
        calibrated(plain, [TaskVector.of(d) for d in several], 0.5).dense(torch.float64)
        for several in ([*deltas, torch.zeros(20, 30)], deltas)
    )
    assert relative(with_it, without) < 1e-12


def test_it_scales_with_the_deltas_and_turns_with_them() -> None:
    deltas = [d.double() for d in make_deltas((30, 50), 3, "steep", std=1.0)]
    expected = of(sum(deltas), deltas)
    for factor in (1e-30, 1e15):
        assert relative(of(sum(deltas) * factor, [d * factor for d in deltas]) / factor, expected) < 1e-9
    q, _ = torch.linalg.qr(randn(30, 30).double())
    assert relative(of(q @ sum(deltas), [q @ d for d in deltas]), q @ expected) < 1e-9


@settings(max_examples=60, deadline=None)
@given(
    method=st.sampled_from(METHODS),
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    ranks=st.lists(st.integers(0, 6), min_size=1, max_size=5),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    seed=st.integers(0, 999),
)
def test_any_shapes_and_ranks(
    method: str, shape: tuple[int, int], ranks: list[int], dtype: torch.dtype, seed: int
) -> None:
    factors = [TaskVector.low_rank(t.left.to(dtype), t.right.to(dtype)) for t in make_factors(shape, ranks, seed)]
    plain, merged = (method_named(method).solve(factors, svc=svc, svc_alpha=1.0) for svc in (False, True))
    assert merged.shape == shape
    assert merged.is_factored == plain.is_factored
    before, after = (torch.linalg.svdvals(t.dense(torch.float64)) for t in (plain, merged))
    assert bool(after.isfinite().all())
    assert float(after.max()) <= float(before.max()) * (1 + 1e-9), "1 only damps"
    assert float((before > 1e-4 * before.max()).sum()) == 0 or bool(after.any())


# --- through the commands ---------------------------------------------------------------------------------------------


def test_a_merge_with_it() -> None:
    config = with_method("tsv", checkpoint("llava"), experts("llava"))
    plain, damped = (merge({**config, "parameters": p}).tensors for p in ({}, {"svc": True, "svc_alpha": 1.0}))
    changed = {n for n in plain if not torch.equal(plain[n], damped[n])}
    assert changed
    assert all("language_model.model.layers" in n and "norm" not in n for n in changed)


@pytest.mark.parametrize(("parameters", "told"), [({"svc_alpha": 0.0}, "(0, 1]"), ({"svc": "some"}, "'some'")])
def test_values_that_will_not_do(parameters: dict[str, object], told: str) -> None:
    config = with_method("tsv", checkpoint("llava"), experts("llava"))
    refused({**config, "parameters": {"svc": True, **parameters}}, told)
