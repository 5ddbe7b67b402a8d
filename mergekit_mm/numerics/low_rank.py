"""What LoRA and DoRA make of one tensor, from the parts that PEFT stores of it."""

from __future__ import annotations

import torch
from torch import Tensor

from mergekit_mm.numerics.task_vector import TaskVector


def lora_delta(a: Tensor, b: Tensor, scaling: float, transposed: bool) -> TaskVector:
    """`scaling * B A` for A (r, in) and B (out, r), as factors with the scaling in the left one.

    transposed: the weight is stored (in, out), as embeddings and GPT-2's layers are. The kernels of a convolution,
    A (r, in, ...) and B (out, r, 1, ...), give a dense kernel (out, in, ...).
    """
    if a.ndim > 2:  # B is 1 x 1, so the product over the rank is a matrix product
        kernel = (b.flatten(1) @ a.flatten(1)).mul_(scaling)
        return TaskVector(kernel.reshape(b.shape[0], *a.shape[1:]))
    if transposed:
        return TaskVector(a.T * scaling, right=b.T)
    return TaskVector(b * scaling, right=a)


def stacked_lora_delta(a: Tensor, b: Tensor, scaling: float, matrices: int, transposed: bool) -> TaskVector:
    """The deltas of a stack of E `matrices`, whose factors PEFT keeps in two matrices, as stacks of factors.

    A (E r, in) holds the right factors one below the other. In B (out, r E) the matrix changes fastest.
    transposed: the matrices are stored (in, out).
    """
    left = (b * scaling).reshape(b.shape[0], -1, matrices).permute(2, 0, 1).contiguous()  # (E, out, r)
    right = a.reshape(matrices, -1, a.shape[1])  # (E, r, in)
    return TaskVector(right.mT, right=left.mT) if transposed else TaskVector(left, right=right)


def with_row_lengths(weight: Tensor, lengths: Tensor) -> Tensor:
    """DoRA: the direction of each row of a weight (out, in) stays, its length is the learnt one of `lengths` (out,)."""
    return weight * (lengths.reshape(-1, 1) / torch.linalg.vector_norm(weight, dim=1, keepdim=True))


def widened(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in its own dtype if that is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
