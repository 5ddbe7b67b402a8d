"""About what a method takes for one tensor, as arithmetic: for estimates before a merge, and for sharing work out.

The figures are fitted to the seconds that `examples/benchmarks` measured of each method by shape, on a machine that
does 1e11 operations a second in products of float32 matrices; they hold within a factor of two for most shapes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergekit_mm.methods import is_own_method

NOMINAL = 1e11  # operations a second of the machine to which the figures belong


@dataclass(frozen=True)
class _Solving:
    """What solving one matrix (out, in) takes: 2 out in q `products` + 2 min(out, in)^3 `cubes` operations.

    q is the smaller side; with `over_inputs`, min(in, N out) for N experts, where systems are as large as the experts'
    rows span.
    """

    products: float
    cubes: float
    over_inputs: bool = False


_SOLVING = {
    "optmerge lora": _Solving(12, 12),
    "optmerge modality": _Solving(21, 23, over_inputs=True),
    "optmerge full": _Solving(360, 0),
    "wudi adam": _Solving(315, 0, over_inputs=True),
    "wudi exact": _Solving(22, 5, over_inputs=True),
    "swudi": _Solving(20, 5, over_inputs=True),
    "aswudi": _Solving(18, 5, over_inputs=True),
    "tsv": _Solving(12, 42),
    "iso_c": _Solving(5, 6),
    "iso_cts": _Solving(20, 10),
    "dc_merge": _Solving(12, 42),
}
_UNKNOWN = _Solving(20, 20)  # a method of another package
_STEPS = 300  # of Adam, in the figures above
_CALIBRATION = 1.3  # of `svc`
_QR = 32  # operations for each entry of the stacked factors and each direction: two QR factorisations, and the core

# Nanoseconds for each value of each input, of mergekit's methods, which work entry by entry.
_PER_VALUE = {
    **dict.fromkeys(("dare_linear", "dare_ties"), 30),
    **dict.fromkeys(("della", "della_linear"), 135),
    **dict.fromkeys(("ties", "breadcrumbs", "breadcrumbs_ties", "sce"), 20),
}
_SUM = 3  # of a sum, and of a method without an entry


def operations(
    method: str,
    parameters: Mapping[str, Any],
    shape: Sequence[int],
    experts: int,
    ranks: Sequence[int] | None = None,
) -> float:
    """About how many floating-point operations a method needs for one tensor.

    Args:
        parameters: of the method, for all inputs; those that are left out have their defaults.
        shape: of the tensor; a stack of matrices has three axes.
        experts: the number of inputs that are merged.
        ranks: of the experts' factors, if the method works on factors; None for dense inputs.
    """
    is_own, is_matrix = is_own_method(method), len(shape) in (2, 3)
    if not is_matrix or (not is_own and ranks is None):
        return _PER_VALUE.get(method, _SUM) * 1e-9 * NOMINAL * math.prod(shape) * max(1, experts)
    count, out, width = math.prod(shape[:-2]), shape[-2], shape[-1]
    if ranks is not None:
        rank = sum(ranks)
        solved = _QR * (out + width) * rank**2 if is_own else 0
        return count * float(solved + 2 * out * width * rank)
    how = _SOLVING.get(_variant(method, parameters), _UNKNOWN)
    smaller = min(out, width)
    system = min(width, experts * out) if how.over_inputs else smaller
    products = how.products * (parameters.get("iterations") or _STEPS) / _STEPS if how.cubes == 0 else how.products
    found = count * 2.0 * (products * out * width * system + how.cubes * smaller**3)
    return found * _CALIBRATION if parameters.get("svc") else found


def _variant(method: str, parameters: Mapping[str, Any]) -> str:
    chosen = {"optmerge": ("preset", "lora"), "wudi": ("solver", "adam")}.get(method)
    return f"{method} {parameters.get(*chosen)}" if chosen else method
