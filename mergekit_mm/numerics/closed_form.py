"""The closed forms of WUDI, ACTMat, SWUDI and ASWUDI: one spectral filter in the place of a descent.

Target and proxy are whole task vectors tau_i. From a start x_0 in their span, a spectral filter f on
A = sum_i w_i tau_i^T tau_i = V Lambda V^T moves to

    x_0 (I - V f V^T) + B V (f / Lambda) V^T  =  x_0 + (B - x_0 A) V (f / Lambda) V^T .

The rows of x_0 and of B lie in the range of A, so A's null directions add nothing whatever f is there, and need not be
found. All is computed in float64: in float32 a filter that goes far, or stops at a rank, loses up to four digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from mergekit_mm.numerics.filters import Quotient, filter_by_eigenvectors
from mergekit_mm.numerics.interference import GramTerm, Init, Quadratic, RowSpace, Start, Term, Weights
from mergekit_mm.numerics.polar import numerical_rank
from mergekit_mm.numerics.task_vector import TaskVector, in_joint_core


def filtered(
    task_vectors: Sequence[TaskVector],
    init: Init,
    quotient: Quotient,
    tolerance: float,
    weights: Weights = "norm",
) -> TaskVector:
    """The merged task vector that a spectral filter reaches from the start; factored if all task vectors are.

    quotient: maps the eigenvalues in A's numerical range, descending, to f / Lambda of the leading ones it keeps.
    With equal weights A is known up to a factor only, so that `quotient` may look at no absolute size.
    tolerance: singular values of the stacked deltas below this share of the largest are rounding and keep the start.
    """

    def keep(eigenvalues: Tensor) -> Tensor:
        return quotient(eigenvalues[: numerical_rank(eigenvalues, tolerance)])

    def solve(deltas: Sequence[TaskVector]) -> Tensor | None:
        space = RowSpace.of(deltas, init, weights)
        if space is not None:
            return space.reached(_step(space.quadratic(torch.float64, target=lambda own: own), keep))
        start = Start.measured(deltas, init, torch.float64)
        return None if start is None else start.reached(_step(_quadratic(start, weights), keep))

    return in_joint_core(task_vectors, solve)


def _step(quadratic: Quadratic, keep: Quotient) -> Tensor:
    return filter_by_eigenvectors(quadratic.slope, quadratic.matrix, keep)


def _quadratic(start: Start, weights: Weights) -> Quadratic:
    rows, columns = start.mean.shape
    if rows < columns:
        terms = map(partial(Term.whole, weights=weights), start.deltas())
        return Quadratic.summed(terms, start.mean, start.multiple, torch.float64)
    grams = map(partial(GramTerm.whole, weights=weights), start.deltas())
    return Quadratic.of_grams(grams, start.mean, start.multiple)
