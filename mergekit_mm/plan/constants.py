"""Tensors with which no merge may compute: integers that are no buffers, and factors of products in a model.

They are kept where all inputs agree on them, which is found out while planning by reading them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from mergekit.common import ModelReference

from mergekit_mm.checkpoints.checkpoint import TensorInfo
from mergekit_mm.checkpoints.listing import indented
from mergekit_mm.checkpoints.quantization import is_index
from mergekit_mm.checkpoints.values import read_tensor
from mergekit_mm.checkpoints.wrapping import is_factor
from mergekit_mm.plan.inputs import Inputs


@dataclass(frozen=True, eq=False)
class Constants:
    """The constants of one merge, as they are found."""

    inputs: Inputs
    kept_integers: list[str] = field(default_factory=list)
    differing_integers: list[str] = field(default_factory=list)
    differing_factors: list[str] = field(default_factory=list)

    def holds(self, name: str, info: TensorInfo, held: Mapping[ModelReference, str]) -> bool:
        """Whether an output tensor is a constant; all inputs that have it are then compared with each other.

        held: the inputs that have the tensor -> their own names for it.
        """
        if len(held) < 2:
            return False
        tensors = {model: self.inputs.checkpoints[model].tensors[own] for model, own in held.items()}
        meta_model = self.inputs.base_checkpoint.meta_model
        factor = meta_model is None and is_factor(info.name)
        integer = any(not each.dtype.is_floating_point for each in tensors.values())
        known = is_index(info.name) or (meta_model is not None and info.name in meta_model.buffers)
        if not factor and (not integer or known):
            return False
        places = {self.inputs.plain(model): (self.inputs.checkpoints[model], own) for model, own in held.items()}
        adapted = any(self.inputs.adapts(model, own) for model, own in held.items())
        if not adapted and len(places) > 1 and any(checkpoint.is_headers_only for checkpoint, _ in places.values()):
            return True  # The values are not here: the merge finds out whether they are equal.
        values = (read_tensor(checkpoint, own) for checkpoint, own in places.values())
        first = next(values)
        if adapted or any(not _same(first, other) for other in values):
            (self.differing_factors if factor else self.differing_integers).append(name)
        elif not factor:
            self.kept_integers.append(name)
        return True

    def note(self) -> str:
        """A sentence on what is kept; empty if nothing is."""
        if not self.kept_integers:
            return ""
        names = indented(self.kept_integers, "    ")
        return f"Integers, of which no merge can be made, are equal in all inputs and kept:{names}"

    def problems(self) -> Iterator[str]:
        """What makes the merge impossible."""
        if factors := self.differing_factors:
            yield (
                f"{len(factors)} factors of low-rank layers that belong to the model differ between the inputs. It has "
                "the products of pairs, and merged factors do not give merged products. Give each input the same "
                f"ones:{indented(factors, '    ')}"
            )
        if integers := self.differing_integers:
            yield (
                f"{len(integers)} tensors of integers, of which no merge can be made, differ between the inputs. "
                "Packed or quantized weights look so: merge the unquantized checkpoints. Else give each input the same "
                f"ones:{indented(integers, '    ')}"
            )


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
