"""Rows of embeddings and heads of several models, laid out by the one vocabulary of an omni model."""

from __future__ import annotations

from pathlib import Path

import torch
from mergekit.common import ModelReference
from mergekit.graph import Task
from pydantic import InstanceOf

from mergekit_mm.plan.omni.vocabulary import Marker, Vocabulary
from mergekit_mm.tasks.step import Step


class UniteRows(Step[dict[ModelReference, torch.Tensor]]):
    """Tensors whose rows are tokens, laid out by the united vocabulary.

    A row that a model lacks is that of the first model that has it: a token of one donor alone then has that donor's
    row in all of them, and keeps it under any method. So does a marker that only its owner was trained on.
    """

    vocabulary: InstanceOf[Vocabulary]
    tensors: Task
    models: tuple[ModelReference, ...]  # The result has these; other inputs are read to fill rows that these lack.
    directories: tuple[tuple[ModelReference, str], ...]  # in the order in which missing rows are looked for
    markers: tuple[Marker, ...] = ()

    def arguments(self) -> dict[str, Task]:
        return {"tensors": self.tensors}

    def execute(
        self, tensors: dict[ModelReference, torch.Tensor], **_kwargs: object
    ) -> dict[ModelReference, torch.Tensor]:
        vocabulary = self.vocabulary
        rows = {m: vocabulary.rows(Path(d), len(tensors[m])) for m, d in self.directories if m in tensors}
        united = {}
        for model in self.models:
            first = tensors[model]
            result = first.new_zeros(vocabulary.size, *first.shape[1:])
            open_rows = torch.ones(vocabulary.size, dtype=torch.bool)
            for donor in (model, *rows):
                here = open_rows & (rows[donor] >= 0)
                result[here] = tensors[donor][rows[donor][here]].to(result)
                open_rows &= ~here
            for marker in self.markers:
                if model in marker.untrained and (row := rows[marker.owner][marker.token_id]) >= 0:
                    result[marker.token_id] = tensors[marker.owner][row].to(result)
            united[model] = result
        return united
