"""RobustMerge: against its definition, its identities, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from end_to_end import assert_close, checkpoint, command, experts, merge, plugin, refused, tensors, with_method, written
from peft_adapters import factors, pair, plus, written_adapter
from random_deltas import make_factors, merged_delta, relative

from mergekit_mm.errors import MergeError
from mergekit_mm.methods import method_named, reference
from mergekit_mm.numerics.task_vector import TaskVector

SOLVE = method_named("robust_merge").solve
MODULES = {f"model.language_model.layers.{i}.self_attn.q_proj": (64, 64) for i in (0, 1)}


def dense(task_vector: TaskVector) -> torch.Tensor:
    return task_vector.dense(torch.float64)


def definition(given: list[TaskVector], density: float = 0.2) -> torch.Tensor:
    return reference.robust_merge([(t.left, t.right) for t in given if t.right is not None], density)


@pytest.mark.parametrize("shape", [(40, 60), (60, 40)])
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("density", [0.2, 0.05, 1.0])
def test_it_is_its_definition(shape: tuple[int, int], count: int, density: float) -> None:
    given = make_factors(shape, [4] * count)
    merged = SOLVE(given, density=density)
    assert merged.is_factored
    assert merged.left.shape[1] == 4
    assert relative(dense(merged), definition(given, density)) < 1e-4  # of the entries below 1e-5 of the largest
    assert relative(dense(SOLVE(given, density=0.5)), definition(given, density)) > 1e-2


def test_rows_of_which_nothing_is_kept() -> None:
    given = make_factors((40, 60), [4, 4])
    assert given[0].right is not None
    given[0].right[2] *= 1e-3
    assert relative(dense(SOLVE(given)), definition(given)) < 1e-6
    given[0].right[2] = 0.0
    assert bool(dense(SOLVE(given)).isfinite().all())


def test_four_rows_of_five_share_one_weight() -> None:
    """Of ten rows the two that lose most have weights of their own, as in the released code."""
    small = torch.arange(1.0, 11.0).double() / 100  # of row j all entries but the one that is kept
    diagonal = torch.eye(10, 12).double()
    given = [
        TaskVector.low_rank(diagonal.T, diagonal + small[:, None] * (1 - diagonal)),
        TaskVector.low_rank(-diagonal.T, diagonal),  # loses nothing
    ]
    lost = 1 + 11 * small.clamp_min(0.09)
    expected = 8 * ((lost - 1) / (lost + 1))
    merged = dense(SOLVE(given, density=1 / 12))
    assert relative(merged, diagonal.T @ (expected[:, None] * diagonal)) < 1e-12


def test_an_unused_row_has_no_say() -> None:
    given = make_factors((20, 30), [5, 5])
    assert given[0].right is not None
    assert given[1].right is not None
    given[0].right[4] = 0.0
    fewer = [TaskVector.low_rank(t.left[:, :4], t.right[:4]) for t in given if t.right is not None]
    alone = 4 * given[1].left[:, 4:].double() @ given[1].right[4:].double()
    assert relative(dense(SOLVE(given, density=1.0)), dense(SOLVE(fewer, density=1.0)) + alone) < 1e-4


@pytest.mark.parametrize("count", [1, 3])
def test_equal_adapters_that_are_kept_whole(count: int) -> None:
    """Both factors are doubled, and the right ones are added up."""
    given = make_factors((20, 30), [4])
    assert relative(dense(SOLVE(given * count, density=1.0)), 4 * count * dense(given[0])) < 1e-4


def test_order_size_and_an_adapter_without_a_part_in_it() -> None:
    given = make_factors((20, 30), [4, 4, 4])
    merged = dense(SOLVE(given))
    assert relative(dense(SOLVE(given[::-1])), merged) < 1e-12
    halves = [TaskVector.low_rank(t.left / 2, t.right) for t in given if t.right is not None]
    assert relative(2 * dense(SOLVE(halves)), merged) < 1e-12
    assert torch.equal(dense(SOLVE([*given, *make_factors((20, 30), [0])])), merged)
    nothing = SOLVE(make_factors((20, 30), [0, 0]))
    assert nothing.shape == (20, 30)
    assert not dense(nothing).any()
    assert torch.equal(dense(SOLVE(given)), merged), "the inputs were changed"


def test_svc_and_a_size() -> None:
    given = make_factors((20, 30), [4, 4])
    calibrated = SOLVE(given, svc=True)
    expected = reference.calibrated(dense(SOLVE(given)), [dense(t) for t in given], rank=4)
    assert relative(dense(calibrated), expected) < 1e-6


@pytest.mark.parametrize(("density", "told"), [(0.0, "density"), (1.5, "density")])
def test_densities_out_of_range(density: float, told: str) -> None:
    with pytest.raises(MergeError, match=f"robust_merge: {told} must be"):
        SOLVE(make_factors((4, 5), [2]), density=density)


def test_whole_matrices_and_several_ranks() -> None:
    with pytest.raises(MergeError, match="a whole matrix has none"):
        merged_delta("robust_merge", [torch.ones(4, 5)])
    with pytest.raises(MergeError, match=r"one rank.*2, 3"):
        SOLVE(make_factors((4, 5), [2, 3]))


# --- through the commands ---------------------------------------------------------------------------------------------


def adapters(base: Path, *ranks: int) -> list[Path]:
    found = [factors(MODULES, rank, seed) for seed, rank in enumerate(ranks)]
    return [plus(base, written_adapter(base, each)) for each in found]


@pytest.mark.slow
def test_a_merge_and_an_adapter() -> None:
    base = checkpoint("llava")
    config = {**with_method("robust_merge", base, adapters(base, 3, 3)), "parameters": {"scaling": 0.5}}
    got, before = merge(config).tensors, tensors(base)
    given = [factors(MODULES, 3, seed) for seed in (0, 1)]
    for index, module in enumerate(MODULES):
        expected = 0.5 * reference.robust_merge([(2 * b, a) for b, a in (each[module] for each in given)])
        name = f"language_model.model.layers.{index}.self_attn.q_proj.weight"
        torch.testing.assert_close(got[name].double() - before[name].double(), expected, rtol=0, atol=1e-5)
    out, result = command("lora", config)
    assert result.exit_code == 0, result.output
    put_on = with_method("task_arithmetic", base, [plus(base, out)])
    put_on["models"][0]["parameters"] = {"weight": 1.0}
    assert_close(merge(put_on).tensors, got, 1e-5)


def test_inputs_that_it_cannot_merge_are_refused_before() -> None:
    base = checkpoint("llava")
    for inputs, told in (
        (experts("llava"), ["robust_merge is for adapters of"]),
        ([plus(base, adapter) for adapter, _ in pair("llava")], ["one rank"]),
    ):
        config = with_method("robust_merge", base, inputs)
        refused(config, *told)
        said = plugin("check", written(config))
        assert said.exit_code == 1
        assert told[0] in said.output
