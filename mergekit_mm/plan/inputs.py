"""The inputs of one merge, matched to each other tensor by tensor, before any of them is read."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from mergekit.common import ModelReference

from mergekit_mm.checkpoints.adapters.binding import Adaptation
from mergekit_mm.checkpoints.checkpoint import Checkpoint, TensorInfo
from mergekit_mm.checkpoints.matching import Match
from mergekit_mm.plan.beside import OwnAdapter, unused_beside
from mergekit_mm.plan.omni.composition import Composition


@dataclass(frozen=True, eq=False)
class Inputs:
    """All checkpoints of a merge. Names are those that the output has in memory: the base's."""

    base: ModelReference  # its layout, config and side files are the output's
    checkpoints: Mapping[ModelReference, Checkpoint]  # of a model with an adapter, that of the model alone
    adaptations: Mapping[ModelReference, Adaptation]
    tensors: Mapping[str, TensorInfo]  # of the output, before slices
    names: Mapping[ModelReference, Mapping[str, str]]  # model -> name of an output tensor -> the model's own in memory
    notes: Sequence[str]  # what is done on purpose but may surprise
    matches: Mapping[ModelReference, Sequence[Match]]
    problems: Sequence[str] = ()  # other problems, reported together with those of the matches
    copies: Mapping[str, str] = field(default_factory=dict)  # tensor that is not merged by itself -> the one it equals
    own_adapter: OwnAdapter | None = None  # the adapter that the output gets unchanged

    def without_place(self) -> Iterator[tuple[ModelReference, str, list[str]]]:
        """Input, reason and names in memory of what it holds and the output has no place for, once that is settled."""
        for model, matches in self.matches.items():
            for match in matches:
                yield from ((model, why, names) for why, names in match.unused.items())

    def unused_beside(self, copied: Collection[str]) -> Iterator[str]:
        """Lines for what lies beside the tensors and is not used; `copied` are the other files of the output."""
        return unused_beside(self.checkpoints, self.adaptations, self.own_adapter, copied)

    @property
    def directories(self) -> list[Path]:
        """Where the inputs are, adapters among them."""
        adapters = [found.adapter.directory for found in self.adaptations.values()]
        return [*(checkpoint.directory for checkpoint in self.checkpoints.values()), *adapters]

    def place(self, model: ModelReference) -> tuple[Path, ...]:
        """What an input is, whatever name it was given."""
        adapters = [self.adaptations[model].adapter.directory] if model.lora else []
        return tuple(path.resolve() for path in (self.checkpoints[model].directory, *adapters))

    def plain(self, model: ModelReference) -> ModelReference:
        """The model of an input without its adapter, under the first name that its directory was given."""
        return self._plain[model] if model.lora else model

    @cached_property
    def _plain(self) -> Mapping[ModelReference, ModelReference]:
        first: dict[Path, ModelReference] = {}
        return {
            model: first.setdefault(checkpoint.directory.resolve(), model.model_copy(update={"lora": None}))
            for model, checkpoint in self.checkpoints.items()
        }

    def adapts(self, model: ModelReference, tensor: str) -> bool:
        """Whether an input's adapter changes a tensor, by the input's own name in memory."""
        return model in self.adaptations and self.adaptations[model].changes(tensor)

    def adapter_rank(self, model: ModelReference, tensor: str) -> int | None:
        """As `Adaptation.rank`; 0 for a model without an adapter."""
        return self.adaptations[model].rank(tensor) if model in self.adaptations else 0

    def is_widened(self, model: ModelReference, tensor: str) -> bool:
        """Whether an input gives a tensor in float32 or wider, as an adapter has been applied to it."""
        return self.adapts(model, tensor) or self.checkpoints[model].is_folded(tensor)

    @property
    def widens(self) -> bool:
        """Whether any input gives tensors in float32 or wider, as an adapter has been applied to them."""
        folded = any(t.is_folded for checkpoint in self.checkpoints.values() for t in checkpoint.disk.values())
        return folded or bool(self.adaptations)

    @property
    def base_checkpoint(self) -> Checkpoint:
        return self.checkpoints[self.base]

    def row_donors(self, _tensor: str) -> dict[ModelReference, str]:
        """Models whose rows fill in for rows that others lack, with their names for a tensor that token ids index."""
        return {}

    def source_model(self, _tensor: str) -> ModelReference:
        """The model whose tensor one of the output is, or is like, where the config does not say otherwise."""
        return self.base


@dataclass(frozen=True, eq=False)
class OmniInputs(Inputs):
    """The donors of an omni model. Names are the omni model's, `base` is its host, `tensors` are those of the whole."""

    composition: Composition = field(kw_only=True)

    def row_donors(self, tensor: str) -> dict[ModelReference, str]:
        """All models that have a tensor of the omni model; those that it is composed of first.

        A vocabulary needs the rows of each, also if it takes no part in a merge of them: it may have tokens of its own.
        """
        parts = (self.composition.host, *self.composition.guests.values())
        return {m: self.names[m][tensor] for m in dict.fromkeys((*parts, *self.names)) if tensor in self.names[m]}

    def source_model(self, tensor: str) -> ModelReference:
        """The donor that leads those of the same architecture."""
        return self.composition.source_model(tensor)


def as_written(model: ModelReference) -> str:
    """An input's name as in the config: a model with an adapter in its own directory is written without that."""
    return str(model.model) if is_embedded(model) else str(model)


def is_embedded(model: ModelReference) -> bool:
    """Whether an adapter lies in the directory of its model: then the two together are a fine-tune of their own."""
    return model.lora == model.model
