"""Changes of tensors that an adapter names otherwise: parts of a fused tensor, and parameters without a module.

Single experts of a mixture are slices of two fused stacks, three projections may be one matrix, and PEFT adapts a
parameter without a module under the name of the module that holds it. Factors stay factors: a stack of E matrices
(E, out, in) has the factors (E, out, r) and (E, r, in). For a mixture of 128 experts (1536 x 2048 each) with rank 8 on
the gate and up projections, these take 29 MB in float32; the dense delta would take 1.6 GB.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from mergekit_mm.checkpoints.adapters.adapter import Adapter
from mergekit_mm.checkpoints.weight_names import Group
from mergekit_mm.numerics.low_rank import stacked_lora_delta
from mergekit_mm.numerics.task_vector import TaskVector


@dataclass(frozen=True, eq=False)
class Parts:
    """The change of a tensor that is made of several named parts, some of which an adapter changes."""

    adapter: Adapter
    group: Group
    target: str  # the group's own name for the tensor
    own: Mapping[str, str] = field(repr=False)  # a member of the group -> the adapter's name for it

    @property
    def needs_base(self) -> bool:
        return any(map(self.adapter.needs_base, self.own.values()))

    @property
    def touches_target(self) -> bool:
        """Whether the adapter changes this tensor, of all tensors that the group makes."""
        if len(self.group.memory) == 1 or (rows := self._rows) is None:
            return True
        return any(self._members[i] in self.own for i in rows.member.unique().tolist())

    @property
    def rank(self) -> int | None:
        """The rank of the factors of a matrix; None for a stack, and where more than factors is added."""
        ranks = self._ranks
        return None if ranks is None or self._rows is None or self._rows.stacked else sum(ranks)

    @property
    def _ranks(self) -> list[int] | None:
        ranks = [self.adapter.rank(name) for name in self.own.values()]
        added = [rank for rank in ranks if rank is not None]
        return added if len(added) == len(ranks) else None

    @property
    def _members(self) -> list[str]:
        return list(self.group.disk)

    def task_vector(self, base: Tensor | None) -> TaskVector:
        """`Adapter.task_vector` of the whole tensor."""
        if self._ranks is not None and (rows := self._rows) is not None:
            return self._factored(rows)
        return TaskVector(self._dense(base))

    def _factored(self, rows: _Rows) -> TaskVector:
        """Each member's factors at the place of its rows in the tensor, with zeros everywhere else."""
        factors = {m: self.adapter.task_vector(name, None) for m, name in self.own.items()}
        members = self._members
        held = [[i for i in matrix.unique().tolist() if members[i] in factors] for matrix in rows.member]
        rank = max(sum(factors[members[i]].left.shape[1] for i in inside) for inside in held)
        width = next(iter(factors.values())).shape[1]
        left = torch.zeros(*rows.member.shape, rank)
        right = torch.zeros(len(held), rank, width)
        for matrix, inside in enumerate(held):
            start = 0
            for index in inside:
                b, a = factors[members[index]].left, factors[members[index]].right
                assert a is not None
                end = start + a.shape[0]
                at = (rows.member[matrix] == index).nonzero()[:, 0]
                left[matrix, at, start:end] = b[rows.row[matrix, at]].to(left)
                right[matrix, start:end] = a.to(right)
                start = end
        if rows.turned:
            left, right = right.mT.contiguous(), left.mT.contiguous()
        return TaskVector(left, right=right) if rows.stacked else TaskVector(left[0], right=right[0])

    def _dense(self, base: Tensor | None) -> Tensor:
        """The conversion of the members' deltas: conversions only move values, so that they are linear."""
        originals = self.group.to_disk({self.target: base}) if base is not None else {}
        deltas = {name: torch.zeros(shape) for name, shape in self.group.shapes.items()}
        for member, name in self.own.items():
            task_vector = self.adapter.task_vector(name, originals.get(member))
            deltas[member] = task_vector.dense(torch.float32).reshape(self.group.shapes[member])
        return self.group.to_memory(deltas)[self.target]

    @property
    def _rows(self) -> _Rows | None:
        """Follow the rows of the members through the conversion; None if it does more than move whole rows.

        The conversion is run on members of two columns whose elements are numbered, which shows where every row goes.
        """
        numbered, count = {}, 0
        starts = []
        for name, shape in self.group.shapes.items():
            if len(shape) != 2:
                return None
            starts.append(count)
            numbered[name] = torch.arange(2 * count, 2 * (count + shape[0])).reshape(-1, 2)
            count += shape[0]
        try:
            made = self.group.to_memory(numbered)[self.target]
        except Exception:  # operations may raise anything for shapes that they were not written for
            return None
        turned = not _are_rows(made)
        made = made.mT if turned else made
        if made.ndim not in (2, 3) or not _are_rows(made):
            return None
        found = made[..., 0] // 2
        begin, stacked = torch.tensor(starts), made.ndim == 3
        found = found if stacked else found[None]
        member = torch.bucketize(found, begin, right=True) - 1
        return _Rows(member, found - begin[member], stacked, turned)


class _Rows(NamedTuple):
    """Where each row of a converted tensor comes from. A tensor that is no stack counts as one matrix."""

    member: Tensor  # (matrices, rows): the number of the member that a row comes from
    row: Tensor  # (matrices, rows): the number of the row in that member
    stacked: bool
    turned: bool  # whether rows of members are columns of the tensor


def _are_rows(made: Tensor) -> bool:
    return made.shape[-1] == 2 and bool((made[..., 0] % 2 == 0).all() and (made[..., 1] == made[..., 0] + 1).all())


@dataclass(frozen=True, eq=False)
class BareParameter:
    """The change of a parameter without a module of its own (`target_parameters`), mostly a stack of experts.

    The factors of all matrices of a stack are in two matrices, see `stacked_lora_delta`.
    """

    adapter: Adapter
    own: str  # the adapter's name for it
    shape: tuple[int, ...]
    turned: bool  # whether the matrices of the stack are (in, out)
    scaling: float
    needs_base: bool = False

    @property
    def rank(self) -> int | None:
        """The rank of the factors of a matrix; None for a stack."""
        return self.adapter.factor_shapes(self.own)[0][0] if len(self.shape) == 2 else None

    def task_vector(self, _base: Tensor | None) -> TaskVector:
        """See `Adapter.task_vector`."""
        b, a = self.adapter.factors(self.own)
        if len(self.shape) == 2:
            return TaskVector(b * self.scaling, right=a)
        return stacked_lora_delta(a, b, self.scaling, self.shape[0], self.turned)
