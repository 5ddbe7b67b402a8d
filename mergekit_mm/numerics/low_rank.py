"""Matrices of low rank: the best approximation of a rank, factors for an adapter, and what LoRA and DoRA store."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mergekit_mm.numerics.eigen import gram, gram_root, top_eigenpairs_
from mergekit_mm.numerics.task_vector import TaskVector


class Truncation(NamedTuple):
    """T = U S V^T, the best approximation of rank k to a matrix (out, in), as left (out, k) @ right (k, in).

    There are three forms:
    left = U, right = S V^T: lengths is None;
    left = U S, right = V^T: lengths (k,) holds the singular values S;
    left = the matrix itself, right = None: k keeps everything.
    """

    left: Tensor
    right: Tensor | None
    lengths: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        """S V^T (k, in); of a whole matrix, rows that are cheaper to find and have the same rows^T rows = T^T T."""
        if self.right is None:
            return gram_root(self.left)
        return self.right if self.lengths is None else self.lengths.unsqueeze(1) * self.right


def truncate(x: Tensor, rank: int, solve_in: torch.dtype | None = None, own: Tensor | None = None) -> Truncation:
    """The best rank-`rank` approximation of x (out, in), from the Gram matrix of its smaller side.

    solve_in: a wider dtype for the Gram matrix and its eigenpairs, at up to twice the cost: where singular values are
    close, rounding turns the directions by many times its own size.
    own: x^T x (in, in) if it is known, for out >= in.
    """
    solve_in = solve_in or x.dtype
    if rank >= min(x.shape):
        return Truncation(x, None)
    if own is None and x.shape[0] <= x.shape[1]:
        u = top_eigenpairs_(gram(x.to(solve_in)), rank)[1].to(x.dtype)
        return Truncation(u, u.T @ x)  # S V^T
    own = gram(x.T.to(solve_in)) if own is None else own.to(solve_in, copy=True)
    values, v = (part.to(x.dtype) for part in top_eigenpairs_(own, rank))
    return Truncation(x @ v, v.T, values.clamp_min(0).sqrt())


class Factors(NamedTuple):
    """The product b (out, r) @ a (r, in) in float32, and the share of the delta's squared norm that it keeps."""

    b: Tensor
    a: Tensor
    energy: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def to(self, device: torch.device | str) -> Factors:
        """The same factors on `device`."""
        return Factors(self.b.to(device), self.a.to(device), self.energy)


def factorise(task_vector: TaskVector, rank: int | None) -> Factors | None:
    """The factors of the best approximation of rank <= `rank` to a delta (out, in); None for a delta of zero.

    rank: None keeps every direction that is not zero to float32, and the product is then exact to rounding.

    A factored delta is decomposed by the QR factors of its two sides in float64, a dense one by the Gram matrix of its
    smaller side. Both factors get the square root of the singular values, so that neither leaves the range of 16 bits
    before the other.
    """
    if task_vector.right is None:
        return _from_dense(task_vector.dense(torch.float64), rank)
    q_left, r_left = torch.linalg.qr(task_vector.left.double())
    q_right, r_right = torch.linalg.qr(task_vector.right.double().T)
    u, s, vh = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
    found = int((s > s.max() * torch.finfo(torch.float32).eps).sum()) if s.numel() else 0
    kept = found if rank is None else min(found, rank)
    if kept == 0 or not float(s[0]):
        return None
    root = s[:kept].sqrt()
    energy = float(s[:kept].square().sum() / s.square().sum())
    return Factors(_single(q_left @ (u[:, :kept] * root)), _single((root[:, None] * vh[:kept]) @ q_right.T), energy)


def _from_dense(delta: Tensor, rank: int | None) -> Factors | None:
    if delta.shape[0] > delta.shape[1]:
        turned = _from_dense(delta.T, rank)
        return turned and Factors(turned.a.T.contiguous(), turned.b.T.contiguous(), turned.energy)
    total = float(delta.square().sum())
    size = delta.shape[0]
    if total == 0.0:
        return None
    squares, u = top_eigenpairs_(gram(delta), size if rank is None else min(rank, size))
    found = int((squares > squares[0] * torch.finfo(torch.float32).eps ** 2).sum())
    squares, u = squares[:found], u[:, :found]
    root = squares.sqrt().sqrt()
    return Factors(_single(u * root), _single((u.T @ delta) / root[:, None]), float(squares.sum()) / total)


def _single(x: Tensor) -> Tensor:
    return x.to(torch.float32).contiguous()


def lora_delta(a: Tensor, b: Tensor, scaling: float, transposed: bool) -> TaskVector:
    """`scaling * B A` for A (r, in) and B (out, r), as factors with the scaling in the left one, in their dtypes.

    transposed: the weight is stored as (in, out), as embeddings and GPT-2's layers are.

    The factors of a convolution are kernels, A (r, in, ...) and B (out, r, 1, ...); they give a dense kernel
    (out, in, ...).
    """
    if a.ndim > 2:  # B is a 1 x 1 kernel, so the product over the rank is a matrix product
        kernel = (b.flatten(1) @ a.flatten(1)).mul_(scaling)
        return TaskVector.of(kernel.reshape(b.shape[0], *a.shape[1:]))
    if transposed:
        return TaskVector.low_rank(a.T * scaling, b.T)
    return TaskVector.low_rank(b * scaling, a)


def stacked_lora_delta(a: Tensor, b: Tensor, scaling: float, matrices: int, transposed: bool) -> TaskVector:
    """The deltas of a stack of E `matrices`, whose factors PEFT keeps in two matrices, as stacks of factors.

    A (E r, in) holds the right factors one below the other. In B (out, r E) the matrix changes fastest.
    transposed: the matrices are stored (in, out).
    """
    left = (b * scaling).reshape(b.shape[0], -1, matrices).permute(2, 0, 1).contiguous()  # (E, out, r)
    right = a.reshape(matrices, -1, a.shape[1])  # (E, r, in)
    return TaskVector(right.mT, right=left.mT) if transposed else TaskVector(left, right=right)


def with_row_lengths(weight: Tensor, lengths: Tensor) -> Tensor:
    """DoRA: each row of a weight (out, in) keeps its direction, and gets its learnt length from `lengths` (out,)."""
    return weight * (lengths.reshape(-1, 1) / torch.linalg.vector_norm(weight, dim=1, keepdim=True))


def widened(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in its own dtype if that is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
