"""What looking at a merge's experts takes, in floating-point operations, known before it begins.

The numbers of operations are those of the largest products and decompositions, and right to a factor of about two.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mergekit_mm.analysis.methods import Method
from mergekit_mm.numerics.descent import Descent
from mergekit_mm.plan.merge_plan import MergePlan
from mergekit_mm.plan.tensor_plan import TensorPlan

# Operations up to which spectra, and up to which losses, are computed unless they are asked for: some minutes on two
# cores. One core did 3 to 7 of these operations in a nanosecond, where it multiplied matrices in float64 at 8 GFLOPS.
UNASKED = 2e12


@dataclass(frozen=True)
class Cost:
    """Operations in float64 for the spectra; and for the losses, one merge by each method included."""

    spectra: float
    losses: float


def cost_of(plan: MergePlan, tensors: Iterable[TensorPlan], methods: Sequence[Method]) -> Cost:
    """The cost of looking at these matrices and stacks of matrices."""
    spectra = losses = 0.0
    solved = sum(not method.is_sum for method in methods)
    for tensor in tensors:
        *stack, rows, columns = tensor.info.shape
        count, size = len(tensor.experts), min(rows, columns)
        ranks = [plan.inputs.adapter_rank(model, tensor.inputs[model]) for model in tensor.experts]
        is_over_base = all(model.lora and plan.inputs.plain(model) == tensor.base for model in tensor.experts)
        if is_over_base and None not in ranks:
            rank = sum(each for each in ranks if each is not None)
            own, evaluated = 8.0 * (rows + columns) * rank**2, 4.0 * rows * rank**2 * (count + len(methods))
            merging = solved * own
        else:
            vectors = Descent().rank((rows, columns), count) if count > 1 else 0
            gram = float(rows * columns * size)
            own = count * (gram + 4 / 3 * size**3 + 4 * size**2 * vectors + 2 * rows * columns * vectors)
            evaluated = count * (4 * gram + 2 * len(methods) * gram)
            merging = solved * own
        times = math.prod(stack)
        spectra += times * own
        losses += times * (evaluated + merging)
    return Cost(spectra, losses)


def in_words(operations: float) -> str:
    """`about 3e+14 operations in float64`."""
    return f"about {operations:.0e} operations in float64"
