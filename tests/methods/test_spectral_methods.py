"""TSV-Merging, Iso-C, Iso-CTS and DC-Merge: against their definitions, at any rank, free of noise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_deltas import ADAPTER_RANK, KINDS, make_deltas, make_factors, merged_delta, randn, relative
from torch import Tensor

from mergekit_mm.methods import method_named, reference
from mergekit_mm.methods.iso_cts import counts
from mergekit_mm.numerics import polar as numerics
from mergekit_mm.numerics.task_vector import TaskVector

METHODS = ["tsv", "iso_c", "iso_cts", "dc_merge"]
CASES = [((48, 64), 3), ((64, 48), 5), ((40, 40), 2), ((24, 100), 3), ((100, 24), 3), ((30, 50), 1)]


def expected(method: str, deltas: list[Tensor], rank: int | None = None) -> Tensor:
    """The oracle's answer; rank is that of each delta where it is known to be lower than its size."""
    if method == "tsv":
        return reference.tsv(deltas, None if rank is None else [rank] * len(deltas))
    if method == "dc_merge":
        return reference.dc_merge(deltas, ranks=None if rank is None else [rank] * len(deltas))
    whole = min(deltas[0].shape) if rank is None else min(rank * len(deltas), *deltas[0].shape)
    return reference.iso_c(deltas, whole) if method == "iso_c" else reference.iso_cts(deltas, rank=whole)


# --- the published methods --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "count"), CASES)
def test_results_are_those_of_the_definition(method: str, kind: str, shape: tuple[int, int], count: int) -> None:
    deltas = make_deltas(shape, count, kind)
    published = expected(method, deltas, ADAPTER_RANK if kind == "adapter" else None)
    assert relative(merged_delta(method, deltas), published) < 1e-6
    assert relative(merged_delta(method, [d.double() for d in deltas]), published) < 1e-6
    if method != "tsv" or count > 1:
        for other in (sum(deltas), sum(deltas) / count):
            assert relative(other, published) > 1e-2, "this test could not fail"


@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(20, 32), (32, 20)])
def test_every_rank_fraction(fraction: float, shape: tuple[int, int]) -> None:
    """Three experts at 0.5 bring more vectors than there are dimensions."""
    deltas = make_deltas(shape, 3, "steep")
    published = reference.tsv(deltas, rank_fraction=fraction)
    assert relative(merged_delta("tsv", deltas, rank_fraction=fraction), published) < 1e-6
    assert relative(merged_delta("tsv", deltas, rank_fraction=fraction / 2), published) > 1e-2


@pytest.mark.parametrize("density", [1e-9, 0.001, 0.3, 1.0])
@pytest.mark.parametrize("smoothing", ["mean", "none"])
@pytest.mark.parametrize("shape", [(30, 44), (44, 30)])
def test_every_density(density: float, smoothing: str, shape: tuple[int, int]) -> None:
    deltas = make_deltas(shape, 3, "steep")
    published = reference.dc_merge(deltas, smoothing == "mean", density)
    merged = merged_delta("dc_merge", deltas, smoothing=smoothing, density=density)
    assert relative(merged, published) < 1e-6
    assert relative(merged_delta("dc_merge", deltas, smoothing=smoothing), published) > 1e-2


def test_experts_that_cancel_leave_nothing_for_rounding_to_choose() -> None:
    """Of entries that cancel TIES would keep those of one expert, by the sign that rounding gives their sum."""
    (delta,) = make_deltas((30, 20), 1, "steep")
    for noise in (0.0, 1e-9, -1e-9):
        other = -delta.double() * (1 + noise * randn(30, 20, seed=1).double())
        assert float(merged_delta("dc_merge", [delta.double(), other]).norm()) < 1e-4 * float(delta.norm())


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_every_common_fraction(fraction: float) -> None:
    deltas = make_deltas((30, 44), 3, "flat")
    published = reference.iso_cts(deltas, common_fraction=fraction)
    assert relative(merged_delta("iso_cts", deltas, common_fraction=fraction), published) < 1e-6


def test_all_in_common_is_iso_c() -> None:
    deltas = make_deltas((30, 44), 3, "flat")
    assert relative(merged_delta("iso_cts", deltas, common_fraction=1.0), merged_delta("iso_c", deltas)) < 1e-6


@pytest.mark.parametrize(("rank", "experts"), [(896, 5), (64, 8), (100, 3), (7, 5), (6, 7), (1, 1), (0, 4)])
@pytest.mark.parametrize("fraction", [0.0, 0.8, 1.0])
def test_directions_given_away_are_never_more_than_there_are(rank: int, experts: int, fraction: float) -> None:
    common, each = counts(rank, experts, fraction)
    assert common >= 0
    assert each >= 0
    assert common + experts * each <= rank
    if (rank, experts, fraction) == (896, 5, 0.8):
        assert (common, each) == (716, 36)


def test_sizes_where_lapack_gives_a_subset() -> None:
    deltas = [d.double() for d in make_deltas((264, 280), 3, "steep")]
    for method in METHODS:
        assert relative(merged_delta(method, deltas), expected(method, deltas)) < 1e-9


# --- rank ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (64, 64)])
def test_rounding_does_not_move_the_merge_of_adapters(method: str, shape: tuple[int, int]) -> None:
    """The published forms fill up with null vectors, which any perturbation turns to anywhere else."""
    deltas = [d.double() for d in make_deltas(shape, 3, "adapter")]
    moved = [d * (1 + 1e-7 * randn(*shape, seed=i + 900)) for i, d in enumerate(deltas)]
    assert relative(merged_delta(method, moved), merged_delta(method, deltas)) < 1e-5
    published: Callable[[list[Tensor]], Tensor] = getattr(reference, method)
    assert relative(published(moved), published(deltas)) > 0.05


def test_a_coarser_tolerance_cleans_adapters_stored_in_16_bits() -> None:
    base = randn(64, 96, seed=7) * 0.02
    clean = make_deltas((64, 96), 3, "adapter", std=1e-3)
    stored = [(base + d).to(torch.bfloat16).double() - base.to(torch.bfloat16).double() for d in clean]
    published = expected("iso_c", clean, ADAPTER_RANK)
    assert relative(merged_delta("iso_c", stored, rank_tolerance=0.1), published) < 0.1
    assert relative(merged_delta("iso_c", stored), published) > 0.5


def test_the_sum_of_singular_values_is_kept() -> None:
    for kind in KINDS:
        deltas = make_deltas((40, 60), 3, kind)
        nuclear = torch.linalg.svdvals(sum(deltas).double()).sum()
        assert torch.linalg.svdvals(merged_delta("iso_c", deltas).double()).sum() == pytest.approx(float(nuclear), 1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (12, 50), (50, 12)])
def test_factors_give_what_their_products_give(method: str, shape: tuple[int, int]) -> None:
    factors = make_factors(shape, [2, 8, 5, 4])
    factors[1].left[:, 3:] = 0  # a rank that training never used
    factors[3].left.zero_()  # an adapter still at its initial value
    solve = method_named(method).solve
    merged = solve(factors)
    assert merged.is_factored
    assert merged.right.shape[0] <= 2 + 8 + 5 + 4
    dense = solve([TaskVector.of(t.dense(torch.float64)) for t in factors])
    assert not dense.is_factored
    assert relative(merged.dense(torch.float64), dense.left) < 1e-5
    assert relative(sum(t.dense(torch.float64) for t in factors) / 4, dense.left) > 1e-2


# --- identities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("shape", [(30, 50), (50, 30)])
def test_equal_experts_give_the_leading_part_of_the_expert(count: int, shape: tuple[int, int]) -> None:
    delta = make_deltas(shape, 1, "steep")[0]
    u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    k = 30 // count
    assert relative(merged_delta("tsv", [delta] * count), (u[:, :k] * s[:k]) @ vh[:k]) < 1e-5
    assert relative(merged_delta("iso_c", [delta] * count), count * s.mean() * u @ vh) < 1e-5
    meeting = merged_delta("dc_merge", [delta] * count, smoothing="none", density=1.0)
    assert relative(count * meeting, (u[:, :k] * s[:k]) @ vh[:k]) < 1e-5, "of N^2 equal blocks it keeps N"


@pytest.mark.parametrize("method", METHODS)
def test_experts_that_share_nothing_do_not_disturb_each_other(method: str) -> None:
    """Blocks of a block matrix: each method treats them one by one, up to the common mean of singular values."""
    blocks = [randn(10, 12, seed=1), randn(10, 12, seed=2)]
    deltas = [torch.zeros(20, 24), torch.zeros(20, 24)]
    deltas[0][:10, :12], deltas[1][10:, 12:] = blocks
    merged = merged_delta(method, deltas)
    assert float(merged[:10, 12:].abs().max()) < 1e-5
    assert float(merged[10:, :12].abs().max()) < 1e-5
    if method == "tsv":
        assert relative(merged, sum(deltas)) < 1e-5
    elif method == "dc_merge":
        own = [float(torch.linalg.svdvals(block).mean()) for block in blocks]
        assert torch.allclose(torch.linalg.svdvals(merged)[:10], torch.tensor(max(own)), rtol=1e-4)
        kept = merged_delta("dc_merge", deltas, smoothing="none", density=1.0)
        assert relative(kept, sum(deltas)) < 1e-5
    else:
        values = torch.linalg.svdvals(torch.block_diag(*blocks))
        assert torch.allclose(torch.linalg.svdvals(merged), values.mean().expand(20), rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_experts_does_not_matter(method: str, kind: str) -> None:
    deltas = make_deltas((30, 50), 4, kind)
    assert relative(merged_delta(method, deltas[::-1]), merged_delta(method, deltas)) < 1e-6


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("factor", [1e-20, 2.0**-70, 1e6, 1e15])
def test_results_scale_with_the_deltas(method: str, factor: float) -> None:
    deltas = make_deltas((30, 50), 3, "steep", std=1.0)
    scaled = merged_delta(method, [d * factor for d in deltas])
    assert relative(scaled.double() / factor, merged_delta(method, deltas)) < 1e-6


@pytest.mark.parametrize("method", ["tsv", "iso_c", "dc_merge"])
def test_transposed_experts_give_the_transposed_merge(method: str) -> None:
    deltas = make_deltas((30, 50), 3, "flat")
    assert relative(merged_delta(method, [d.T for d in deltas]), merged_delta(method, deltas).T) < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_the_same_input_gives_the_same_bytes_and_is_left_alone(method: str) -> None:
    deltas = make_deltas((30, 50), 3, "flat")
    assert torch.equal(merged_delta(method, deltas), merged_delta(method, deltas))
    assert all(torch.equal(d, e) for d, e in zip(deltas, make_deltas((30, 50), 3, "flat"), strict=True))


# --- awkward input ----------------------------------------------------------------------------------------------------


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
    """Rank 0 is an expert that never touched the matrix; shapes go down to one entry. Dense equals factored."""
    factors = [TaskVector.low_rank(t.left.to(dtype), t.right.to(dtype)) for t in make_factors(shape, ranks, seed)]
    dense = [t.dense(torch.float64) for t in factors]
    solve = method_named(method).solve
    merged, from_factors = solve([TaskVector.of(d) for d in dense]), solve(factors)
    norm = sum(float(d.norm()) for d in dense)
    assert merged.shape == from_factors.shape == shape
    assert float((merged.dense(torch.float64) - from_factors.dense(torch.float64)).norm()) <= 1e-5 * norm
    assert float(merged.dense(torch.float64).norm()) <= 1.01 * sum(float(torch.linalg.svdvals(d).sum()) for d in dense)
    if not any(ranks):
        assert not merged.dense(torch.float64).any()
    through_mergekit = merged_delta(method, [d.to(dtype) for d in dense])
    assert through_mergekit.dtype == dtype
    assert bool(through_mergekit.isfinite().all())


@pytest.mark.parametrize("method", METHODS)
def test_an_untouched_expert_leaves_the_others_to_themselves(method: str) -> None:
    deltas = make_deltas((20, 30), 2, "adapter")
    merged = merged_delta(method, [*deltas, torch.zeros(20, 30)])
    if method == "iso_cts":
        assert relative(merged, reference.iso_cts([*deltas, torch.zeros(20, 30)], rank=8)) < 1e-6
    else:
        assert relative(merged, merged_delta(method, deltas)) < 1e-6


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_iso_cts_takes_no_direction_from_an_expert_that_has_none_of_its_own(shape: tuple[int, int]) -> None:
    """Eight of ten directions are common, all of the first expert's; what is left of it is rounding."""
    strong, weak = torch.zeros(2, *shape)
    strong[:12, :12] = randn(12, 8, seed=0) @ randn(8, 12, seed=1)
    weak[12:, 12:] = 0.01 * randn(shape[0] - 12, 2, seed=2) @ randn(2, shape[1] - 12, seed=3)
    singular = [*torch.linalg.svdvals(strong.double())[:8], torch.linalg.svdvals(weak.double())[0]]
    found = torch.linalg.svdvals(merged_delta("iso_cts", [strong, weak]).double())
    assert relative(found[:9], torch.stack(singular).mean().expand(9)) < 1e-6
    assert float(found[9]) < 1e-5 * float(found[0])


@pytest.mark.parametrize("method", METHODS)
def test_experts_that_cancel_out(method: str) -> None:
    delta = make_deltas((20, 30), 1, "flat")[0]
    assert float(merged_delta(method, [delta, -delta]).norm()) <= 1.01 * float(delta.norm())


def test_one_entry() -> None:
    deltas = [torch.tensor([[x]]) for x in (3.0, -1.0, 4.0)]
    assert float(merged_delta("tsv", deltas)) == pytest.approx(2.0)
    assert float(merged_delta("iso_c", deltas)) == pytest.approx(6.0)
    assert float(merged_delta("iso_cts", deltas)) == pytest.approx(6.0)
    assert float(merged_delta("dc_merge", deltas)) == pytest.approx(7.0 / 6, rel=1e-5)


# --- parameters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [
        ("tsv", "rank_fraction", 0.0),
        ("tsv", "rank_fraction", 1.5),
        ("tsv", "rank_tolerance", -1e-9),
        ("iso_c", "rank_tolerance", 1.0),
        ("iso_c", "rank_tolerance", float("nan")),
        ("iso_cts", "common_fraction", 1.1),
        ("dc_merge", "density", 0.0),
        ("dc_merge", "rank_fraction", 2.0),
        ("dc_merge", "rank_tolerance", 0.0),
        ("iso_cts", "rank_tolerance", 2.0),
    ],
)
def test_values_out_of_range_are_named(method: str, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{method}: {name} must be"):
        merged_delta(method, make_deltas((4, 5), 2, "flat"), **{name: value})


# --- the numerics below -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7, 12), (12, 7), (9, 9), (300, 310)])
@pytest.mark.parametrize("rank", [0, 3, 9])
def test_polar_factor_of_any_rank(shape: tuple[int, int], rank: int) -> None:
    x = randn(shape[0], rank).double() @ randn(rank, shape[1], seed=1).double()
    rank = min(rank, *shape)
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    isometry, sigma = numerics.polar(x, 1e-5)
    assert torch.allclose(isometry, u[:, :rank] @ vh[:rank], atol=1e-9)
    assert torch.allclose(sigma, s[:rank], rtol=1e-9)
