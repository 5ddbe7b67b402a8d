"""The factors that the owners of modalities keep beside a shared matrix of an omni model (DAMC)."""

from __future__ import annotations

import torch
from mergekit.graph import Task

from mergekit_mm.checkpoints.values import equal_values
from mergekit_mm.errors import MergeError
from mergekit_mm.numerics.task_vector import TaskVector
from mergekit_mm.tasks.deltas import KeptDelta, MergeDelta
from mergekit_mm.tasks.loading import LoadDelta
from mergekit_mm.tasks.step import Step


class SameTensor(Step[torch.Tensor]):
    """The base's tensor, after a check that the models under the adapters have the same.

    Raises:
        MergeError: when run, for a model that has another tensor.
    """

    base: Task
    others: tuple[tuple[str, Task], ...]  # (name of an input, the task that reads its model's tensor)

    def arguments(self) -> dict[str, Task]:
        return {"base": self.base, **dict(self.others)}

    def execute(self, base: torch.Tensor, **others: torch.Tensor) -> torch.Tensor:
        differing = [name for name, tensor in others.items() if not equal_values(base, tensor)]
        if differing:
            raise MergeError(
                f"{self.group_label()} of the model under {', '.join(differing)} is not that of the base, though other "
                "matrices are: what it changes is more than an adapter. Merge the adapter into its model with PEFT "
                "(merge_and_unload), save that and name it instead."
            )
        return base


class SharedFactors(Step[dict[str, torch.Tensor]]):
    """Each owner's matrix less the merged one, as factors with one basis: `media.<owner>` (out, r) @ `shared` (r, in).

    The rows of all deltas, of the merged one too, lie in the span of the adapters' right factors, of which `shared` is
    an orthonormal basis: r is the sum of the ranks. The factors are computed in float64 and given in float32.
    """

    merged: MergeDelta | KeptDelta
    experts: tuple[LoadDelta, ...]
    owners: tuple[tuple[str, int], ...]  # (owner, index of its donor in `experts`); -1 for the base
    scale: float  # of the merged delta

    def arguments(self) -> dict[str, Task]:
        return {"merged": self.merged, **{str(i): delta for i, delta in enumerate(self.experts)}}

    def uses_accelerator(self) -> bool:
        return True

    def execute(self, merged: TaskVector, **deltas: TaskVector) -> dict[str, torch.Tensor]:
        experts = [deltas[str(i)] for i in range(len(deltas))]
        rights = torch.cat([delta.right.double() for delta in experts if delta.right is not None])
        basis = torch.linalg.qr(rights.T).Q.T

        def in_basis(delta: TaskVector) -> torch.Tensor:
            """(out, r) the left factor of a delta whose right factor is the basis."""
            assert delta.right is not None
            return delta.left.double() @ (delta.right.double() @ basis.T)

        text = in_basis(merged) * self.scale
        lefts = {owner: (in_basis(experts[i]) - text if i >= 0 else -text) for owner, i in self.owners}
        return {"shared": basis.float(), **{f"media.{owner}": left.float() for owner, left in lefts.items()}}
