"""WUDI-Merging (arXiv 2503.08099): the merged task vector that interferes least with every expert's.

Per matrix, with tau_i (out, in) the task vectors, it lowers

    L(x) = sum_i || (x - tau_i) tau_i^T ||^2 / || tau_i ||^2

from the sum of the task vectors. `adam` takes 300 steps of Adam as the released code does; `exact` goes to the
minimiser that is nearest to the start, with w_i = 1 / || tau_i ||^2,

    x_0 + (B - x_0 A) A^+,   A = sum_i w_i tau_i^T tau_i,   B = sum_i w_i tau_i tau_i^T tau_i .

The two differ: Adam stops early and, as it rescales every entry, drifts where L is flat; on adapters about half of its
movement is such drift. The minimiser follows every small direction to its end, so on full-rank task vectors it can grow
to many times the size of the inputs: there `swudi` or `aswudi` are the better choice.

Deviations from the released code, all deliberate:
  - the gradient 2 (x A - B) costs one product with A, formed once, instead of 2 N products with the task vectors;
  - sums are taken in float64, the steps in float32 or wider; the released loop runs in the checkpoint's half precision;
  - an expert that left a matrix untouched has weight 0 instead of dividing 0 by 0;
  - at a start that is already optimal Adam rests, where it would blow rounding noise up to steps of full length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch

from mergekit_mm.methods.apply import task_vector_method, working_dtype
from mergekit_mm.methods.checks import require, require_tolerance
from mergekit_mm.numerics.interference import Init, Interference, filtered
from mergekit_mm.numerics.polar import ROUNDING
from mergekit_mm.numerics.task_vector import TaskVector

_DOUBLE_UP_TO = 1 << 18  # entries; below this float64 steps cost next to nothing
_AT_REST = 1e-12  # gradients below this are rounding, with the largest delta entry scaled to about 1


@task_vector_method(name="wudi", pretty_name="WUDI-Merging", reference_url="https://arxiv.org/abs/2503.08099")
def wudi(
    task_vectors: Sequence[TaskVector],
    solver: Literal["adam", "exact"] = "adam",
    init: Init = "sum",
    iterations: int = 300,
    learning_rate: float = 1e-5,
    momentum: float = 0.9,
    adam_beta2: float = 0.999,
    adam_epsilon: float = 1e-8,
    rank_tolerance: float = ROUNDING,
) -> TaskVector:
    """The WUDI merge of one matrix's task vectors.

    init: the start. iterations, learning_rate, momentum (Adam's first beta), adam_beta2, adam_epsilon: of `adam`. Its
    steps are not invariant under rotations, so it works on dense deltas whatever the inputs are. rank_tolerance: of
    `exact`; singular values of the stacked task vectors below this share of the largest are rounding, not data.
    """
    require(iterations >= 0, "wudi", "iterations", "0 or more", iterations)
    require(0 < learning_rate < math.inf, "wudi", "learning_rate", "positive", learning_rate)
    require(0 <= momentum < 1, "wudi", "momentum", "in [0, 1)", momentum)
    require(0 <= adam_beta2 < 1, "wudi", "adam_beta2", "in [0, 1)", adam_beta2)
    require(0 < adam_epsilon < math.inf, "wudi", "adam_epsilon", "positive", adam_epsilon)
    require_tolerance("wudi", rank_tolerance)
    if solver == "exact":
        return filtered(task_vectors, init, torch.reciprocal, rank_tolerance)
    return _descend(task_vectors, init, iterations, learning_rate, (momentum, adam_beta2), adam_epsilon)


def _descend(
    task_vectors: Sequence[TaskVector],
    init: Init,
    iterations: int,
    learning_rate: float,
    betas: tuple[float, float],
    epsilon: float,
) -> TaskVector:
    interference = Interference.measure(task_vectors, init)
    if interference is None:
        return TaskVector(torch.zeros_like(task_vectors[0].dense(torch.float64)))
    problem, scale = interference.problem, interference.scale
    if float(problem.slope.abs().max()) < _AT_REST:
        return TaskVector(interference.moved(torch.zeros_like(interference.mean)))
    shape = task_vectors[0].shape
    dtype = torch.float64 if math.prod(shape) <= _DOUBLE_UP_TO else working_dtype(task_vectors[0].left.dtype)
    # Adam is not scale-free: its constants are meant for the deltas as they came
    step = problem.adam_step(learning_rate / scale, betas, epsilon / scale, iterations, dtype)
    return TaskVector(interference.moved(step.to(torch.float64)))
