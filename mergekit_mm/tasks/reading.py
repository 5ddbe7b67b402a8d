"""The tasks that read the inputs of planned tensors: one or several together, in what dtype, with what rows moved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from mergekit.architecture import WeightInfo
from mergekit.common import ModelReference
from mergekit.graph import Task
from mergekit.options import MergeOptions
from mergekit.tokenizer.truncate import TruncatedVocabulary

from mergekit_mm.checkpoints.roles import Role
from mergekit_mm.methods import is_own_method
from mergekit_mm.plan.merge_plan import MergePlan, OmniPlan
from mergekit_mm.plan.tensor_plan import Average, TensorPlan
from mergekit_mm.tasks.loading import Reader
from mergekit_mm.tasks.rows import UniteRows
from mergekit_mm.tasks.sources import open_sources
from mergekit_mm.tasks.tokenizer import PermuteRows, vocabulary_builder
from mergekit_mm.tasks.writing import PickTensor


class InputTasks:
    """Makes the tasks that read what planned tensors are made of. Only indexes of files are read.

    `reader` makes those of single inputs, with rows as they are stored. `vocabulary` is the task that builds the
    vocabulary of the config's tokenizer section, None without such a section.

    sweep: whether the model is written at several strengths, for which inputs are read in float32.
    """

    def __init__(self, plan: MergePlan, options: MergeOptions, sweep: bool) -> None:
        self.plan, self.inputs, self.config, self.sweep = plan, plan.inputs, plan.config, sweep
        sources = open_sources(plan.inputs, options.lazy_unpickle)
        self.reader = Reader(sources, options.device if options.read_to_gpu else None)
        self.vocabulary = vocabulary_builder(plan.config, sources, options.trust_remote_code)

    def one(self, tensor: TensorPlan, model: ModelReference, dtype: str | None = None) -> Task:
        """The tensor of one input, with its rows moved if token ids index them and the merge moves rows."""
        if self.rows_move(tensor):
            return PickTensor(group=self.together(tensor, tensor.inputs, dtype), key=model)
        return self.reader.tensor(model, tensor.inputs[model], self.label(tensor), dtype, tensor.part)

    def together(
        self,
        tensor: TensorPlan,
        models: Iterable[ModelReference],
        dtype: str | None,
        deltas: Sequence[ModelReference] = (),
        layout: ModelReference | None = None,
    ) -> Task:
        """The tensors of several inputs together, with their rows moved as by `one`.

        deltas: inputs for which the change by their adapter is read instead of the tensor. layout: the key under which
        the result has the tensor of `base_tensor` too; None to leave it out.
        """
        models, label, axis = tuple(models), self.label(tensor), tensor.info.vocabulary_axis
        rows = self.inputs.row_donors(tensor.info.name) if axis is not None else {}
        names = rows or {model: tensor.inputs[model] for model in models}
        tasks: dict[ModelReference, Task] = {
            model: self.reader.delta(model, own, label)
            if model in deltas
            else self.reader.tensor(model, own, label, dtype, tensor.part)
            for model, own in names.items()
        }
        if layout is not None:
            tasks[layout] = self.base_tensor(tensor)
        gather = self.reader.gather(names, tasks, label, axis)
        if not self.rows_move(tensor):
            return gather
        if isinstance(self.plan, OmniPlan):
            omni = self.plan.inputs.composition
            return UniteRows(
                vocabulary=omni.vocabulary,
                tensors=gather,
                models=models,
                directories=tuple((model, str(self.inputs.checkpoints[model].directory)) for model in names),
                boundary_tokens=omni.boundary_tokens if tensor.info.role is Role.EMBEDDINGS else (),
            )
        if self.vocabulary is None:
            return TruncatedVocabulary(gather_tensors=gather, weight_info=self.weight(tensor))
        section = self.config.tokenizer
        return PermuteRows(
            gather_tensors=gather,
            tokenizer_task=self.vocabulary,
            tokens=(section.tokens if section else None) or {},
            pad_to_multiple_of=section.pad_to_multiple_of if section else None,
            base_model=self.config.base_model,
            vocabulary_axis=axis,
        )

    def rows_move(self, tensor: TensorPlan) -> bool:
        """Whether a tensor gets other rows than its inputs have, as token ids index them."""
        return self.plan.moves_rows and tensor.info.vocabulary_axis is not None

    def dtype(self, tensor: TensorPlan, models: Iterable[ModelReference]) -> str | None:
        """The dtype in which inputs are read: None, which is the stored one, for the plugin's methods.

        mergekit's methods compute in the dtype that they get. With adapters, and in a sweep, that is float32, as 16
        bits would drop much of the deltas.
        """
        if is_own_method(self.config.merge_method) and not isinstance(tensor.shared_action, Average):
            return None
        is_wide = self.sweep or any(self.inputs.is_widened(model, tensor.inputs[model]) for model in models)
        return "float32" if is_wide and self.config.dtype != "float64" else self.config.dtype

    def label(self, tensor: TensorPlan) -> str:
        """The base's name on disk for a tensor, which is the label of its tasks: mergekit runs them in that order."""
        group = self.inputs.base_checkpoint.group_of.get(tensor.info.name)
        return group.disk[0] if group else tensor.info.name

    def weight(self, tensor: TensorPlan) -> WeightInfo:
        """What mergekit's tasks know of a tensor."""
        return WeightInfo(name=tensor.name, vocabulary_axis=tensor.info.vocabulary_axis)

    def base_tensor(self, tensor: TensorPlan) -> Task[torch.Tensor]:
        """The task that reads the tensor under the deltas: that of the layout's model, without its adapter."""
        layout = self.inputs.base
        return self.reader.plain(
            layout, self.inputs.names[layout][tensor.info.name], self.label(tensor), part=tensor.part
        )
