"""What a merge can ask of any method: the plugin's declare it themselves, mergekit's have an entry here.

A test compares every entry with mergekit's method itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergekit_mm.methods import is_own_method, method_named

# Methods that draw random numbers; arcee_fusion does so only for tensors of more than a million values.
DRAWING = ("arcee_fusion", "dare_linear", "dare_ties", "della", "della_linear")

# Methods of mergekit whose result is a function of the deltas' entries, and so depends on the basis they are seen in.
ELEMENTWISE = ("breadcrumbs", "breadcrumbs_ties", "dare_linear", "dare_ties", "della", "della_linear", "ties")


@dataclass(frozen=True)
class WeightedSum:
    """A method whose result is a weighted sum of its inputs, or of their deltas over a base model."""

    over_base: bool  # whether it sums deltas over a base model, and not the inputs themselves
    weights: Callable[[Mapping[str, Any], Sequence[float]], list[float]]  # (shared parameters, `weight` of each input)


def refused_values(method: str, parameters: Mapping[str, Any], of_inputs: Sequence[Mapping[str, Any]]) -> str | None:
    """Why a method of mergekit cannot merge with these values, each of which it can have by itself; None if it can.

    parameters: those for all inputs. of_inputs: those of each input that has some.
    """
    weights = [own["weight"] for own in of_inputs if "weight" in own]
    divides = (method == "linear" and parameters["normalize"]) or (
        method == "multislerp" and parameters["normalize_weights"]
    )
    is_nothing = method == "multislerp" and not any(weights) and len(weights) != 2  # Two are added, not interpolated.
    if (divides and sum(weights) == 0) or is_nothing:
        return "the weights add up to 0, by which they are divided, which gives NaN or Inf."
    if method.startswith("dare_") and any(own["density"] < 0 for own in of_inputs if "density" in own):
        return "the density is a probability, so it cannot be negative."
    if method in ("della", "della_linear"):
        for own in (each for each in of_inputs if "density" in each):
            density, epsilon = own["density"], own["epsilon"]
            ends = (density - epsilon, density + epsilon)  # the probabilities of the smallest and the largest value
            if 0 < density < 1 and (min(ends) < 0 or max(ends) > 1 or ends[0] == 0 or ends[1] == 1):
                return (
                    f"Epsilon must be chosen such that density +/- epsilon is in (0, 1); got density {density} and "
                    f"epsilon {epsilon}."
                )
    return None


def _linear(parameters: Mapping[str, Any], given: Sequence[float]) -> list[float]:
    """w_i, divided by their sum if `normalize`; a sum of zero is among `refused_values`."""
    return [weight / sum(given) for weight in given] if parameters["normalize"] else list(given)


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
