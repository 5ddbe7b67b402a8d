"""WUDI, SWUDI and ASWUDI against the released algorithms restated in float64, their identities, and awkward input."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_deltas import ADAPTER_RANK, KINDS, make_deltas, make_factors, merged_delta, randn, relative
from torch import Tensor

from mergekit_mm.methods import method_named, reference
from mergekit_mm.numerics.rank_rules import adaptive_rank, ratio_rank
from mergekit_mm.numerics.task_vector import TaskVector

RULES = ["participation_sqrt", "participation", "entropy", "stable_rank", "gavish_donoho", "cumvar_0.9", "none"]
# rows of all experts: more than the columns, fewer than the columns, tall, square, one expert
CASES = [((48, 64), 3), ((12, 90), 4), ((64, 48), 5), ((40, 40), 2), ((30, 50), 1)]
CLOSED = [
    ("wudi", {"solver": "exact"}),
    ("wudi", {"solver": "exact", "weights": "equal"}),
    ("swudi", {}),
    ("swudi", {"filter": "tikhonov", "time": "relative"}),
    ("swudi", {"filter": "none", "rank_ratio": 0.1}),
    ("aswudi", {}),
    ("aswudi", {"rank_rule": "none"}),
    ("aswudi", {"rank_rule": "gavish_donoho", "filter": "exponential", "time": "relative", "exp_time": 5.0}),
]
ALL = [("wudi", {}), *CLOSED]


def starts(deltas: list[Tensor]) -> list[Tensor]:
    return [sum(deltas), sum(deltas) / len(deltas)]


def largest_eigenvalue(deltas: list[Tensor]) -> float:
    stacked = torch.cat([d.double() / d.double().norm() for d in deltas])
    return float(torch.linalg.matrix_norm(stacked, 2) ** 2)


# --- the released algorithms ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "count"), CASES)
@pytest.mark.parametrize("init", ["sum", "mean", "zero"])
def test_the_exact_solver_finds_the_minimiser_nearest_to_the_start(
    kind: str, shape: tuple[int, int], count: int, init: str
) -> None:
    deltas = make_deltas(shape, count, kind)
    published = reference.wudi_minimiser(deltas, init)
    assert relative(merged_delta("wudi", deltas, solver="exact", init=init), published) < 1e-6
    if count > 1:
        assert min(relative(s, published) for s in starts(deltas)) > 1e-2, "this test could not fail"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "count"), CASES)
@pytest.mark.parametrize("init", ["sum", "mean", "zero"])
def test_equal_weights_are_actmat(kind: str, shape: tuple[int, int], count: int, init: str) -> None:
    deltas = [d * size for d, size in zip(make_deltas(shape, count, kind), (1.0, 0.3, 2.0, 0.7, 1.5), strict=False)]
    published = reference.actmat(deltas)
    merged = merged_delta("wudi", deltas, solver="exact", weights="equal", init=init)
    assert relative(merged, published) < 1e-6
    if kind != "adapter" and count * shape[0] > max(shape):  # else all rows are reached, with any weights
        assert relative(merged_delta("wudi", deltas, solver="exact"), published) > 1e-3


def test_equal_weights_follow_the_larger_expert() -> None:
    large, small = make_deltas((30, 20), 2, "flat")
    merged = merged_delta("wudi", [large, small * 1e-3], solver="exact", weights="equal")
    assert relative(merged, large) < 1e-3
    assert relative(merged_delta("wudi", [large, small * 1e-3], solver="exact"), large) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "count"), CASES[:4])
@pytest.mark.parametrize("init", ["sum", "zero"])
def test_adam_takes_the_released_steps(kind: str, shape: tuple[int, int], count: int, init: str) -> None:
    deltas = make_deltas(shape, count, kind)
    published = reference.wudi(deltas, init, iterations=100)
    assert relative(merged_delta("wudi", deltas, init=init, iterations=100), published) < 1e-6
    assert min(relative(s, published) for s in starts(deltas)) > 1e-2, "this test could not fail"


def test_adam_by_default() -> None:
    deltas = make_deltas((20, 30), 3, "flat")
    assert relative(merged_delta("wudi", deltas), reference.wudi(deltas)) < 1e-6
    slower = reference.wudi(deltas, learning_rate=2e-6)
    assert relative(merged_delta("wudi", deltas, learning_rate=2e-6), slower) < 1e-6
    assert relative(slower, reference.wudi(deltas)) > 1e-2


@pytest.mark.parametrize("shape", [(48, 64), (64, 48)])
def test_adam_in_single_precision(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mergekit_mm.numerics.descent._DOUBLE_UP_TO", 0)
    deltas = make_deltas(shape, 3, "steep")
    assert relative(merged_delta("wudi", deltas), reference.wudi(deltas)) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "count"), CASES)
@pytest.mark.parametrize(
    ("parameters", "kept", "filter", "strength"),
    [
        ({}, 0.65, "exponential", 300.0),
        ({"rank_ratio": 1.0, "exp_time": 1300.0}, 1.0, "exponential", 1300.0),
        ({"rank_ratio": 0.01, "exp_time": 1300.0, "init": "mean"}, 0.01, "exponential", 1300.0),
        ({"filter": "tikhonov", "rank_ratio": 0.3, "init": "zero"}, 0.3, "tikhonov", 0.01),
        ({"filter": "tikhonov", "tikhonov_alpha": 0.2}, 0.65, "tikhonov", 0.2),
        ({"filter": "none", "rank_ratio": 0.2}, 0.2, "none", 0.0),
    ],
)
def test_swudi_is_the_released_filter(
    kind: str,
    shape: tuple[int, int],
    count: int,
    parameters: dict[str, object],
    kept: float,
    filter: str,
    strength: float,
) -> None:
    deltas = make_deltas(shape, count, kind)
    directions = math.ceil(kept * shape[1] - 1e-9)
    published = reference.spectral_filter(deltas, directions, filter, strength, str(parameters.get("init", "sum")))
    assert relative(merged_delta("swudi", deltas, **parameters), published) < 1e-6
    if count > 1:
        assert min(relative(s, published) for s in starts(deltas)) > 1e-3, "this test could not fail"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "count"), CASES)
@pytest.mark.parametrize("rule", RULES)
def test_aswudi_keeps_what_its_rule_says(kind: str, shape: tuple[int, int], count: int, rule: str) -> None:
    deltas = make_deltas(shape, count, kind)
    published = reference.spectral_filter(deltas, rule, "none", 0.0)
    assert relative(merged_delta("aswudi", deltas, rank_rule=rule), published) < 1e-6
    if count > 1:
        assert min(relative(s, published) for s in starts(deltas)) > 1e-3, "this test could not fail"


def test_aswudi_with_a_time() -> None:
    deltas = make_deltas((30, 44), 3, "flat")
    published = reference.spectral_filter(deltas, "participation", "exponential", 20.0, "mean")
    given_time = {"rank_rule": "participation", "filter": "exponential", "exp_time": 20.0, "init": "mean"}
    assert relative(merged_delta("aswudi", deltas, **given_time), published) < 1e-6
    far = merged_delta("aswudi", deltas, filter="exponential")
    assert relative(far, merged_delta("aswudi", deltas)) < 1e-6, "a time of 1e6 is as good as no filter"
    assert relative(far, published) > 1e-2


@pytest.mark.parametrize("filter", ["exponential", "tikhonov"])
@pytest.mark.parametrize("shape", [(12, 90), (48, 40)])
def test_relative_time_is_measured_against_the_largest_eigenvalue(filter: str, shape: tuple[int, int]) -> None:
    deltas = make_deltas(shape, 3, "steep")
    largest = largest_eigenvalue(deltas)
    strength = 30.0 / largest if filter == "exponential" else 0.05 * largest
    published = reference.spectral_filter(deltas, shape[1], filter, strength)
    own = {"filter": filter, "rank_ratio": 1.0, "exp_time": 30.0, "tikhonov_alpha": 0.05}
    assert relative(merged_delta("swudi", deltas, time="relative", **own), published) < 1e-6
    assert relative(merged_delta("swudi", deltas, **own), published) > 1e-3


def test_a_share_of_the_directions_that_exist() -> None:
    """Of three adapters of rank 4, half are 6 directions; half of the columns would keep all 12."""
    deltas = make_deltas((40, 60), 3, "adapter")
    merged = merged_delta("swudi", deltas, rank_ratio=0.5, rank_of="numerical")
    assert relative(merged, reference.spectral_filter(deltas, 6, "exponential", 300.0)) < 1e-6
    assert relative(merged, merged_delta("swudi", deltas, rank_ratio=0.5)) > 1e-2


def test_float32_input_of_a_large_matrix_is_solved_to_rounding() -> None:
    """The released float32 decomposition is off by more than 1e-4 on this one."""
    deltas = make_deltas((500, 200), 3, "steep")
    published = reference.spectral_filter(deltas, 130, "exponential", 300.0)
    assert relative(merged_delta("swudi", deltas), published) < 1e-6


# --- rank and factors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "parameters"), CLOSED)
@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (16, 90)])
def test_rounding_does_not_move_the_merge_of_adapters(
    method: str, parameters: dict[str, object], shape: tuple[int, int]
) -> None:
    deltas = [d.double() for d in make_deltas(shape, 3, "adapter")]
    moved = [d * (1 + 1e-7 * randn(*shape, seed=i + 900)) for i, d in enumerate(deltas)]
    assert relative(merged_delta(method, moved, **parameters), merged_delta(method, deltas, **parameters)) < 1e-4


@pytest.mark.parametrize(("method", "parameters"), ALL)
@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (12, 90), (50, 12)])
def test_factors_give_what_their_products_give(
    method: str, parameters: dict[str, object], shape: tuple[int, int]
) -> None:
    factors = make_factors(shape, [2, 8, 5, 4])
    factors[1].left[:, 3:] = 0  # a rank that training never used
    factors[3].left.zero_()  # an adapter still at its initial value
    solve = method_named(method).solve
    merged = solve(factors, **parameters)
    dense = solve([TaskVector.of(t.dense(torch.float64)) for t in factors], **parameters)
    assert relative(merged.dense(torch.float64), dense.dense(torch.float64)) < 1e-5
    assert merged.is_factored == (method != "wudi" or parameters != {})
    if merged.right is not None:
        assert merged.right.shape[0] <= 2 + 8 + 5 + 4
    assert relative(sum(t.dense(torch.float64) for t in factors), dense.dense(torch.float64)) > 1e-3


# --- identities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "parameters"), CLOSED)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_equal_experts_from_their_mean_give_the_expert(
    method: str, parameters: dict[str, object], kind: str, count: int
) -> None:
    delta = make_deltas((30, 50), 1, kind)[0]
    assert relative(merged_delta(method, [delta] * count, init="mean", **parameters), delta) < 1e-6
    assert relative(merged_delta("wudi", [delta] * count, solver="exact", init="zero"), delta) < 1e-6


@pytest.mark.parametrize("init", ["sum", "mean", "zero"])
def test_the_exact_solver_gives_experts_without_overlap_back(init: str) -> None:
    """Adapters with row spaces of their own: the minimiser behaves as each of them on its inputs."""
    deltas = make_deltas((40, 60), 3, "adapter")
    merged = merged_delta("wudi", deltas, solver="exact", init=init)
    for delta in deltas:
        rows = torch.linalg.svd(delta)[2][:ADAPTER_RANK]
        assert relative(merged @ rows.T, delta @ rows.T) < 1e-5


@pytest.mark.parametrize(("method", "parameters"), ALL)
def test_the_order_of_experts_does_not_matter(method: str, parameters: dict[str, object]) -> None:
    deltas = make_deltas((30, 50), 4, "flat")
    first, second = merged_delta(method, deltas, **parameters), merged_delta(method, deltas[::-1], **parameters)
    assert relative(second, first) < 1e-6


@pytest.mark.parametrize(("method", "parameters"), CLOSED)
@pytest.mark.parametrize("factor", [1e-20, 2.0**-70, 1e6, 1e15])
def test_closed_forms_scale_with_the_deltas(method: str, parameters: dict[str, object], factor: float) -> None:
    deltas = make_deltas((30, 50), 3, "steep", std=1.0)
    scaled = merged_delta(method, [d * factor for d in deltas], **parameters)
    assert relative(scaled.double() / factor, merged_delta(method, deltas, **parameters)) < 1e-6


def test_weights_even_out_experts_of_different_size() -> None:
    """A is the same when one expert is a thousand times larger; its target is not."""
    deltas = make_deltas((30, 50), 3, "flat")
    deltas[0] *= 1e3
    published = reference.spectral_filter(deltas, 33, "exponential", 300.0)
    assert relative(merged_delta("swudi", deltas), published) < 1e-6


@pytest.mark.parametrize(("method", "parameters"), ALL)
def test_scaling_zero_is_the_base(method: str, parameters: dict[str, object]) -> None:
    assert not merged_delta(method, make_deltas((6, 8), 2, "flat"), scaling=0.0, **parameters).any()


@pytest.mark.parametrize(("method", "parameters"), ALL)
def test_the_same_input_gives_the_same_bytes_and_is_left_alone(method: str, parameters: dict[str, object]) -> None:
    deltas = make_deltas((30, 50), 3, "flat")
    assert torch.equal(merged_delta(method, deltas, **parameters), merged_delta(method, deltas, **parameters))
    assert all(torch.equal(d, e) for d, e in zip(deltas, make_deltas((30, 50), 3, "flat"), strict=True))


# --- awkward input ----------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(
    case=st.sampled_from(ALL),
    init=st.sampled_from(["mean", "sum", "zero"]),
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    ranks=st.lists(st.integers(0, 6), min_size=1, max_size=5),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    seed=st.integers(0, 999),
)
def test_any_shapes_and_ranks(
    case: tuple[str, dict[str, object]],
    init: str,
    shape: tuple[int, int],
    ranks: list[int],
    dtype: torch.dtype,
    seed: int,
) -> None:
    """Rank 0 is an expert that never touched the matrix; shapes go down to one entry. Dense equals factored."""
    method, parameters = case
    parameters = {**parameters, "init": init}
    if case == ("wudi", {}):
        parameters["iterations"] = 5
    factors = [TaskVector.low_rank(t.left.to(dtype), t.right.to(dtype)) for t in make_factors(shape, ranks, seed)]
    dense = [t.dense(torch.float64) for t in factors]
    solve = method_named(method).solve
    merged = solve([TaskVector.of(d) for d in dense], **parameters).dense(torch.float64)
    reference = solve(factors, **parameters).dense(torch.float64)
    assert merged.shape == reference.shape == shape
    assert relative_or_zero(merged - reference, [merged, *dense]) < 1e-5
    if not any(ranks):
        assert not merged.any()
    through_mergekit = merged_delta(method, [d.to(dtype) for d in dense], **parameters)
    assert through_mergekit.dtype == dtype
    assert bool(through_mergekit.isfinite().all())


def relative_or_zero(error: Tensor, sizes: list[Tensor]) -> float:
    return float(error.norm()) / max(1e-300, *(float(s.norm()) for s in sizes))


@pytest.mark.parametrize(("method", "parameters"), ALL)
def test_an_untouched_expert_counts_in_the_mean_only(method: str, parameters: dict[str, object]) -> None:
    deltas = make_deltas((20, 30), 2, "flat")
    with_a_third = merged_delta(method, [*deltas, torch.zeros(20, 30)], **parameters)
    assert relative(with_a_third, merged_delta(method, deltas, **parameters)) < 1e-6
    assert not merged_delta(method, [torch.zeros(20, 30)] * 2, **parameters).any()


@pytest.mark.parametrize("shape", [(48, 64), (64, 48), (40, 40)])
def test_adam_rests_where_only_one_expert_touched_the_matrix(shape: tuple[int, int]) -> None:
    """Its delta is the optimum: the gradient there is rounding, which Adam would normalise to steps of full length."""
    delta = make_deltas(shape, 1, "steep")[0]
    assert relative(merged_delta("wudi", [torch.zeros(shape), delta, torch.zeros(shape)]), delta) < 1e-6


@pytest.mark.parametrize("method", ["wudi", "swudi", "aswudi"])
@pytest.mark.parametrize("shape", [(7,), (2, 3, 4, 5)])
def test_what_is_not_a_matrix_gets_the_mean(method: str, shape: tuple[int, ...]) -> None:
    deltas = [randn(*shape, seed=i) for i in (1, 2, 3)]
    assert torch.allclose(merged_delta(method, deltas, init="zero"), sum(deltas) / 3, atol=1e-6)


# --- parameters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [
        ("wudi", "iterations", -1),
        ("wudi", "learning_rate", 0.0),
        ("wudi", "momentum", 1.0),
        ("wudi", "adam_beta2", 1.0),
        ("wudi", "adam_epsilon", 0.0),
        ("wudi", "rank_tolerance", 1.0),
        ("swudi", "exp_time", 0.0),
        ("wudi", "weights", "equal"),
        ("swudi", "rank_ratio", 0.0),
        ("swudi", "rank_ratio", 1.01),
        ("swudi", "tikhonov_alpha", 0.0),
        ("swudi", "rank_tolerance", -1.0),
        ("aswudi", "exp_time", float("inf")),
        ("aswudi", "rank_rule", "participation_cube"),
        ("aswudi", "rank_rule", "cumvar_"),
        ("aswudi", "rank_rule", "cumvar_0"),
        ("aswudi", "rank_rule", "cumvar_1.5"),
        ("aswudi", "rank_rule", "cumvar_nan"),
    ],
)
def test_values_out_of_range_are_named(method: str, name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{method}: {name} must be"):
        merged_delta(method, make_deltas((4, 5), 2, "flat"), **{name: value})


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [
        ("wudi", "solver", "sgd"),
        ("wudi", "init", "median"),
        ("wudi", "weights", "large"),
        ("swudi", "filter", "landweber"),
        ("swudi", "time", "late"),
        ("swudi", "rank_of", "rows"),
        ("aswudi", "filter", "wiener"),
    ],
)
def test_unknown_choices_are_refused(method: str, name: str, value: str) -> None:
    with pytest.raises(ValueError, match=value):
        merged_delta(method, make_deltas((4, 5), 2, "flat"), **{name: value})


# --- rank rules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["participation_sqrt", "participation", "entropy", "stable_rank", "cumvar_1", "none"])
@pytest.mark.parametrize("count", [1, 7, 80])
def test_equal_eigenvalues_all_count(rule: str, count: int) -> None:
    assert adaptive_rank(rule, torch.full((count,), 0.3, dtype=torch.float64), (100, 100)) == count


def test_a_share_of_equal_eigenvalues_is_that_share_of_them() -> None:
    """However the sums round."""
    lam = torch.full((30,), 0.3, dtype=torch.float64)
    assert [adaptive_rank(f"cumvar_{count / 30}", lam, (30, 30)) for count in range(1, 31)] == list(range(1, 31))


@settings(max_examples=60, deadline=None)
@given(
    eigenvalues=st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=30),  # 1 and 1e-5 are 1 or 2 by a rounding
    rule=st.sampled_from(RULES),
    rows=st.integers(1, 60),
)
def test_rules_are_their_definitions(eigenvalues: list[float], rule: str, rows: int) -> None:
    lam = torch.tensor(eigenvalues, dtype=torch.float64).sort(descending=True).values
    shape = torch.Size((rows, len(lam)))
    found = adaptive_rank(rule, lam, shape)
    published = reference.adaptive_rank(rule, lam, shape)
    assert found == published


@pytest.mark.parametrize("ratio", [0.01, 0.1005, 0.65, 0.85, 1.0, 1e-9])
def test_ratios_are_rounded_up_as_released(ratio: float) -> None:
    for size in range(1, 500):
        assert ratio_rank(ratio, size) == max(1, int((size * ratio + 0.999) // 1))
