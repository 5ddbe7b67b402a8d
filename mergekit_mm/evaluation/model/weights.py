"""Other weights for a model that is loaded, one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mergekit_mm.evaluation.model import internvl
from mergekit_mm.evaluation.model.mllm import MLLM


class Weights:
    """The parameters and saved buffers of a loaded model, under the names that they have in the whole checkpoint.

    Whole means: with the part of a model that speaks of which `mllm` does not load the rest, and for an InternVL in its
    original form, the names of that form.
    """

    def __init__(self, lm: MLLM) -> None:
        self._lm = lm
        self._held: dict[str, Tensor] = lm.model.state_dict()

    def put(self, name: str, tensor: Tensor) -> bool:
        """Write a tensor into the model, rounded to the dtype that it has there; False if the model does not hold it.

        Raises:
            ValueError: the tensor has another shape than the model's.
        """
        found = False
        for own, part in self._own(name, tensor):
            held = self._held.get(own)
            if held is None:
                continue
            if held.shape != part.shape:
                raise ValueError(f"{name} has the shape {tuple(part.shape)}; that of the model is {tuple(held.shape)}")
            with torch.no_grad():
                held.copy_(part)
            found = True
        return found

    def _own(self, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """A tensor of the checkpoint under the model's names; one with fused parts is several in the model."""
        if self._lm.is_original_internvl:
            yield from internvl.converted(iter([(name, tensor)]), self._lm.config).items()
        else:
            yield (name if name in self._held else name.removeprefix("thinker.")), tensor
