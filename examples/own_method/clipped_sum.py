"""A merge method of your own: the sum of the task vectors, none of them longer than the median one.

After `pip install examples/own_method` the stock `mergekit-yaml` knows `merge_method: clipped_sum`, and so does
`mergekit-mm`: see the entry point in pyproject.toml.
"""

import math
from collections.abc import Sequence

import torch

from mergekit_mm.methods.apply import task_vector_method
from mergekit_mm.numerics.task_vector import TaskVector


def not_negative(limit: float) -> None:
    """ValueError for a value that will not do; it is raised before anything is merged."""
    if not 0 <= limit < math.inf:
        raise ValueError(f"limit must be 0 or more; got {limit}")


@task_vector_method(name="clipped_sum", pretty_name="Clipped sum", reference_url="", validate=not_negative)
def clipped_sum(task_vectors: Sequence[TaskVector], limit: float = 1.0) -> TaskVector:
    """Each task vector shortened to `limit` times the median Frobenius norm, and added up.

    task_vectors: of one weight matrix, (out, in) each, in the order of `models:`. The parameters after it, with their
    types and defaults, are those of the YAML file; `scaling` is added to them, and multiplies what is returned.
    """
    deltas = [task_vector.dense(torch.float32) for task_vector in task_vectors]
    norms = torch.stack([torch.linalg.matrix_norm(delta) for delta in deltas])
    longest = limit * norms.median()
    shares = (longest / norms).nan_to_num(1.0).clamp(max=1.0)
    return TaskVector.of(torch.stack([share * delta for share, delta in zip(shares, deltas, strict=True)]).sum(dim=0))
