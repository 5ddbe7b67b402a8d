"""Singular value calibration (SVC, arXiv 2602.05536): a merged delta's spectrum, levelled by the experts' responses.

A sum of task vectors that share directions is too long along these. With D = U diag(s) V^T the merged delta of one
matrix, tau_1 ... tau_N the task vectors, and for each direction r

    a_r = u_r^T D,   a_ir = u_r^T tau_i,   p_ir = <a_r, a_ir> / || a_ir ||^2,

    gamma_r = N / sum_i max(alpha, p_ir),   s_r <- gamma_r s_r .

p_ir is how many times the response of expert i to direction r is in the merged one. With alpha = 1 the spectrum can
only be damped, with the smaller default of 1 / N it may also be amplified. D is the delta before `scaling`.

Source: the released code of https://github.com/lyymuwu/SVC, whose command has alpha = 1 and whose manual has 0.1, as
FusionBench's version has, behind a sum of 0.3 times the task vectors. Deviations, all deliberate:
  - an expert without a response (a_ir = 0 to rounding) has no say: N counts those that have one, and where none has,
    gamma_r = 1. The released code counts such an expert as alpha, which would lengthen what only one of N adapters
    changes up to N times; weak responses, of which full fine-tunes have nothing else, have p_ir of about 1 in a sum;
  - directions whose singular values coincide are not defined one by one, as any rotation of them is as good. They share
    one gamma, with <.,.> and || . || taken over all of them. Methods with a flat spectrum (Iso-C) are then rescaled as
    a whole, instead of at random;
  - directions in the rounding of D are left alone;
  - all is computed in float64. V is kept, so D' = (I + U diag(gamma - 1) U^T) D, and factors of D stay factors of the
    same rank.

`calibrated` in `methods/reference.py` restates the published computation plainly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mergekit_mm.numerics.checks import require
from mergekit_mm.numerics.polar import ROUNDING, Triplets, leading_triplets
from mergekit_mm.numerics.task_vector import TaskVector, square_norm_of


def require_alpha(alpha: float | None) -> None:
    """ValueError unless alpha, the least response that is counted, is a share or left to its default."""
    require(alpha is None or 0 < alpha <= 1, "svc_alpha", "in (0, 1]", alpha)


def calibrated(merged: TaskVector, task_vectors: Sequence[TaskVector], alpha: float | None = None) -> TaskVector:
    """The merged delta (out, in) of one matrix with its singular values re-scaled; in the form and rank that it has.

    merged: what a method made of `task_vectors`; float64 comes out. alpha: 1 / N by default.
    """
    u, s, v = _decomposed(merged)
    if not len(s):
        return merged
    change = _gamma(u, s, v, task_vectors, 1.0 / len(task_vectors) if alpha is None else alpha) - 1.0
    if merged.right is None:
        return TaskVector.of(merged.dense(torch.float64).addmm_(u.mul_(change * s), v.T))
    left = merged.left.double()
    return TaskVector.low_rank(left + u @ (change.unsqueeze(1) * (u.T @ left)), merged.right.double())


def _decomposed(merged: TaskVector) -> Triplets:
    """The singular triplets of a delta above rounding; of factors by the QR factors of their two sides."""
    if merged.right is None or not merged.left.shape[1]:
        return leading_triplets(merged.dense(torch.float64), min(merged.shape), ROUNDING)
    q_left, r_left = torch.linalg.qr(merged.left.double())
    q_right, r_right = torch.linalg.qr(merged.right.double().T)
    core = leading_triplets(r_left @ r_right.T, min(len(r_left), len(r_right)), ROUNDING)
    return Triplets(q_left @ core.u, core.s, q_right @ core.v)


def _gamma(u: Tensor, s: Tensor, v: Tensor, task_vectors: Sequence[TaskVector], alpha: float) -> Tensor:
    """gamma (r,) of all directions, equal for those whose singular values coincide."""
    group = torch.cat([s.new_zeros(1), s[1:] < s[:-1] * (1.0 - ROUNDING)]).cumsum(0).long()
    sums = s.new_zeros(int(group[-1]) + 1)
    heard, responses = torch.zeros_like(sums), torch.zeros_like(sums)
    for task_vector in task_vectors:
        delta = task_vector.left.double() if task_vector.right is not None else task_vector.dense(torch.float64)
        rows = u.T @ delta
        if task_vector.right is not None:
            rows = rows @ task_vector.right.double()
        del delta
        square = sums.index_add(0, group, torch.linalg.vector_norm(rows, dim=1).square())
        inner = sums.index_add(0, group, rows.mul_(v.T).sum(1).mul_(s))  # a_r = s_r v_r
        answers = square > ROUNDING**2 * square_norm_of(task_vector)
        responses += torch.where(answers, (inner / square).clamp_min(alpha), 0.0)
        heard += answers
    return torch.where(heard > 0, heard / responses, 1.0)[group]
