"""mergekit's weighted sums of large tensors, which are computed in blocks: mergekit's bits, and less memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mergekit.architecture import WeightInfo
from mergekit.common import ImmutableMap, ModelReference
from mergekit.merge_methods import merge_tensors
from mergekit.merge_methods.task_adapter import TensorDictWrapper
from torch.utils._python_dispatch import TorchDispatchMode

from mergekit_mm.errors import MergeError
from mergekit_mm.tasks.blocks import BLOCK
from mergekit_mm.tasks.merging import MergeTensors

MODELS = [ModelReference.model_validate(f"model-{number}") for number in range(6)]
WEIGHTS = [0.3, -0.7, 0.11, 0.9, 0.2, 0.35]
LINEAR: dict[str, Any] = {"normalize": True}
ARITHMETIC: dict[str, Any] = {"normalize": False, "lambda": 0.9, "int8_mask": False, "rescale": False}
SHAPES = [
    (2 * BLOCK - 1,),  # too small for two blocks
    (3 * BLOCK + 1,),
    (577, 1125),
    (3, 401, 513),
]


def random(shape: tuple[int, ...], count: int, *dtypes: torch.dtype) -> list[torch.Tensor]:
    torch.manual_seed(0)
    tensors = [torch.randn(shape) * 10 ** (number - 2) for number in range(count)]
    return [tensor.to(dtypes[number % len(dtypes)]) for number, tensor in enumerate(tensors)]


def merged(method: str, tensors: list[torch.Tensor], parameters: dict[str, Any]) -> torch.Tensor:
    """By the task of a merge."""
    models = MODELS[: len(tensors)]
    own = {model: {"weight": weight, "density": 1.0} for model, weight in zip(models, WEIGHTS, strict=False)}
    task = MergeTensors(
        method_name=method,
        gather_tensors=TensorDictWrapper(tensors=ImmutableMap({})),
        model_order=tuple(models),
        base_model=None if method == "linear" else models[0],
        output_weight=WeightInfo(name="weight"),
        parameters=parameters,
        input_parameters=own,
    )
    result = task.execute(dict(zip(models, tensors, strict=True)))
    assert result is not None
    return result


def by_mergekit(method: str, tensors: list[torch.Tensor], parameters: dict[str, Any]) -> torch.Tensor:
    """By mergekit's function for tensors, in one go."""
    weights = WEIGHTS[: len(tensors)]
    if method == "linear":
        return merge_tensors(tensors, method, parameters={**parameters, "weight": weights})
    return merge_tensors(tensors, method, base_index=0, parameters={**parameters, "weight": weights[1:]})


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtypes", ["bfloat16", "float16", "float32", "float64", "bfloat16 float32"])
@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("linear", LINEAR),
        ("linear", LINEAR | {"normalize": False}),
        ("task_arithmetic", ARITHMETIC),
        ("task_arithmetic", ARITHMETIC | {"normalize": True, "lambda": 1.0}),
    ],
    ids=["linear", "plain linear", "task_arithmetic", "normalized task_arithmetic"],
)
def test_the_bits_of_mergekit(method: str, parameters: dict[str, Any], dtypes: str, shape: tuple[int, ...]) -> None:
    kinds = [getattr(torch, name) for name in dtypes.split()]
    tensors = random(shape, 6, *kinds)
    expected = by_mergekit(method, tensors, parameters)
    found = merged(method, tensors, parameters)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))
    assert len(found.reshape(-1)[:1000].unique()) > 100


@pytest.mark.parametrize("turned", [0, 1])
def test_tensors_that_do_not_lie_in_one_piece(turned: int) -> None:
    tensors = random((1025, 577), 3, torch.bfloat16)
    tensors[turned] = random((577, 1025), 1, torch.bfloat16)[0].T
    assert torch.equal(merged("linear", tensors, LINEAR), by_mergekit("linear", tensors, LINEAR))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_finite_values_whose_sum_is_not(dtype: torch.dtype) -> None:
    large = torch.full((40, 50), torch.finfo(dtype).max, dtype=dtype)
    assert not large.sum().isfinite()
    tensors = [large * 0.5, large]
    assert torch.equal(
        merged("task_arithmetic", tensors, ARITHMETIC), by_mergekit("task_arithmetic", tensors, ARITHMETIC)
    )
    for broken in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(MergeError, match="NaN or infinite values in model-1"):
            merged("task_arithmetic", [large, large.index_fill(0, torch.tensor(3), broken)], ARITHMETIC)


class LargestTemporary(TorchDispatchMode):
    """Notes the bytes of the largest tensor in float32 or wider that an operator gives."""

    nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype.itemsize >= 4:
            self.nbytes = max(self.nbytes, result.nbytes)
        return result


def test_no_temporary_as_large_as_the_tensor() -> None:
    tensors = random((16 * BLOCK,), 3, torch.bfloat16)
    with LargestTemporary() as blocks:
        merged("linear", tensors, LINEAR)
    with LargestTemporary() as whole:
        by_mergekit("linear", tensors, LINEAR)
    assert 0 < blocks.nbytes <= 2 * 4 * BLOCK
    assert whole.nbytes == 4 * 16 * BLOCK
