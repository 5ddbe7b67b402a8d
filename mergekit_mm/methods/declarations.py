"""What a merge can ask of any method: the plugin's declare it themselves, mergekit's have an entry here.

A test compares every entry with mergekit's method itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergekit_mm.errors import MergeError
from mergekit_mm.methods import is_own_method, method_named

# Methods that draw random numbers; arcee_fusion does so only for tensors of more than a million values.
DRAWING = ("arcee_fusion", "dare_linear", "dare_ties", "della", "della_linear")


@dataclass(frozen=True)
class WeightedSum:
    """A method whose result is a weighted sum of its inputs, or of their deltas over a base model."""

    over_base: bool  # whether it sums deltas over a base model, and not the inputs themselves
    weights: Callable[[Mapping[str, Any], Sequence[float]], list[float]]  # (shared parameters, `weight` of each input)


def _linear(parameters: Mapping[str, Any], given: Sequence[float]) -> list[float]:
    """w_i, divided by their sum if `normalize`. Raises MergeError if that sum is zero, where mergekit gives NaN."""
    if not parameters["normalize"]:
        return list(given)
    if (total := sum(given)) == 0.0:
        raise MergeError(
            "linear: the weights add up to 0, so they have no mean: look at them, or set normalize: false."
        )
    return [weight / total for weight in given]


def _task_arithmetic(parameters: Mapping[str, Any], given: Sequence[float]) -> list[float]:
    """lambda w_i, divided by their sum if `normalize` and that sum is not zero."""
    total = sum(given)
    divisor = total if parameters["normalize"] and abs(total) >= 1e-8 else 1.0
    return [parameters["lambda"] * weight / divisor for weight in given]


WEIGHTED_SUMS = {
    "linear": WeightedSum(over_base=False, weights=_linear),
    "task_arithmetic": WeightedSum(over_base=True, weights=_task_arithmetic),
}


def merges_deltas(method: str) -> bool:
    """Whether a method needs nothing but the deltas of its inputs over the base model, dense or as factors."""
    return is_own_method(method) or (method in WEIGHTED_SUMS and WEIGHTED_SUMS[method].over_base)


def makes_factors_of_factors(method: str, parameters: Mapping[str, Any]) -> bool:
    """Whether the merged delta of factors is a product of factors again; `parameters` are those for all inputs."""
    if not is_own_method(method):
        return method in WEIGHTED_SUMS
    return method_named(method).keeps_factors(parameters)
