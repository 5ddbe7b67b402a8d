"""A plan compiled to mergekit's task graph: to a model on disk at any strength, or to its deltas over the base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from mergekit.common import ModelReference
from mergekit.graph import Task
from mergekit.options import MergeOptions
from mergekit.tokenizer import TokenizerInfo

from mergekit_mm.errors import MergeError
from mergekit_mm.methods import is_own_method
from mergekit_mm.methods.apply import AUTO, OWN_DELTA
from mergekit_mm.methods.declarations import WEIGHTED_SUMS, merges_deltas
from mergekit_mm.numerics.task_vector import TaskVector
from mergekit_mm.plan.merge_plan import MergePlan, OmniPlan
from mergekit_mm.plan.outputs import OutputTensor, Piece
from mergekit_mm.plan.parts import tensor_of
from mergekit_mm.plan.tensor_plan import Average, Copy, Keep, Merge, Route, TensorPlan
from mergekit_mm.tasks.core_space import MergeInCore
from mergekit_mm.tasks.damc import SameTensor, SharedFactors
from mergekit_mm.tasks.deltas import AddDelta, Difference, Directions, KeptDelta, MergeDelta, RescaleDelta
from mergekit_mm.tasks.found_scalings import FoundScalings
from mergekit_mm.tasks.measuring import MeasureDeltas
from mergekit_mm.tasks.merging import MergeTensors
from mergekit_mm.tasks.reading import InputTasks
from mergekit_mm.tasks.solutions import Solutions
from mergekit_mm.tasks.writing import CastTensor, ConvertToDisk, PickTensor


class Compiler:
    """Makes the tasks of one plan. Nothing is decided here, and only indexes of files are read.

    sweep: whether the model is written at several strengths. Merged tensors then stay in float32 until they are
    scaled, and equal tasks of all strengths are run once.
    shared_rank: adapters are merged in the coordinates of bases of this rank that they share.
    solutions: where what the methods of this package make of deltas is kept, for merges that differ in strength alone.
    """

    def __init__(
        self,
        plan: MergePlan,
        options: MergeOptions,
        sweep: bool = False,
        shared_rank: int | None = None,
        solutions: Solutions | None = None,
    ) -> None:
        self.plan, self.options, self.sweep, self.shared_rank = plan, options, sweep, shared_rank
        self.solutions = solutions
        self.inputs, self.config = plan.inputs, plan.config
        self.reads = InputTasks(plan, options, sweep)
        self.found_scalings = FoundScalings()  # of tensors with `scaling: auto`, filled when tasks are run
        self._tasks: dict[tuple[str, float], Task] = {}  # (output tensor, strength) -> the task that makes it

    @cached_property
    def new_vocabulary(self) -> TokenizerInfo | None:
        """The vocabulary of the config's tokenizer section, built when first asked for; None without such a section."""
        return self.reads.vocabulary.execute() if self.reads.vocabulary else None

    @property
    def given(self) -> dict[Task, Any]:
        """Results that are there before any task is run."""
        return {self.reads.vocabulary: self.new_vocabulary} if self.reads.vocabulary else {}

    # ------------------------------------------------------------------------------------------ to a model

    def to_model(self, scale: float = 1.0) -> dict[str, Task[torch.Tensor]]:
        """Name -> the task that makes a tensor as it is written, with every merged delta times `scale`.

        The names are those of `MergePlan.made`: those on disk, or parts of stacks.
        """
        return {output.name: self._cast(self._piece(output, scale), output.like.dtype) for output in self.plan.made}

    def to_memory(self) -> dict[str, Task[torch.Tensor]]:
        """Name in memory -> the task that makes a tensor of the model, as a merge writes it; copies are left out."""
        if isinstance(self.plan, OmniPlan):  # whose names on disk are those in memory
            return {out.name: self._cast(self._piece(out, 1.0), out.like.dtype) for out in self.plan.outputs}
        return {tensor.name: self.written(tensor) for tensor in self.plan.merged_tensors}

    def written(self, tensor: TensorPlan) -> Task[torch.Tensor]:
        """The task that makes one planned tensor in the dtype in which a merge writes it."""
        return self._cast(self._tensor(tensor, 1.0), tensor.info.dtype)

    def _cast(self, task: Task, stored: torch.dtype) -> Task:
        """A task in the dtype that the config asks for, else in the one in which the layout's model stores the tensor.

        So the plan knows the dtype of what is written, whatever a method computes in. Integers stay what they are.
        """
        if not stored.is_floating_point:
            return task
        return CastTensor(tensor=task, dtype=self.config.out_dtype or self.config.dtype or _name_of(stored))

    def _piece(self, output: OutputTensor, scale: float) -> Task:
        """The task that makes one tensor on disk, before its cast."""
        tensor = tensor_of(self.plan, output, output.tensor)
        if output.piece is Piece.CONVERTED:
            base = self.inputs.base_checkpoint
            names = base.group_of[output.tensor].memory
            merged = tuple((name, self._tensor(tensor_of(self.plan, output, name), scale)) for name in names)
            back = ConvertToDisk(checkpoint=base, tensor=output.tensor, merged=merged, part=output.part)
            return PickTensor(group=back, key=output.whole or output.name)
        if output.piece is Piece.OWNER:
            return self._owners_tensor(tensor, output.owner, scale)
        if output.piece is Piece.BASIS:
            return PickTensor(group=self._factors(tensor, scale), key="shared")
        if output.piece is Piece.FACTOR:
            return PickTensor(group=self._factors(tensor, scale), key=f"media.{output.owner}")
        return self._tensor(tensor, scale)

    def _tensor(self, tensor: TensorPlan, scale: float) -> Task:
        """The task that makes one planned tensor, made once for each strength."""
        if (tensor.name, scale) not in self._tasks:
            self._tasks[tensor.name, scale] = self._compile(tensor, scale)
        return self._tasks[tensor.name, scale]

    def _compile(self, tensor: TensorPlan, scale: float) -> Task:
        """The task for the action of a tensor; of a route, the task of the shared tensor."""
        match tensor.action:
            case Copy(of):
                return self._tensor(self.plan[of], scale)
            case Route(_, _, 0):
                return self._common_base(tensor)
            case Route(_, _, int()):
                return self._add(tensor, self._common_base(tensor), scale)
        match tensor.shared_action:
            case Keep(model):
                return self.reads.one(tensor, model)
            case Average():
                return self._average(tensor)
            case _:
                return self._merge(tensor, scale)

    def _merge(self, tensor: TensorPlan, scale: float) -> Task:
        """The task of the merge method: a method of this package adds a delta, one of mergekit makes the whole tensor.

        A sum of adapters by a method of mergekit is also added as a delta, one pair of factors: then no adapted copy of
        the base's tensor is made.
        """
        dtype = self.reads.dtype(tensor, tensor.inputs)
        is_sum = self.config.merge_method in WEIGHTED_SUMS and merges_deltas(self.config.merge_method)
        adapters = self._adapters_of(tensor, tensor.base)
        if is_own_method(self.config.merge_method) or (is_sum and adapters and len(adapters) == len(tensor.experts)):
            assert tensor.base is not None
            return self._add(tensor, self.reads.one(tensor, tensor.base, dtype), scale)
        action = tensor.shared_action
        if isinstance(action, Merge) and action.in_core:
            assert tensor.base is not None
            base = self.reads.one(tensor, tensor.base, dtype)
            return AddDelta(base=base, delta=self._delta_in_core(tensor), scale=scale)
        merged = self._by_host(tensor, self.reads.together(tensor, tensor.inputs, dtype))
        if not self.sweep or tensor.base is None or tensor.base not in tensor.inputs:
            return merged
        return RescaleDelta(base=self.reads.one(tensor, tensor.base, dtype), merged=merged, scale=scale)

    def _by_host(self, tensor: TensorPlan, gather: Task) -> MergeTensors:
        """The task of a method of mergekit, on the tensors that `gather` gives."""
        return MergeTensors(
            method_name=self.config.merge_method,
            gather_tensors=gather,
            model_order=tuple(tensor.inputs),
            parameters=tensor.parameters,
            input_parameters=tensor.input_parameters,
            base_model=tensor.base,
            output_weight=self.reads.weight(tensor),
            seed=self._seed,
        )

    def _delta_in_core(self, tensor: TensorPlan) -> MergeInCore:
        """The task that makes the merged delta of adapters in their joint core."""
        assert tensor.base is not None
        experts = tuple(tensor.experts)
        gather = self.reads.together(tensor, experts, None, experts)
        return MergeInCore(
            tensors=gather,
            merging=self._by_host(tensor, gather),
            base=tensor.base,
            experts=experts,
            shared_rank=self.shared_rank,
        )

    def _add(self, tensor: TensorPlan, base: Task, scale: float) -> AddDelta:
        """The task that adds the merged delta, times its scaling and the strength, to the result of `base`."""
        assert tensor.base is not None
        delta, own_scale = self._unscaled(tensor)
        return AddDelta(base=base, delta=delta, scale=own_scale * scale)

    def _unscaled(self, tensor: TensorPlan) -> tuple[MergeDelta | KeptDelta, float]:
        """The task that makes the merged delta of one tensor, and the factor by which the output's delta is a multiple.

        The factor is the tensor's scaling, unless the experts' own deltas are added, which that does not multiply.
        """
        assert tensor.base is not None
        if _own_deltas(tensor):
            return self._kept(self._delta(tensor, tensor.base, _scaling(tensor))), 1.0
        return self._kept(self._delta(tensor, tensor.base)), _scaling(tensor)

    def _kept(self, delta: MergeDelta) -> MergeDelta | KeptDelta:
        """The task for a delta that is kept among the solutions, if there are any; a weighted sum is made anew."""
        return delta if self.solutions is None or delta.weights else KeptDelta.of(delta, self.solutions)

    def _average(self, tensor: TensorPlan) -> Task:
        experts = tensor.experts
        return MergeTensors(
            method_name="linear",
            gather_tensors=self.reads.together(tensor, experts, self.reads.dtype(tensor, experts)),
            model_order=tuple(experts),
            parameters={"normalize": True},
            input_parameters={model: {"weight": 1.0} for model in experts},
            base_model=None,
            output_weight=self.reads.weight(tensor),
        )

    # ------------------------------------------------------------------------------------------- to deltas

    def to_deltas(self) -> dict[str, Task[TaskVector | None]]:
        """Name in memory -> the task that gives the delta of a tensor over the base; unchanged tensors are left out.

        Raises:
            MergeError: the merge changes its base in ways that are no deltas.
        """
        if isinstance(self.plan, OmniPlan):
            raise MergeError(
                "These inputs make an omni model, and no adapter can hold towers: write it by mergekit-yaml."
            )
        if self.reads.vocabulary is not None:
            raise MergeError("An adapter cannot change a vocabulary: leave the tokenizer section out.")
        if self.plan.layers is not None:
            raise MergeError(
                "An adapter cannot move layers: leave `slices` out, or let them keep every layer in place."
            )
        tasks = {tensor.name: self._delta_over_layout(tensor) for tensor in self.plan.merged_tensors}
        return {name: task for name, task in tasks.items() if task is not None}

    def _delta_over_layout(self, tensor: TensorPlan) -> Task[TaskVector | None] | None:
        """The task that gives the delta of a tensor over the layout's; None if that is not changed."""
        over, action = self.inputs.plain(self.inputs.base), tensor.shared_action
        if isinstance(action, Keep) and self.inputs.plain(action.model) == over:
            own = tensor.inputs[action.model]
            changes = self.inputs.adapts(action.model, own)
            return self.reads.reader.delta(action.model, own, self.reads.label(tensor)) if changes else None
        if isinstance(action, Merge) and action.in_core:
            return self._delta_in_core(tensor)
        is_sum = isinstance(action, Average) or self.config.merge_method in WEIGHTED_SUMS
        if isinstance(action, Keep) or not (is_sum or merges_deltas(self.config.merge_method)):
            # The tensor comes from another model, or its method looks at more than deltas.
            return Difference(merged=self._tensor(tensor, 1.0), base=self.reads.base_tensor(tensor))
        return self._delta(tensor, over, _scaling(tensor))

    def directions(self, tensor: TensorPlan, dtype: str, merged: bool) -> Directions:
        """The task that gives the base's tensor, and the experts' deltas over it.

        dtype: of deltas that are no factors. merged: whether the merged delta times its scaling is made too.

        Raises:
            MergeError: the base is a model with an adapter.
        """
        assert tensor.base is not None
        if tensor.base.lora:
            raise MergeError(f"The deltas of a merge over {tensor.base}, a model with an adapter, are not to be had.")
        delta = self._delta(tensor, tensor.base, _scaling(tensor))
        return Directions(
            base=self.reads.one(tensor, tensor.base),
            tensors=delta.tensors,
            experts=delta.experts,
            merged=delta if merged else None,
            dtype=dtype,
        )

    def measured(
        self, tensor: TensorPlan, measure: Callable[[torch.Tensor, Sequence[TaskVector]], Any]
    ) -> MeasureDeltas:
        """The task that gives what `measure` makes of the base's tensor and of the task vectors of `tensor.experts`.

        Whatever the action is: also what a merge keeps at the base may have been changed by experts. The base has to
        have the tensor.
        """
        assert tensor.base is not None
        experts = tuple(tensor.experts)
        return MeasureDeltas(
            base=self.reads.one(tensor, tensor.base),
            tensors=self.reads.together(tensor, experts, None, self._adapters_of(tensor, tensor.base)),
            experts=experts,
            base_model=tensor.base,
            name=tensor.name,
            measure=measure,
        )

    # ---------------------------------------------------------------------------------------------- deltas

    def _delta(self, tensor: TensorPlan, over: ModelReference, scaling: float = 1.0) -> MergeDelta:
        """The task that makes the merged delta of one tensor over a model, whose adapters stay factors.

        scaling: that of the merged delta, where `AddDelta` does not apply it.
        """
        averages = isinstance(tensor.shared_action, Average)
        base = None if averages else tensor.base
        inputs = tensor.experts if averages else list(tensor.inputs)
        experts = [model for model in inputs if model != base]
        adapters = self._adapters_of(tensor, over)
        # The tensor of `over` is read only where some input is more than an adapter of it.
        reads_over = over in experts or any(model not in adapters for model in inputs if model != over)
        reads = [model for model in inputs if model in adapters or reads_over]
        tensors = self.reads.together(tensor, reads, None, adapters, over if reads_over and over not in reads else None)
        is_own = is_own_method(self.config.merge_method) and not averages
        parameters = {name: value for name, value in tensor.parameters.items() if name != "scaling"}
        return MergeDelta(
            tensors=tensors,
            method=self.config.merge_method,
            experts=tuple(experts),
            base=base,
            over=over,
            parameters=parameters if is_own else {},
            weights=() if is_own else self._weights(tensor, experts),
            scaling=scaling,
            shared_rank=self.shared_rank,
            found=self.found_scalings if is_own and tensor.parameters.get("scaling") == AUTO else None,
            own=_own_deltas(tensor) if is_own else (),
            name=tensor.name,
            as_vector=tensor.info.is_convolution,
            seed=self._seed,
        )

    def _weights(self, tensor: TensorPlan, experts: Sequence[ModelReference]) -> tuple[float, ...]:
        """The factors of the experts' deltas in a weighted sum.

        Raises:
            MergeError: the sum is one of the inputs themselves, and its weights scale the base.
        """
        if isinstance(tensor.shared_action, Average):
            return (1 / len(experts),) * len(experts)
        weighted_sum = WEIGHTED_SUMS[self.config.merge_method]
        models = experts if weighted_sum.over_base else list(tensor.inputs)
        weights_in_config = [tensor.input_parameters[model]["weight"] for model in models]
        weights = dict(zip(models, weighted_sum.weights(tensor.parameters, weights_in_config), strict=True))
        if not weighted_sum.over_base and abs((total := sum(weights.values())) - 1.0) > 1e-6:
            raise MergeError(
                f"The weights of this {self.config.merge_method} merge add up to {total:g}, which scales the base "
                "itself; no adapter can. Let them add up to 1, or leave `normalize` on."
            )
        return tuple(weights[model] for model in experts)

    def _adapters_of(self, tensor: TensorPlan, over: ModelReference | None) -> tuple[ModelReference, ...]:
        """The inputs whose delta over a model is that of an adapter, read without a subtraction; none for integers."""
        if over is None or over.lora or self.reads.rows_move(tensor) or not tensor.info.dtype.is_floating_point:
            return ()
        if isinstance(tensor.action, Route) and tensor.action.rank is not None:
            return tuple(tensor.experts)  # Their models have the tensor of the base, which `_common_base` checks.
        return tuple(model for model in tensor.inputs if model.lora and self.inputs.plain(model) == over)

    # ------------------------------------------------------------------------------------------------ DAMC

    def _common_base(self, tensor: TensorPlan) -> SameTensor:
        """The task that reads the base's tensor, and checks that the models under all adapters have the same."""
        assert tensor.base is not None
        dtype, label = self.reads.dtype(tensor, tensor.inputs), self.reads.label(tensor)
        base, *others = (
            self.reads.reader.plain(model, tensor.inputs[model], label, dtype)
            for model in (tensor.base, *tensor.experts)
        )
        return SameTensor(base=base, others=tuple(zip(map(str, tensor.experts), others, strict=True)))

    def _owners_tensor(self, tensor: TensorPlan, owner: str, scale: float) -> Task:
        """The whole tensor of an owner: its donor's; without a route to whole tensors, the shared one."""
        if not isinstance(tensor.action, Route) or tensor.action.rank is not None:
            return self._tensor(tensor, scale)
        merges = isinstance(tensor.action.shared, Merge)
        donor = dict(tensor.action.owners)[owner]
        return self.reads.one(tensor, donor, self.reads.dtype(tensor, tensor.inputs) if merges else None)

    def _factors(self, tensor: TensorPlan, scale: float) -> SharedFactors:
        """The factors of all owners of a matrix, which are computed together."""
        assert isinstance(tensor.action, Route)
        assert tensor.base is not None
        experts, label = tensor.experts, self.reads.label(tensor)
        deltas = tuple(self.reads.reader.delta(model, tensor.inputs[model], label) for model in experts)
        owners = tuple((o, experts.index(d) if d in experts else -1) for o, d in tensor.action.owners)
        merged, own_scale = self._unscaled(tensor)
        return SharedFactors(merged=merged, experts=deltas, owners=owners, scale=own_scale * scale)

    @property
    def _seed(self) -> int:
        return self.options.random_seed or 0


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _scaling(tensor: TensorPlan) -> float:
    """The `scaling` of a method of the plugin; 1 for a method that has none, and for `auto`, which is in the delta."""
    scaling = tensor.parameters.get("scaling", 1.0)
    return 1.0 if scaling == AUTO else float(scaling)


def _own_deltas(tensor: TensorPlan) -> tuple[float, ...]:
    """The `own_delta` of each expert, for a method of the plugin; empty if all are zero."""
    shares = tuple(float(tensor.input_parameters.get(model, {}).get(OWN_DELTA, 0.0)) for model in tensor.experts)
    return shares if any(shares) else ()
