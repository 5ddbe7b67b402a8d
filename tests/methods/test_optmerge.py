"""OptMerge against the released loop restated in float64, its identities, and awkward input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import random_deltas as made
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from mergekit import merge_methods
from random_deltas import make_deltas, randn, relative
from torch import Tensor

from mergekit_mm.methods import reference
from mergekit_mm.methods.optmerge import PRESETS
from mergekit_mm.numerics.descent import descend
from mergekit_mm.numerics.eigen import gram
from mergekit_mm.numerics.filters import largest_eigenvalue, largest_eigenvalue_bound
from mergekit_mm.numerics.task_vector import TaskVector

SGD = ["lora", "modality"]
SHAPES = [(48, 64), (64, 48), (40, 40)]


def merge(base: Tensor, experts: Sequence[Tensor], **parameters: object) -> Tensor:
    return merge_methods.merge_tensors(
        [base, *experts], "optmerge", base_index=0, parameters=parameters, name="layers.0.up_proj.weight"
    )


def merged_delta(deltas: Sequence[Tensor], **parameters: object) -> Tensor:
    return made.merged_delta("optmerge", deltas, **parameters)


# --- the released loop ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("preset", list(PRESETS))
@pytest.mark.parametrize("kind", ["adapter", "flat", "steep"])
@pytest.mark.parametrize(("shape", "count"), [(SHAPES[0], 3), (SHAPES[1], 5), (SHAPES[2], 2)])
def test_presets_equal_the_released_loop(preset: str, kind: str, shape: tuple[int, int], count: int) -> None:
    deltas = make_deltas(shape, count, kind)
    expected = reference.optmerge(deltas, preset)
    assert relative(merged_delta(deltas, preset=preset), expected) < 1e-6
    assert relative(merged_delta([d.double() for d in deltas], preset=preset), expected) < 1e-10
    start = sum(deltas) / (1 if preset == "full" else count)
    assert relative(start, expected) > 1e-2, "the start would pass too: this test could not fail"


@pytest.mark.slow
def test_single_precision_from_leading_eigenpairs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of real matrices: float32, and a third of the eigenpairs of a Gram matrix large enough for a subset."""
    monkeypatch.setattr("mergekit_mm.numerics.descent._DOUBLE_UP_TO", 0)
    deltas = make_deltas((264, 280), 3, "steep")
    assert relative(merged_delta(deltas), reference.optmerge(deltas, "lora")) < 1e-6


@pytest.mark.parametrize("preset", SGD)
@pytest.mark.parametrize("shape", [(264, 280), (300, 264), (264, 900)])
def test_a_cut_between_all_but_equal_singular_values(
    preset: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last direction kept and the first one dropped differ by a ten-thousandth, and rounding mixes neighbours."""
    monkeypatch.setattr("mergekit_mm.numerics.descent._DOUBLE_UP_TO", 0)
    kept, deltas = PRESETS[preset].rank(shape, 3), []
    for delta in make_deltas(shape, 3, "flat"):
        u, s, vh = torch.linalg.svd(delta.double(), full_matrices=False)
        s[kept] = s[kept - 1] * (1 - 1e-4)
        deltas.append(((u * s) @ vh).float())
    expected = descend([TaskVector.of(d.double()) for d in deltas], PRESETS[preset]).left
    assert relative(merged_delta(deltas, preset=preset), expected) < 1e-6


@pytest.mark.parametrize("preset", list(PRESETS))
@pytest.mark.parametrize("kind", ["adapter", "steep"])
@pytest.mark.parametrize("shape", SHAPES)
def test_single_precision_everywhere(
    preset: str, kind: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    deltas = make_deltas(shape, 3, kind)
    expected = merged_delta([d.double() for d in deltas], preset=preset)
    monkeypatch.setattr("mergekit_mm.numerics.descent._DOUBLE_UP_TO", 0)
    assert relative(merged_delta(deltas, preset=preset), expected) < (5e-6 if preset == "full" else 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "dtype"), [("flat", torch.float32), ("adapter", torch.float64)])
def test_a_long_filter_on_a_wide_matrix_is_float32_where_that_is_enough(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows stay rows there, so that only the root of the filter's slope multiplies rounding; a wide spectrum is not."""
    monkeypatch.setattr("mergekit_mm.numerics.descent._DOUBLE_UP_TO", 0)
    deltas = make_deltas((120, 420), 3, kind)
    merged = descend([TaskVector.of(d) for d in deltas], PRESETS["modality"]).left
    assert merged.dtype == dtype
    assert relative(merged, reference.optmerge(deltas, "modality")) < 1e-6


def test_the_proxy_of_the_paper() -> None:
    deltas = make_deltas((48, 64), 3, "flat")
    expected = reference.optmerge(deltas, "full", centered_proxy=True)
    assert relative(merged_delta(deltas, preset="full", proxy="centered"), expected) < 1e-6
    assert relative(expected, reference.optmerge(deltas, "full")) > 1e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_solved_in_single(dtype: torch.dtype) -> None:
    """Steps taken in bfloat16 would return the mean, which here differs from the answer in most entries."""
    base = (randn(64, 96, seed=9) * 1e-2).to(dtype)
    experts = [(base.float() + d).to(dtype) for d in make_deltas((64, 96), 4, "adapter", std=1e-2)]
    deltas = [e.double() - base.double() for e in experts]
    expected = (base.double() + reference.optmerge(deltas, "lora")).to(dtype)
    merged = merge(base, experts)
    assert merged.dtype == dtype
    assert float((merged == expected).double().mean()) > 0.999
    stalled = (base.double() + sum(deltas) / 4).to(dtype)
    assert float((stalled == expected).double().mean()) < 0.5


# --- identities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5])
def test_equal_experts_give_the_expert(count: int) -> None:
    delta = make_deltas((30, 50), 1, "flat")[0]
    assert relative(merged_delta([delta] * count), delta) < 1e-6


@pytest.mark.parametrize("preset", ["lora", "full"])
def test_a_single_expert_comes_back_exactly(preset: str) -> None:
    delta = make_deltas((30, 50), 1, "flat")[0]
    assert torch.equal(merged_delta([delta], preset=preset), delta)


@pytest.mark.parametrize("preset", list(PRESETS))
def test_the_order_of_experts_does_not_matter(preset: str) -> None:
    deltas = make_deltas((30, 50), 4, "flat")
    assert relative(merged_delta(deltas[::-1], preset=preset), merged_delta(deltas, preset=preset)) < 1e-6


@pytest.mark.parametrize("preset", list(PRESETS))
def test_scaling_zero_is_the_base_bit_for_bit(preset: str) -> None:
    base = randn(30, 50).to(torch.bfloat16)
    base[0, 0] = -0.0
    merged = merge(base, [base + 1, base - 2], preset=preset, scaling=0.0)
    assert torch.equal(merged.view(torch.int16), base.view(torch.int16))
    assert merged.data_ptr() != base.data_ptr()


def test_scaling_multiplies_the_merged_delta() -> None:
    base, deltas = randn(30, 50), make_deltas((30, 50), 3, "flat", std=0.1)
    experts = [base + d for d in deltas]
    assert relative(merge(base, experts, scaling=0.3) - base, 0.3 * (merge(base, experts) - base)) < 1e-5


@pytest.mark.parametrize("preset", SGD)
@pytest.mark.parametrize("factor", [2.0**-70, 1e-12, 1e6, 2.0**60])
def test_sgd_presets_are_equivariant_to_the_scale_of_the_deltas(preset: str, factor: float) -> None:
    deltas = make_deltas((30, 50), 3, "steep", std=1.0)
    scaled = merged_delta([d * factor for d in deltas], preset=preset)
    assert relative(scaled / factor, merged_delta(deltas, preset=preset)) < 1e-6


@pytest.mark.parametrize("preset", list(PRESETS))
def test_the_same_input_gives_the_same_bytes_and_is_left_alone(preset: str) -> None:
    deltas = make_deltas((30, 50), 3, "flat")
    first, second = merged_delta(deltas, preset=preset), merged_delta(deltas, preset=preset)
    assert torch.equal(first, second)
    assert all(torch.equal(d, e) for d, e in zip(deltas, make_deltas((30, 50), 3, "flat"), strict=True))


# --- factors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", list(PRESETS))
@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (12, 50)])
@pytest.mark.parametrize("double", [True, False])
def test_factors_give_what_their_products_give(
    preset: str, shape: tuple[int, int], double: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    factors = [(randn(shape[0], r, seed=r), randn(r, shape[1], seed=r + 20) * 1e-3) for r in (2, 8, 5)]
    factors[1][0][:, 3:] = 0  # a rank that training never used
    factors.append((torch.zeros(shape[0], 4), randn(4, shape[1])))  # an adapter still at its initial value
    expected = descend([TaskVector.of(b.double() @ a.double()) for b, a in factors], PRESETS[preset]).dense(
        torch.float64
    )
    if not double:
        monkeypatch.setattr("mergekit_mm.numerics.descent._DOUBLE_UP_TO", 0)
    merged = descend([TaskVector.low_rank(b, a) for b, a in factors], PRESETS[preset])
    assert relative(merged.dense(torch.float64), expected) < 1e-5
    assert merged.is_factored == (preset in SGD)
    if merged.right is not None:
        assert merged.right.shape[0] <= 2 + 8 + 5 + 4


# --- relative time ----------------------------------------------------------------------------------------------------


def relative_time_loop(deltas: Sequence[Tensor], preset: str, iterations: int = 300) -> Tensor:
    """Heavy-ball steps of lr / (largest eigenvalue of A) on the gradient 2 (x A - B), in float64 from full SVDs."""
    constants, rank = PRESETS[preset], PRESETS[preset].rank(deltas[0].shape, len(deltas))
    x = torch.stack(list(deltas)).double().mean(0)
    hessian, right_side = x.new_zeros(x.shape[1], x.shape[1]), torch.zeros_like(x)
    for delta in (d.double() for d in deltas):
        u, s, vh = torch.linalg.svd(delta, full_matrices=False)
        target = (u[:, :rank] * s[:rank]) @ vh[:rank]
        proxy = delta if preset == "modality" else target
        hessian = hessian + proxy.T @ proxy / delta.square().sum()
        right_side = right_side + target @ proxy.T @ proxy / delta.square().sum()
    rate = constants.learning_rate / float(torch.linalg.eigvalsh(hessian)[-1])
    velocity = torch.zeros_like(x)
    for _ in range(iterations):
        velocity = constants.momentum * velocity + 2 * (x @ hessian - right_side)
        x = x - rate * velocity
    return x


@pytest.mark.parametrize("preset", SGD)
@pytest.mark.parametrize("kind", ["adapter", "flat", "steep"])
@pytest.mark.parametrize("shape", [*SHAPES, (40, 400)])
def test_relative_time_divides_the_learning_rate_by_the_largest_eigenvalue(
    preset: str, kind: str, shape: tuple[int, int]
) -> None:
    deltas, steps = make_deltas(shape, 3, kind), 300 if preset == "lora" else 10  # far from the end, where both agree
    expected = relative_time_loop(deltas, preset, steps)
    assert relative(merged_delta(deltas, preset=preset, time="relative", iterations=steps), expected) < 1e-6
    doubled = merged_delta([d.double() for d in deltas], preset=preset, time="relative", iterations=steps)
    assert relative(doubled, expected) < 1e-10
    assert relative(merged_delta(deltas, preset=preset, iterations=steps), expected) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("preset", SGD)
@pytest.mark.parametrize("kind", ["flat", "steep"])
def test_relative_time_of_a_large_matrix(preset: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 sums and an iterative eigenvalue, as on matrices of real models."""
    monkeypatch.setattr("mergekit_mm.numerics.descent._DOUBLE_UP_TO", 0)
    deltas = make_deltas((264, 300), 3, kind)
    merged = merged_delta(deltas, preset=preset, time="relative")
    assert relative(merged, relative_time_loop(deltas, preset)) < 1e-6


@pytest.mark.parametrize("preset", SGD)
@pytest.mark.parametrize("shape", [(60, 90), (90, 60)])
def test_relative_time_is_the_same_from_factors(preset: str, shape: tuple[int, int]) -> None:
    setting = replace(PRESETS[preset], time="relative")
    pairs = [(randn(shape[0], r, seed=r).double(), randn(r, shape[1], seed=r + 20).double()) for r in (2, 8, 5)]
    merged = descend([TaskVector.low_rank(b, a) for b, a in pairs], setting)
    assert merged.is_factored
    assert (
        relative(merged.dense(torch.float64), descend([TaskVector.of(b @ a) for b, a in pairs], setting).left) < 1e-10
    )


def disjoint_flat_deltas(rank: int) -> list[Tensor]:
    """Two experts of `rank` equal singular values each, in row spaces orthogonal to each other."""
    left, right = (torch.linalg.qr(randn(160, 160, seed=s).double()).Q for s in (1, 2))
    return [left[:, part] @ right[part] for part in (slice(0, rank), slice(rank, 2 * rank))]


def test_relative_time_makes_different_ranks_progress_alike() -> None:
    """The optimum here is the sum, each expert whole in its own subspace; the start is the mean."""

    def progress(rank: int, time: str) -> float:
        deltas = disjoint_flat_deltas(rank)
        mean = torch.stack(deltas).mean(0)  # of the way to the optimum one half lies behind, one half ahead
        return float(((merged_delta(deltas, time=time) - mean) * mean).sum() / mean.square().sum())

    assert progress(8, "relative") == pytest.approx(progress(64, "relative"), rel=1e-10)
    assert progress(8, "absolute") > 5 * progress(64, "absolute")
    assert 0.4 < progress(8, "relative") < 0.5  # 1 - e_T(1) of 300 steps of 1e-4 at momentum 0.9


def test_relative_time_stays_at_the_start_where_nothing_curves() -> None:
    """Equal experts have no centered part: A is zero, and so is its largest eigenvalue."""
    delta = make_deltas((30, 50), 1, "flat")[0]
    merged = merged_delta([delta] * 3, proxy="centered", time="relative")
    assert relative(merged, delta) < 1e-6


def test_relative_time_is_refused_for_adam() -> None:
    with pytest.raises(ValueError, match="time must be absolute with the adam optimizer; got relative"):
        merged_delta(make_deltas((4, 5), 2, "flat"), preset="full", time="relative")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [1, 7, 500])
def test_the_largest_eigenvalue(dtype: torch.dtype, rank: int) -> None:
    matrix = gram(randn(500, rank, seed=rank).to(dtype))
    exact = float(torch.linalg.eigvalsh(matrix.double())[-1])
    assert largest_eigenvalue(matrix) == pytest.approx(exact, rel=1e-6 if dtype == torch.float32 else 1e-13)
    assert exact <= largest_eigenvalue_bound(matrix) < 1.5 * exact
    assert largest_eigenvalue(torch.zeros(300, 300, dtype=dtype)) == 0


# --- awkward input ----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    ranks=st.lists(st.integers(0, 12), min_size=1, max_size=5),
    preset=st.sampled_from(list(PRESETS)),
    scale=st.sampled_from([1e-4, 1e-2]),
    seed=st.integers(0, 999),
)
def test_any_shapes_and_ranks(shape: tuple[int, int], ranks: list[int], preset: str, scale: float, seed: int) -> None:
    """Rank 0 is an expert that never touched the matrix; shapes go down to one row, one column, one entry."""
    deltas = [
        randn(shape[0], r, seed=seed + i) @ randn(r, shape[1], seed=seed + i + 500) * scale for i, r in enumerate(ranks)
    ]
    # With one live expert the start is the optimum of `full`, and the loop an amplifier of its own rounding.
    assume(preset != "full" or sum(r > 0 for r in ranks) != 1)
    merged = merged_delta(deltas, preset=preset, iterations=20)
    kept = int(min(shape) / 5) if preset == "modality" else int(min(shape) / len(ranks))
    expected = reference.optmerge(deltas, preset, iterations=20) if kept else torch.stack(deltas).double().mean(0)
    assert merged.dtype == torch.float32
    assert torch.allclose(merged.double(), expected, rtol=0, atol=1e-6 * scale * max(shape))


@pytest.mark.parametrize("preset", list(PRESETS))
def test_untouched_matrices(preset: str) -> None:
    base = randn(20, 30)
    assert torch.equal(merge(base, [base, base, base], preset=preset), base)
    deltas = [*make_deltas((20, 30), 2, "flat"), torch.zeros(20, 30)]
    assert relative(merged_delta(deltas, preset=preset), reference.optmerge(deltas, preset)) < 1e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_adam_rests_where_only_one_expert_touched_the_matrix(shape: tuple[int, int]) -> None:
    """Its delta is the optimum: the gradient there is rounding, which Adam would normalise to steps of full length."""
    delta = make_deltas(shape, 1, "steep")[0]
    merged = merged_delta([torch.zeros(shape), delta, torch.zeros(shape)], preset="full")
    assert relative(merged, delta) < 1e-6


@pytest.mark.parametrize("shape", [(), (7,), (2, 3, 4, 5)])
def test_what_is_not_a_matrix_gets_the_mean(shape: tuple[int, ...]) -> None:
    base, deltas = randn(*shape), [randn(*shape, seed=i) for i in (1, 2, 3)]
    merged = merge(base, [base + d for d in deltas], scaling=0.5, preset="full")
    assert torch.allclose(merged, base + 0.5 * sum(deltas) / 3, atol=1e-6)


@pytest.mark.parametrize("preset", list(PRESETS))
def test_a_stack_of_matrices_is_solved_one_by_one(preset: str) -> None:
    stacks = [torch.stack(make_deltas((20, 30), 3, "flat", seed=s)) for s in (1, 2)]
    merged = merged_delta(stacks, preset=preset)
    for i in range(3):
        assert torch.equal(merged[i], merged_delta([s[i] for s in stacks], preset=preset))


@pytest.mark.parametrize("shape", [(0,), (0, 5), (3, 0, 5)])
def test_empty_tensors_pass(shape: tuple[int, ...]) -> None:
    assert merge(torch.zeros(shape), [torch.zeros(shape)] * 2).shape == shape


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", [0, 2])
@pytest.mark.parametrize("scaling", [1.0, 0.0])
def test_a_broken_input_is_named(bad: float, where: int, scaling: float) -> None:
    tensors = [randn(4, 5, seed=i).to(torch.bfloat16) for i in range(3)]
    tensors[where][1, 1] = bad
    with pytest.raises(ValueError, match=rf"'layers\.3\.q_proj\.weight' of input expert-{where} holds NaN or Inf"):
        merge_methods.merge_tensors(
            tensors,
            "optmerge",
            base_index=0,
            ids=["expert-0", "expert-1", "expert-2"],
            name="layers.3.q_proj.weight",
            parameters={"scaling": scaling},
        )


def test_mixed_dtypes_give_the_widest() -> None:
    base = randn(20, 30).to(torch.bfloat16)
    experts = [(base + randn(20, 30, seed=1)).half(), base.float() + randn(20, 30, seed=2)]
    merged = merge(base, experts)
    assert merged.dtype == torch.float32
    assert torch.equal(merged, merge(base.float(), [e.float() for e in experts]))


def test_parameters_that_track_gradients_are_accepted() -> None:
    base = torch.nn.Parameter(randn(10, 12))
    assert not merge(base, [base + 1, base * 2]).requires_grad


def test_a_divergent_learning_rate_is_an_error_not_a_checkpoint() -> None:
    with pytest.raises(ValueError, match=r"layers\.0\.up_proj\.weight.*diverged.*learning_rate"):
        merged_delta(make_deltas((20, 30), 3, "steep"), learning_rate=1e6)


# --- parameters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", list(PRESETS))
def test_every_constant_of_a_preset_can_be_given(preset: str) -> None:
    deltas = make_deltas((30, 50), 3, "flat")
    spelled_out = {name: value for name, value in vars(PRESETS[preset]).items() if value is not None}
    if preset != "modality":
        spelled_out["rank_fraction"] = 1 / 3
    for other in PRESETS:
        assert torch.equal(merged_delta(deltas, preset=other, **spelled_out), merged_delta(deltas, preset=preset))


def test_ranks_are_rounded_down_as_released() -> None:
    for size in range(1, 500):
        for count in range(1, 12):
            assert PRESETS["lora"].rank((size, 500), count) == int(size / count)
            assert PRESETS["modality"].rank((500, size), count) == int(size / 5)


@pytest.mark.parametrize("init", ["mean", "sum", "zero"])
def test_no_steps_return_the_start(init: str) -> None:
    deltas = make_deltas((30, 50), 3, "flat")
    factor = {"mean": 1 / 3, "sum": 1.0, "zero": 0.0}[init]
    for preset in PRESETS:
        merged = merged_delta(deltas, preset=preset, init=init, iterations=0)
        assert torch.allclose(merged, factor * sum(deltas), atol=1e-8)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rank_fraction", 0.0),
        ("rank_fraction", 1.5),
        ("iterations", -1),
        ("learning_rate", 0.0),
        ("momentum", 1.0),
        ("adam_beta2", 1.0),
        ("adam_epsilon", 0.0),
        ("scaling", float("nan")),
    ],
)
def test_values_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        merged_delta(make_deltas((4, 5), 2, "flat"), **{name: value})


@pytest.mark.parametrize(("name", "value"), [("preset", "fast"), ("init", "median"), ("time", "own")])
def test_unknown_choices_are_refused(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=value):
        merged_delta(make_deltas((4, 5), 2, "flat"), **{name: value})
