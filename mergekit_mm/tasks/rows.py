"""Rows of embeddings and heads of several models, laid out by the one vocabulary of an omni model."""

from __future__ import annotations

from pathlib import Path

import torch
from mergekit.common import ModelReference
from mergekit.graph import Task
from pydantic import InstanceOf

from mergekit_mm.plan.omni.vocabulary import BoundaryToken, Vocabulary
from mergekit_mm.tasks.step import Step


class UniteRows(Step[dict[ModelReference, torch.Tensor]]):
    """Tensors that token ids index along axis 0, laid out by the united vocabulary; shapes (size, ...), dtypes as read.

    A row that a model lacks is that of the first model that has it: a token of one donor alone then has that donor's
    row in all models, and keeps it under any method. So does a boundary token that only its owner was trained on.
    """

    vocabulary: InstanceOf[Vocabulary]
    tensors: Task  # gives the tensors of all models in `directories`
    models: tuple[ModelReference, ...]  # the models in the result; others only give rows that these lack
    directories: tuple[tuple[ModelReference, str], ...]  # (model, directory), in the order in which they give rows
    boundary_tokens: tuple[BoundaryToken, ...] = ()

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
                filled = open_rows & (rows[donor] >= 0)
                result[filled] = tensors[donor][rows[donor][filled]].to(result)
                open_rows &= ~filled
            for token in self.boundary_tokens:
                if model in token.untrained and (row := rows[token.owner][token.token_id]) >= 0:
                    result[token.token_id] = tensors[token.owner][row].to(result)
            united[model] = result
        return united
