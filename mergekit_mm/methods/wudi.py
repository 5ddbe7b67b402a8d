"""WUDI-Merging (arXiv 2503.08099) and ACTMat (arXiv 2604.01329): the merged task vector that interferes least.

Per matrix, with tau_i (out, in) the task vectors, it lowers

    L(x) = sum_i || (x - tau_i) tau_i^T ||^2 / || tau_i ||^2

from the sum of the task vectors. `adam` takes 300 steps of Adam as the released code does; `exact` goes to the
minimiser that is nearest to the start, with w_i = 1 / || tau_i ||^2,

    x_0 + (B - x_0 A) A^+,   A = sum_i w_i tau_i^T tau_i,   B = sum_i w_i tau_i tau_i^T tau_i .

The two differ: Adam stops early and, as it rescales every entry, drifts where L is flat; on adapters about half of its
movement is such drift. The minimiser follows every small direction to its end, so on full-rank task vectors it can grow
to many times the size of the inputs: there `swudi` or `aswudi` are the better choice.

With `weights: equal`, w_i = 1 in the place of 1 / || tau_i ||^2, the minimiser is ACTMat's merge,

    (sum_i tau_i tau_i^T tau_i) (sum_i tau_i^T tau_i)^+ ,

from any start: the row covariances of the task vectors stand for those of the activations, and experts that moved far
count more. Its released code is ActMerge in https://github.com/apanariello4/merge-and-rebase; here the pseudo-inverse
stops at `rank_tolerance`. It has no Adam: without the norms gradients fall below Adam's epsilon.

Deviations from WUDI's released code, all deliberate:
  - the gradient 2 (x A - B) costs one product with A, formed once, instead of 2 N products with the task vectors;
  - sums are taken in float64, the steps in float32 or wider; the released loop runs in the checkpoint's half precision;
  - an expert that left a matrix untouched has weight 0 instead of dividing 0 by 0;
  - at a start that is already optimal Adam rests, where it would blow rounding noise up to steps of full length.

`wudi`, `wudi_minimiser` and `actmat` in `reference.py` restate the published computations plainly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from mergekit_mm.methods.apply import task_vector_method
from mergekit_mm.numerics.checks import require, require_tolerance
from mergekit_mm.numerics.closed_form import filtered
from mergekit_mm.numerics.descent import Descent, descend
from mergekit_mm.numerics.interference import Init, Weights
from mergekit_mm.numerics.polar import ROUNDING
from mergekit_mm.numerics.task_vector import TaskVector


def _adam(**constants: Any) -> Descent:
    """WUDI's descent, which is OptMerge's with whole task vectors as targets and proxies. ValueError as `Descent`."""
    return Descent(rank_fraction=1.0, optimizer="adam", proxy="full", **constants)


def _validate(solver: str, weights: Weights, rank_tolerance: float, **constants: Any) -> None:
    require_tolerance(rank_tolerance)
    require(solver == "exact" or weights == "norm", "weights", "norm with the adam solver", weights)
    if solver == "adam":
        _adam(**constants)


@task_vector_method(
    name="wudi",
    pretty_name="WUDI-Merging",
    reference_url="https://arxiv.org/abs/2503.08099",
    keeps_factors=lambda solver, **_: solver == "exact",
    validate=_validate,
)
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
    weights: Weights = "norm",
) -> TaskVector:
    """The WUDI merge of one matrix's task vectors.

    weights: w_i = 1 / || tau_i ||^2, or 1 (ACTMat; for `exact` only). init: the start. iterations, learning_rate,
    momentum (Adam's first beta), adam_beta2, adam_epsilon: of `adam`. Its steps are not invariant under rotations, so
    it works on dense deltas whatever the inputs are. rank_tolerance: of `exact`; singular values of the stacked task
    vectors below this share of the largest are rounding, not data.
    """
    if solver == "exact":
        return filtered(task_vectors, init, torch.reciprocal, rank_tolerance, weights)
    settings = _adam(
        init=init,
        iterations=iterations,
        learning_rate=learning_rate,
        momentum=momentum,
        adam_beta2=adam_beta2,
        adam_epsilon=adam_epsilon,
    )
    return descend(task_vectors, settings)
