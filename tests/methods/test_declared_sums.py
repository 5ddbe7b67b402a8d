"""What is declared of mergekit's methods is what they do: every weighted sum, and every method that draws."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from mergekit import merge_methods
from mergekit.merge_methods import BasePolicy
from mergekit.merge_methods.base import ParameterScope, ParameterSpec
from random_deltas import randn
from torch import Tensor

from mergekit_mm.methods import declarations, is_own_method
from mergekit_mm.methods.declarations import DRAWING, WEIGHTED_SUMS, makes_factors_of_factors, merges_deltas

SHAPES = [(), (7,), (6, 9), (3, 6, 9)]
WEIGHTS = [(0.3, 0.5, 0.9), (1.0, 1.0, 1.0), (-0.4, 0.7, 0.2), (0.0, 2.0, 0.0), (0.5, -0.5, 1e-9)]
HOSTS = sorted(method.spec.name for method in merge_methods.registered_methods())
OTHERS = [name for name in HOSTS if not is_own_method(name) and name not in DRAWING]


def merged(method: str, tensors: Sequence[Tensor], has_base: bool, **parameters: Any) -> Tensor:
    """What mergekit's own method makes of tensors, the last of which is the base's if there is one."""
    return merge_methods.merge_tensors(
        tensors, method, base_index=len(tensors) - 1 if has_base else None, parameters=parameters, name="a tensor"
    )


def declared(
    method: str, tensors: Sequence[Tensor], has_base: bool, weights: Sequence[float], parameters: Mapping[str, Any]
) -> Tensor:
    """The same by the method's declaration, in float64."""
    base = tensors[-1].double()
    entry = WEIGHTED_SUMS[method]
    if entry.over_base:
        pairs = zip(entry.weights(parameters, weights), tensors[:-1], strict=True)
        return base + sum(w * (tensor.double() - base) for w, tensor in pairs)
    pairs = zip(entry.weights(parameters, weights), tensors, strict=True)
    return torch.stack([w * tensor.double() for w, tensor in pairs]).sum(0)


def switches(method: str) -> list[dict[str, bool]]:
    """Every setting of the parameters of a method that are on or off."""
    names = [p.name for p in merge_methods.get(method).spec.parameters if isinstance(p.default, bool)]
    return [dict(zip(names, values, strict=True)) for values in itertools.product((False, True), repeat=len(names))]


CASES = [(method, given) for method in WEIGHTED_SUMS for given in switches(method)]


def test_the_cases_turn_every_switch() -> None:
    assert {"normalize"} <= {name for _, given in CASES for name in given}
    assert {method for method, _ in CASES} == set(WEIGHTED_SUMS) == {"linear", "task_arithmetic"}


@pytest.mark.parametrize(("method", "given"), CASES, ids=str)
@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_weighted_sum_is_the_methods_own_result(
    method: str, given: dict[str, bool], weights: tuple[float, ...], shape: tuple[int, ...]
) -> None:
    over_base = WEIGHTED_SUMS[method].over_base
    if not over_base and given["normalize"] and abs(sum(weights)) < 1e-6:
        pytest.skip("weights that cannot be normalised")
    base = randn(*shape, seed=9).double()
    tensors = [base + 1e-2 * randn(*shape, seed=i).double() for i in range(3)]
    shared: dict[str, Any] = {**given, "lambda": 0.7} if over_base else dict(given)
    tensors += [base] if over_base else []
    result = merged(method, tensors, over_base, weight=list(weights), **shared)
    expected = declared(method, tensors, over_base, weights, shared)
    torch.testing.assert_close(result.double(), expected, rtol=1e-9, atol=1e-12)
    assert not torch.equal(result, base)


@pytest.mark.parametrize("method", OTHERS)
def test_no_other_method_is_told_to_be_a_sum(method: str) -> None:
    known = method in WEIGHTED_SUMS
    assert merges_deltas(method) == (known and WEIGHTED_SUMS[method].over_base)
    assert makes_factors_of_factors(method, {}) == known


# ------------------------------------------------------------------------------------------------ methods that draw


def drawn(method: str, seed: int, length: int = 1024) -> Tensor:
    """A merge of two vectors with the process-wide generator of torch at `seed`, in the method's own least inputs."""
    spec = merge_methods.get(method).spec
    base = randn(length, seed=9)
    experts = [base + 1e-2 * randn(length, seed=i) for i in range(2)]
    tensors = [*experts[: (spec.contract.max_inputs or 3) - 1], base]
    known = {"weight": 0.5, "density": 0.5, "epsilon": 0.1, "t": 0.5}
    parameters = {p.name: known[p.name] for p in spec.parameters if p.name in known}
    before = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        return merged(method, tensors, True, **parameters)
    finally:
        torch.set_rng_state(before)


@pytest.mark.parametrize("method", DRAWING)
def test_a_method_that_draws_depends_on_the_seed(method: str) -> None:
    length = 4_000_000 if method == "arcee_fusion" else 1024  # It draws only where a tensor has over a million values.
    assert torch.equal(drawn(method, 1, length), drawn(method, 1, length))
    assert any(not torch.equal(drawn(method, 1, length), drawn(method, seed, length)) for seed in range(2, 5))


@pytest.mark.parametrize("method", [name for name in OTHERS if name not in ("linear", "passthrough", "karcher")])
def test_no_other_method_depends_on_the_seed(method: str) -> None:
    assert torch.equal(drawn(method, 1), drawn(method, 2))


VALUES = [-1.0, -0.3, 0.0, 0.1, 0.3, 0.5, 0.9, 1.0, 2.0]


@pytest.mark.parametrize("method", [name for name in HOSTS if not is_own_method(name)])
def test_values_are_refused_where_mergekits_method_fails(method: str) -> None:
    """Random values of all parameters, over shapes with and without rows of one value, which DELLA merges whole."""
    spec, generator = merge_methods.get(method).spec, random.Random(method)
    required = spec.contract.base is BasePolicy.REQUIRED
    count = spec.contract.max_inputs or 3
    refusals = 0
    for _ in range(150):
        has_base = required or (spec.contract.max_non_base is not None and count > 2)
        shared = {p.name: drawn_value(p, generator) for p in spec.parameters if p.scope is ParameterScope.SHARED}
        names = [p for p in spec.parameters if p.scope is not ParameterScope.SHARED]
        takers = count if not has_base or any(p.scope is ParameterScope.INPUT for p in names) else count - 1
        own = {p.name: [drawn_value(p, generator) for _ in range(takers)] for p in names}
        of_inputs = [{name: values[i] for name, values in own.items()} for i in range(takers)] if names else []
        shape = generator.choice([(5,), (4, 3), (2, 3, 4)] if "epsilon" not in own else [(4, 3), (2, 3, 4)])
        tensors = [1.0 + torch.rand(shape, generator=torch.Generator().manual_seed(i)) for i in range(count)]
        try:
            fails = not merged(method, tensors, has_base, **shared, **own).isfinite().all()
        except (ValueError, RuntimeError):
            fails = True
        assert fails == (declarations.refused_values(method, shared, of_inputs) is not None), (shared, own, shape)
        refusals += fails
    assert bool(refusals) == (method in ("dare_linear", "dare_ties", "della", "della_linear", "linear", "multislerp"))


def drawn_value(parameter: ParameterSpec, generator: random.Random) -> Any:
    """A value of a parameter; of those that are no numbers to play with, and of tolerances, the default."""
    if parameter.value_type is bool:
        return generator.choice([False, True])
    is_tolerance = parameter.scope is ParameterScope.SHARED and parameter.name in ("eps", "tol", "epsilon", "max_iter")
    return parameter.default if is_tolerance or parameter.value_type is not float else generator.choice(VALUES)


def test_every_name_is_a_method_of_mergekit() -> None:
    assert {*DRAWING, *WEIGHTED_SUMS} <= set(HOSTS)
    assert not any(is_own_method(name) for name in (*DRAWING, *WEIGHTED_SUMS))
    assert tuple(sorted(DRAWING)) == declarations.DRAWING
