"""Constants, with which no merge may compute: tensors of integers that are no buffers, and factors of products.

A constant is kept if all inputs agree on it. They are read and compared while the merge is planned.
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
    """The constants of one merge. The lists of names grow while tensors are asked about."""

    inputs: Inputs
    kept_integers: list[str] = field(default_factory=list)
    differing_integers: list[str] = field(default_factory=list)
    differing_factors: list[str] = field(default_factory=list)

    def is_constant(self, name: str, info: TensorInfo, inputs: Mapping[ModelReference, str]) -> bool:
        """Whether an output tensor is a constant; the inputs that have it are then compared, and its name is noted.

        inputs: the inputs that have the tensor -> their own names for it.
        """
        if len(inputs) < 2:
            return False
        tensors = {model: self.inputs.checkpoints[model].tensors[own] for model, own in inputs.items()}
        meta_model = self.inputs.base_checkpoint.meta_model
        is_product_factor = meta_model is None and is_factor(info.name)
        is_integer = any(not each.dtype.is_floating_point for each in tensors.values())
        is_buffer = is_index(info.name) or (meta_model is not None and info.name in meta_model.buffers)
        if not is_product_factor and (not is_integer or is_buffer):
            return False
        stored = {self.inputs.plain(model): (self.inputs.checkpoints[model], own) for model, own in inputs.items()}
        adapted = any(self.inputs.adapts(model, own) for model, own in inputs.items())
        if not adapted and len(stored) > 1 and any(checkpoint.is_headers_only for checkpoint, _ in stored.values()):
            return True  # The values are not on this machine: the merge finds out whether they are equal.
        values = (read_tensor(checkpoint, own) for checkpoint, own in stored.values())
        first = next(values)
        if adapted or any(not _same(first, other) for other in values):
            (self.differing_factors if is_product_factor else self.differing_integers).append(name)
        elif not is_product_factor:
            self.kept_integers.append(name)
        return True

    def note(self) -> str:
        """A sentence on the integers that are kept; empty if there are none."""
        if not self.kept_integers:
            return ""
        names = indented(self.kept_integers, "    ")
        return f"Integers, of which no merge can be made, are equal in all inputs and kept:{names}"

    def problems(self) -> Iterator[str]:
        """A sentence on factors, and one on integers, that differ between the inputs and make the merge impossible."""
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
