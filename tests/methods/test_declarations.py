"""What a method declares is what it does; and the delta that it makes of tensors of any rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from random_deltas import make_deltas, make_factors, randn

from mergekit_mm.errors import MergeError
from mergekit_mm.methods import catalogue, method_named
from mergekit_mm.methods.apply import TaskVectorMethod, task_vector_method
from mergekit_mm.methods.optmerge import PRESETS
from mergekit_mm.numerics.task_vector import TaskVector

METHODS = [method.name for method in catalogue() if not method.needs_factors]  # those have a file of their own
CHOICES = [
    *((name, {}) for name in METHODS),
    *(("optmerge", {"preset": preset}) for preset in PRESETS),
    *(("optmerge", {"preset": "lora", "optimizer": optimizer}) for optimizer in ("sgd", "adam")),
    *(("optmerge", {"preset": "full", "optimizer": optimizer}) for optimizer in ("sgd", "adam")),
    *(("optmerge", {"proxy": proxy, "target": "centered"}) for proxy in ("truncated", "full", "centered")),
    *(("wudi", {"solver": solver}) for solver in ("adam", "exact")),
    ("wudi", {"solver": "exact", "weights": "equal"}),
    ("swudi", {"filter": "tikhonov", "rank_of": "numerical"}),
    ("aswudi", {"rank_rule": "none"}),
    ("tsv", {"rank_fraction": 1.0}),
    ("iso_cts", {"common_fraction": 1.0}),
]


@pytest.mark.parametrize(("name", "parameters"), CHOICES)
@pytest.mark.parametrize("ranks", [[2, 8, 5], [3], [1, 0, 1], [0, 0]])
def test_factors_are_kept_where_the_method_says_so(name: str, parameters: dict[str, object], ranks: list[int]) -> None:
    method = method_named(name)
    solved = method.solve(make_factors((12, 20), ranks), **parameters)
    assert solved.is_factored == method.keeps_factors(parameters)
    assert method.keeps_factors({**parameters, "scaling": 0.3}) == solved.is_factored


@pytest.mark.parametrize("name", METHODS)
def test_one_dense_task_vector_makes_the_result_dense(name: str) -> None:
    mixed = [*make_factors((12, 20), [2, 3]), TaskVector.of(make_deltas((12, 20), 1, "flat")[0])]
    assert not method_named(name).solve(mixed).is_factored


def first(task_vectors: Sequence[TaskVector], limit: float = 1.0, kept: bool = False) -> TaskVector:
    return task_vectors[0]


def declared(
    keeps_factors: bool | Callable[..., bool] = False, validate: Callable[..., None] | None = None
) -> TaskVectorMethod:
    return task_vector_method("first", "First", "", keeps_factors=keeps_factors, validate=validate)(first)


def test_a_declaration_gets_all_parameters_by_name() -> None:
    seen: list[dict[str, object]] = []

    def keeps(**parameters: object) -> bool:
        seen.append(parameters)
        return bool(parameters["kept"])

    method = declared(keeps, lambda **parameters: seen.append(parameters))
    assert not method.keeps_factors({})
    assert method.keeps_factors({"kept": True, "scaling": 2.0})
    method.validate(limit=0.5, scaling=2.0)
    assert seen == [{"limit": 1.0, "kept": False}, {"limit": 1.0, "kept": True}, {"limit": 0.5, "kept": False}]


def test_a_method_that_declares_nothing_keeps_no_factors_and_accepts_every_value() -> None:
    method = declared()
    assert not method.keeps_factors({"kept": True})
    method.validate(limit=-1.0)
    with pytest.raises(MergeError, match="first: scaling must be finite; got nan"):
        method.validate(scaling=float("nan"))


@pytest.mark.parametrize("name", METHODS)
def test_the_defaults_are_valid(name: str) -> None:
    method_named(name).validate()


# --- the delta of a tensor of any rank --------------------------------------------------------------------------------


def between(shape: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> tuple[torch.Tensor, list[TaskVector]]:
    base = (randn(*shape, seed=9) * 0.02).to(dtype)
    return base, [TaskVector.between((base + 1e-2 * randn(*shape, seed=i)).to(dtype), base) for i in range(3)]


def stacks(ranks: Sequence[int], shape: tuple[int, int, int] = (4, 12, 20)) -> list[TaskVector]:
    count, rows, columns = shape
    return [
        TaskVector.low_rank(randn(count, rows, r, seed=i), randn(count, r, columns, seed=i + 7) * 1e-3)
        for i, r in enumerate(ranks)
    ]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", [(), (7,), (6, 9), (3, 6, 9), (2, 3, 4, 5), (0, 5), (3, 0, 5), (0, 2, 2)])
def test_a_merge_is_the_base_and_the_delta(name: str, shape: tuple[int, ...]) -> None:
    base, task_vectors = between(shape)
    delta = method_named(name).delta(task_vectors, "a tensor")
    assert delta.shape == shape
    assert not delta.is_factored
    merged = method_named(name).merge(base, task_vectors, "a tensor", scaling=0.7)
    assert merged.dtype == base.dtype
    assert torch.equal(merged, delta.added_to(base.float(), 0.7).to(base.dtype))


@pytest.mark.parametrize("name", METHODS)
def test_a_stack_of_factors_stays_factored_where_a_matrix_does(name: str) -> None:
    method, base = method_named(name), randn(4, 12, 20)
    task_vectors = stacks([2, 5, 3])
    task_vectors[1].left[2] = 0.0
    delta = method.delta(task_vectors, "a stack")
    assert delta.is_factored == method.keeps_factors({})
    for index, matrix in enumerate(delta.matrices()):
        alone = method.solve([list(t.matrices())[index] for t in task_vectors])
        torch.testing.assert_close(matrix.dense(torch.float64), alone.dense(torch.float64), rtol=0, atol=1e-9)
    merged = method.merge(base, task_vectors, "a stack", scaling=0.7)
    torch.testing.assert_close(merged, delta.added_to(base, 0.7), rtol=0, atol=1e-6)


def test_a_stack_whose_matrices_give_factors_of_different_rank_and_a_dense_one() -> None:
    def pick(task_vectors: Sequence[TaskVector], dense: bool = False) -> TaskVector:
        left, right = task_vectors[0].left, task_vectors[0].right
        assert right is not None
        used = int(left.any(dim=0).sum())
        if dense and used == 3:
            return TaskVector.of(task_vectors[0].dense(torch.float64))
        return TaskVector.low_rank(left[:, :used], right[:used])

    method, given = task_vector_method("pick", "Pick", "")(pick), stacks([3])
    given[0].left[0, :, 1:] = 0.0
    given[0].left[1] = 0.0
    for dense in (False, True):
        delta = method.delta(given, "a stack", dense=dense)
        assert delta.is_factored == (not dense)
        assert torch.allclose(delta.dense(torch.float32), given[0].dense(torch.float32), atol=1e-7)
    assert method.delta(given, "a stack", dense=True).left.dtype == torch.float32


@pytest.mark.parametrize("shape", [(6, 9), (3, 6, 9), (2, 3, 4, 5)])
def test_a_kernel_is_no_matrix(shape: tuple[int, ...]) -> None:
    _, task_vectors = between(shape)
    delta = method_named("iso_c").delta(task_vectors, "a kernel", as_vector=True)
    mean = sum(t.dense(torch.float32) for t in task_vectors) / 3
    assert torch.equal(delta.dense(torch.float32), mean)


@pytest.mark.parametrize("shape", [(20, 30), (3, 20, 30)])
def test_a_delta_that_diverges_is_an_error(shape: tuple[int, ...]) -> None:
    _, task_vectors = between(shape, torch.float32)
    with pytest.raises(MergeError, match=r"Merging tensor 'a' diverged.*learning_rate"):
        method_named("optmerge").delta(task_vectors, "tensor 'a'", learning_rate=1e6)


def test_a_mean_that_leaves_the_range_is_an_error() -> None:
    far = [TaskVector.between(torch.full((5,), 3e38), torch.full((5,), -3e38))]
    with pytest.raises(MergeError, match=r"Merging tensor 'a' gives NaN or Inf.*float32"):
        method_named("tsv").delta(far, "tensor 'a'")
