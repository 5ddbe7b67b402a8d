"""Tensors with which no merge may compute: integers that are no buffers, and factors of products in a model.

They are kept where all inputs agree on them, which is found out while planning by reading them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mergekit_mm.checkpoints.listing import indented
from mergekit_mm.checkpoints.quantization import is_index
from mergekit_mm.checkpoints.wrapping import is_factor
from mergekit_mm.plan.gathering import Job
from mergekit_mm.plan.inputs import Inputs
from mergekit_mm.tasks.reading import SOURCES, read_tensor, without_adapter


class Constants:
    """The constants of one merge."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs
        self._kept: list[str] = []  # integers
        self._differing: dict[bool, list[str]] = {True: [], False: []}  # whether they are factors -> their names

    def holds(self, job: Job) -> bool:
        """Whether an output tensor is a constant; all inputs that have it are then held against each other."""
        if len(job.held) < 2:
            return False
        tensors = {model: self.inputs.checkpoints[model].tensors[name] for model, name in job.held.items()}
        meta_model = self.inputs.base_checkpoint.meta_model
        factor = meta_model is None and is_factor(job.info.name)
        integer = any(not info.dtype.is_floating_point for info in tensors.values())
        known = is_index(job.info.name) or (meta_model is not None and job.info.name in meta_model.buffers)
        if not factor and (not integer or known):
            return False
        places = {without_adapter(model): name for model, name in job.held.items()}
        adapted = any(SOURCES[model].adapts(name) for model, name in job.held.items())
        if not adapted and len(places) > 1 and any(SOURCES[m].checkpoint.is_headers_only for m in places):
            return True  # taken for equal: whether that is so, the merge finds out
        values = (read_tensor(model, name) for model, name in places.items())
        first = next(values)
        if adapted or any(not _same(first, other) for other in values):
            self._differing[factor].append(job.name)
        elif not factor:
            self._kept.append(job.name)
        return True

    def note(self) -> str:
        """What is kept, if anything is."""
        if not self._kept:
            return ""
        return (
            f"Integers, of which no merge can be made, are equal in all inputs and kept:{indented(self._kept, '    ')}"
        )

    def problems(self) -> Iterator[str]:
        """What makes the merge impossible."""
        if factors := self._differing[True]:
            yield (
                f"{len(factors)} factors of low-rank layers that belong to the model differ between the inputs. It has "
                "the products of pairs, and merged factors do not give merged products. Give each input the same "
                f"ones:{indented(factors, '    ')}"
            )
        if integers := self._differing[False]:
            yield (
                f"{len(integers)} tensors of integers, of which no merge can be made, differ between the inputs. "
                "Packed or quantized weights look so: merge the unquantized checkpoints. Else give each input the same "
                f"ones:{indented(integers, '    ')}"
            )


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
