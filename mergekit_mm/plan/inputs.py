"""The inputs of one merge, opened and matched to each other tensor by tensor; the values of tensors are not read."""

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
    """All checkpoints of a merge. Tensors go by the names that they have in the output's memory: the base's names."""

    base: ModelReference  # the input whose layout, config and side files the output has
    checkpoints: Mapping[ModelReference, Checkpoint]  # of a model with an adapter, that of the model alone
    adaptations: Mapping[ModelReference, Adaptation]  # of the inputs with an adapter
    tensors: Mapping[str, TensorInfo]  # of the output, before slices
    names: Mapping[ModelReference, Mapping[str, str]]  # model -> name of an output tensor -> the model's own in memory
    notes: Sequence[str]  # on steps that are taken on purpose but may surprise
    matches: Mapping[ModelReference, Sequence[Match]]
    problems: Sequence[str] = ()  # other problems, reported together with those of the matches
    copies: Mapping[str, str] = field(default_factory=dict)  # tensor that is not merged by itself -> the one it equals
    own_adapter: OwnAdapter | None = None  # the adapter that the output gets unchanged

    def tensors_without_place(self) -> Iterator[tuple[ModelReference, str, list[str]]]:
        """(input, reason, names in memory) of tensors without a place in the output, once the matches are judged."""
        for model, matches in self.matches.items():
            for match in matches:
                yield from ((model, why, names) for why, names in match.unused.items())

    def unused_beside(self, copied: Collection[str]) -> Iterator[str]:
        """Lines on unused files beside the tensors; `copied` are the files of the output beside its weights."""
        return unused_beside(self.checkpoints, self.adaptations, self.own_adapter, copied)

    @property
    def directories(self) -> list[Path]:
        """The directories of all inputs, and of the adapters on them."""
        adapters = [adaptation.adapter.directory for adaptation in self.adaptations.values()]
        return [*(checkpoint.directory for checkpoint in self.checkpoints.values()), *adapters]

    def identity(self, model: ModelReference) -> tuple[Path, ...]:
        """The resolved directories of a model and its adapter: equal for one input under two names."""
        adapters = [self.adaptations[model].adapter.directory] if model.lora else []
        return tuple(path.resolve() for path in (self.checkpoints[model].directory, *adapters))

    def plain(self, model: ModelReference) -> ModelReference:
        """The model of an input without its adapter, under the first name that its directory was given."""
        return self._plain[model] if model.lora else model

    @cached_property
    def _plain(self) -> Mapping[ModelReference, ModelReference]:
        first_name: dict[Path, ModelReference] = {}
        return {
            model: first_name.setdefault(checkpoint.directory.resolve(), model.model_copy(update={"lora": None}))
            for model, checkpoint in self.checkpoints.items()
        }

    def adapts(self, model: ModelReference, tensor: str) -> bool:
        """Whether an input's adapter changes a tensor, by the input's own name in memory."""
        return model in self.adaptations and self.adaptations[model].changes(tensor)

    def adapter_rank(self, model: ModelReference, tensor: str) -> int | None:
        """The rank of an input's adapter for a tensor, by `Adaptation.rank`; 0 for a model without an adapter."""
        return self.adaptations[model].rank(tensor) if model in self.adaptations else 0

    def is_widened(self, model: ModelReference, tensor: str) -> bool:
        """Whether an input gives a tensor in float32 or wider, as an adapter has been applied to it."""
        return self.adapts(model, tensor) or self.checkpoints[model].is_folded(tensor)

    @cached_property
    def widens(self) -> bool:
        """Whether any input gives tensors in float32 or wider, as an adapter has been applied to them."""
        folded = any(t.is_folded for checkpoint in self.checkpoints.values() for t in checkpoint.disk.values())
        return folded or bool(self.adaptations)

    @property
    def base_checkpoint(self) -> Checkpoint:
        return self.checkpoints[self.base]

    def row_donors(self, _tensor: str) -> dict[ModelReference, str]:
        """Models that give rows to a tensor indexed by token ids, where others lack them; with their names for it."""
        return {}

    def layout_model(self, _tensor: str) -> ModelReference:
        """The model in whose layout a tensor of the output is; kept tensors come from it if the base has none."""
        return self.base


@dataclass(frozen=True, eq=False)
class OmniInputs(Inputs):
    """The donors of an omni model. Names and tensors are those of the omni model, and `base` is its host."""

    composition: Composition = field(kw_only=True)

    def row_donors(self, tensor: str) -> dict[ModelReference, str]:
        """All models that have a tensor of the omni model, host and guests first.

        Also a model that takes no part in the merge of this tensor is needed: it may have tokens of its own.
        """
        in_order = dict.fromkeys((*self.composition.parts, *self.names))
        return {model: self.names[model][tensor] for model in in_order if tensor in self.names[model]}

    def layout_model(self, tensor: str) -> ModelReference:
        """The host or the guest in whose layout a tensor is."""
        return self.composition.part_with(tensor)


def name_in_config(model: ModelReference) -> str:
    """An input's name as the config has it: without the adapter, if that lies in the model's own directory."""
    return str(model.model) if is_embedded(model) else str(model)


def is_embedded(model: ModelReference) -> bool:
    """Whether an adapter lies in the directory of its model: the two together are then one fine-tune."""
    return model.lora == model.model
